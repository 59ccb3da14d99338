"""What types cannot say: names, ranges that depend on each other, combinations that cannot work.

nix/assertions.nix refuses the same at build time; this is for every other way to a config file.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from healer.config import restarting, schema
from healer.config.problem import Problem, option_path

# systemd.unit(5): a prefix, then `@` and an instance for a template, in these characters; at most
# 255 of them, of which healer puts some before the name in units of its own (healer-restart-…). A
# backslash starts an escape (`\x2d`) but is legal wherever it stands.
_UNIT = re.compile(r"[A-Za-z0-9:_.\\-]+(@[A-Za-z0-9:_.\\@-]+)?\.service")
_UNIT_MAX = 230
# Any unit that can be active, an instance but no template.
_ANY_UNIT = re.compile(
    r"[A-Za-z0-9:_.\\-]+(@[A-Za-z0-9:_.\\@-]+)?"
    r"\.(service|socket|target|mount|automount|swap|timer|path|device|slice|scope)"
)
# IFNAMSIZ of linux/if.h is 16 with the zero; ip-link(8).
_INTERFACE = re.compile(r"[^\s/:%]{1,15}")
# What healer is made of; see nix/own-units.nix, and healer/safeswitch/trial.py.
_OWN_UNIT = re.compile(r"healer(-boot|-boot-complete|-trial|-helper@.*)?\.service")
# The name of an agent is part of incident names and of what people type.
_AGENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
# Also a file name: systemd.exec(5), "Credentials".
_CREDENTIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")
_TIME_OF_DAY = re.compile(r"([01]\d|2[0-3]):[0-5]\d")
_PATTERN_MAX = 1000


def between(agents: Mapping[str, schema.Agent]) -> Iterator[Problem]:
    """Judge the agents by their names, and next to each other."""
    owners: dict[str, str] = {}
    for name, agent in agents.items():
        if not _AGENT.fullmatch(name):
            yield Problem(
                option_path("agents", name),
                "is no name for an agent",
                "use up to 64 letters, digits, `_`, `.` and `-`, and begin with a letter or digit",
            )
        first = owners.setdefault(agent.unit, name)
        if first != name:
            yield Problem(
                option_path("agents", name) + ".unit",
                f"is {agent.unit[:64]!a}, which {option_path('agents', first)} supervises already",
                "remove one of the two",
            )


def _absolute(path: str, option: str) -> Iterator[Problem]:
    if "\0" in path or not path.startswith("/") or ".." in PurePosixPath(path).parts:
        yield Problem(option, f"is {path[:64]!a}", "write an absolute path without `..`")


def _agent(agent: schema.Agent, path: str) -> Iterator[Problem]:
    option, unit = f"{path}.unit", agent.unit
    if len(unit) > _UNIT_MAX or not _UNIT.fullmatch(unit):
        yield Problem(
            option,
            f"is {unit[:64]!a}, which is no name of a service",
            "write a unit name that ends in .service (an instance, not a template), of at most "
            f"{_UNIT_MAX} characters, escaped as by systemd-escape(1)",
        )
    elif _OWN_UNIT.fullmatch(unit):
        yield Problem(
            option, f"is {unit}, healer's own", "systemd looks after it; remove the agent"
        )
    yield from _hook(agent.snapshot, f"{path}.snapshot")
    yield from _hook(agent.before_rollback, f"{path}.beforeRollback")
    if agent.breadcrumb is not None and not _FILE_NAME.fullmatch(agent.breadcrumb):
        yield Problem(
            f"{path}.breadcrumb",
            f"is {agent.breadcrumb[:64]!a}, which is no plain file name",
            "write letters, digits, `_`, `.` and `-`, and begin with no `.` or `-`",
        )
    if not agent.escalation.enable and "escalate" in {r.action for r in agent.restart.rules}:
        yield Problem(
            f"{path}.escalation.enable",
            "is false, but a restart rule says escalate",
            "write true, or another action in the rule",
        )
    seen: set[str] = set()
    for index, check in enumerate(agent.health):
        if check.name in seen:
            yield Problem(
                f"{path}.health[{index}].name",
                f"is {check.name[:64]!a}, the name of an earlier check",
                "give each check of an agent a name of its own",
            )
        seen.add(check.name)


def _named(check: schema.Check | schema.GateBase, path: str) -> Iterator[Problem]:
    if not check.name.strip() or not check.name.isprintable():
        yield Problem(
            f"{path}.name",
            f"is {check.name[:64]!a}",
            "name it; failures are recorded so",
        )


def _http(check: schema.HttpCheck, path: str) -> Iterator[Problem]:
    yield from _named(check, path)
    if not _is_http(check.url):
        yield Problem(
            f"{path}.url",
            f"is {check.url[:64]!a}",
            "write an address such as http://127.0.0.1:8080/health",
        )
    if check.body_contains == "":
        yield Problem(f"{path}.bodyContains", "is empty", "write a text, or null")
    if check.body_matches is not None:
        yield from _pattern(check.body_matches, f"{path}.bodyMatches")
    yield from _tls(check, path)


def _tls(check: schema.HttpCheck, path: str) -> Iterator[Problem]:
    """No check goes without TLS's proof by accident: only where it says so, and only of TLS."""
    option = "insecure" if check.insecure else "caFile"
    if check.ca_file is not None:
        yield from _absolute(check.ca_file, f"{path}.caFile")
        if check.insecure:
            yield Problem(
                f"{path}.insecure",
                "is true, and caFile says whom to trust",
                "remove one of the two",
            )
    if (check.insecure or check.ca_file is not None) and not check.url.startswith("https:"):
        yield Problem(
            f"{path}.{option}", "is set, but the url is not of https", "remove it, or use https"
        )


