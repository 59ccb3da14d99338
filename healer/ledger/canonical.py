"""RFC 8785 canonical JSON, narrowed to a profile in which common encoders agree byte for byte.

The profile: keys are ASCII and do not begin with ``~`` (reserved for the signature); numbers are
integers of magnitude below 2^53; strings are valid Unicode; no duplicate keys; nesting no deeper
than 32. ASCII keys sort alike by code point and by UTF-16 unit, and without floats RFC 8785's
number format is plain decimal, so msgspec's sorted encoder is canonical here as it stands.
"""

import msgspec

from healer.errors import LedgerError

MAX_BODY = 65_535
"""Longest body of an entry, in bytes."""
MAX_DEPTH = 32
"""Deepest nesting of lists and objects."""
INT_LIMIT = 1 << 53
"""Integers are smaller than this in magnitude (RFC 8785 section 3.2.2.3, RFC 7493 section 2.2)."""

_encoder = msgspec.json.Encoder(order="sorted")


class NotCanonicalError(LedgerError):
    """A value or its bytes are outside the canonical profile."""


def encode(value: object) -> bytes:
    """Return the canonical bytes of a value that ``check`` has let pass."""
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError as error:
        raise NotCanonicalError("a string holds a lone surrogate, which is not Unicode") from error


def check(value: object, depth: int = 0) -> None:
    """Raise NotCanonicalError when a value is outside the profile."""
    if isinstance(value, str) or value is None or value is True or value is False:
        return
    if isinstance(value, int):
        if not -INT_LIMIT < value < INT_LIMIT:
            # Not in decimal: a hostile one is too long for that, and too large for a float.
            raise NotCanonicalError(f"an integer of {value.bit_length()} bits is not below 2^53")
    elif depth >= MAX_DEPTH:
        raise NotCanonicalError(f"nested deeper than {MAX_DEPTH}")
    elif isinstance(value, list):
        for item in value:
            check(item, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            check_key(key)
            check(item, depth + 1)
    else:
        raise NotCanonicalError(f"a {type(value).__name__} cannot be in an entry")


def check_key(key: object) -> None:
    """Raise NotCanonicalError when an object's key is outside the profile."""
    if not isinstance(key, str) or not key.isascii() or key.startswith("~"):
        raise NotCanonicalError(f"key {key!r:.80} is not ASCII text without a leading '~'")
