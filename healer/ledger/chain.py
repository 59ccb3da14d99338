"""What makes a sequence of lines a ledger: a state machine without I/O.

Rules, in the order in which they are checked for each line:

1. It is an entry: a canonical body within the profile, exactly the fields of an entry, and a
   signature suffix in canonical base64 (``entry.parse``).
2. Its signature is by the public key given (skipped by readers that only follow the chain).
3. ``seq`` is one more than that of the entry before; the first is 0.
4. ``prev`` is the leaf hash of the entry before; 64 zeros in the first.
5. ``batch`` is that of the entry before or one more; the first is 0.
6. ``epoch`` is 0: epoch keys are not in use yet.
7. The first entry, and no other, is ``ledger.genesis``; its ``public_key`` is not of low order
   and is the key given.

No rule looks at a clock: times are informative.
"""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from healer.errors import LedgerError
from healer.ledger import keys
from healer.ledger.entry import FIRST_PREV, BadRecordError, Entry, check_signature, parse

GENESIS = "ledger.genesis"


class Chain:
    """The place in a ledger that the next line has to fit.

    ``key`` None follows the chain without checking signatures. ``start`` begins in the middle, at
    the first entry of a segment, whose ``prev`` and ``batch`` are then taken as they are.
    """

    __slots__ = ("_key", "_raw_key", "batch", "prev", "seq")

    def __init__(self, key: Ed25519PublicKey | None, *, start: int = 0) -> None:
        self._key = key
        self._raw_key = None if key is None else keys.raw_public(key)
        self.seq = start
        self.prev: str | None = None if start else FIRST_PREV
        self.batch: int | None = None if start else 0

    def feed(self, raw: bytes) -> Entry:
        """Check the next line (without its newline); BadRecordError says why it does not fit."""
        entry = parse(raw)
        if self._key is not None:
            self._check_genesis_key(entry)
            check_signature(entry, self._key)
        self._check_place(entry)
        self.seq = entry.seq + 1
        self.prev = entry.leaf
        self.batch = entry.batch
        return entry

    def is_behind_a_gap(self, raw: bytes) -> bool:
        """Whether a line is a signed entry of a batch behind the next one.

        A batch is begun only when the one before it was acknowledged: so what stands between was
        durable once, and is damaged or missing now.
        """
        try:
            entry = parse(raw)
            if self._key is not None:
                check_signature(entry, self._key)
        except BadRecordError:
            return False
        return self.batch is not None and entry.batch > self.batch + 1

    def _check_genesis_key(self, entry: Entry) -> None:
        """Tell a foreign key from a broken signature: they have different mends."""
        if entry.seq == 0 and entry.type == GENESIS and genesis_key(entry) != self._raw_key:
            raise BadRecordError(
                f"ledger.genesis names the public key {entry.data['public_key']}, not the one "
                "given: a foreign key, or a ledger that was replaced as a whole"
            )

    def _check_place(self, entry: Entry) -> None:
        if entry.seq != self.seq:
            raise BadRecordError(
                f"seq {entry.seq} stands where {self.seq} belongs: entries were removed, "
                "repeated or reordered"
            )
        if self.prev is not None and entry.prev != self.prev:
            raise BadRecordError(
                f"prev is {entry.prev}, but the entry before it hashes to {self.prev}: one of the "
                "two was changed or exchanged"
            )
        if self.batch is not None and not self.batch <= entry.batch <= self.batch + bool(self.seq):
            raise BadRecordError(f"batch {entry.batch} does not follow batch {self.batch}")
        if entry.epoch != 0:
            raise BadRecordError(f"epoch {entry.epoch} is not known to this version; only 0 is")
        if (entry.seq == 0) != (entry.type == GENESIS):
            raise BadRecordError("ledger.genesis belongs at the beginning, and nowhere else")
        if entry.seq == 0:
            genesis_key(entry)


def genesis_key(entry: Entry) -> bytes:
    """Return the 32 bytes of the public key that ledger.genesis names."""
    try:
        return keys.decode_public(entry.data.get("public_key"))
    except LedgerError as error:
        raise BadRecordError(f"ledger.genesis: {error}") from error
