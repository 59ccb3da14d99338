"""Read and validate the configuration file, completely, before anything acts on it."""

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import msgspec

from healer.config.decode import decode
from healer.config.problem import InvalidConfigError, Problem
from healer.config.reader import YamlError, parse
from healer.config.schema import (
    Agent,
    AgentEscalation,
    CommandCheck,
    CommandGate,
    Config,
    CrashLoop,
    Drift,
    Escalation,
    FileCheck,
    Gate,
    HealthCheck,
    HttpCheck,
    HttpGate,
    Ignore,
    LedgerConfig,
    ListenCheck,
    ListenGate,
    LogCheck,
    MemoryCheck,
    NetworkGate,
    RebootWindow,
    Restart,
    Rule,
    SafeSwitch,
    TcpCheck,
    TcpGate,
    UnitGate,
    as_check,
)

__all__ = [
    "Agent",
    "AgentEscalation",
    "CommandCheck",
    "CommandGate",
    "Config",
    "CrashLoop",
    "Drift",
    "Escalation",
    "FileCheck",
    "Gate",
    "HealthCheck",
    "HttpCheck",
    "HttpGate",
    "Ignore",
    "InvalidConfigError",
    "LedgerConfig",
    "ListenCheck",
    "ListenGate",
    "Loaded",
    "LogCheck",
    "MemoryCheck",
    "NetworkGate",
    "Problem",
    "RebootWindow",
    "Restart",
    "Rule",
    "SafeSwitch",
    "TcpCheck",
    "TcpGate",
    "UnitGate",
    "as_check",
    "load",
    "package_of",
]

# A thousand agents with all their checks stay well below.
MAX_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Loaded:
    """A valid configuration, and the SHA-256 (hex) of the bytes it was read from."""

    config: Config
    sha256: str


def load(path: Path, kept: Path | None = None) -> Loaded:
    """Read and validate the file, or the one that is kept for when that does not exist.

    Raises InvalidConfigError (a ConfigError) that holds all problems, and nothing else, whatever
    the file is.
    """
    if kept is not None and not path.exists() and kept.exists():
        path = kept
    try:
        raw = _read(path)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        mend = "name the file that the module rendered (/etc/healer/config.yaml)"
        if isinstance(error, PermissionError):
            mend = "everybody may read what the module rendered (mode 0444)"
        raise InvalidConfigError(path, [Problem("", f"cannot read it: {reason}", mend)]) from None
    except ValueError as error:
        mend = "name the file that the module rendered (/etc/healer/config.yaml)"
        raise InvalidConfigError(path, [Problem("", str(error), mend)]) from None
    config, problems = _validate(raw)
    if config is None or problems:
        raise InvalidConfigError(path, problems)
    return Loaded(config, hashlib.sha256(raw).hexdigest())


def package_of(path: Path) -> str | None:
    """Return the healer that a configuration is for, whatever its version; None if it says none."""
    try:
        return msgspec.json.decode(_read(path), type=_OfAnyVersion).package
    except (OSError, ValueError):
        return None


class _OfAnyVersion(msgspec.Struct):
    """What each version renders, as JSON."""

    package: str | None = None


def _read(path: Path) -> bytes:
    # Not blocking: opening a FIFO would wait for a writer for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            raw = file.read(MAX_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(raw) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES // 1024**2} MiB")
    return raw


def _validate(raw: bytes) -> tuple[Config | None, list[Problem]]:
    try:
        document = parse(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        wrong = f"it is not UTF-8 (byte {error.start})"
        return None, [Problem("", wrong, "save it as UTF-8")]
    except YamlError as error:
        return None, [Problem("", error.wrong, error.mend)]
    if document is None:
        return None, [Problem("", "it is empty", "render it with the module: services.healer")]
    return decode(document)
