"""Stamps: what PID 1 wrote about each invocation's start and end (nix/stamp-*.sh).

A stop stamp is the authority on a crash: ExecStopPost= runs before the cgroup is removed and
before the restart, also while healer is dead (systemd.service(5)). It is missing only where
systemd kills the unit's whole cgroup at once (``systemctl kill -s KILL``, systemd-oomd); then the
journal has to serve.
"""

import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import get_args

from healer.events import AnswerKind, Ended, Memory
from healer.host import clock

_ANSWERS: dict[str, AnswerKind] = {answer: answer for answer in get_args(AnswerKind)}
_NAME = re.compile(r"(?P<unit>.+)\.(?P<invocation>[0-9a-f]{32})\.stop")
_SETTLED_NS = 1_000_000_000


def stop_stamps(directory: Path) -> Mapping[str, tuple[str, str]]:
    """Return the stop stamps that are there: unit and invocation by file name.

    A directory that nothing was made or removed in since the last call is not listed again.
    """
    try:
        changed_ns = directory.stat().st_mtime_ns
        # What is made within the same tick of the kernel's clock leaves the time as it is.
        settled = time.time_ns() - changed_ns > _SETTLED_NS
        return _unchanged(directory, changed_ns) if settled else _list(directory)
    except OSError:
        return {}


@lru_cache(maxsize=1)
def _unchanged(directory: Path, _changed_ns: int) -> dict[str, tuple[str, str]]:
    return _list(directory)


def _list(directory: Path) -> dict[str, tuple[str, str]]:
    return among(os.listdir(directory))  # noqa: PTH208 - a Path for each name costs ten times that


def among(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return those of these file names that are stop stamps': unit and invocation by name."""
    # Beside them lies a start stamp for each invocation that runs.
    found = (_NAME.fullmatch(name) for name in names if name.endswith(".stop"))
    return {name[0]: (name["unit"], name["invocation"]) for name in found if name}


def still_there(directory: Path, names: Iterable[str]) -> list[str]:
    """Return those of these stop stamps of which there is something to remove, in order.

    Where systemd killed a whole cgroup at once that is the start stamp alone.
    """
    try:
        there = {*os.listdir(directory)}  # noqa: PTH208 - as above
    except OSError:
        return []
    starts = {name: f"{name.removesuffix('stop')}start" for name in names}
    return sorted(name for name, start in starts.items() if name in there or start in there)


def read(directory: Path, names: Iterable[str]) -> list[Ended]:
    """Return the ends that these stop stamps tell of, oldest first.

    A stamp that is still being written is left for the next call.
    """
    found = []
    for name in names:
        try:
            text = (directory / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if (ended := parse(text)) is not None:
            found.append(with_start(directory, ended))
    return sorted(found, key=lambda ended: ended.stop_uptime_ms or 0)


def with_start(directory: Path, ended: Ended) -> Ended:
    """Add to an end what its start stamp says."""
    path = directory / f"{ended.unit}.{ended.invocation}.start"
    try:
        fields = _fields(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ended
    return replace(
        ended,
        start_uptime_ms=_milliseconds(fields.get("uptime", "")),
        toplevel=fields.get("toplevel") or None,
        unit_file=unit_file(fields.get("unit_dir", ""), ended.unit),
    )


def remove(directory: Path, names: Iterable[str]) -> int:
    """Remove these stop stamps and their start stamps; return how many stops. Needs root.

    ValueError for a name that is none of a stop stamp: nothing is removed then.
    """
    found = []
    for name in names:
        match = _NAME.fullmatch(name)
        if "/" in name or match is None:
            raise ValueError(f"{name!r} is not the name of a stop stamp")
        found.append((match["unit"], match["invocation"]))
    for unit, invocation in found:
        for suffix in (f"{invocation}.{kind}" for kind in ("stop", "start", "health")):
            (directory / f"{unit}.{suffix}").unlink(missing_ok=True)
        (directory / f"{unit}.count").unlink(missing_ok=True)
    return len(found)


def mark_unhealthy(directory: Path, unit: str, invocation: str) -> None:
    """Tell the stop stamp that this invocation ends for a failed health check. Needs root."""
    (directory / f"{unit}.{invocation}.health").touch(mode=0o644)


def parse(text: str) -> Ended | None:
    """Read a stop stamp's text; None while it is incomplete."""
    fields = _fields(text)
    if fields.get("end") != "1":
        return None
    return Ended(
        unit=fields["unit"],
        invocation=fields["invocation"],
        boot=clock.boot_id(),  # they are in /run, which is as old as the boot
        result=fields["result"],
        code=fields["code"],
        status=fields["status"],
        start_uptime_ms=_milliseconds(fields["start_uptime"]),
        stop_uptime_ms=_milliseconds(fields["stop_uptime"]),
        toplevel=None,
        memory=_memory(fields),
        source="stamp",
        in_a_row=_integer(fields.get("in_a_row", "")),
        answer=_ANSWERS.get(fields.get("answer", "")),
        delay_ms=_integer(fields.get("delay_ms", "")),
        asked={"0": False, "1": True}.get(fields.get("asked", "")),
    )


def unit_file(directory: str, unit: str) -> str | None:
    """Return the file behind a unit's name in a directory of unit files, None if it has none.

    It may have been garbage-collected since; then this is as far as its name leads.
    """
    path = Path(directory, unit)
    if not directory or (path.parent.exists() and not path.is_symlink() and not path.exists()):
        return None
    return os.path.realpath(path)


def _fields(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def _memory(fields: dict[str, str]) -> Memory | None:
    memory = Memory(
        peak=_integer(fields["memory_peak"]),
        current=_integer(fields["memory_current"]),
        oom_kill=_integer(fields["oom_kill"]),
        pressure=fields["memory_pressure"] or None,
        oom=_integer(fields.get("oom", "")),
    )
    return memory if memory != Memory(None, None, None, None) else None


def _integer(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _milliseconds(uptime: str) -> int | None:
    """Convert /proc/uptime's seconds with two decimals (proc_uptime(5))."""
    seconds, _, hundredths = uptime.partition(".")
    if not (seconds.isdigit() and hundredths.isdigit()):
        return None
    return int(seconds) * 1000 + int(hundredths.ljust(3, "0")[:3])
