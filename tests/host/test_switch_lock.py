"""The lock of a switch, asked of the real kernel."""

import asyncio
import fcntl
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from healer.host import nix
from healer.host.switch_lock import SwitchLock


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "lock"
    monkeypatch.setattr(nix, "SWITCH_LOCK", path)
    return path


def test_what_was_answered_before_the_last_question_is_not_told(path: Path) -> None:
    """An agent dies, and nobody wants to know; a switch begins, and stops another one."""

    async def asked() -> tuple[bool, bool, bool]:
        lock = SwitchLock()
        before = await lock.ask()
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            lock.ask()
            during = await lock.is_held()
        return before, during, await lock.is_held()

    assert asyncio.run(asked()) == (False, True, False)


def test_it_waits_for_no_name_that_is_looked_up(path: Path) -> None:
    """Health checks by name take all of asyncio's threads where no name server answers."""

    async def asked() -> bool:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        answered = threading.Event()
        loop.run_in_executor(None, answered.wait)
        try:
            with path.open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                async with asyncio.timeout(60):
                    return await SwitchLock().is_held()
        finally:
            answered.set()

    assert asyncio.run(asked())
