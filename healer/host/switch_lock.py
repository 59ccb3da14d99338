"""Whether a switch holds its lock, asked of the kernel in a thread.

To read /proc/locks is to wait for a grace period of the kernel's RCU (percpu_down_write() in
fs/locks.c): some 10 ms, for which neither the loop nor a crash's entry is to wait.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from healer.host import nix

# Who looks, who records, and who acts can ask at a time.
_THREADS = 3


class SwitchLock:
    """The lock of switch-to-configuration(8), for one event loop."""

    def __init__(self) -> None:
        # Its own: asyncio's look names up, and wait for long where no name server answers.
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="switch-lock")
        self._asked: asyncio.Future[bool] | None = None

    def ask(self) -> "asyncio.Future[bool]":
        """Begin to ask what ``is_held`` will answer next, unless that is being asked."""
        if self._asked is None or self._asked.done():
            loop = asyncio.get_running_loop()
            self._asked = loop.run_in_executor(self._threads, nix.is_locked, nix.SWITCH_LOCK)
        return self._asked

    async def is_held(self) -> bool:
        """Return whether a switch is under way, as of the question; each answer serves once."""
        asked = self.ask() if self._asked is None else self._asked
        self._asked = None
        return await asked
