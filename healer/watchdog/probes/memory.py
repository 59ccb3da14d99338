"""`memory` checks: how much an agent holds, by its cgroup (cgroup-v2, memory.current)."""

from pathlib import Path, PurePosixPath

from healer.config import MemoryCheck
from healer.watchdog.health import Outcome

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


def look_at_memory(
    check: MemoryCheck, unit: str, main_pid: int, proc: Path = _PROC, cgroups: Path = _CGROUPS
) -> tuple[Outcome, str]:
    """Make one check; OSError where nothing tells, ValueError where there is no main process."""
    if not main_pid:
        raise ValueError(f"{unit} has no main process, so nothing tells of its memory")
    process = proc / str(main_pid)
    current = cgroups / cgroup_of(unit, (process / "cgroup").read_text()) / "memory.current"
    try:
        held, of = int(current.read_text()), "its cgroup holds"
    except FileNotFoundError:
        held, of = _resident((process / "status").read_text()), "its main process holds"
    outcome = Outcome.OK if held <= check.max_bytes else Outcome.FAILED
    return outcome, f"{of} {held} bytes, of {check.max_bytes} allowed"


def cgroup_of(unit: str, membership: str) -> str:
    """Return a unit's cgroup, relative, from /proc/PID/cgroup of one of its processes.

    A unit with Delegate= has cgroups of its own below. Raises ValueError where the process is in
    no cgroup of that unit.
    """
    for line in membership.splitlines():
        hierarchy, _, path = line.partition("::")
        parts = PurePosixPath(path).parts[1:]
        if hierarchy == "0" and unit in parts:
            return "/".join(parts[: parts.index(unit) + 1])
    raise ValueError(f"its main process is in no cgroup of {unit}")


def _resident(status: str) -> int:
    """Return VmRSS of /proc/PID/status (proc_pid_status(5)) in bytes; a zombie has none."""
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == "VmRSS":
            return int(value.split()[0]) * 1024
    raise ValueError("its main process has no memory any more")
