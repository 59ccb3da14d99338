"""What a deployment changed: two toplevels compared, in what the agents get from them.

An agent's share of a toplevel is its unit file with its drop-ins, and every file that these name
below /etc (a command, an EnvironmentFile=) or below /run/current-system, as this toplevel has it.
Paths in the store are compared as they stand: what is in them never changes.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from healer.events import Changes

# Links of a toplevel whose target says what it is.
_LINKS = ("kernel", "initrd", "kernel-modules", "systemd", "firmware")
# Those of them that a running kernel may depend on.
_BOOTED_LINKS = ("kernel", "initrd", "kernel-modules")
# Files of a toplevel whose content matters to all agents, with the name that is told.
_FILES = {
    "kernel-params": "kernel-params",
    "etc/systemd/system.conf": "systemd configuration",
    "etc/set-environment": "environment",
}
_UNITS = "etc/systemd/system"
_CONFIG = "etc/healer/config.yaml"
_NAMED = re.compile(rb"(?<![\w/.])/(etc|run/current-system)/([^\s\"\';:,|&<>]+)")


class _Agent(msgspec.Struct):
    unit: str


class _Config(msgspec.Struct):
    """What a rendered configuration, which is JSON, has in every version of healer."""

    agents: dict[str, _Agent]


def between(before: str, after: str, units: Mapping[str, str]) -> Changes:
    """Compare two toplevels; ``units`` holds the unit of each agent, by the agent's name."""
    old, new = Path(before), Path(after)
    agents = {name: _agent(old, new, unit) for name, unit in units.items()}
    return Changes(agents, tuple(_shared(old, new)))


def of_deployment(before: str, after: str, units: Mapping[str, str]) -> Changes:
    """Compare them in what the agents get of which healer knows, or which either declares.

    For healer reads the configuration of a system only when that runs.
    """
    return between(before, after, {**_declared(before), **_declared(after), **units})


def inhibitors(before: str, after: str) -> list[str]:
    """Return the switch inhibitors that keep ``before`` from being switched to ``after`` live.

    A key that both have, with different values; a file that cannot be read inhibits nothing, as
    with switch-to-configuration itself.
    """
    old, new = (_inhibitors(Path(toplevel)) for toplevel in (before, after))
    return sorted(key for key in old.keys() & new.keys() if old[key] != new[key])


def needs_reboot(running: str, booted: str | None, target: str) -> list[str]:
    """Return why ``target`` cannot be switched to live: what it needs a boot for, in words.

    Its switch inhibitors against the running system. Its kernel, initrd and modules against the
    booted one, as NixOS tells whether to reboot, unless the running system has all the same ones:
    it runs without having booted them, and so can the target.
    """
    reasons = [f"switch inhibitor {key}" for key in inhibitors(running, target)]
    if booted is None or _for_kernel(running) == _for_kernel(target):
        return reasons
    had, wanted = _for_kernel(booted), _for_kernel(target)
    return reasons + [f"another {name}" for name in wanted if had[name] != wanted[name]]


def _declared(toplevel: str) -> dict[str, str]:
    """Return the unit of each agent that a toplevel declares; none if that cannot be read."""
    try:
        text = _read(Path(toplevel, _CONFIG))
        config = msgspec.json.decode(text, type=_Config)
    except msgspec.MsgspecError:
        return {}
    return {name: agent.unit for name, agent in config.agents.items()}


def _for_kernel(toplevel: str) -> dict[str, str | None]:
    return {name: _link(Path(toplevel), name) for name in _BOOTED_LINKS}


def _agent(old: Path, new: Path, unit: str) -> str:
    before, after = (_unit_files(toplevel, unit) for toplevel in (old, new))
    if not before:
        return "added"
    # The same files of the store, and they name nothing outside of it: nothing to read.
    if before == after and all(file.startswith("/nix/store/") for file in before):
        texts = [_read(Path(file)) for file in before]
        if not any(_NAMED.search(text) for text in texts):
            return "same"
    return "same" if list(_share(old, before)) == list(_share(new, after)) else "changed"


def _unit_files(toplevel: Path, unit: str) -> list[str]:
    """Return the real paths of a unit's file and drop-ins; an instance may have its template's."""
    units = toplevel / _UNITS
    template = re.sub(r"@[^.]+\.", "@.", unit)
    files: list[str] = []
    for name in dict.fromkeys((template, unit)):
        candidates = [units / name, *sorted((units / f"{name}.d").glob("*.conf"))]
        files += [os.path.realpath(file) for file in candidates if file.exists()]
    return files


def _share(toplevel: Path, files: list[str]) -> Iterator[bytes]:
    """Yield all that an agent gets from a toplevel, in a fixed order."""
    named: set[tuple[bytes, bytes]] = set()
    for file in files:
        text = _read(Path(file))
        yield text
        named.update((match[1], match[2]) for match in _NAMED.finditer(text))
    etc = os.path.realpath(toplevel / "etc")
    for root, name in sorted(named):
        below = Path(etc) if root == b"etc" else toplevel
        target = os.path.realpath(below / os.fsdecode(name))
        # A store path says itself what is in it, except where it is that of the whole system.
        whole = target.startswith((f"{etc}/", f"{toplevel}/"))
        yield _read(Path(target)) if whole else target.encode()


def _shared(old: Path, new: Path) -> Iterator[str]:
    for name in _LINKS:
        if _link(old, name) != _link(new, name):
            yield name
    for name, told in _FILES.items():
        if _read(old / name) != _read(new / name):
            yield told
    for key in inhibitors(str(old), str(new)):
        yield f"switch inhibitor {key}"


def _link(toplevel: Path, name: str) -> str | None:
    link = toplevel / name
    return os.path.realpath(link) if link.exists() else None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _inhibitors(toplevel: Path) -> dict[str, str]:
    try:
        return msgspec.json.decode(_read(toplevel / "switch-inhibitors"), type=dict[str, str])
    except msgspec.MsgspecError:
        return {}
