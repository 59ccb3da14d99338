"""Holds: a file that keeps a unit from starting (ConditionPathExists=), and why it is there."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from healer.files import write_atomically


@dataclass(frozen=True, slots=True)
class Hold:
    """Why an agent is held back, and until when at most, in milliseconds since boot."""

    reason: str
    until_ms: int


def write(runtime_dir: Path, unit: str, hold: Hold) -> None:
    """Hold a unit back from its next start on. Needs root."""
    write_atomically(_path(runtime_dir, unit), msgspec.json.encode(hold), 0o644)


def remove(runtime_dir: Path, unit: str) -> None:
    """End a hold, if there is one. Needs root."""
    _path(runtime_dir, unit).unlink(missing_ok=True)


def read(runtime_dir: Path, unit: str) -> Hold | None:
    """Return a unit's hold, or None."""
    try:
        return msgspec.json.decode(_path(runtime_dir, unit).read_bytes(), type=Hold)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError):
        return Hold("its hold file cannot be read", 0)


def _path(runtime_dir: Path, unit: str) -> Path:
    return runtime_dir / "holds" / unit
