import contextlib
import json
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from healer.ledger import canonical, entry, shrink
from healer.ledger.canonical import NotCanonicalError
from healer.ledger.entry import BadRecordError, Body
from tests.ledger.helpers import vectors

KEYS = st.text(st.characters(max_codepoint=127), max_size=8).filter(lambda k: k[:1] != "~")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
INTEGERS = st.integers(-(2**53) + 1, 2**53 - 1)
VALUES = st.recursive(
    st.none() | st.booleans() | INTEGERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary(max_size=50),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=30,
)


# Of a value in an entry's data, itself in the body.
DEPTH = 2
# The line of an entry, before and behind the one value in its data.
BEFORE, BEHIND = entry.seal(
    Body(0, "boot", 0, {"value": 0}, 0, None, entry.FIRST_PREV, 0, 0, "test"),
    Ed25519PrivateKey.generate(),
).raw.split(b'"value":0')


def encoded(value: object) -> bytes:
    canonical.check(value, DEPTH)
    return canonical.encode(value)


def decoded(raw: bytes) -> Any:
    """Read a value as what verifies a ledger does."""
    return entry.parse(BEFORE + b'"value":' + raw + BEHIND).data["value"]


def reference(value: object) -> bytes:
    """RFC 8785 inside the profile, by the standard library."""
    return json.dumps(
        value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
    ).encode()


@given(VALUES)
def test_encoding_agrees_with_the_standard_library_and_decodes_again(value: object) -> None:
    raw = encoded(value)
    assert raw == reference(value)
    assert decoded(raw) == value


@given(VALUES, st.data())
def test_a_flipped_byte_never_decodes_to_the_same_value(value: object, data: Any) -> None:
    raw = bytearray(encoded(value))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(BadRecordError):
        assert decoded(bytes(raw)) != value


@pytest.mark.parametrize(
    "value",
    [
        1.5,
        float("nan"),
        {"a": [0.0]},
        2**53,
        -(2**53),
        2**64 - 1,
        {"é": 1},
        {"~sig": "x"},
        {1: 2},
        "\ud800",
        {"a": "\udcff"},
        b"bytes",
        {1, 2},
    ],
    ids=repr,
)
def test_values_outside_the_profile_are_refused(value: object) -> None:
    with pytest.raises(NotCanonicalError):
        encoded(value)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" 1",
        b"1 ",
        b"01",
        b"-0",
        b"1.0",
        b"1e2",
        b"9007199254740992",
        b"9" * 400,
        b'{"a":1,"a":1}',
        b'{"b":1,"a":2}',
        b'{"a": 1}',
        b'"\\u0041"',
        b'"\\u001F"',
        b'"\\/"',
        b'"\\ud800"',
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b'"\n"',
        b"NaN",
        b"[" * 100_000,
        b'{"\xc3\xa9":1}',
    ],
    ids=lambda raw: repr(raw[:20]),
)
def test_bytes_outside_the_profile_are_refused(raw: bytes) -> None:
    with pytest.raises(BadRecordError):
        decoded(raw)


def test_nesting_is_limited_to_the_documented_depth() -> None:
    value: object = 1
    for _ in range(canonical.MAX_DEPTH - DEPTH):
        value = [value]
    assert decoded(encoded(value)) == value
    with pytest.raises(NotCanonicalError, match="deeper"):
        encoded([value])


# The vectors, and whether their input and their output are inside the profile.
JCS = {
    "arrays": (True, True),
    "unicode": (True, True),
    "structures": (False, True),  # 56.0, which RFC 8785 writes as 56
    "french": (False, False),  # keys that are not ASCII
    "values": (False, False),  # floats
    "weird": (False, False),  # keys that are not ASCII
}


@pytest.mark.parametrize("name", JCS)
def test_jcs_vectors(name: str) -> None:
    directory = vectors("jcs")
    value = msgspec.json.decode((directory / "input" / f"{name}.json").read_bytes())
    expected = (directory / "output" / f"{name}.json").read_bytes()
    input_inside, output_inside = JCS[name]
    if input_inside:
        assert encoded(value) == expected
    else:
        with pytest.raises(NotCanonicalError):
            encoded(value)
    if output_inside:
        assert encoded(decoded(expected)) == expected
    else:
        with pytest.raises(BadRecordError):
            decoded(expected)


def test_every_jcs_vector_is_used() -> None:
    names = {path.stem for path in (vectors("jcs") / "input").iterdir()}
    assert names == set(JCS)


@given(st.dictionaries(st.text(), ANYTHING, max_size=6))
def test_whatever_a_machine_produces_fits(data: dict[str, object]) -> None:
    fitted, size = shrink.fit(data)
    raw = canonical.encode({"data": fitted})
    assert len(raw) == size + len('{"data":}') <= canonical.MAX_BODY


@given(st.dictionaries(KEYS, VALUES, max_size=6))
def test_what_is_inside_the_profile_and_short_is_left_alone(data: dict[str, object]) -> None:
    assert shrink.fit(data)[0] == data


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10_000_000,
        "\x01" * 60_000,
        ["line"] * 1_000_000,
        ["x" * 1_000] * 1_000,
        {f"key{n}": "x" * 100 for n in range(10_000)},
        {"k" * 100_000: {"k" * 100_000: 1}},
        [[["x" * 500] * 50] * 50] * 50,
    ],
    ids=["string", "escapes", "list", "lines", "object", "key", "nested"],
)
def test_huge_data_is_shortened_with_a_marker(value: object) -> None:
    fitted, size = shrink.fit({"agent": "worker", "journal": value})
    raw = canonical.encode(fitted)
    assert len(raw) == size <= shrink.MAX_DATA
    assert fitted["agent"] == "worker"
    assert b"[healer: " in raw


def test_both_ends_of_what_is_cut_stay() -> None:
    fitted, _ = shrink.fit({"text": "BEGIN" + "x" * 100_000 + "END"})
    kept = str(fitted["text"])
    assert kept.startswith("BEGIN")
    assert kept.endswith("END")
    assert "[healer: 83624 characters cut]" in kept


def test_values_that_a_machine_produces_outside_the_profile_are_mended() -> None:
    deep: object = "bottom"
    for _ in range(100):
        deep = [deep]
    fitted, _ = shrink.fit(
        {"memory": 2**64 - 1, "line": "bad \udcff", "raw": b"\x00\xff", "~sig": 1, "é": deep}
    )
    assert fitted["memory"] == "18446744073709551615"
    assert fitted["line"] == "bad \\udcff"
    assert fitted["raw"] == "AP8="
    assert fitted["_~sig"] == 1
    assert "nested too deep" in repr(fitted["\\xe9"])


def test_what_only_a_bug_produces_is_refused() -> None:
    for value in (1.5, object(), {1, 2}):
        with pytest.raises(NotCanonicalError, match="cannot be in an entry"):
            shrink.fit({"a": [value]})
