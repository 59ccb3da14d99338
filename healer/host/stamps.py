"""Stamps: what PID 1 wrote about each invocation's start and end (nix/stamp-*.sh).

A stop stamp is the authority on a crash: ExecStopPost= runs before the cgroup is removed and
before the restart, also while healer is dead (systemd.service(5)). It is missing only where
systemd kills the unit's whole cgroup at once (``systemctl kill -s KILL``, systemd-oomd); then the
journal has to serve.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from healer.events import Ended, Memory

_NAME = re.compile(r"(?P<unit>.+)\.(?P<invocation>[0-9a-f]{32})\.stop")


def read_stop_stamps(directory: Path, units: frozenset[str]) -> Iterator[Ended]:
    """Yield every complete stop stamp of ``units``, oldest first.

    A stamp that is still being written is left for the next call.
    """
    found: list[tuple[int, Ended]] = []
    for path in directory.glob("*.stop"):
        name = _NAME.fullmatch(path.name)
        if name is None or name["unit"] not in units:
            continue
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        ended = parse(text)
        if ended is not None:
            found.append((ended.stop_uptime_ms or 0, ended))
    yield from (ended for _, ended in sorted(found, key=lambda item: item[0]))


def remove_stamps(directory: Path, ended: Ended) -> None:
    """Remove an invocation's stamps, once its end is durable in the ledger."""
    stem = f"{ended.unit}.{ended.invocation}"
    for suffix in ("stop", "start"):
        (directory / f"{stem}.{suffix}").unlink(missing_ok=True)


def parse(text: str) -> Ended | None:
    """Read a stop stamp's text; None while it is incomplete."""
    fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    if fields.get("end") != "1":
        return None
    return Ended(
        unit=fields["unit"],
        invocation=fields["invocation"],
        boot=fields["boot"].replace("-", ""),
        result=fields["result"],
        code=fields["code"],
        status=fields["status"],
        start_uptime_ms=_milliseconds(fields["start_uptime"]),
        stop_uptime_ms=_milliseconds(fields["stop_uptime"]),
        toplevel=fields["toplevel"] or None,
        memory=_memory(fields),
        source="stamp",
    )


def _memory(fields: dict[str, str]) -> Memory | None:
    memory = Memory(
        peak=_integer(fields["memory_peak"]),
        current=_integer(fields["memory_current"]),
        oom_kill=_integer(fields["oom_kill"]),
        pressure=fields["memory_pressure"] or None,
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
