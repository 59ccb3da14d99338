"""Which stamps have served."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from healer.config import Agent, Config
from healer.events import Ended
from healer.host import stamps
from healer.watchdog.ends import Ends

ENDED = Ended(
    unit="web.service",
    invocation="",
    boot="a",
    result="signal",
    code="killed",
    status="KILL",
    start_uptime_ms=None,
    stop_uptime_ms=70_000,
    toplevel=None,
    memory=None,
    source="stamp",
)
KINDS: dict[str, tuple[str, ...]] = {"stamp": ("start", "stop"), "journal": ("start",)}


@pytest.fixture
def end(tmp_path: Path) -> Callable[[int, str], Ended]:
    """Ends a numbered run: as PID 1 does, or by a kill of its whole cgroup (``journal``)."""

    def end(number: int, source: str) -> Ended:
        ended = replace(ENDED, invocation=f"{number:032x}")
        for kind in KINDS[source]:
            (tmp_path / "stamps" / f"{ended.stamp.removesuffix('stop')}{kind}").touch()
        return ended

    (tmp_path / "stamps").mkdir()
    return end


@pytest.mark.parametrize("source", KINDS)
def test_a_recorded_end_leaves_nothing_in_run(
    tmp_path: Path, end: Callable[[int, str], Ended], source: str
) -> None:
    config = Config(version=1, agents={"web": Agent(unit=ENDED.unit)}, runtime_dir=str(tmp_path))
    ends, total = Ends(config), 0
    running = tmp_path / "stamps" / f"web.service.{'f' * 32}.start"
    running.touch()
    for number in range(200):
        ends.durable(end(number, source))
        if names := ends.to_remove():
            stamps.remove(tmp_path / "stamps", names)
            total += len(names)
            assert ends.to_remove() == []
    assert total >= 150
    left = {*(tmp_path / "stamps").iterdir()}
    assert running in left
    assert len(left) < 100
    ends.close()
