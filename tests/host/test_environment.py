"""What is wrong with the host itself, read from the kernel's tables."""

from pathlib import Path

import pytest

from healer.host.environment import full, has_default_route

HEADER = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
DEFAULT = "eth0\t00000000\t0102A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
LOCAL = "eth0\t0002A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n"
ZERO = "0" * 32
DEFAULT_6 = f"{ZERO} 00 {ZERO} 00 fe80{'0' * 27}1 00000400 00000001 00000000 00000003    eth0\n"
UNREACHABLE_6 = f"{ZERO} 00 {ZERO} 00 {ZERO} ffffffff 00000001 00000000 00200200       lo\n"


@pytest.mark.parametrize(
    ("route", "ipv6_route", "found"),
    [
        (HEADER + LOCAL + DEFAULT, "", True),
        (HEADER + LOCAL, UNREACHABLE_6, False),
        (HEADER, UNREACHABLE_6 + DEFAULT_6, True),
        (HEADER + DEFAULT.replace("0003", "0203"), "", False),
        (None, None, False),
    ],
)
def test_a_default_route(
    tmp_path: Path, route: str | None, ipv6_route: str | None, found: bool
) -> None:
    for name, text in (("route", route), ("ipv6_route", ipv6_route)):
        if text is not None:
            (tmp_path / name).write_text(text)
    assert has_default_route(tmp_path) is found


def test_what_has_no_blocks_at_all_is_not_full_and_what_is_not_there_is_nothing() -> None:
    assert full(["/proc", "/proc/self", "/nowhere"]) == []