def _pattern(pattern: str, option: str) -> Iterator[Problem]:
    mend = f"write a regular expression (of Python's) of 1 to {_PATTERN_MAX} characters"
    if not 0 < len(pattern) <= _PATTERN_MAX:
        yield Problem(option, f"has {len(pattern)} characters", mend)
        return
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        yield Problem(option, f"is no regular expression: {str(error)[:64]!a}", mend)


def _tcp(check: schema.TcpCheck, path: str) -> Iterator[Problem]:
    yield from _named(check, path)
    if not check.host or any(c.isspace() or not c.isprintable() for c in check.host):
        yield Problem(f"{path}.host", f"is {check.host[:64]!a}", "write a name or an address")


def _listen(check: schema.ListenCheck, path: str) -> Iterator[Problem]:
    yield from _named(check, path)
    try:
        ipaddress.ip_address(check.host if check.host is not None else "::")
    except ValueError:
        yield Problem(
            f"{path}.host",
            f"is {str(check.host)[:64]!a}, which is no IP address",
            "write the address, or null for any",
        )


def _command(check: schema.CommandCheck, path: str) -> Iterator[Problem]:
    yield from _named(check, path)
    if not check.command or not check.command[0].startswith("/"):
        yield Problem(
            f"{path}.command",
            "does not begin with an absolute path",
            "write the program's path and its arguments, each an item of the list",
        )
    elif any("\0" in argument for argument in check.command):
        yield Problem(f"{path}.command", "has a NUL character", "remove it")


def _log(check: schema.LogCheck, path: str) -> Iterator[Problem]:
    yield from _named(check, path)
    yield from _pattern(check.pattern, f"{path}.pattern")
    if check.purpose == "startup":
        yield Problem(
            f"{path}.purpose",
            "is startup, but a log without failures does not tell that the agent has started",
            "write liveness or readiness",
        )


def _file(check: schema.FileCheck, path: str) -> Iterator[Problem]:
    yield from _named(check, path)
    yield from _absolute(check.path, f"{path}.path")


def _safe_switch(section: schema.SafeSwitch, path: str) -> Iterator[Problem]:
    yield from _absolute(section.profile, f"{path}.profile")
    seen: set[str] = set()
    for index, gate in enumerate(section.gates):
        if gate.name in seen:
            yield Problem(
                f"{path}.gates[{index}].name",
                f"is {gate.name[:64]!a}, the name of an earlier gate",
                "give each gate a name of its own",
            )
        seen.add(gate.name)


def _check_gate(gate: schema.CheckGate, path: str) -> Iterator[Problem]:
    yield from within(schema.as_check(gate), path)


def _unit_gate(gate: schema.UnitGate, path: str) -> Iterator[Problem]:
    yield from _named(gate, path)
    if len(gate.unit) > _UNIT_MAX or not _ANY_UNIT.fullmatch(gate.unit):
        yield Problem(
            f"{path}.unit",
            f"is {gate.unit[:64]!a}, which is no name of a unit",
            "write it with its suffix, such as sshd.service or network-online.target",
        )


