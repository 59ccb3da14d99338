"""A story that begins before a crash, and may come to none. Pure.

A check that failed is one, and so is the core dump of a main process, which systemd-coredump can
tell of before PID 1 does. As a rule the crash follows and goes on with the incident. But somebody
may stop the agent first, the kill may fail and the agent be well after all, or the end of the run
be lost: then the incident has to end as well.
"""

import msgspec

from healer.events import Instant, UnitState
from healer.records import Record

# A restart job passes through "inactive": a unit that is down for this long stays down.
_SETTLED_MS = 1000


class Foretold(msgspec.Struct, frozen=True):
    """Of which run of which unit it is told, in which incident, and when it last was.

    While ``due`` a kill is on its way that is to end this run.
    """

    unit: str
    invocation: str
    incident: str
    at: Instant
    due: bool


def apply(foretold: Foretold | None, incident: str | None, record: Record) -> Foretold | None:
    """Fold a record that concerns the agent; ``incident`` is what is open by crashes."""
    data = record.data
    match record.type:
        case "health.failed" | "agent.coredump" if record.incident and incident is None:
            return Foretold(data["unit"], data["invocation"], record.incident, record.at, due=True)
        case "action.outcome" if foretold and data["action"] == "kill" and not data["ok"]:
            return msgspec.structs.replace(foretold, at=record.at, due=False)
        case "agent.stopped" if data["by"] in {"healer", "group"}:
            return foretold  # for a moment
        case (
            "agent.crash"
            | "agent.exit"
            | "agent.stopped"
            | "agent.recovered"
            | "agent.not-restarted"
            | "agent.gave-up"
            | "agent.undeclared"
            | "agent.missing"
        ):
            return None
        case _:
            return foretold


def is_well(foretold: Foretold, unit: UnitState, now: Instant, stable_sec: float) -> int | None:
    """Return for how long, in milliseconds, a run has been stable that ends the story.

    It is another one than was told of; or the same, which nobody could end, and nothing was found
    wrong with it since.
    """
    same = unit.invocation == foretold.invocation
    if not unit.running or (same and foretold.due):
        return None
    stable_ms = now.uptime_ms - (foretold.at.uptime_ms if same else unit.active_enter_ms)
    return stable_ms if stable_ms >= stable_sec * 1000 else None


def is_over(unit: UnitState, now: Instant) -> bool:
    """Whether systemd starts the unit no more."""
    return unit.gave_up and now.uptime_ms - unit.since_ms >= _SETTLED_MS
