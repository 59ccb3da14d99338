"""YAML to plain values: the core schema of YAML 1.2, and nothing that could surprise or explode."""

import contextlib
import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from healer.config import reader
from healer.config.reader import YamlError, parse


@pytest.fixture(params=["libyaml", "python"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both parsers that PyYAML may have."""
    if request.param == "libyaml" and not yaml.__with_libyaml__:
        pytest.skip("PyYAML was built without libyaml")
    name = "CSafeLoader" if request.param == "libyaml" else "SafeLoader"
    monkeypatch.setattr(reader, "_PARSER", getattr(yaml, name))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on: failure", {"on": "failure"}),
        ("{yes: no, off: on}", {"yes": "no", "off": "on"}),
        ("[true, True, FALSE, null, ~, '']", [True, True, False, None, None, ""]),
        ("[1, -2, +3, 0o17, 0x1F, 010]", [1, -2, 3, 15, 31, 10]),
        ("[1.5, .5, 1., 1e3, -2.5E-1]", [1.5, 0.5, 1.0, 1000.0, -0.25]),
        ("['1', \"true\", =]", ["1", "true", "="]),
        ("[1_000, 1:30, 2026-01-01]", ["1_000", "1:30", "2026-01-01"]),
        ("123: a\nnull: b", {"123": "a", "null": "b"}),
        ('{"a":{"b":[]},"c":"\\u00e9\\n"}', {"a": {"b": []}, "c": "é\n"}),
        ("a: |\n  x\n  y\n", {"a": "x\ny\n"}),
        ("\ufeffa: 1", {"a": 1}),
        ("--- 5\n...\n", 5),
        ("", None),
        ("# nothing", None),
    ],
)  # fmt: skip
def test_values(parser: None, text: str, value: Any) -> None:
    parsed = parse(text)
    assert parsed == value
    assert repr(parsed) == repr(value)  # 1 is not true, and not 1.0


@pytest.mark.parametrize(
    ("text", "wrong", "mend"),
    [
        ("a: 1\na: 2", "line 2 has the key 'a' again", "keep only one"),
        ("a: &x 1\nb: *x", "line 1 has an anchor (&name)", "write the value out"),
        ("a: *x", "line 1 has an alias (*name)", "write the value out"),
        ("a: !!python/name:os.system", "line 1 has a tag ('tag:yaml.org", "plain value"),
        ("! a", "line 1 has a tag ('!')", "plain value"),
        ("a: 1\n---\nb: 2", "line 2 has a second document (---)", "keep only one"),
        ("a: .inf", "line 1 has .inf", "finite number"),
        ("{[a]: b}", "line 1 has a key that is not a plain word", "write a name"),
        ("? {a: b}\n: c", "line 1 has a key that is not a plain word", "write a name"),
        ("a: {b", "it is not YAML: line ", "JSON"),
        ("a:\n\t- b", "it is not YAML: line 2", "JSON"),
        ("a: \x01", "it is not YAML", "JSON"),
    ],
)  # fmt: skip
def test_refusals(parser: None, text: str, wrong: str, mend: str) -> None:
    with pytest.raises(YamlError) as caught:
        parse(text)
    assert wrong in caught.value.wrong
    assert mend in caught.value.mend
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? ", "[[[{x: ["])
def test_deep_nesting_is_one_error(parser: None, opening: str) -> None:
    with pytest.raises(YamlError):
        parse(opening * 20_000)


def test_nesting_up_to_the_limit_is_read(parser: None) -> None:
    depth = reader.MAX_DEPTH
    value = parse("[" * depth + "]" * depth)
    for _ in range(depth - 1):
        assert isinstance(value, list)
        value = value[0]
    assert value == []
    with pytest.raises(YamlError, match="levels of nesting"):
        parse("[" * (depth + 1) + "]" * (depth + 1))


def test_more_values_than_any_host_needs_are_refused(
    parser: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "MAX_VALUES", 1000)
    assert parse(f"[{'1,' * 999}]") == [1] * 999
    with pytest.raises(YamlError, match="line 1 has more than 1000 values"):
        parse(f"[{'1,' * 1000}]")


def test_half_a_surrogate_pair_is_refused(parser: None) -> None:
    with pytest.raises(YamlError):
        parse('a: "\\ud800"')


JSON_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn"]))
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**17), 10**17)
    | st.floats(-1e15, 1e15, allow_subnormal=False)
    | JSON_TEXT,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(JSON_TEXT.map(lambda k: k[:50]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(JSON)
def test_json_means_the_same_as_yaml(value: Any) -> None:
    assert parse(json.dumps(value, ensure_ascii=False)) == value


@given(
    st.text(alphabet=st.sampled_from("{}[]:,-?&*!|>'\"%@`#~ \n\tab01.e\\\0é\u2028"), max_size=60)
)
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(YamlError):
        assert plain(parse(text))


def plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and plain(part) for key, part in value.items())
    if isinstance(value, list):
        return all(plain(part) for part in value)
    return value is None or type(value) in (bool, int, float, str)
