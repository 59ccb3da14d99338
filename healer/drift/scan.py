"""One look at the declaration and at the machine.

The declaration is the running toplevel's ``etc`` tree, as NixOS's setup-etc applies it: each link
or file X of it appears as ``/etc/X``, a link to ``/etc/static/X``; a file ``X.mode`` beside X
means that X is copied with that mode and the owners in ``X.uid`` and ``X.gid``, or, where it holds
``direct-symlink``, that ``/etc/X`` is the same link as X. Other files in /etc are nobody's
business here, except where systemd looks for units (healer.drift.units).

Nothing in here raises on what it finds on the machine: what cannot be looked at is itself a node.
"""

import grp
import os
import pwd
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from healer.drift.compare import Kind, Node, Snapshot
from healer.drift.observe import observe, observe_directory, observe_file, printable
from healer.drift.units import unit_files

STATIC = "/etc/static"

_SIDE_FILE = re.compile(r"(?P<of>.+)\.(?:mode|uid|gid)")


@dataclass(frozen=True, slots=True)
class Roots:
    """Where the machine is; tests give a directory of their own.

    Every path in a finding is below ``root`` and named as if that were ``/``.
    """

    root: Path = Path("/")
    current_system: Path = Path("/run/current-system")
    mountinfo: Path = Path("/proc/self/mountinfo")

    def at(self, path: str) -> Path:
        """Return where the absolute ``path`` of the machine really is."""
        return self.root / path.lstrip("/")


@dataclass(frozen=True, slots=True)
class Declaration:
    """The declared /etc, and the toplevel that it is from.

    ``off`` says why there is none; then nothing can be compared.
    """

    toplevel: str | None = None
    nodes: Mapping[str, Node] = field(default_factory=dict)
    off: str | None = None


def read_declaration(roots: Roots) -> Declaration:
    """Read the running toplevel's ``etc`` tree; OSError if it goes away meanwhile."""
    toplevel = os.path.realpath(roots.current_system)
    etc = Path(os.path.realpath(f"{toplevel}/etc"))
    if not etc.is_dir():
        return Declaration(
            off=f"{roots.current_system}/etc is not there: no NixOS system declares this machine"
        )
    nodes = {STATIC: Node(Kind.LINK, target=str(etc))}
    nodes.update(_declared(etc, "/etc"))
    return Declaration(toplevel, nodes)


def scan(roots: Roots, units: frozenset[str], declaration: Declaration) -> Snapshot:
    """Look at everything declared, and at every directory that units are loaded from.

    ``units`` are the full names of the supervised units.
    """
    if declaration.off:
        return Snapshot(off=declaration.off)
    etc_off = etc_overlay_reason(_read_text(roots.mountinfo))
    declared: Mapping[str, Node] = {} if etc_off else declaration.nodes
    actual = {path: _actual(roots, path, node) for path, node in declared.items()}
    found = unit_files(roots.at, units, str(declaration.toplevel), declared)
    return Snapshot(declared, actual, found, etc_off=etc_off)


def etc_overlay_reason(mountinfo: str) -> str | None:
    """Say why /etc cannot be compared file by file; None when it can.

    With ``system.etc.overlay.enable`` /etc is an overlay of an immutable image, and there are no
    links to ``/etc/static``. ``mountinfo`` is the text of proc_pid_mountinfo(5).
    """
    kind = None
    for line in mountinfo.splitlines():
        mount, _, filesystem = line.partition(" - ")
        fields = mount.split()
        if len(fields) > 4 and fields[4] == "/etc":
            kind = filesystem.partition(" ")[0]
    if kind != "overlay":
        return None
    return (
        "/etc is an overlay mount (system.etc.overlay.enable): its files are not links that can "
        "be compared; unit files and drop-ins are still watched"
    )


def _declared(source: Path, target: str) -> Iterator[tuple[str, Node]]:
    with os.scandir(source) as entries:
        listed = {entry.name: entry for entry in entries}
    for name, entry in listed.items():
        path = f"{target}/{printable(name)}"
        if entry.is_dir(follow_symlinks=False):
            yield path, Node(Kind.DIRECTORY)
            yield from _declared(source / name, path)
        elif not _is_side_file(entry, listed):
            mode = _side(source / name, "mode") if f"{name}.mode" in listed else ""
            yield path, _declared_file(source / name, path, mode)


def _is_side_file(entry: os.DirEntry[str], listed: Mapping[str, object]) -> bool:
    side = _SIDE_FILE.fullmatch(entry.name)
    return side is not None and side["of"] in listed and not entry.is_symlink()


def _declared_file(source: Path, path: str, mode: str) -> Node:
    if not mode:
        return Node(Kind.LINK, target=STATIC + path.removeprefix("/etc"))
    if mode == "direct-symlink":
        return Node(Kind.LINK, target=printable(str(source.readlink())))
    content = observe_file(source)
    return Node(
        Kind.FILE,
        mode=int(mode, 8) if re.fullmatch("[0-7]+", mode) else None,
        uid=_owner(_side(source, "uid"), lambda name: pwd.getpwnam(name).pw_uid),
        gid=_owner(_side(source, "gid"), lambda name: grp.getgrnam(name).gr_gid),
        size=content.size,
        sha256=content.sha256,
        hashed=content.hashed,
    )


def _side(source: Path, suffix: str) -> str:
    return _read_text(source.with_name(f"{source.name}.{suffix}")).strip()


def _owner(text: str, lookup: Callable[[str], int]) -> int | None:
    """Return a uid or gid: ``+0`` is a number, anything else a name (environment.etc.*.user)."""
    if re.fullmatch(r"\+?[0-9]+", text):
        return int(text)
    try:
        return lookup(text)
    except KeyError:
        return None


def _actual(roots: Roots, path: str, declared: Node) -> Node:
    where = roots.at(path)
    if path == STATIC and where.is_symlink():
        return Node(Kind.LINK, target=os.path.realpath(where))
    if declared.kind is Kind.DIRECTORY:
        return observe_directory(where)
    return observe(where, follow=False)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
