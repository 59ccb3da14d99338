"""The files of a ledger, in order, and the walk along their lines.

A ledger directory holds segments named by the seq of their first entry, sixteen digits and
``.jsonl``. Everything else in it (key, public key, lock, bytes set aside) is no evidence.
"""

import errno
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from healer.errors import LedgerError, LedgerIOError
from healer.ledger.chain import Chain
from healer.ledger.entry import MAX_LINE, SIGNATURE_PREFIX, BadRecordError, Entry, parse

IO_ERROR = "ledger.io_error"
_NAME = re.compile(r"[0-9]{16}\.jsonl")
_SIGNATURE = re.compile(re.escape(SIGNATURE_PREFIX) + rb'[A-Za-z0-9+/]{86}=="\}')


class BadEntryError(LedgerError):
    """The first entry of a ledger that does not hold: where it is, and why."""

    def __init__(self, file: str, line: int, seq: int, reason: str) -> None:
        super().__init__(f"{file} line {line} (entry {seq}): {reason}")
        self.file = file
        self.line = line
        self.seq = seq
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Segment:
    """One file of the ledger and the seq of its first entry."""

    path: Path
    first: int


@dataclass(frozen=True, slots=True)
class Unfinished:
    """Bytes after the last entry that are no entry yet: a write under way, or a power cut."""

    file: str
    offset: int
    length: int


def name(first: int) -> str:
    """Return the file name of the segment whose first entry has this seq."""
    return f"{first:016d}.jsonl"


def find(directory: Path) -> list[Segment]:
    """Return the segments of a ledger in order; LedgerIOError when it cannot be read."""
    try:
        paths = sorted(directory.iterdir())
    except FileNotFoundError as error:
        raise LedgerIOError(f"there is no ledger at {directory}: no such directory") from error
    except OSError as error:
        raise _unreadable(directory, error) from error
    return [Segment(path, int(path.stem)) for path in paths if _NAME.fullmatch(path.name)]


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield offset and bytes of each line, newline included where there is one.

    A line longer than an entry may be comes in pieces without a newline. Only regular files are
    read: a pipe or a device in their place would keep its reader, who may be root, for ever.
    """
    try:
        with open(path, "rb", opener=_open_regular) as file:
            offset = 0
            while line := file.readline(MAX_LINE + 1):
                yield offset, line
                offset += len(line)
    except OSError as error:
        raise _unreadable(path, error) from error


def _open_regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return descriptor


class Walk:
    """All entries of a ledger from ``chain.seq`` on, each checked by ``chain`` as it passes.

    Iterating raises BadEntryError at the first entry that does not hold. After a complete
    iteration ``unfinished`` tells of bytes at the end that are not an entry yet, and ``surplus``
    counts the bytes that ``ledger.io_error`` entries have declared void.
    """

    def __init__(self, directory: Path, chain: Chain) -> None:
        self._directory = directory
        self._chain = chain
        self.file = ""
        self.line = 0
        self.unfinished: Unfinished | None = None
        self.surplus = 0

    def __iter__(self) -> Iterator[Entry]:
        segments = [s for s in find(self._directory) if s.first >= self._chain.seq]
        for segment, following in zip_longest(segments, segments[1:]):
            self.file, self.line = segment.path.name, 1
            if segment.first != self._chain.seq:
                raise self._bad(
                    f"the file begins with entry {segment.first} where {self._chain.seq} belongs: "
                    "a file was removed, renamed or cut"
                )
            yield from self._segment(segment, following)

    def _segment(self, segment: Segment, following: Segment | None) -> Iterator[Entry]:
        for self.line, (offset, line) in enumerate(lines(segment.path), 1):
            if following is not None and self._chain.seq == following.first:
                self._void(segment, offset, following)
                return
            if not line.endswith(b"\n") and len(line) <= MAX_LINE:
                self._stop(segment, offset, line, following)
                return
            try:
                entry = self._chain.feed(line.removesuffix(b"\n"))
            except BadRecordError as error:
                raise self._bad(str(error)) from error
            yield entry

    def _void(self, segment: Segment, offset: int, following: Segment) -> None:
        """Pass over what a failed fdatasync left behind, if the next segment says so."""
        length = segment.path.stat().st_size - offset
        first = next(lines(following.path), (0, b""))[1]
        if not first.endswith(b"\n"):  # the power was cut before the next segment held anything
            self._refuse_acknowledged(segment, offset)
            self.unfinished = Unfinished(self.file, offset, length)
            return
        try:
            entry = parse(first[:-1])
        except BadRecordError as error:
            self.file, self.line = following.path.name, 1
            raise self._bad(str(error)) from error
        if entry.type != IO_ERROR or (entry.data.get("file"), entry.data.get("offset")) != (
            segment.path.name,
            offset,
        ):
            raise self._bad(f"the line does not belong here: {following.path.name} goes on instead")
        self.surplus += length

    def _refuse_acknowledged(self, segment: Segment, offset: int) -> None:
        for at, line in lines(segment.path):
            if at >= offset and self._chain.is_behind_a_gap(line.removesuffix(b"\n")):
                raise self._bad("a later entry stands behind it: an acknowledged one was changed")

    def _stop(self, segment: Segment, offset: int, line: bytes, following: Segment | None) -> None:
        if following is not None:
            raise self._bad("the line is cut off, and a further file follows")
        for match in _SIGNATURE.finditer(line):
            if match.end() < len(line):
                raise self._bad("the line does not end where its signature does")
        self.unfinished = Unfinished(segment.path.name, offset, len(line))

    def _bad(self, reason: str) -> BadEntryError:
        return BadEntryError(self.file, self.line, self._chain.seq, reason)


def _unreadable(path: Path, error: OSError) -> LedgerIOError:
    mend = "name the directory of a ledger, and keep nothing else under its files' names"
    if isinstance(error, PermissionError):
        mend = "run as root or as the user healer"
    return LedgerIOError(f"cannot read {path}: {error.strerror}; {mend}")
