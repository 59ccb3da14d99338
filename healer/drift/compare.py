"""What differs between the declared and the actual machine: no I/O, no clock.

Findings are compared with those of the scan before, so that each is reported once when it appears
and once when it is gone, however often the machine is looked at.
"""

import fnmatch
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any, Protocol


class DriftClass(StrEnum):
    """What kind of thing drifted."""

    ETC = "etc"
    UNIT = "unit"
    DROP_IN = "drop-in"


# An activation, an editor or a package manager replaces a file in /etc by removing and making it
# again; what is seen in between is no drift. systemd reads a unit file in whatever state it is.
OBSERVE_TWICE = frozenset({DriftClass.ETC})


class Kind(StrEnum):
    """What is at a path."""

    ABSENT = "nothing"
    DIRECTORY = "directory"
    LINK = "link"
    FILE = "file"
    OTHER = "special file"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Node:
    """What is, or should be, at a path. A field that is None is not known and not compared.

    ``target`` is a link's text; ``mode`` the permission bits; ``size`` in bytes; ``error`` the
    name of the errno(3) that kept healer from looking. ``hashed`` is the number of bytes that
    ``sha256`` covers.
    """

    kind: Kind
    target: str | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    sha256: str | None = None
    hashed: int | None = None
    error: str | None = None

    def agrees(self, actual: "Node") -> bool:
        """Whether ``actual`` is as this declaration says, in all that both know."""
        if self.kind != actual.kind:
            return False
        mine = (self.target, self.mode, self.uid, self.gid, self.size, self.sha256)
        its = (actual.target, actual.mode, actual.uid, actual.gid, actual.size, actual.sha256)
        return all(a is None or b is None or a == b for a, b in zip(mine, its, strict=True))

    def __str__(self) -> str:
        if self.kind is Kind.UNREADABLE:
            return f"cannot be read: {self.error}"
        if self.kind is Kind.LINK:
            content = f" ({self._content()})" if self.sha256 else ""
            return f"link to {self.target}{content}"
        if self.kind is Kind.FILE:
            return f"file, {self._content()}"
        return str(self.kind)

    def _content(self) -> str:
        parts = []
        if self.mode is not None:
            parts.append(f"mode {self.mode:04o}")
        if self.uid is not None and self.gid is not None:
            parts.append(f"owner {self.uid}:{self.gid}")
        if self.size is not None:
            parts.append(f"{self.size} bytes")
        if self.sha256 is None:
            parts.append("content not readable")
        elif self.hashed is not None and self.size is not None and self.hashed < self.size:
            parts.append(f"sha256 of the first {self.hashed} bytes {self.sha256}")
        else:
            parts.append(f"sha256 {self.sha256}")
        return ", ".join(parts)


ABSENT = Node(Kind.ABSENT)


@dataclass(frozen=True, slots=True)
class UnitFile:
    """A unit file or drop-in found where none is declared to be.

    ``expected`` says what the declaration has instead.
    """

    drift_class: DriftClass
    node: Node
    expected: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One look at the machine: declared and actual nodes by path, and the unit files.

    ``off`` says why nothing is compared, ``etc_off`` why /etc is not; None when it is.
    """

    declared: Mapping[str, Node] = field(default_factory=dict)
    actual: Mapping[str, Node] = field(default_factory=dict)
    unit_files: Mapping[str, UnitFile] = field(default_factory=dict)
    off: str | None = None
    etc_off: str | None = None


class Ignore(Protocol):
    """A path pattern (fnmatch(3): ``*`` also matches ``/``) that is not drift, and why."""

    @property
    def path(self) -> str:
        """The pattern."""

    @property
    def reason(self) -> str:
        """Why it is not drift."""


@dataclass(frozen=True, slots=True)
class BuiltinIgnore:
    """An ignore that every host has."""

    path: str
    reason: str


BUILTIN_IGNORES = (
    BuiltinIgnore(
        "/etc/resolv.conf", "resolvconf, NetworkManager and nixos-enter replace it at run time"
    ),
    BuiltinIgnore("/etc/machine-id", "systemd writes it at the first boot (machine-id(5))"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference between the declared and the actual machine.

    Two findings are the same when class, subject and what was observed are: a declaration that
    moves to another store path does not make an old finding new.
    """

    drift_class: DriftClass
    subject: str
    expected: str = field(compare=False)
    observed: str

    @property
    def incident(self) -> str:
        """The incident of this subject: ``drift-`` and 8 hexadecimal digits."""
        identity = f"{self.drift_class}\0{self.subject}".encode()
        return f"drift-{hashlib.sha256(identity).hexdigest()[:8]}"

    def found(self) -> dict[str, str]:
        """Return the data of a ``drift.found`` entry."""
        return self.resolved() | {"expected": self.expected, "observed": self.observed}

    def resolved(self) -> dict[str, str]:
        """Return the data of a ``drift.resolved`` entry."""
        return {"class": str(self.drift_class), "subject": self.subject}


