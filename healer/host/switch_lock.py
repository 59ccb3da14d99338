"""Whether a switch holds its lock, asked of the kernel in a thread, and only when in doubt.

To read /proc/locks is to wait for a grace period of the kernel's RCU (percpu_down_write() in
fs/locks.c): some 10 ms, for which neither the loop nor a crash's entry is to wait. PID 1 waits for
another one whenever it starts a process, and the longer the more ask. So while nobody has opened
the lock's file since the kernel said that it is free, the kernel is not asked again.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from inotify_simple import INotify, flags

from healer.host import clock, nix

# Who looks, who records, and who acts can ask at a time.
_THREADS = 3
_OPENED = flags.OPEN | flags.CREATE | flags.MOVED_TO | flags.ONLYDIR
# Whoever opens the file takes the lock within this time, or is waiting for one who has it.
_DOUBT_MS = 10_000
# No answer is good for longer, whatever was seen.
_GOOD_MS = 60_000


class SwitchLock:
    """The lock of switch-to-configuration(8), for one event loop."""

    def __init__(self) -> None:
        # Its own: asyncio's look names up, and wait for long where no name server answers.
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="switch-lock")
        self._asked: asyncio.Future[bool] | None = None
        self._inotify: INotify | None = None
        self._watch: int | None = None
        self._doubt_until_ms = 0
        # When the question was asked that was last answered with no.
        self._free_ms: int | None = None

    def close(self) -> None:
        """Ask and watch nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._inotify is not None:
            self._inotify.close()

    def expect(self) -> None:
        """Begin to ask what ``is_held`` will answer next, if that has to be asked."""
        if not self._is_free():
            self._ask()

    async def is_held(self) -> bool:
        """Return whether a switch is under way, as of the question; each answer serves once."""
        if self._is_free():
            return False
        asked = self._ask() if self._asked is None else self._asked
        self._asked = None
        return await asked

    def _is_free(self) -> bool:
        """Whether nobody can have taken the lock since the kernel said that it is free."""
        now_ms = clock.uptime_ms()
        if self._was_opened():
            self._doubt_until_ms = now_ms + _DOUBT_MS
        if self._free_ms is None or self._free_ms <= self._doubt_until_ms:
            return False
        return now_ms < self._free_ms + _GOOD_MS

    def _was_opened(self) -> bool:
        """Whether anybody may have opened the file since the last call (inotify(7))."""
        try:
            if self._inotify is None:
                self._inotify = INotify(nonblocking=True)
            watch = self._inotify.add_watch(nix.SWITCH_LOCK.parent, _OPENED)
        except OSError:
            return True
        events = self._inotify.read(timeout=0)
        before, self._watch = self._watch, watch
        name = nix.SWITCH_LOCK.name
        return watch != before or any(
            event.name == name or event.mask & flags.Q_OVERFLOW for event in events
        )

    def _ask(self) -> "asyncio.Future[bool]":
        if self._asked is None or self._asked.done():
            loop = asyncio.get_running_loop()
            self._asked = loop.run_in_executor(self._threads, nix.is_locked, nix.SWITCH_LOCK)
            self._asked.add_done_callback(partial(self._answered, clock.uptime_ms()))
        return self._asked

    def _answered(self, asked_ms: int, answer: "asyncio.Future[bool]") -> None:
        if answer.cancelled() or answer.exception() is not None:
            return
        if answer.result():
            self._doubt_until_ms = clock.uptime_ms() + _DOUBT_MS
        else:
            self._free_ms = asked_ms
