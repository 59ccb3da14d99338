"""The rollback itself: root, in a transient unit of its own, to an absolute target.

The unit bears the name that nixos-rebuild uses for its own switch, so the two exclude each other,
and it is outside healer.service, which the switch may change or remove. It writes how far it came
to a progress file, durably, step by step; whoever asked reads that, also after a power cut. Every
step may be done again: setting a profile that is set already makes no new generation, and
switching to the system that runs resumes what was interrupted.
"""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from healer.errors import HealerError, RefusedError
from healer.files import write_atomically
from healer.host import nix
from healer.ledger.entry import Entry

UNIT = "nixos-rebuild-switch-to-configuration.service"
PROGRESS_DIR = Path("/var/lib/healer-helper")
_LOCK_POLL_SEC = 0.2


@dataclass(slots=True)
class Progress:
    """How far a rollback came. ``done`` is set last; ``steps`` holds milliseconds by step."""

    intent: int
    target: str
    done: bool = False
    ok: bool = False
    detail: str = ""
    running: str | None = None
    steps: dict[str, int] = field(default_factory=dict)


def progress_path(intent: Entry) -> Path:
    """Return where the progress of this intent's rollback is kept.

    The name holds the entry's hash: sequence numbers begin again in a new ledger.
    """
    return PROGRESS_DIR / f"rollback-{intent.seq}-{intent.leaf[:16]}.json"


def read_progress(intent: Entry) -> Progress | None:
    """Return how far a rollback came; None when it has not begun, or cannot be read."""
    try:
        return msgspec.json.decode(progress_path(intent).read_bytes(), type=Progress)
    except (OSError, msgspec.MsgspecError):
        return None


def roll_back(intent: Entry, profile: Path) -> Progress:
    """Make the intent's target the system that runs and the system that boots, and verify both.

    Never raises for what a rollback can meet: what went wrong is in the returned progress.
    """
    target = str(intent.data["target"])
    progress = Progress(intent.seq, target)
    path = progress_path(intent)
    _write(path, progress)
    try:
        nix.check_toplevel(target)
        _timed(path, progress, "lock", _wait_for_lock)
        _check_not_superseded(profile, {target, str(intent.data["from"])})
        _timed(path, progress, "profile", lambda: _set_profile(profile, target))
        code = _timed(path, progress, "switch", lambda: _switch(target))
        progress.detail = f"switch-to-configuration exited with {code}"
        _timed(path, progress, "verify", lambda: _verify(profile, target, code))
        progress.ok = True
    except (HealerError, OSError) as error:
        progress.detail = str(error)
    progress.running = nix.systems(profile).current
    progress.done = True
    _write(path, progress)
    return progress


def start(intent: int, package: str, timeout_sec: float) -> None:
    """Start the rollback in its transient unit; raises RefusedError when that is not possible.

    A unit of that name that is running already is nixos-rebuild's, or this very rollback.
    """
    systemd_run = shutil.which("systemd-run")
    if systemd_run is None:
        raise RefusedError("systemd-run is not on the PATH of healer-helper@.service")
    command = [
        systemd_run,
        f"--unit={UNIT}",
        "--description=healer: rollback to the known-good system",
        "--collect",
        "--no-ask-password",
        "--quiet",
        "--service-type=exec",
        f"--property=RuntimeMaxSec={timeout_sec:g}",
        f"--setenv=PATH={os.environ.get('PATH', os.defpath)}",
        f"{package}/bin/healer",
        "helper",
        f"--roll-back={intent}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RefusedError(f"systemd-run refused {UNIT}: {done.stderr.strip()}")


def _wait_for_lock() -> None:
    """Wait for another switch to end; RuntimeMaxSec= bounds it."""
    while nix.is_locked(nix.SWITCH_LOCK):
        time.sleep(_LOCK_POLL_SEC)


def _check_not_superseded(profile: Path, expected: set[str]) -> None:
    """Refuse when somebody has deployed another system since: it is not the one to blame."""
    running = nix.systems(profile).current
    if running not in expected:
        raise RefusedError(f"superseded: {running} runs now, and it is not the one to blame")


def _set_profile(profile: Path, target: str) -> None:
    run_nix_env("--profile", str(profile), "--set", target)


def run_nix_env(*arguments: str) -> None:
    """Run nix-env(1); raises RefusedError with its own words when it fails."""
    nix_env = shutil.which("nix-env")
    if nix_env is None:
        raise RefusedError("nix-env is not on the PATH of healer-helper@.service")
    done = subprocess.run([nix_env, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RefusedError(f"nix-env {' '.join(arguments)}: {done.stderr.strip()}")


def _switch(target: str) -> int:
    command = [f"{target}/bin/switch-to-configuration", "switch"]
    return subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode


def _verify(profile: Path, target: str, code: int) -> None:
    """Judge by what runs: exit 4 means that some unit failed, not that the switch did."""
    systems = nix.systems(profile)
    if systems.current != target:
        raise RefusedError(
            f"switch-to-configuration exited with {code} and {systems.current} is still running"
        )
    if systems.profile != target:
        raise RefusedError(f"{profile} is {systems.profile}, not {target}")


def _timed(path: Path, progress: Progress, step: str, action: Any) -> Any:
    began = time.monotonic_ns()
    try:
        return action()
    finally:
        progress.steps[step] = (time.monotonic_ns() - began) // 1_000_000
        _write(path, progress)


def _write(path: Path, progress: Progress) -> None:
    """Write the progress down; a full disk does not keep the system from going back."""
    try:
        write_atomically(path, msgspec.json.encode(progress), 0o644)
    except OSError as error:
        print(f"healer rollback: cannot write {path}: {error.strerror}", file=sys.stderr)