def compare(snapshot: Snapshot, ignores: Iterable[Ignore] = ()) -> frozenset[Finding]:
    """Return every difference that no ignore covers.

    Below a directory that is not as declared nothing more is said: that one finding explains it.
    """
    patterns = [ignore.path for ignore in (*BUILTIN_IGNORES, *ignores)]
    return frozenset(_etc(snapshot, patterns)) | frozenset(_units(snapshot, patterns))


def _etc(snapshot: Snapshot, patterns: list[str]) -> Iterable[Finding]:
    wrong: set[PurePosixPath] = set()
    for subject in sorted(snapshot.declared):
        declared, actual = snapshot.declared[subject], snapshot.actual.get(subject, ABSENT)
        if declared.agrees(actual):
            continue
        path = PurePosixPath(subject)
        if not wrong.isdisjoint(path.parents) or _ignored(subject, patterns):
            continue
        wrong.add(path)
        yield Finding(DriftClass.ETC, subject, str(declared), str(actual))


def _units(snapshot: Snapshot, patterns: list[str]) -> Iterable[Finding]:
    for subject, file in snapshot.unit_files.items():
        if subject not in snapshot.declared and not _ignored(subject, patterns):
            yield Finding(file.drift_class, subject, file.expected, str(file.node))


def _ignored(subject: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(subject, pattern) for pattern in patterns)


class Recorded(Protocol):
    """What :meth:`DriftState.replay` needs of a ledger entry."""

    @property
    def type(self) -> str:
        """The entry's type."""

    @property
    def data(self) -> Mapping[str, Any]:
        """The entry's data."""


@dataclass(frozen=True, slots=True)
class DriftState:
    """What is known to have drifted: ``known`` was reported, ``suspected`` was seen once."""

    known: frozenset[Finding] = frozenset()
    suspected: frozenset[Finding] = frozenset()

    def update(
        self, findings: frozenset[Finding], *, paused: bool = False
    ) -> "tuple[DriftState, tuple[Finding, ...], tuple[Finding, ...]]":
        """Take one scan; return the state after it, what is new and what is resolved.

        While ``paused`` (a switch is under way) a scan proves nothing: nothing is reported, and
        what was only suspected has to be seen twice again. A subject whose drift changed is found
        again, and resolved only once nothing of it is left.
        """
        if paused:
            return DriftState(self.known), (), ()
        fresh = findings - self.known
        suspected = frozenset(
            finding for finding in fresh - self.suspected if finding.drift_class in OBSERVE_TWICE
        )
        found = fresh - suspected
        replaced = {_subject(finding) for finding in found}
        still = {_subject(finding) for finding in findings}
        resolved = {finding for finding in self.known if _subject(finding) not in still}
        kept = {finding for finding in self.known - resolved if _subject(finding) not in replaced}
        return DriftState(frozenset(kept | found), suspected), _sorted(found), _sorted(resolved)

    def replay(self, record: Recorded) -> "DriftState":
        """Fold what a ledger tells, so that a restart repeats nothing."""
        if record.type not in {"drift.found", "drift.resolved"}:
            return self
        data = record.data
        subject = (data["class"], data["subject"])
        known = {finding for finding in self.known if _subject(finding) != subject}
        if record.type == "drift.found" and subject[0] in set(DriftClass):
            drift_class = DriftClass(subject[0])
            known.add(Finding(drift_class, subject[1], data["expected"], data["observed"]))
        return DriftState(frozenset(known), self.suspected)


def _subject(finding: Finding) -> tuple[DriftClass, str]:
    return finding.drift_class, finding.subject


def _sorted(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=_subject))
