"""Unit files and drop-ins where NixOS declares none (systemd.unit(5), UNIT FILE LOAD PATH)."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from healer.drift.compare import DriftClass, Kind, Node, UnitFile
from healer.drift.observe import observe, printable, unreadable

# healer's own units are watched like those of its agents: disarming healer is drift too.
OWN_UNITS = frozenset({"healer.service", "healer-helper.socket", "healer-helper@.service"})

DECLARED_UNITS = "/etc/systemd/system"

# Where healer's own units are kept for a switch to a system without healer.
KEPT_UNITS = "/run/systemd/system"

UNIT_TYPES = frozenset(
    {"service", "socket", "device", "mount", "automount", "swap"}
    | {"target", "path", "timer", "slice", "scope"}
)

_DEPENDENCIES = frozenset({"wants", "requires", "upholds"})


@dataclass(frozen=True, slots=True)
class UnitDirectory:
    """A directory that systemd loads units from, and which files in it are drift.

    ``every_unit``: all of them; otherwise those that touch a supervised unit, for ``reason``.
    """

    path: str
    every_unit: bool
    reason: str


# The generators' directories are not here: systemd empties them before it runs the generators at
# each daemon-reload, so what somebody else puts there never takes effect.
UNIT_DIRECTORIES = (
    UnitDirectory(DECLARED_UNITS, True, "NixOS declares all of it"),
    UnitDirectory(KEPT_UNITS, True, "NixOS puts nothing there"),
    UnitDirectory("/etc/systemd/system.control", False, "`systemctl set-property` of other units"),
    UnitDirectory("/run/systemd/system.control", False, "`systemctl set-property` of other units"),
    UnitDirectory("/run/systemd/transient", False, "systemd-run, nixos-rebuild, logind and others"),
    UnitDirectory("/etc/systemd/system.attached", False, "portable services (portablectl(1))"),
    UnitDirectory("/run/systemd/system.attached", False, "portable services (portablectl(1))"),
    UnitDirectory("/etc/systemd-mutable/system", False, "extra-container and the like own it"),
    UnitDirectory("/usr/local/lib/systemd/system", False, "not on NixOS's own load path"),
)


@dataclass(frozen=True, slots=True)
class Supervised:
    """The names by which systemd knows the supervised units, and their drop-in directories."""

    names: frozenset[str]
    stems: frozenset[str]

    @classmethod
    def of(cls, units: Iterable[str], aliases: Mapping[str, str]) -> "Supervised":
        """Collect them; ``aliases`` maps each declared alias to its unit."""
        names = frozenset(name for unit in units for name in _names(unit, aliases))
        return cls(names, frozenset(stem for name in names for stem in drop_in_stems(name)))


def unit_files(
    at: Callable[[str], Path],
    units: frozenset[str],
    toplevel: str,
    declared: Mapping[str, Node],
) -> dict[str, UnitFile]:
    """Return every unit file and drop-in that is not part of the declaration, by its path.

    ``at`` says where a path of the machine really is; ``units`` are the supervised ones.
    """
    source = Path(toplevel + DECLARED_UNITS)
    supervised = Supervised.of(units | OWN_UNITS, _aliases(source))
    found: dict[str, UnitFile] = {}
    for directory in UNIT_DIRECTORIES:
        where = at(directory.path)
        if directory.path == KEPT_UNITS:
            found.update(
                (path, file)
                for path, file in _files(where, directory, supervised)
                if not _is_kept(file.node, path.removeprefix(KEPT_UNITS + "/"), source)
            )
        elif directory.path != DECLARED_UNITS:
            found.update(_files(where, directory, supervised))
        elif not _is_declared(where, source, declared):
            found.update(
                (path, file)
                for path, file in _files(where, directory, supervised)
                if not _is_copy(file.node, source / path.removeprefix(DECLARED_UNITS + "/"))
            )
    return found


def drop_in_stems(unit: str) -> frozenset[str]:
    """Return every STEM for which systemd reads ``STEM.d`` as drop-ins of ``unit``.

    For ``foo-bar@x.service``: the name itself, its template, both with the part before the ``@``
    cut after each dash, and the type, ``service``.
    """
    name, _, kind = unit.rpartition(".")
    prefix, at_sign, instance = name.partition("@")
    cuts = [prefix[: i + 1] for i, letter in enumerate(prefix) if letter == "-"]
    stems = {unit, kind, *(f"{cut}.{kind}" for cut in cuts)}
    if at_sign:
        for start in (prefix, *cuts):
            stems |= {f"{start}@.{kind}", f"{start}@{instance}.{kind}"}
    return frozenset(stems)


def _names(unit: str, aliases: Mapping[str, str]) -> Iterator[str]:
    yield unit
    prefix, at_sign, rest = unit.partition("@")
    if at_sign:
        yield f"{prefix}@.{rest.rpartition('.')[2]}"
    yield from (alias for alias, target in aliases.items() if target == unit)


def _aliases(declared_units: Path) -> dict[str, str]:
    """Return the declared aliases: NixOS links one to its unit's bare name, a unit to the store."""
    try:
        with os.scandir(declared_units) as entries:
            links = {
                entry.name: os.readlink(entry)  # noqa: PTH115 - a thousand Paths cost more
                for entry in entries
                if entry.is_symlink()
            }
    except OSError:
        return {}
    return {name: target for name, target in links.items() if "/" not in target}


