"""Which stamps have served."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from healer.config import Agent, Config
from healer.events import Ended
from healer.host import journal, stamps
from healer.host.journal import Replay
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


@pytest.mark.parametrize("durable", [True, False], ids=["cannot be stored", "is not stored yet"])
def test_the_journal_is_read_on_though_its_cursor_cannot_be_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    asked = []

    def ended_since(cursor: str | None, *_: object) -> Replay:
        asked.append(cursor)
        return Replay([], [], f"page {len(asked)}", more=True, gap=False)

    monkeypatch.setattr(journal, "ended_since", ended_since)
    # Its directory is not there.
    ends = Ends(Config(version=1, state_dir=str(tmp_path / "gone"), runtime_dir=str(tmp_path)))

    async def read() -> None:
        for _ in range(3):
            replay = await ends.journalled(frozenset())
            assert replay is not None
            assert replay.cursor is not None
            ends.read_up_to(replay.cursor, durable=durable)

    asyncio.run(read())
    assert asked == [None, "page 1", "page 2"]
    ends.close()