def _network_gate(gate: schema.NetworkGate, path: str) -> Iterator[Problem]:
    yield from _named(gate, path)
    asks = (gate.interface, gate.default_route, gate.gateway, gate.addresses, gate.sshd)
    if not any(asks):
        yield Problem(
            path,
            "is a network gate with nothing to look at",
            "set interface, defaultRoute, gateway, addresses or sshd, or remove the gate",
        )
    if gate.interface is not None and not _INTERFACE.fullmatch(gate.interface):
        yield Problem(
            f"{path}.interface",
            f"is {gate.interface[:64]!a}, which is no name of an interface",
            "write one that `ip link` lists, or null for any",
        )
    for index, address in enumerate(gate.addresses):
        try:
            ipaddress.ip_address(address)
        except ValueError:
            yield Problem(
                f"{path}.addresses[{index}]",
                f"is {address[:64]!a}, which is no IP address",
                "write the address alone, without a prefix length",
            )


def _is_http(url: str) -> bool:
    if any(character.isspace() or not character.isprintable() for character in url):
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _ignore(ignore: schema.Ignore, path: str) -> Iterator[Problem]:
    if not ignore.path.startswith("/"):
        yield Problem(
            f"{path}.path", f"is {ignore.path[:64]!a}", "write a pattern that begins with /"
        )
    if not ignore.reason.strip():
        yield Problem(f"{path}.reason", "is empty", "say why this path may differ")


def _ledger(ledger: schema.LedgerConfig, path: str) -> Iterator[Problem]:
    # C2SP signed-note: a key name is not empty and has neither spaces nor a plus sign.
    origin = ledger.origin
    if not origin or any(c.isspace() or not c.isprintable() or c == "+" for c in origin):
        yield Problem(
            f"{path}.origin",
            f"is {origin[:64]!a}",
            "write a name without spaces and plus signs, such as example.org/host",
        )
    credential = ledger.key_credential
    if credential is not None and not _CREDENTIAL.fullmatch(credential):
        yield Problem(
            f"{path}.keyCredential",
            f"is {credential[:64]!a}",
            "write the credential's name (letters, digits, `_`, `.`, `-`), not a path",
        )


def _hook(command: tuple[str, ...] | None, option: str) -> Iterator[Problem]:
    if command is not None and not any(command):
        yield Problem(option, "is empty", "write the program and its arguments, or null")


def _window(window: schema.RebootWindow, path: str) -> Iterator[Problem]:
    for option, time in (("lower", window.lower), ("upper", window.upper)):
        if not _TIME_OF_DAY.fullmatch(time):
            yield Problem(f"{path}.{option}", f"is {time[:64]!a}", "write a time such as 01:30")


def _config(config: schema.Config, _path: str) -> Iterator[Problem]:
    yield from restarting.groups(config)
    if config.package is not None:
        yield from _absolute(config.package, "package")
    yield from _absolute(config.state_dir, "stateDir")
    yield from _absolute(config.runtime_dir, "runtimeDir")
    if config.safe_switch.enable and not config.agents:
        yield Problem(
            "safeSwitch.enable",
            "is true, but no agent is declared whose health could judge a deployment",
            "declare an agent, or write false",
        )
    if config.escalation.reboot and not config.safe_switch.enable:
        yield Problem(
            "escalation.reboot",
            "is true, but safeSwitch.enable is false, so no system is ever known to be good",
            "write false, or enable safeSwitch",
        )
    if not config.safe_switch.enable:
        yield from restarting.rollbacks(config)


_RULES: dict[type[schema.Section], Callable[[Any, str], Iterator[Problem]]] = {
    schema.Config: _config,
    schema.Agent: _agent,
    schema.Restart: restarting.policy,
    schema.Rule: restarting.rule,
    schema.HttpCheck: _http,
    schema.TcpCheck: _tcp,
    schema.ListenCheck: _listen,
    schema.CommandCheck: _command,
    schema.LogCheck: _log,
    schema.MemoryCheck: _named,
    schema.FileCheck: _file,
    schema.SafeSwitch: _safe_switch,
    schema.HttpGate: _check_gate,
    schema.TcpGate: _check_gate,
    schema.ListenGate: _check_gate,
    schema.CommandGate: _check_gate,
    schema.UnitGate: _unit_gate,
    schema.NetworkGate: _network_gate,
    schema.RebootWindow: _window,
    schema.Ignore: _ignore,
    schema.LedgerConfig: _ledger,
}


def within(section: schema.Section, path: str) -> Iterable[Problem]:
    """Judge one section by itself; `path` is the option it was declared by."""
    rule = _RULES.get(type(section))
    return rule(section, path) if rule else ()
