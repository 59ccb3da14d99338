"""pidfd_open(2): being told by the kernel, within a millisecond, that an agent's process is gone.

PID 1's stop stamp stays the authority on how a run ended; it comes milliseconds later, because
systemd has to start a process for it. The kernel's word wakes healer before that, and it is a
second witness: no environment that an agent controls goes into it.
"""

import asyncio
import fcntl
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass

from healer.events import Death
from healer.host import clock

# linux/pidfd.h. PIDFD_INFO_EXIT is there from Linux 6.15 on; an older kernel refuses the ioctl, or
# leaves its bit out of the answer.
_PIDFD_GET_INFO = 0xC040FF0B  # _IOWR(0xFF, 11, struct pidfd_info), 64 bytes
_PIDFD_INFO_EXIT = 1 << 3
_MASK = struct.Struct("=Q")
_EXIT_CODE = struct.Struct("=60xi")
_SIZE = 64


@dataclass(slots=True)
class _Watched:
    invocation: str
    pid: int
    fd: int
    died_ms: int | None = None


class Deaths:
    """The main processes of running invocations, one for each unit.

    ``on_death(unit, invocation)`` is called in the event loop when a main process is gone.
    """

    def __init__(self, on_death: Callable[[str, str], None]) -> None:
        self._on_death = on_death
        self._watched: dict[str, _Watched] = {}

    def watch(self, unit: str, invocation: str, pid: int) -> None:
        """Watch a unit's main process in place of the one before; a PID of 0 is none."""
        watched = self._watched.get(unit)
        if watched is not None and (watched.invocation, watched.pid) == (invocation, pid):
            return
        if not pid:
            return
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            # Gone already: its stamp is on the way.
            return
        self._drop(unit)
        self._watched[unit] = _Watched(invocation, pid, fd)
        asyncio.get_running_loop().add_reader(fd, self._died, unit)

    def of(self, unit: str, invocation: str) -> Death | None:
        """Return what the kernel said of an invocation's death; None if it was not watched."""
        watched = self._watched.get(unit)
        if watched is None or watched.invocation != invocation or watched.died_ms is None:
            return None
        return Death(watched.died_ms, _wait_status(watched.fd))

    def is_watched(self, unit: str, invocation: str, pid: int | None) -> bool:
        """Whether this is the main process of a unit that is, or was last, watched."""
        watched = self._watched.get(unit)
        return watched is not None and (watched.invocation, watched.pid) == (invocation, pid)

    def is_gone(self, unit: str, pid: int) -> bool:
        """Whether this main process of a unit was watched, and is gone."""
        watched = self._watched.get(unit)
        return watched is not None and watched.pid == pid and watched.died_ms is not None

    def close(self) -> None:
        """Watch nothing any more."""
        for unit in [*self._watched]:
            self._drop(unit)

    def keep(self, units: frozenset[str]) -> None:
        """Watch none but these units any more."""
        for unit in self._watched.keys() - units:
            self._drop(unit)

    def _died(self, unit: str) -> None:
        watched = self._watched[unit]
        watched.died_ms = clock.uptime_ms()
        # It stays readable: it is told once. The descriptor still answers for the status.
        asyncio.get_running_loop().remove_reader(watched.fd)
        self._on_death(unit, watched.invocation)

    def _drop(self, unit: str) -> None:
        watched = self._watched.pop(unit, None)
        if watched is not None:
            asyncio.get_running_loop().remove_reader(watched.fd)
            os.close(watched.fd)


def _wait_status(fd: int) -> int | None:
    """Return a reaped process's status by wait(2); None while or where the kernel has none."""
    info = bytearray(_SIZE)
    _MASK.pack_into(info, 0, _PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(fd, _PIDFD_GET_INFO, info)
    except OSError:
        return None
    (mask,) = _MASK.unpack_from(info)
    if not mask & _PIDFD_INFO_EXIT:
        return None
    (status,) = _EXIT_CODE.unpack_from(info)
    return int(status)
