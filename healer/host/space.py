"""Whether there is room for what a switch writes: beside the profile, and where it boots from."""

import os
from collections.abc import Mapping
from pathlib import Path

from healer.host import nix

BOOT = (Path("/boot"), Path("/efi"))
MARGIN = 1024 * 1024
"""What has to be left where small files are written, in bytes."""


def for_switch(target: Path, profile: Path) -> dict[Path, int]:
    """Return how many bytes it takes, by directory, to make a toplevel the system that boots."""
    needed = {profile.parent: MARGIN}
    for boot in BOOT:
        if boot.is_dir():
            needed[boot] = MARGIN // 4 + _boot_files(target)
    return needed


def shortage(needed: Mapping[Path, int]) -> str | None:
    """Say in words where fewer bytes are left than needed; None where there is room for all."""
    for path, wanted in needed.items():
        status = os.statvfs(path)
        free = status.f_bavail * status.f_frsize
        if free < wanted:
            return f"no space: {path} has {free // 1024} KiB left, {wanted // 1024} are needed"
    return None


def _boot_files(target: Path) -> int:
    """Return how many bytes a boot loader may have to copy: a new kernel, a new initrd."""
    sizes = 0
    for name in ("kernel", "initrd"):
        new, booted = target / name, nix.BOOTED / name
        if new.exists() and new.resolve() != booted.resolve():
            sizes += new.stat().st_size
    return sizes
