"""Nix and NixOS: which toplevel runs, was booted, is in the profile, and whether a switch runs."""

import os
import re
import shutil
from functools import lru_cache
from pathlib import Path

from healer.errors import RefusedError
from healer.events import Systems
from healer.host import bootloader, program

STORE = Path("/nix/store")
CURRENT = Path("/run/current-system")
BOOTED = Path("/run/booted-system")
SWITCH_LOCK = Path("/run/nixos/switch-to-configuration.lock")
_GENERATION = re.compile(r".+-(\d+)-link")
# Of a profile's generations, so many are asked for a specialisation.
_NEWEST = 50


def systems(profile: Path, *, switching: bool = False) -> Systems:
    """Read the separate facts of which system is where.

    ``switching`` is what ``is_locked`` said of the switch lock: to ask takes a hundred times as
    long as all of this, so it is for those to do who need to know.
    """
    current, target = _resolve(CURRENT), _resolve(profile)
    base, specialisation = (None, None) if current is None else base_of(current, profile, target)
    return Systems(
        current=current,
        booted=_resolve(BOOTED),
        profile=target,
        generation=_generation(profile),
        switching=switching,
        boot_default=bootloader.default(),
        base=base,
        specialisation=specialisation,
    )


@lru_cache(maxsize=64)
def base_of(toplevel: str, profile: Path, _target: str | None) -> tuple[str, str | None]:
    """Return the toplevel that a running one is a specialisation of, and its name there.

    The newest generations are asked; a toplevel that is none of their specialisations is its own
    base. ``_target`` is where the profile points: the answer is remembered until that changes.
    """
    for generation in generations(profile)[:_NEWEST]:
        base = os.path.realpath(generation)
        if base == toplevel:
            return toplevel, None
        for link in sorted(Path(base, "specialisation").glob("*")):
            if os.path.realpath(link) == toplevel:
                return base, link.name
    return toplevel, None


def generations(profile: Path) -> list[Path]:
    """Return the links of a profile's generations, the newest first."""
    numbered = [
        (int(match[1]), link)
        for link in profile.parent.glob(f"{profile.name}-*-link")
        if (match := re.fullmatch(rf"{re.escape(profile.name)}-(\d+)-link", link.name))
    ]
    return [link for _, link in sorted(numbered, reverse=True)]


def number(generation: Path) -> int:
    """Return the number of a profile's generation, from its link."""
    return int(generation.name.rsplit("-", 2)[1])


def unavailable_reason(profile: Path) -> str | None:
    """Say why generations cannot be switched on this host; None when they can."""
    if not CURRENT.exists():
        return f"{CURRENT} does not exist: this is not a running NixOS"
    if shutil.which("nix-env") is None:
        return "nix-env is not on the PATH of healer.service"
    if not profile.parent.is_dir():
        return f"{profile.parent} does not exist: Nix keeps no profiles here"
    return None


def check_toplevel(path: str) -> None:
    """Refuse, in words, what is not a complete NixOS system in the store."""
    toplevel = Path(path)
    if not path.startswith(f"{STORE}/") or toplevel.parent != STORE:
        raise RefusedError(f"{path} is not a path directly in {STORE}")
    if not toplevel.is_dir():
        raise RefusedError(f"{path} does not exist; it may have been garbage-collected")
    if not (toplevel / "nixos-version").exists():
        raise RefusedError(f"{path} is not a NixOS system: it has no nixos-version")
    if not os.access(toplevel / "bin/switch-to-configuration", os.X_OK):
        raise RefusedError(f"{path} has no executable bin/switch-to-configuration")


def run_nix_env(*arguments: str) -> None:
    """Run nix-env(1); raises RefusedError with its own words when it fails."""
    program.run("nix-env", *arguments)


def is_locked(path: Path) -> bool:
    """Whether any process holds a flock(2) on ``path``.

    It does not take the lock, so looking never makes a switch fail, and needs no right to open it.
    """
    return _lock_pid(path) is not None


def lock_holder(path: Path) -> str | None:
    """Say which process holds a flock(2) on ``path``; None when none does."""
    pid = _lock_pid(path)
    if pid is None:
        return None
    try:
        name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return f"process {pid}"
    return f"process {pid} ({name})"


def _lock_pid(path: Path) -> int | None:
    """Return the process that holds a flock(2) on ``path``, from /proc/locks (proc_locks(5))."""
    try:
        held = path.stat()
        locks = Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        return None
    device = f"{os.major(held.st_dev):02x}:{os.minor(held.st_dev):02x}:{held.st_ino}"
    for line in locks.splitlines():
        fields = line.split()
        if len(fields) >= 8 and fields[1] == "FLOCK" and fields[5] == device:
            return int(fields[4])
    return None


def _resolve(link: Path) -> str | None:
    target = os.path.realpath(link)
    return target if Path(target).exists() else None


def _generation(profile: Path) -> int | None:
    try:
        match = _GENERATION.fullmatch(str(profile.readlink()))
    except OSError:
        return None
    return int(match[1]) if match else None
