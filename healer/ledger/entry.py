"""One entry of the ledger: its line, its leaf hash and its signature.

A line is one canonical JSON object whose last key ``~sig`` is a suffix of fixed length. The body
is the line without that suffix, plus the closing brace::

    line  = body without its last "}" + ',"~sig":"' + base64 of 64 bytes + '"}'
    leaf  = SHA-256(0x00 || body)                                  (RFC 6962 section 2.1)
    sig   = Ed25519("healer-ledger-entry/v1" || 0x00 || leaf)      (RFC 8032)
    prev  = hex of the leaf of the entry before; 64 zeros in the first
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from healer.errors import LedgerError
from healer.ledger import canonical

DOMAIN = b"healer-ledger-entry/v1\x00"
"""What a signature says that it signs, so that it can never pass for one of another kind."""
FIRST_PREV = "0" * 64
SIGNATURE_PREFIX = b',"~sig":"'
SUFFIX_LENGTH = len(SIGNATURE_PREFIX) + 88 + len(b'"}')
MAX_LINE = canonical.MAX_BODY - 1 + SUFFIX_LENGTH
"""Longest line without its newline, in bytes."""

TYPE = r"\A[a-z][a-z0-9._-]{0,63}\Z"
"""What an entry's type looks like."""

_Count = Annotated[int, msgspec.Meta(ge=0, lt=canonical.INT_LIMIT)]
_Time = Annotated[int, msgspec.Meta(gt=-canonical.INT_LIMIT, lt=canonical.INT_LIMIT)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class BadRecordError(LedgerError):
    """A line is not a valid entry, or not the one that belongs in its place."""


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is hashed and signed; the fields are in canonical order."""

    batch: _Count
    boot: _Name
    boottime_us: _Time
    data: dict[str, Any]
    epoch: _Count
    incident: Annotated[str, msgspec.Meta(min_length=1, max_length=512)] | None
    prev: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    seq: _Count
    time_us: _Time
    type: Annotated[str, msgspec.Meta(pattern=TYPE)]


_decoder = msgspec.json.Decoder(Body)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as it is on disk.

    ``time_us`` is CLOCK_REALTIME and ``boottime_us`` CLOCK_BOOTTIME, both in microseconds, taken
    when the entry was handed in; the first is informative, for it may step. ``leaf`` is the
    entry's hash in hexadecimal, ``raw`` its line without the newline.
    """

    seq: int
    batch: int
    epoch: int
    prev: str
    time_us: int
    boottime_us: int
    boot: str
    type: str
    incident: str | None
    data: dict[str, Any]
    leaf: str
    raw: bytes

    @property
    def signature(self) -> bytes:
        """The 64 bytes of the Ed25519 signature."""
        return base64.b64decode(self.raw[-90:-2])


def leaf_hash(body: bytes) -> bytes:
    """Return the RFC 6962 leaf hash of a body."""
    return hashlib.sha256(b"\x00" + body).digest()


def seal(body: Body, key: Ed25519PrivateKey) -> Entry:
    """Sign a body; NotCanonicalError when it is outside the profile or too long."""
    raw = canonical.encode(body)
    if len(raw) > canonical.MAX_BODY:
        raise canonical.NotCanonicalError(f"body of {len(raw)} bytes, over {canonical.MAX_BODY}")
    leaf = leaf_hash(raw)
    signature = base64.b64encode(key.sign(DOMAIN + leaf))
    return _entry(body, leaf, raw[:-1] + SIGNATURE_PREFIX + signature + b'"}')


def parse(raw: bytes) -> Entry:
    """Return the entry of a line without its newline; its signature is not checked.

    BadRecordError says what is wrong with the line.
    """
    if len(raw) > MAX_LINE:
        raise BadRecordError(f"the line is longer than {MAX_LINE} bytes")
    suffix = raw[-SUFFIX_LENGTH:]
    if not (suffix.startswith(SIGNATURE_PREFIX) and suffix.endswith(b'"}')):
        raise BadRecordError("the line does not end in a signature")
    _check_base64(suffix[len(SIGNATURE_PREFIX) : -2])
    body = raw[:-SUFFIX_LENGTH] + b"}"
    try:
        fields = _decoder.decode(body)
        canonical.check(fields.data, 1)
        same = canonical.encode(fields) == body
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRecordError(f"the body is not an entry: {error}") from error
    except canonical.NotCanonicalError as error:
        raise BadRecordError(f"the body is outside the canonical profile: {error}") from error
    if not same:
        raise BadRecordError("the body is not in canonical form")
    return _entry(fields, leaf_hash(body), raw)


def check_signature(entry: Entry, key: Ed25519PublicKey) -> None:
    """Raise BadRecordError when the entry was not signed by this key."""
    try:
        key.verify(entry.signature, DOMAIN + bytes.fromhex(entry.leaf))
    except InvalidSignature as error:
        raise BadRecordError(
            "the signature does not match: changed after it was signed, or signed by another key"
        ) from error


def _check_base64(text: bytes) -> None:
    try:
        signature = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise BadRecordError(f"the signature is not base64: {error}") from error
    # Base64 spells one signature in 16 ways; only one of them is canonical.
    if len(signature) != 64 or base64.b64encode(signature) != text:
        raise BadRecordError("the signature is not 64 bytes in canonical base64")


def _entry(body: Body, leaf: bytes, raw: bytes) -> Entry:
    return Entry(
        seq=body.seq,
        batch=body.batch,
        epoch=body.epoch,
        prev=body.prev,
        time_us=body.time_us,
        boottime_us=body.boottime_us,
        boot=body.boot,
        type=body.type,
        incident=body.incident,
        data=body.data,
        leaf=leaf.hex(),
        raw=raw,
    )
