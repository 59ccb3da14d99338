"""Which toplevel the next boot starts, as far as the boot loader's own files say and can be read.

systemd-boot: ``loader/loader.conf`` names an entry (loader.conf(5)), whose ``options`` line passes
``init=`` to the kernel. GRUB: the first ``init=`` of ``grub/grub.cfg`` is the default entry's.
Many hosts let only root read these; then the boot default is not known.
"""

import fnmatch
import re
from functools import lru_cache
from pathlib import Path

_ROOTS = (Path("/boot"), Path("/efi"), Path("/boot/efi"))
_INIT = re.compile(r"\binit=(/nix/store/[^/\s]+)/init\b")


def default(roots: tuple[Path, ...] = _ROOTS) -> str | None:
    """Return the toplevel of the boot default; None where that is not known."""
    for root in roots:
        for conf, read in (
            (root / "loader/loader.conf", _systemd_boot),
            (root / "grub/grub.cfg", _grub),
        ):
            try:
                seen = conf.stat()
                return read(conf, (seen.st_mtime_ns, seen.st_size, seen.st_ino))
            except (OSError, UnicodeDecodeError):
                continue
    return None


@lru_cache(maxsize=4)
def _grub(conf: Path, _version: tuple[int, int, int]) -> str | None:
    match = _INIT.search(conf.read_text(encoding="utf-8"))
    return match[1] if match else None


@lru_cache(maxsize=4)
def _systemd_boot(conf: Path, _version: tuple[int, int, int]) -> str | None:
    """Read the entry that loader.conf names, by its file name or a pattern of such."""
    setting = re.search(r"^default\s+(\S+)", conf.read_text(encoding="utf-8"), re.MULTILINE)
    entries = conf.parent / "entries"
    # With boot counting a name carries its tries: nixos-generation-5+2-1.conf.
    wanted = setting[1] if setting else "*"
    names = [
        name
        for name in (entry.name for entry in entries.iterdir())
        if fnmatch.fnmatch(re.sub(r"\+\d+(-\d+)?(?=\.conf$)", "", name), wanted)
        or fnmatch.fnmatch(name, wanted)
    ]
    if not names:
        return None
    newest = max(names, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])
    match = _INIT.search((entries / newest).read_text(encoding="utf-8"))
    return match[1] if match else None
