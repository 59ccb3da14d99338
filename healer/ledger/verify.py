"""Verify a ledger with its public key alone, on any machine.

``chain`` holds the rules; this module walks the files past them and says what was proved and what
was not. It needs the standard library, cryptography and msgspec: no systemd, no Nix.

Proved: every entry from the first to the last was signed by the key and is unchanged, and none
is missing, repeated or reordered. Not proved: that nothing followed the last one. Entries at the
end can be removed without a trace, unless somebody else remembers one of them (``at_least``).
Nor that an entry is true: integrity since recording is all that a ledger can show.
"""

from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path

from healer.ledger import keys
from healer.ledger.chain import Chain
from healer.ledger.entry import Entry
from healer.ledger.segments import BadEntryError, Unfinished, Walk


class Verdict(IntEnum):
    """What was found; the value is the exit code of ``healer ledger verify``."""

    INTACT = 0
    UNANCHORED = 1
    TAMPERED = 2
    TRUNCATED = 3


@dataclass(frozen=True, slots=True)
class Bad:
    """The first entry that does not hold, and why."""

    file: str
    line: int
    seq: int
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """What a verification proved.

    ``entries`` counts the entries that hold, from the first on; ``last`` is the last of them and
    ``anchor`` the one that ``at_least`` named. ``lost`` sums the ``ledger.gap`` entries,
    ``recovered`` counts torn tails that were set aside, ``void_bytes`` the bytes that failed
    writes left behind.
    """

    verdict: Verdict
    entries: int
    last: Entry | None
    anchor: Entry | None
    bad: Bad | None
    unfinished: Unfinished | None
    lost: int
    recovered: int
    void_bytes: int

    @property
    def unproved(self) -> tuple[int, int]:
        """Entries that could be removed without a trace, and the microseconds they span."""
        if self.last is None:
            return 0, 0
        if self.anchor is None:
            return self.entries, 0
        return self.last.seq - self.anchor.seq, self.last.time_us - self.anchor.time_us


def verify(
    directory: Path,
    public_key: bytes,
    at_least: tuple[int, str] | None = None,
    *,
    require_anchor: bool = False,
) -> Report:
    """Check every entry of the ledger in ``directory``.

    ``public_key`` are the 32 bytes of its key, from a source that the ledger's host cannot
    change. ``at_least`` is the seq and the hash of an entry known to have been durable.
    ``require_anchor`` asks that no entry stands unproved behind it. LedgerError: the key is not
    one; LedgerIOError: the directory cannot be read. All else is in the report.
    """
    walk = Walk(directory, Chain(keys.public_key(public_key)))
    last: Entry | None = None
    anchor: Entry | None = None
    bad: Bad | None = None
    entries = lost = recovered = 0
    try:
        for entry in walk:
            if at_least is not None and entry.seq == at_least[0]:
                anchor = _acknowledged(entry, at_least[1], walk)
            last = entry
            entries += 1
            lost += _count(entry)
            recovered += entry.type == "ledger.recovered"
    except BadEntryError as error:
        bad = Bad(error.file, error.line, error.seq, error.reason)
    if bad is None and last is None and at_least is None:
        bad = Bad(directory.name, 0, 0, "no entry at all: even an unused ledger has its genesis")
    report = Report(
        verdict=Verdict.INTACT,
        entries=entries,
        last=last,
        anchor=anchor,
        bad=bad,
        unfinished=walk.unfinished,
        lost=lost,
        recovered=recovered,
        void_bytes=walk.surplus,
    )
    return _judged(report, at_least is not None, require_anchor)


def _acknowledged(entry: Entry, known: str, walk: Walk) -> Entry:
    if entry.leaf != known.lower():
        reason = f"its hash is {entry.leaf}, but {known} was acknowledged: the ledger was rewritten"
        raise BadEntryError(walk.file, walk.line, entry.seq, reason)
    return entry


def _count(entry: Entry) -> int:
    """Return how many entries a ``ledger.gap`` says were lost."""
    lost = entry.data.get("lost") if entry.type == "ledger.gap" else 0
    return lost if isinstance(lost, int) else 0


def _judged(report: Report, anchored: bool, require_anchor: bool) -> Report:
    if report.bad is not None:
        return replace(report, verdict=Verdict.TAMPERED)
    if anchored and report.anchor is None:
        return replace(report, verdict=Verdict.TRUNCATED)
    if require_anchor and (report.anchor is None or report.unproved[0]):
        return replace(report, verdict=Verdict.UNANCHORED)
    return report
