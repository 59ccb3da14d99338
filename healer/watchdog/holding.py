"""The holds that a person asked for, from the moment they are placed to their end. Pure.

PID 1's timer ends them, with healer or without it; that one is over is seen by its file.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from healer.events import Instant
from healer.records import Record


@dataclass(frozen=True, slots=True)
class Hold:
    """Which unit somebody holds back, who, and for how long at most.

    It ends ``until_ms`` after the beginning of its boot, and with that.
    """

    unit: str
    asked_by: str
    boot: str
    until_ms: int


@dataclass(slots=True)
class Holds:
    """The holds by agent: those that are ``asked`` for, and those that are ``placed``."""

    asked: dict[str, Hold] = field(default_factory=dict)
    placed: dict[str, Hold] = field(default_factory=dict)

    def apply(self, record: Record) -> None:
        """Fold a record."""
        data, name = record.data, record.data.get("agent", "")
        match record.type:
            case "action.intent" if data["action"] == "hold":
                until_ms = record.at.uptime_ms + data["ttl_sec"] * 1000
                hold = Hold(data["target"], data["asked_by"], record.at.boot, until_ms)
                self.asked[name] = hold
            case "action.outcome" if data["action"] == "hold":
                asked = self.asked.pop(name, None)
                if asked is not None and data["ok"]:
                    self.placed[name] = asked
            case "action.outcome" if data["ok"] and _replaces(record):
                self.placed.pop(name, None)
            case "agent.released" if data.get("asked_by") is not None:
                self.placed.pop(name, None)

    def ended(self, held: Collection[str], now: Instant) -> Iterator[Record]:
        """Tell of the holds whose time is over; ``held`` names the units that are held back."""
        for name, hold in self.placed.items():
            if hold.boot == now.boot and (now.uptime_ms < hold.until_ms or hold.unit in held):
                continue
            by = "timer" if hold.boot == now.boot else "boot"
            data = {"agent": name, "unit": hold.unit, "by": by, "asked_by": hold.asked_by}
            yield Record(now, "agent.released", data)


def _replaces(outcome: Record) -> bool:
    """Whether nothing is left of a hold by this action, or another hold is there instead."""
    action = outcome.data["action"]
    by_person = outcome.data.get("asked_by") is not None
    return action in {"quarantine", "give-up"} or (action == "release" and by_person)
