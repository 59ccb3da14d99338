"""When a rollback may reboot the host."""

import pytest

from healer.config import RebootWindow, SafeSwitch
from healer.safeswitch.rebooting import in_words, may_reboot


@pytest.mark.parametrize("minute", [0, 60, 299, 300, 1439])
def test_never_and_at_once_do_not_look_at_the_clock(minute: int) -> None:
    assert not may_reboot(SafeSwitch(reboot="never"), minute)
    assert may_reboot(SafeSwitch(reboot="at-once"), minute)


@pytest.mark.parametrize(
    ("lower", "upper", "inside", "outside"),
    [
        ("01:00", "05:00", (60, 180, 299), (0, 59, 300, 720, 1439)),
        ("23:30", "00:30", (1410, 1439, 0, 29), (30, 720, 1409)),
        ("04:00", "04:00", (), (0, 239, 240, 241)),
    ],
)
def test_a_window_includes_its_lower_end_and_may_go_over_midnight(
    lower: str, upper: str, inside: tuple[int, ...], outside: tuple[int, ...]
) -> None:
    config = SafeSwitch(reboot="window", reboot_window=RebootWindow(lower=lower, upper=upper))
    assert all(may_reboot(config, minute) for minute in inside)
    assert not any(may_reboot(config, minute) for minute in outside)
    assert f"between {lower} and {upper}" in in_words(config)
