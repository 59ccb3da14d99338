"""Holds: a file that keeps a unit from starting (ConditionPathExists=), and why it is there.

A hold has a time to live, lies in /run and goes with the boot, and a timer of PID 1's ends it. An
agent that was given up is held without one, in a directory that outlasts the boot: only a person,
or another version of its unit, ends that.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from healer.files import write_atomically

LASTING = Path("/var/lib/healer-helper/holds")
# Not on a disk, which can be full or read-only.
_LOCK = Path("/run/healer-holds.lock")
# What lies behind the link is rooted against garbage collection, and by this boot only.
_PROGRAM = Path("/run/healer-release")
_ROOT = Path("/nix/var/nix/gcroots/healer-release")


@dataclass(frozen=True, slots=True)
class Hold:
    """Why an agent is held back, until when at most in milliseconds since boot, and the intent.

    ``until_ms`` is None for an agent that was given up.
    """

    reason: str
    until_ms: int | None
    intent: int


@contextmanager
def exclusively() -> Iterator[None]:
    """Let nobody else place or end a hold meanwhile. Needs root."""
    descriptor = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write(runtime_dir: Path, unit: str, hold: Hold) -> None:
    """Hold a unit back from its next start on, at least in this boot. Needs root."""
    write_atomically(_path(runtime_dir, unit), msgspec.json.encode(hold), 0o644)


def write_lasting(unit: str, hold: Hold) -> None:
    """Hold a unit back in every boot. Needs root."""
    LASTING.mkdir(mode=0o755, parents=True, exist_ok=True)
    write_atomically(LASTING / unit, msgspec.json.encode(hold), 0o644)


def remove(runtime_dir: Path, unit: str) -> None:
    """End all holds of a unit, if there are any. Needs root.

    That of this boot first, for the other may be on a disk that is read-only by now.
    """
    _path(runtime_dir, unit).unlink(missing_ok=True)
    if (LASTING / unit).exists():
        (LASTING / unit).unlink()


def read(runtime_dir: Path, unit: str) -> Hold | None:
    """Return a unit's hold, or None; the lasting one, where there are two."""
    return _read(LASTING / unit) or _read(_path(runtime_dir, unit))


def keep_program(package: str) -> Path:
    """Return a path of this package that is there as long as the boot lasts. Needs root.

    It is one path for all, of the package that was kept last. Raises OSError.
    """
    if not _ROOT.is_symlink():
        _ROOT.symlink_to(_PROGRAM)
    new = _PROGRAM.with_suffix(".new")
    new.unlink(missing_ok=True)
    new.symlink_to(package)
    new.replace(_PROGRAM)
    return _PROGRAM


def _read(path: Path) -> Hold | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Hold)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError):
        return Hold(f"its hold file {path} cannot be read", 0, -1)


def units(runtime_dir: Path) -> frozenset[str]:
    """Return the units that are held back."""
    found: set[str] = set()
    for directory in (runtime_dir / "holds", LASTING):
        with suppress(OSError):
            found |= {path.name for path in directory.iterdir()}
    return frozenset(found)


def _path(runtime_dir: Path, unit: str) -> Path:
    return runtime_dir / "holds" / unit
