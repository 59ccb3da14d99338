"""Plain values to the structs of the schema, with every problem found, not only the first."""

import difflib
import json
import typing
from collections.abc import Mapping
from typing import Any

import msgspec

from healer.config import rules, schema
from healer.config.problem import Problem, option_path, shortened

_FAILED: Any = object()
# A person reads no more, and neither the journal nor the ledger should have to hold them.
MAX_PROBLEMS = 200
_CHECKS: dict[str, type[schema.Check]] = {
    "http": schema.HttpCheck,
    "tcp": schema.TcpCheck,
    "listen": schema.ListenCheck,
    "command": schema.CommandCheck,
    "log": schema.LogCheck,
    "memory": schema.MemoryCheck,
    "file": schema.FileCheck,
}
_GATES: dict[str, type[schema.GateBase]] = {
    "http": schema.HttpGate,
    "tcp": schema.TcpGate,
    "listen": schema.ListenGate,
    "command": schema.CommandGate,
    "unit": schema.UnitGate,
    "network": schema.NetworkGate,
}


def decode(value: object) -> tuple[schema.Config | None, list[Problem]]:
    """Turn the document into a Config; the Config counts only if there is no problem."""
    decoder = _Decoder()
    try:
        config = decoder.struct(schema.Config, value, "")
    except _EnoughError:
        last = Problem("", f"there are more than these {MAX_PROBLEMS} errors", "mend them first")
        return None, [*decoder.problems[:MAX_PROBLEMS], last]
    return (None if config is _FAILED else config), decoder.problems


class _EnoughError(Exception):
    """Nobody reads more problems than there are by now."""


class _Decoder:
    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def value(self, kind: Any, value: object, path: str) -> Any:
        """Decode `value` as the type `kind`; _FAILED (and a problem noted) where it is not."""
        if kind == schema.HealthCheck:
            return self.tagged(_CHECKS, schema.Check, value, path)
        if kind == schema.Gate:
            return self.tagged(_GATES, schema.GateBase, value, path)
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin is dict:
            return self.mapping(arguments[1], value, path)
        if origin is tuple:
            return self.sequence(arguments[0], value, path)
        if isinstance(kind, type) and issubclass(kind, schema.Section):
            return self.struct(kind, value, path)
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError:
            return self.fail(path, f"is {_shown(value)}", f"write {_described(kind)}")

    def fail(self, path: str, wrong: str, mend: str) -> Any:
        self.problems.append(Problem(path, wrong, mend))
        if len(self.problems) > MAX_PROBLEMS:
            raise _EnoughError
        return _FAILED

    def struct(self, cls: type[schema.Section], value: object, path: str) -> Any:
        if not isinstance(value, dict):
            return self.fail(path, f"is {_shown(value)}", "write a mapping of options to values")
        fields = {field.encode_name: field for field in msgspec.structs.fields(cls)}
        tags = {"type"} if issubclass(cls, schema.Check | schema.GateBase) else set()
        complete = self.known(value, {*fields, *tags}, path)
        found: dict[str, Any] = {}
        for option, field in fields.items():
            where = option_path(path, option)
            if option in value:
                found[field.name] = self.value(field.type, value[option], where)
            elif field.required:
                self.fail(where, "is missing", f"write {_described(field.type)}")
                complete = False
        if not complete or any(part is _FAILED for part in found.values()):
            return _FAILED
        made = cls(**found)
        self.problems += rules.within(made, path)
        return made

    def known(self, value: Mapping[str, object], options: set[str], path: str) -> bool:
        unknown = sorted(value.keys() - options)
        for option in unknown:
            near = difflib.get_close_matches(option[:64], options, n=1)
            mend = f"did you mean {near[0]}?" if near else f"the options are {_listed(options)}"
            self.fail(option_path(path, option), "is no option", mend)
        return not unknown

    def tagged(
        self,
        kinds: Mapping[str, type[schema.Section]],
        base: type[schema.Section],
        value: object,
        path: str,
    ) -> Any:
        """Decode a section whose option `type` says which one of `kinds` it is."""
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind in kinds:
            return self.struct(kinds[kind], value, path)
        if not isinstance(value, dict):
            return self.struct(base, value, path)
        wrong = f"is {_shown(kind)}" if "type" in value else "is missing"
        return self.fail(option_path(path, "type"), wrong, f"write one of {_listed(kinds)}")

    def mapping(self, kind: Any, value: object, path: str) -> Any:
        """Decode each value; those that are right are judged together even if others are not."""
        if not isinstance(value, dict):
            return self.fail(path, f"is {_shown(value)}", "write a mapping of names to options")
        found = {key: self.value(kind, part, option_path(path, key)) for key, part in value.items()}
        right = {key: part for key, part in found.items() if part is not _FAILED}
        if kind is schema.Agent:
            self.problems += rules.between(right)
        return right if len(right) == len(found) else _FAILED

    def sequence(self, kind: Any, value: object, path: str) -> Any:
        if not isinstance(value, list):
            return self.fail(path, f"is {_shown(value)}", "write a list")
        found = [self.value(kind, part, f"{path}[{index}]") for index, part in enumerate(value)]
        return _FAILED if any(part is _FAILED for part in found) else tuple(found)


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return shortened(json.dumps(value))


def _listed(names: typing.Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _described(kind: Any) -> str:
    """Say what a value of this type looks like, for the mend."""
    match msgspec.inspect.type_info(kind):
        case msgspec.inspect.BoolType():
            looks = "true or false"
        case msgspec.inspect.LiteralType(values=values):
            names = ", ".join(str(value) for value in values)
            looks = f"one of {names}" if len(values) > 1 else names
        case msgspec.inspect.IntType(ge=low, le=high):
            looks = f"a whole number from {low} to {high}"
        case msgspec.inspect.FloatType(gt=above, ge=low, le=high):
            bound = f"from {low:g}" if low is not None else f"above {above:g}, up"
            looks = f"a number of seconds {bound} to {high}"
        case msgspec.inspect.StrType():
            looks = "a text, in quotes"
        case msgspec.inspect.VarTupleType():
            looks = "a list"
        case _:
            looks = "a text in quotes, or null"
    return looks
