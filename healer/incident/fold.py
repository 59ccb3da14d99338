"""Ledger entries become incidents: the connected story of one failure. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum

from healer.incident import words
from healer.ledger.entry import Entry


class State(StrEnum):
    """How an incident stands, or how it ended."""

    OPEN = "open"
    RECOVERED = "recovered"
    NOT_RESTARTED = "not-restarted"
    UNDECLARED = "undeclared"
    STOPPED = "stopped"
    QUARANTINED = "quarantined"
    GAVE_UP = "gave-up"
    ROLLING_BACK = "rolling-back"
    ROLLED_BACK = "rolled-back"
    ROLLBACK_FAILED = "rollback-failed"
    REFUTED = "refuted"
    RESOLVED = "resolved"


# What a rollback came to stays the headline, whatever becomes of the agent afterwards.
_HEADLINES = frozenset({State.ROLLED_BACK, State.REFUTED})

_ENDS = {
    "agent.recovered": State.RECOVERED,
    "agent.gave-up": State.GAVE_UP,
    "agent.stopped": State.STOPPED,
    "agent.exit": State.STOPPED,
    "agent.undeclared": State.UNDECLARED,
}


@dataclass(frozen=True, slots=True)
class Incident:
    """One failure, from its first entry on.

    ``opened`` and ``closed`` are microseconds on CLOCK_REALTIME; ``closed`` is None while it goes
    on. ``deployment`` is the last activation before it.
    """

    id: str
    agent: str | None
    opened: int
    entries: tuple[Entry, ...]
    state: State = State.OPEN
    closed: int | None = None
    deployment: Entry | None = None
    rolled_back_to: str | None = field(default=None, repr=False)

    @property
    def crashes(self) -> tuple[Entry, ...]:
        """Its crashes."""
        return tuple(entry for entry in self.entries if entry.type == "agent.crash")

    @property
    def summary(self) -> str:
        """One line: what happened, and how it stands."""
        return _summary(self)


def fold(entries: Iterable[Entry]) -> tuple[Incident, ...]:
    """Return the incidents of a ledger in the order in which they began."""
    incidents: dict[str, Incident] = {}
    deployment: Entry | None = None
    for entry in entries:
        if entry.incident is not None:
            before = incidents.get(entry.incident) or Incident(
                entry.incident, None, happened(entry)[0], (), deployment=deployment
            )
            incidents[entry.incident] = _add(before, entry)
        if entry.type == "deployment.activated":
            deployment = entry
    return tuple(sorted(incidents.values(), key=lambda incident: incident.entries[0].seq))


def happened(entry: Entry) -> tuple[int, int]:
    """Return when what an entry tells happened, in microseconds of real time and of boot time.

    That is when it was recorded, except that a crash carries its own time, on the clock of its
    boot with a resolution of 10 ms: healer may have been down then.
    """
    stop = entry.data.get("stop_uptime_ms")
    if (
        entry.type != "agent.crash"
        or not isinstance(stop, int)
        or (entry.data.get("boot") != entry.boot)
    ):
        return entry.time_us, entry.boottime_us
    stop_us = min(stop * 1000, entry.boottime_us)
    return entry.time_us - (entry.boottime_us - stop_us), stop_us


def timeline(incident: Incident) -> list[tuple[Entry, int, int]]:
    """Return the entries in the order in which things happened.

    With each its real time and its offset from the beginning, in microseconds. Within one boot the
    offset is taken from the monotonic clock, which never steps.
    """
    times = {entry.seq: happened(entry) for entry in incident.entries}
    for crash, restarted in _restarts(incident):
        # The restart was seen at some later look; how long it took is in its data.
        real, boottime = times[crash.seq]
        delay = restarted.data["delay_ms"] * 1000
        if crash.boot == restarted.boot and boottime + delay <= restarted.boottime_us:
            times[restarted.seq] = (real + delay, boottime + delay)
    boots = list(dict.fromkeys(entry.boot for entry in incident.entries))
    ordered = sorted(incident.entries, key=lambda e: (boots.index(e.boot), times[e.seq][1], e.seq))
    first = ordered[0]
    told = []
    for entry in ordered:
        clock = 1 if entry.boot == first.boot else 0
        offset = times[entry.seq][clock] - times[first.seq][clock]
        told.append((entry, times[entry.seq][0], offset))
    return told


def _restarts(incident: Incident) -> Iterator[tuple[Entry, Entry]]:
    crashes = {str(crash.data.get("invocation")): crash for crash in incident.crashes}
    for entry in incident.entries:
        crash = crashes.get(str(entry.data.get("previous")))
        delay = entry.data.get("delay_ms")
        if entry.type == "agent.restarted" and crash and isinstance(delay, int) and delay >= 0:
            yield crash, entry


def _add(incident: Incident, entry: Entry) -> Incident:
    agent = entry.data.get("agent")
    incident = replace(
        incident,
        entries=(*incident.entries, entry),
        agent=incident.agent or (agent if isinstance(agent, str) else None),
    )
    return _step(incident, entry)


def _step(incident: Incident, entry: Entry) -> Incident:
    state, ended = incident.state, entry.time_us
    headline = state in _HEADLINES
    match entry.type:
        case "agent.crash" | "health.failed" | "agent.restarted" | "agent.released" | "drift.found":
            busy = headline or state in {State.ROLLING_BACK, State.ROLLBACK_FAILED}
            return replace(incident, state=state if busy else State.OPEN, closed=None)
        case "agent.crash-loop" if (
            incident.rolled_back_to and entry.data.get("toplevel") == incident.rolled_back_to
        ):
            return replace(incident, state=State.REFUTED, closed=None)
        case "deployment.refuted":
            return replace(incident, state=State.REFUTED)
        case "agent.stopped" if entry.data.get("by") in {"healer", "group"}:
            return incident
        case kind if kind in _ENDS:
            return replace(incident, state=state if headline else _ENDS[kind], closed=ended)
        case "action.outcome" if entry.data.get("action") == "quarantine" and entry.data.get("ok"):
            over = headline or incident.closed is not None
            return replace(incident, state=state if over else State.QUARANTINED)
        case "agent.not-restarted" | "agent.missing":
            told = headline or state is State.STOPPED
            return replace(incident, state=state if told else State.NOT_RESTARTED, closed=ended)
        case "action.intent" if entry.data.get("action") == "rollback":
            return replace(incident, state=State.ROLLING_BACK)
        case "action.outcome" if entry.data.get("action") == "rollback":
            return _rolled_back(incident, entry)
        case "drift.resolved":
            return replace(incident, state=State.RESOLVED, closed=ended)
        case _:
            return incident


def _rolled_back(incident: Incident, outcome: Entry) -> Incident:
    if outcome.data.get("ok") is not True:
        return replace(incident, state=State.ROLLBACK_FAILED, closed=_still(incident, outcome))
    intents = [e for e in incident.entries if e.seq == outcome.data.get("intent")]
    target = intents[0].data.get("target") if intents else None
    return replace(
        incident,
        state=State.ROLLED_BACK,
        rolled_back_to=target if isinstance(target, str) else None,
        closed=_still(incident, outcome),
    )


def _still(incident: Incident, outcome: Entry) -> int | None:
    """Return when the incident ended, if it had before this came: nothing more is to come then."""
    return None if incident.closed is None else outcome.time_us


def _summary(incident: Incident) -> str:
    crashes, first = incident.crashes, incident.entries[0]
    if not crashes:
        return words.line(first.type, first.data)
    name = incident.agent or words.text(first.data, "unit")
    times = "crashed:" if len(crashes) == 1 else f"crashed {len(crashes)} times, last:"
    how = words.ending(crashes[-1].data)
    then = {
        State.OPEN: "not stable yet",
        State.NOT_RESTARTED: "stays down",
        State.UNDECLARED: "it is declared no more",
        State.QUARANTINED: "in quarantine",
        State.GAVE_UP: "given up",
        State.STOPPED: "then it was stopped or finished",
        State.ROLLING_BACK: "rolling back",
        State.ROLLED_BACK: f"rolled back to {words.toplevel(incident.rolled_back_to)}",
        State.ROLLBACK_FAILED: "the rollback failed",
        State.REFUTED: "the rollback did not help",
    }.get(incident.state, str(incident.state))
    return f"{words.printable(name)} {times} {how}; {then}"
