"""What is at the end of a ledger that its writer did not close: entries, and torn bytes.

Let r be the first invalid record and b the batch of the last valid one. The writer begins batch
n+1 only after batch n was acknowledged. So if a validly signed record of a batch later than b+1
follows r, then r was durable once and has been changed since: CORRUPT, never repaired by itself.
Otherwise r belongs to a write that was never acknowledged: TORN, set aside and cut off.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from healer.errors import LedgerError
from healer.ledger import keys, segments
from healer.ledger.chain import GENESIS, Chain, genesis_key
from healer.ledger.entry import (
    FIRST_PREV,
    SIGNATURE_PREFIX,
    BadRecordError,
    Entry,
    check_signature,
    parse,
)

_BEGIN = re.compile(rb'\{"batch":')
_END = re.compile(re.escape(SIGNATURE_PREFIX) + rb'[A-Za-z0-9+/]{86}=="\}')


@dataclass(frozen=True, slots=True)
class Torn:
    """Bytes at the end of a segment that no acknowledged write left there."""

    path: Path
    offset: int
    data: bytes

    @property
    def saved_as(self) -> Path:
        """Where the bytes are set aside."""
        digest = hashlib.sha256(self.data).hexdigest()
        return self.path.with_name(f"torn-{self.path.stem}-{self.offset}-{digest[:8]}")


@dataclass(frozen=True, slots=True)
class End:
    """Where the next entry goes, and what has to be set aside first.

    ``segment`` is None where the ledger is empty.
    """

    seq: int
    prev: str
    batch: int
    segment: Path | None
    torn: tuple[Torn, ...]


EMPTY = End(seq=0, prev=FIRST_PREV, batch=0, segment=None, torn=())


def find_end(directory: Path, key: Ed25519PublicKey) -> End:
    """Read the end of a ledger and judge it; nothing is changed.

    LedgerError: CORRUPT, a foreign key, or a ledger without its beginning.
    """
    found = segments.find(directory)
    if not found:
        if (directory / keys.PUBLIC_KEY_FILE).exists():
            raise LedgerError(
                f"{directory} holds {keys.PUBLIC_KEY_FILE} but no entry: the ledger was emptied; "
                f"{_MEND.format(directory=directory)}"
            )
        return EMPTY
    if found[0].first != 0:
        raise LedgerError(
            f"{directory} begins with entry {found[0].first}: the files before it are missing; "
            f"put them back, or {_MEND.format(directory=directory)}"
        )
    _check_key(found[0].path, key)
    torn: list[Torn] = []
    for segment in reversed(found):
        last, offset = _valid_part(segment, key)
        data = segment.path.read_bytes()[offset:]
        if data or last is None:
            torn.append(Torn(segment.path, offset, data))
        if last is not None:
            _refuse_corrupt(torn, last.batch, key)
            return End(last.seq + 1, last.leaf, last.batch, segment.path, tuple(reversed(torn)))
    _refuse_corrupt(torn, -1, key)
    if (directory / keys.PUBLIC_KEY_FILE).exists():
        raise LedgerError(
            f"{found[0].path} line 1: ledger.genesis was durable once and is damaged now; "
            f"{_MEND.format(directory=directory)}"
        )
    return End(0, FIRST_PREV, 0, None, tuple(reversed(torn)))


# Its key goes with it, and root's helper obeys no other before it is told (healer/helper.py).
_MEND = (
    "keep it as evidence and let healer begin a new one: mv {directory} {directory}.damaged; "
    "rm -f /var/lib/healer-helper/ledger.pub"
)


def _check_key(first: Path, key: Ed25519PublicKey) -> None:
    line = next(segments.lines(first), (0, b""))[1]
    try:
        entry = parse(line.removesuffix(b"\n"))
        foreign = entry.type == GENESIS and genesis_key(entry) != keys.raw_public(key)
    except BadRecordError:
        return  # torn or corrupt: judged with the rest
    if foreign:
        raise LedgerError(
            f"the key does not belong to the ledger at {first.parent}: ledger.genesis names the "
            f"public key {entry.data['public_key']}, the key given has {keys.encode_public(key)}; "
            f"give the ledger's own key, or {_MEND.format(directory=first.parent)}"
        )


def _valid_part(segment: segments.Segment, key: Ed25519PublicKey) -> tuple[Entry | None, int]:
    """Return the last entry of the segment's valid beginning, and the offset where that ends."""
    chain = Chain(key, start=segment.first)
    last: Entry | None = None
    end = 0
    for offset, line in segments.lines(segment.path):
        try:
            if not line.endswith(b"\n"):
                break
            last = chain.feed(line[:-1])
        except BadRecordError:
            break
        end = offset + len(line)
    return last, end


def _refuse_corrupt(torn: list[Torn], batch: int, key: Ed25519PublicKey) -> None:
    for part in torn:
        for entry in _signed_records(part.data, key):
            if entry.batch > batch + 1:
                raise LedgerError(
                    f"{part.path} offset {part.offset}: the ledger is CORRUPT: an entry that was "
                    f"durable is damaged or missing, for entry {entry.seq} of a later batch "
                    "follows it; see healer ledger verify, then "
                    f"{_MEND.format(directory=part.path.parent)}"
                )


def _signed_records(data: bytes, key: Ed25519PublicKey) -> Iterator[Entry]:
    """Find each validly signed record, wherever its line begins."""
    for line in data.split(b"\n"):
        ends = [match.end() for match in _END.finditer(line)]
        for begin in (match.start() for match in _BEGIN.finditer(line)):
            for end in ends:
                try:
                    entry = parse(line[begin:end])
                    check_signature(entry, key)
                except BadRecordError:
                    continue
                yield entry
