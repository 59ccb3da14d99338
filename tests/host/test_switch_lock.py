"""The lock of a switch, asked of the real kernel."""

import asyncio
import fcntl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from healer.host import nix
from healer.host.switch_lock import SwitchLock


def test_what_was_answered_before_the_last_question_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent dies, and nobody wants to know; a switch begins, and stops another one."""
    path = tmp_path / "lock"
    monkeypatch.setattr(nix, "SWITCH_LOCK", path)

    async def asked() -> tuple[bool, bool, bool]:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        lock = SwitchLock()
        before = await lock.is_held()
        lock.ask()
        await loop.run_in_executor(None, bool)  # in its turn: that is answered now
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            lock.ask()
            during = await lock.is_held()
        return before, during, await lock.is_held()

    assert asyncio.run(asked()) == (False, True, False)
