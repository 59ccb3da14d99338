"""The lock of a switch, asked of the real kernel."""

import asyncio
import contextlib
import fcntl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from healer.host import nix, switch_lock
from healer.host.switch_lock import SwitchLock


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "lock"
    monkeypatch.setattr(nix, "SWITCH_LOCK", path)
    return path


@pytest.fixture
def lock() -> Iterator[SwitchLock]:
    with contextlib.closing(SwitchLock()) as lock:
        yield lock


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The answers that the kernel gives, as they are given."""
    answers = []
    ask = nix.is_locked

    def is_locked(path: Path) -> bool:
        answers.append(ask(path))
        return answers[-1]

    monkeypatch.setattr(nix, "is_locked", is_locked)
    return answers


def test_what_was_answered_before_the_last_question_is_not_told(
    path: Path, lock: SwitchLock, questions: list[bool]
) -> None:
    """An agent dies, and nobody wants to know; a switch begins, and stops another one."""

    async def asked() -> tuple[bool, bool]:
        lock.expect()
        while not questions:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            lock.expect()
            during = await lock.is_held()
        return during, await lock.is_held()

    assert asyncio.run(asked()) == (True, False)


def test_the_kernel_is_asked_only_after_somebody_opened_the_file(
    path: Path, lock: SwitchLock, questions: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switch_lock, "_DOUBT_MS", 200)

    async def times_asked() -> int:
        before = len(questions)
        for _ in range(5):
            assert not await lock.is_held()
        return len(questions) - before

    async def used() -> None:
        path.touch()
        assert await times_asked() == 5  # nobody knows who opened it before
        await asyncio.sleep(0.25)
        assert await times_asked() == 1
        path.with_name("another").touch()
        assert await times_asked() == 0
        with path.open() as file:
            # It was opened, and is not locked yet.
            assert await times_asked() == 5
            fcntl.flock(file, fcntl.LOCK_EX)
            assert await lock.is_held()
            await asyncio.sleep(0.25)
            assert await lock.is_held()
        # Who waited for it may be about to have it.
        assert await times_asked() == 5
        await asyncio.sleep(0.25)
        assert await times_asked() == 1
        monkeypatch.setattr(switch_lock, "_GOOD_MS", 0)
        assert await times_asked() == 5

    asyncio.run(used())


def test_a_lock_in_a_directory_made_anew_is_seen(
    path: Path, lock: SwitchLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switch_lock, "_DOUBT_MS", 0)
    path = path.parent / "nixos/lock"
    monkeypatch.setattr(nix, "SWITCH_LOCK", path)

    async def used() -> None:
        for number in range(3):
            assert not await lock.is_held()
            path.parent.mkdir()
            await asyncio.sleep(0.01)
            assert not await lock.is_held()
            with path.open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                assert await lock.is_held()
            assert not await lock.is_held()
            path.unlink()
            path.parent.rename(path.parent.with_name(f"gone-{number}"))

    asyncio.run(used())


def test_it_waits_for_no_name_that_is_looked_up(path: Path, lock: SwitchLock) -> None:
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
                    return await lock.is_held()
        finally:
            answered.set()

    assert asyncio.run(asked())
