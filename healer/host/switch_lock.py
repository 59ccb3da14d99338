"""Whether a switch holds its lock, asked of the kernel in a thread.

To read /proc/locks is to wait for a grace period of the kernel's RCU (percpu_down_write() in
fs/locks.c): some 10 ms, for which neither the loop nor a crash's entry is to wait.
"""

import asyncio

from healer.host import nix


class SwitchLock:
    """The lock of switch-to-configuration(8), for one event loop."""

    def __init__(self) -> None:
        self._asked: asyncio.Future[bool] | None = None

    def ask(self) -> None:
        """Begin to ask what ``is_held`` will answer next, unless that is being asked."""
        if self._asked is None or self._asked.done():
            loop = asyncio.get_running_loop()
            self._asked = loop.run_in_executor(None, nix.is_locked, nix.SWITCH_LOCK)

    async def is_held(self) -> bool:
        """Return whether a switch is under way, as of the question; each answer serves once."""
        if self._asked is None:
            self.ask()
        asked, self._asked = self._asked, None
        return asked is not None and await asked
