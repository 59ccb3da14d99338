"""What one machine owns on the host, a directory and cgroups, and what killed runs have left."""

import contextlib
import os
import secrets
import signal
import time
from pathlib import Path

from tests.machine.paths import locked, remove, try_lock

_PREFIX = "machine-"
_POLL = 0.02


def claim_directory(home: Path, name: str) -> tuple[Path, int]:
    """Make a directory for one machine below HOME and return it with the lock that keeps it.

    Its name is also that of the machine's cgroups. Whatever nobody holds any more is removed:
    a lock dies with its process, a directory does not.
    """
    with locked(home / "machines.lock"):
        for lock in home.glob(f"{_PREFIX}*.lock"):
            descriptor = try_lock(lock)
            if descriptor is not None:
                release_directory(lock.with_name(lock.name.removesuffix(".lock")), descriptor)
        directory = home / f"{_PREFIX}{name}-{secrets.token_hex(4)}"
        held = try_lock(_lock_of(directory))
        assert held is not None, "its name is new"
        directory.mkdir()
    return directory, held


def release_directory(directory: Path, descriptor: int) -> None:
    """Remove a machine's directory and cgroups, and let go of its lock."""
    for root in cgroup_roots():
        remove_cgroup(root / directory.name)
    remove(directory)
    _lock_of(directory).unlink(missing_ok=True)
    os.close(descriptor)


def _lock_of(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.lock")


def cgroup_roots() -> list[Path]:
    """Return where a machine's cgroups go: the unified hierarchy first, then systemd's legacy one.

    Each machine needs its own, or all of them would share the one that this process is in.
    """
    top = Path("/sys/fs/cgroup")
    if (top / "cgroup.controllers").exists():
        return [top]
    return [path for path in (top / "unified", top / "systemd") if path.exists()]


def remove_cgroup(group: Path) -> None:
    """Kill all processes of a cgroup and those below it, and remove it."""
    deadline = time.monotonic() + 5
    while group.exists() and time.monotonic() < deadline:
        for procs in group.rglob("cgroup.procs"):
            with contextlib.suppress(OSError):
                for pid in procs.read_text().split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
        directories = [path for path in group.rglob("*") if path.is_dir()]
        for directory in [*sorted(directories, reverse=True), group]:
            with contextlib.suppress(OSError):
                directory.rmdir()
        if group.exists():
            time.sleep(_POLL)
    if group.exists():
        raise RuntimeError(f"the cgroup {group} cannot be removed")
