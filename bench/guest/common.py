"""What the measuring programs share: announcements of started programs, and plain questions."""

import ctypes
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FIFO = Path("/run/bench/fifo")


class TooLateError(Exception):
    """What was waited for did not happen."""


@dataclass(frozen=True, slots=True)
class Started:
    """A program said that it runs: its name, its PID, and when that was read (CLOCK_BOOTTIME)."""

    name: str
    pid: int
    at_ns: int


class Announcements:
    """The reading end of the FIFO that every measured program writes "NAME PID" into.

    The reader sleeps in poll(2) and is woken by the write itself: nothing polls, so measuring takes
    no CPU from what is measured. The clock is read as soon as the word is there.
    """

    def __init__(self) -> None:
        # O_RDWR: never at end of file, and no writer ever waits for a reader.
        self.fd = os.open(FIFO, os.O_RDWR | os.O_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self.fd, select.POLLIN)
        self._rest = b""

    def read(self, timeout_sec: float) -> list[Started]:
        """Wait for words for at most TIMEOUT_SEC; return those that came."""
        if not self._poll.poll(timeout_sec * 1000):
            return []
        at_ns = boottime_ns()
        *lines, self._rest = (self._rest + os.read(self.fd, 1 << 16)).split(b"\n")
        words = (line.decode().split() for line in lines)
        return [Started(name, int(pid), at_ns) for name, pid in words]

    def wait_all(self, names: Collection[str], timeout_sec: float) -> dict[str, Started]:
        """Wait until each of NAMES has started; return the last word of each."""
        found: dict[str, Started] = {}
        deadline = time.monotonic() + timeout_sec
        while not found.keys() >= set(names):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TooLateError(f"not started: {sorted(set(names) - found.keys())[:5]}")
            found |= {started.name: started for started in self.read(left)}
        return found

    def wait(self, name: str, timeout_sec: float) -> Started:
        """Wait until NAME has started."""
        return self.wait_all([name], timeout_sec)[name]


def boottime_ns() -> int:
    """CLOCK_BOOTTIME, which the ledger uses too."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def options() -> dict[str, Any]:
    """Return what ``Machine.measure`` was given."""
    given: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    return given


def answer(result: object) -> None:
    """Hand a result back to ``Machine.measure``."""
    print(json.dumps(result))


def first_in_line() -> None:
    """Have the scheduler prefer this process: it is to read the clock when it is woken."""
    os.setpriority(os.PRIO_PROCESS, 0, -20)


def show(unit: str, name: str) -> str:
    """Return one of systemd's properties of a unit."""
    command = ["systemctl", "show", "--property", name, "--value", unit]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def status_kib(pid: int, field: str) -> int:
    """Return a field of /proc/PID/status that is counted in KiB, such as VmRSS or VmHWM."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == field:
            return int(value.split()[0])
    raise KeyError(field)


def cpu_us(unit: str) -> int:
    """Return the CPU time, user and system, that a unit's processes have used, in microseconds."""
    top = Path("/sys/fs/cgroup")
    group = show(unit, "ControlGroup")
    for line in (top / group.lstrip("/") / "cpu.stat").read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == "usage_usec":
            return int(value)
    raise KeyError("usage_usec")


class Watch:
    """inotify(7) on directories, by the C library: an event queue with a file descriptor."""

    MODIFY = 0x2
    CLOSE_WRITE = 0x8
    CREATE = 0x100

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd: int = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)

    def add(self, directory: Path, mask: int) -> None:
        """Watch DIRECTORY."""
        if self._libc.inotify_add_watch(self.fd, os.fsencode(directory), mask) < 0:
            raise OSError(ctypes.get_errno(), "inotify_add_watch", str(directory))

    def drain(self) -> list[str]:
        """Return the file names of the events that wait."""
        names = []
        try:
            data = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            return []
        while data:
            length = int.from_bytes(data[12:16], sys.byteorder)
            names.append(data[16 : 16 + length].rstrip(b"\0").decode())
            data = data[16 + length :]
        return names

    def close(self) -> None:
        """Stop watching."""
        os.close(self.fd)
