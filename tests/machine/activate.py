#!/usr/bin/python3 -I
"""``<toplevel>/activate``: make this system the current one, apart from its units.

Does what NixOS's activation script does in the parts that healer relies on: users, the links below
/etc, and /run/current-system, which is set whatever else has failed.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_ETC = Path("/etc")
_STATIC = _ETC / "static"
_CURRENT = Path("/run/current-system")


def replace_link(link: Path, target: Path) -> None:
    """Point LINK at TARGET in one step: there is no moment without the one or the other."""
    scratch = link.with_name(f".{link.name}.new")
    scratch.unlink(missing_ok=True)
    scratch.symlink_to(target)
    scratch.rename(link)


def leaves(directory: Path) -> Iterator[Path]:
    """Yield the files and links below DIRECTORY, relative to it."""
    for parent, directories, files in os.walk(directory):
        linked = [name for name in directories if (Path(parent) / name).is_symlink()]
        for leaf in [*files, *linked]:
            yield (Path(parent) / leaf).relative_to(directory)


def update_etc(toplevel: Path) -> None:
    """Link /etc/X to /etc/static/X for every X of the system; drop links that lead nowhere now."""
    replace_link(_STATIC, toplevel / "etc")
    for name in leaves(toplevel / "etc"):
        link = _ETC / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink() or not link.is_dir():
            replace_link(link, _STATIC / name)
        else:
            print(f"activate: {link} is a directory and in the way", file=sys.stderr)
    for parent, directories, files in os.walk(_ETC):
        if Path(parent) == _STATIC:
            continue
        for entry in [*files, *directories]:
            link = Path(parent) / entry
            if link.is_symlink() and not link.exists():
                target = link.readlink()
                if target.is_relative_to(_STATIC):
                    link.unlink()


def main() -> int:
    toplevel = Path(sys.argv[1]).resolve()
    failed = False
    users = toplevel / "etc" / "sysusers.d" / "00-nixos.conf"
    failed |= subprocess.run(["systemd-sysusers", users], check=False).returncode != 0
    update_etc(toplevel)
    extra = toplevel / "scripts" / "activationScript"
    if extra.exists():
        failed |= subprocess.run([extra], check=False).returncode != 0
    replace_link(_CURRENT, toplevel)
    return 1 if failed else 0


sys.exit(main())
