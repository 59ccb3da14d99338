"""Make what the machine produced fit into an entry: a crash must never be unrecordable.

What a machine can produce is mended, and each mend shows in the value: long strings, lists and
nested objects lose their middle to a marker ``[healer: N … cut]``; integers from 2^53 on (systemd
writes "no limit" as 2^64-1) become decimal strings; lone surrogates become backslash escapes;
bytes become base64; odd keys are escaped. What only a bug can produce (a float, any other object)
is refused.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from healer.ledger import canonical

MAX_DATA = 60_000
"""Longest encoded data of an entry, in bytes; the rest of the body stays below 5,535."""

# Longest string (characters) and list or object (items) allowed in each further attempt.
_ATTEMPTS = ((16_384, 4_096), (4_096, 512), (1_024, 64), (256, 24), (64, 8), (16, 4))
_CUT = "healer-cut"


def fit(data: Mapping[str, object]) -> tuple[dict[str, object], int]:
    """Return a copy of ``data`` within the canonical profile and MAX_DATA bytes, and its size.

    The keys of ``data`` itself stay, unless even they alone are too long. NotCanonicalError: a
    float or an object that is not JSON.
    """
    plain = {_key(key): _plain(value, 1) for key, value in data.items()}
    size = len(canonical.encode(plain))
    if size <= MAX_DATA:
        return plain, size
    for length, items in _ATTEMPTS:
        cut = {key: _cut(value, length, items) for key, value in plain.items()}
        cut_size = len(canonical.encode(cut))
        if cut_size <= MAX_DATA:
            return cut, cut_size
    return {_CUT: f"[healer: {size} bytes of data cut]"}, 64


def whole(items: Sequence[str]) -> Sequence[str] | None:
    """Return the items of a list in an entry; None where it was too long for that, and was cut."""
    return None if any(item.startswith("[healer: ") for item in items) else items


def text(value: str, length: int) -> str:
    """Return valid Unicode of at most ``length`` characters and a marker."""
    return _cut_text(_unicode(value), length)


def _plain(value: object, depth: int) -> object:
    if value is None or isinstance(value, str | bytes | bool | int):
        return _scalar(value)
    if depth >= canonical.MAX_DEPTH - 1:  # the data is itself one level down in the body
        return "[healer: nested too deep, cut]"
    if isinstance(value, Mapping):
        return {_key(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    raise canonical.NotCanonicalError(f"a {type(value).__name__} cannot be in an entry: {value!r}")


def _scalar(value: str | bytes | bool | int | None) -> str | bool | int | None:
    if isinstance(value, str):
        return _unicode(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if value is None or isinstance(value, bool):
        return value
    return int(value) if -canonical.INT_LIMIT < value < canonical.INT_LIMIT else str(int(value))


def _key(key: object) -> str:
    if isinstance(key, str) and key.isascii() and not key.startswith("~"):
        return key
    escaped = str(key).encode("ascii", "backslashreplace").decode()
    return f"_{escaped}" if escaped.startswith("~") else escaped


def _unicode(value: str) -> str:
    if value.isascii():
        return str.__str__(value)
    return value.encode("utf-8", "backslashreplace").decode()


def _cut(value: object, length: int, items: int) -> object:
    if isinstance(value, str):
        return _cut_text(value, length)
    if isinstance(value, list):
        kept = [_cut(item, length, items) for item in _ends(value, items)]
        if len(value) > items:
            kept.insert(items // 2, f"[healer: {len(value) - items} items cut]")
        return kept
    if isinstance(value, dict):
        names = _ends(sorted(value), items)
        cut = {_cut_text(name, 256): _cut(value[name], length, items) for name in names}
        if len(value) > items:
            cut[_CUT] = f"[healer: {len(value) - items} keys cut]"
        return cut
    return value


def _cut_text(value: str, length: int) -> str:
    if len(value) <= length:
        return value
    half = length // 2
    return f"{value[:half]}[healer: {len(value) - 2 * half} characters cut]{value[-half:]}"


def _ends(values: list[Any], count: int) -> list[Any]:
    half = count // 2
    return values if len(values) <= count else values[:half] + values[-half:]
