"""Whether every automatic restart has its recorded end: systemd's count against healer's own.

Pure. systemd counts a unit's automatic restarts (NRestarts, org.freedesktop.systemd1(5)), and each
follows the end of an invocation: so as many ends at least must have been recorded as that count
grew. Where they were not, evidence is gone, and a ``loss`` says how much.

Only a lower bound is asserted, so that a loss is never invented: a stop by hand is an end without a
restart, and a start by hand, or ``reset-failed``, begins systemd's count at 0 anew.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from healer.events import Instant, UnitState
from healer.ledger import shrink
from healer.records import Record

# Evidence that is on its way (a stamp being written, a busy journald) is there by then.
_SETTLED_MS = 5_000
# Keeps a record of a thousand agents' counts within an entry of the ledger.
_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class Count:
    """What systemd's count was in this boot when it was last looked at, and how it balances.

    ``balance`` is the ends recorded less the restarts counted. One may be ahead, whose restart is
    still to come; below zero, ends are missing, since ``short_since_ms``. ``awaited`` is 1 while a
    restart may come that follows an end from before the counting began.
    """

    boot: str
    n_restarts: int
    awaited: int = 0
    balance: int = 0
    short_since_ms: int | None = None


def apply(counts: dict[str, Count], record: Record) -> None:
    """Fold a record into the counts, by unit."""
    data, boot = record.data, record.at.boot
    if record.type == "restarts.counted":
        for unit, counted in data["counts"].items():
            counts[unit] = Count(boot, counted, awaited=int(unit in data.get("awaited", ())))
    elif record.type in {"healer.started", "config.loaded"}:
        # Ends are recorded of agents' units only: what is one again is counted anew.
        units = shrink.whole(data.get("units", ()))
        for unit in () if units is None else counts.keys() - set(units):
            del counts[unit]
    elif "agent" in data and (count := counts.get(data.get("unit", ""))) is not None:
        counts[data["unit"]] = _applied(count, record)


def _applied(count: Count, record: Record) -> Count:
    data, same_boot = record.data, record.at.boot == count.boot
    match record.type:
        case "agent.crash" | "agent.exit" | "agent.stopped" if data["boot"] == count.boot:
            return _balanced(count, count.balance + 1)
        case "agent.restarted" | "agent.recovered" if same_boot and "n_restarts" in data:
            return look(count, data["n_restarts"], 0, record.at, running=True)
        case "loss" if same_boot and data["what"] == "restarts":
            looked = look(count, data["n_restarts"], 0, record.at, running=False)
            return _balanced(looked, looked.balance + data["count"])
        case _:
            return count


def look(count: Count, n_restarts: int, ahead: int, now: Instant, *, running: bool) -> Count:
    """Count the restarts since the last look; at most ``ahead`` ends may wait for theirs.

    Whatever a unit that is ``running`` waited for has come, or will not.
    """
    if n_restarts == count.n_restarts and not count.awaited and 0 <= count.balance <= ahead:
        return count  # and so it is nearly always
    grown = n_restarts - count.n_restarts if n_restarts >= count.n_restarts else n_restarts
    awaited = min(count.awaited, grown)
    left = 0 if running else count.awaited - awaited
    looked = replace(count, n_restarts=n_restarts, awaited=left)
    return _balanced(looked, min(ahead, count.balance - grown + awaited), now)


def losses(name: str, unit: str, count: Count, now: Instant) -> Iterator[Record]:
    """Say how many ends are missing, once they have been for long enough."""
    since = count.short_since_ms
    if since is None or now.uptime_ms - since < _SETTLED_MS:
        return
    data = {
        "what": "restarts",
        "agent": name,
        "unit": unit,
        "count": -count.balance,
        "n_restarts": count.n_restarts,
        "reason": "systemd counted more automatic restarts than there are recorded ends: neither "
        "a stamp nor the journal tells of the rest",
    }
    yield Record(now, "loss", data)


def begun(units: Mapping[str, UnitState], now: Instant) -> Iterator[Record]:
    """Say from which of systemd's counts on the restarts of these units are accounted for.

    One that is down may wait for the restart that follows an end from before.
    """
    ordered = sorted(units.items())
    for first in range(0, len(ordered), _AT_ONCE):
        some = ordered[first : first + _AT_ONCE]
        counts = {unit: state.n_restarts for unit, state in some}
        awaited = [unit for unit, state in some if not state.running]
        yield Record(now, "restarts.counted", {"counts": counts, "awaited": awaited})


def _balanced(count: Count, balance: int, now: Instant | None = None) -> Count:
    if balance >= 0:
        return replace(count, balance=balance, short_since_ms=None)
    since = count.short_since_ms
    if since is None and now is not None:
        since = now.uptime_ms
    return replace(count, balance=balance, short_since_ms=since)