def _files(
    where: Path, directory: UnitDirectory, supervised: Supervised
) -> Iterator[tuple[str, UnitFile]]:
    for name, is_directory, error in _list(where):
        path = f"{directory.path}/{printable(name)}".removesuffix("/")
        if error is not None:
            yield path, UnitFile(DriftClass.UNIT, error, "a directory that can be read")
        elif is_directory:
            yield from _beside(where / name, path, directory, supervised)
        elif name.rpartition(".")[2] in UNIT_TYPES and (
            directory.every_unit or name in supervised.names
        ):
            node = observe(where / name, follow=True)
            yield path, UnitFile(DriftClass.UNIT, node, "no such unit file")


def _beside(
    where: Path, path: str, directory: UnitDirectory, supervised: Supervised
) -> Iterator[tuple[str, UnitFile]]:
    """Yield what is in a directory ``STEM.d``, ``STEM.wants`` and the like."""
    stem, _, suffix = where.name.rpartition(".")
    if suffix != "d" and suffix not in _DEPENDENCIES:
        return
    for name, is_directory, error in _list(where):
        if suffix == "d":
            relevant = directory.every_unit or stem in supervised.stems
            relevant = relevant and (error is not None or name.endswith(".conf"))
        else:
            relevant = stem in supervised.names or name in supervised.names
        if relevant and not is_directory:
            node = error or observe(where / name, follow=True)
            subject = f"{path}/{printable(name)}".removesuffix("/")
            yield subject, UnitFile(DriftClass.DROP_IN, node, "no such file")


def _list(directory: Path) -> list[tuple[str, bool, Node | None]]:
    """List (name, is a directory, None); one nameless row with the error if that fails.

    Hidden files are left out: systemd does not read them, and editors write them.
    """
    try:
        with os.scandir(directory) as entries:
            return sorted(
                (entry.name, _is_directory(entry), None)
                for entry in entries
                if not entry.name.startswith(".")
            )
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        return [("", False, unreadable(error))]


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_declared(where: Path, source: Path, declared: Mapping[str, Node]) -> bool:
    """Whether /etc/systemd/system is the toplevel's own directory, which is in the store."""
    link = declared.get(DECLARED_UNITS)
    if link is not None and link.kind is Kind.LINK and link.agrees(observe(where, follow=False)):
        return True
    return os.path.realpath(where) == os.path.realpath(source)


def _is_kept(node: Node, name: str, source: Path) -> bool:
    """Whether a file is a unit of healer's own, as the toplevel declares it if it does."""
    declared = source / name
    return name in OWN_UNITS and (not declared.exists() or _is_copy(node, declared))


def _is_copy(node: Node, declared: Path) -> bool:
    """Whether a file in a /etc/systemd/system made real is what the declaration has there."""
    return node.sha256 is not None and node.sha256 == observe(declared, follow=True).sha256
