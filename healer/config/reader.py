"""YAML text to plain values, for one mapping of settings and nothing cleverer.

The events of PyYAML's parser are put together here, because its loaders build YAML 1.1 (where
`on:` is the boolean true), take the last of two equal keys without a word, expand aliases however
large, and recurse. Scalars are resolved by the core schema of YAML 1.2 (section 10.3.2); anchors,
aliases, tags, equal keys, more than one document and deep nesting are refused.
"""

import re
from collections.abc import Iterable
from typing import Any

import yaml

from healer.config.problem import shortened

# The schema needs 6 levels.
MAX_DEPTH = 32
# A thousand agents with all their checks have a fifth of that. The daemon reads between two looks
# at the host, and may not be away for long (WatchdogSec=).
MAX_VALUES = 500_000

# LibYAML is some 20 times faster; the parser written in Python gives the same events.
_PARSER: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
# No schema value needs more digits, and int() of a long run of them is slow.
_INT = re.compile(r"[-+]?[0-9]{1,18}|0o[0-7]{1,20}|0x[0-9a-fA-F]{1,15}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,30}|[0-9]{1,30}(\.[0-9]{0,30})?)([eE][-+]?[0-9]{1,3})?")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

# The parser written in Python lets them through, and nothing can print them.
_SURROGATE = re.compile("[\ud800-\udfff]")

Value = None | bool | int | float | str | list["Value"] | dict[str, "Value"]


class YamlError(Exception):
    """The text is not the YAML that a configuration may be written in: what is wrong, the mend."""

    def __init__(self, wrong: str, mend: str) -> None:
        self.wrong = wrong
        self.mend = mend
        super().__init__(f"{wrong}; {mend}")


def parse(text: str) -> Value:
    """Give the one document of `text` as plain values; mapping keys are always strings.

    Raises YamlError, which names the line.
    """
    builder = _Builder()
    try:
        _feed(builder, yaml.parse(text, Loader=_PARSER))
    except yaml.YAMLError as error:
        if "nesting depth" in str(error):  # the parser's own bound, from PyYAML 6.0.4 on
            words = f"more than {MAX_DEPTH} levels of nesting"
            raise YamlError(words, "the options need 6") from None
        mend = "the module writes JSON, which is the safest YAML"
        raise YamlError(f"it is not YAML: {_one_line(error)}", mend) from None
    return builder.document


def _feed(builder: "_Builder", events: Iterable[Any]) -> None:
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            builder.start_document(event)
        elif isinstance(event, yaml.AliasEvent):
            raise _refusal(event, "an alias (*name)", "write the value out")
        elif isinstance(event, yaml.NodeEvent):
            _refuse_decorations(event)
            if isinstance(event, yaml.ScalarEvent):
                builder.scalar(event)
            else:
                builder.open(event, [] if isinstance(event, yaml.SequenceStartEvent) else {})
        elif isinstance(event, yaml.CollectionEndEvent):
            builder.close()


def _refuse_decorations(event: Any) -> None:
    if event.anchor is not None:
        raise _refusal(event, "an anchor (&name)", "write the value out")
    if event.tag is not None:
        raise _refusal(event, f"a tag ({_short(event.tag)})", "write the plain value")


class _Builder:
    """The values under construction: one open container and its pending key for each level."""

    def __init__(self) -> None:
        self.document: Value = None
        self._documents = 0
        self._values = 0
        self._open: list[list[Value] | dict[str, Value]] = []
        self._keys: list[str | None] = []

    def start_document(self, event: Any) -> None:
        self._documents += 1
        if self._documents > 1:
            raise _refusal(event, "a second document (---)", "keep only one")

    def scalar(self, event: Any) -> None:
        if _SURROGATE.search(event.value):
            raise _refusal(event, "half of a surrogate pair", "write the whole character")
        if self._open and isinstance(self._open[-1], dict) and self._keys[-1] is None:
            if event.value in self._open[-1]:
                raise _refusal(event, f"the key {_short(event.value)} again", "keep only one")
            self._keys[-1] = event.value
            return
        # implicit[0]: a plain scalar, which alone may be anything but a string.
        self._put(event, _resolve(event) if event.implicit[0] else event.value)

    def open(self, event: Any, container: list[Value] | dict[str, Value]) -> None:
        if self._open and isinstance(self._open[-1], dict) and self._keys[-1] is None:
            raise _refusal(event, "a key that is not a plain word", "write a name")
        if len(self._open) >= MAX_DEPTH:
            raise _refusal(event, f"more than {MAX_DEPTH} levels of nesting", "the options need 6")
        self._put(event, container)
        self._open.append(container)
        self._keys.append(None)

    def close(self) -> None:
        self._open.pop()
        self._keys.pop()

    def _put(self, event: Any, value: Value) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            raise _refusal(event, f"more than {MAX_VALUES} values before it", "declare less")
        if not self._open:
            self.document = value
            return
        container, key = self._open[-1], self._keys[-1]
        if isinstance(container, list):
            container.append(value)
        elif key is not None:
            container[key] = value
            self._keys[-1] = None


def _resolve(event: Any) -> Value:
    """Resolve a plain scalar by the core schema of YAML 1.2."""
    text: str = event.value
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text):
        return int(text, 0) if text.startswith(("0o", "0x")) else int(text, 10)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _SPECIAL.fullmatch(text):
        raise _refusal(event, f"{text}, which is no number of anything", "write a finite number")
    return text


def _refusal(event: Any, wrong: str, mend: str) -> YamlError:
    return YamlError(f"line {event.start_mark.line + 1} has {wrong}", mend)


def _short(text: str) -> str:
    return ascii(shortened(text))


def _one_line(error: Exception) -> str:
    """A yaml.YAMLError in one short line, without the excerpt of the text."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    where = f"line {mark.line + 1}: " if mark is not None else ""
    return where + " ".join(str(problem).split())[:200]
