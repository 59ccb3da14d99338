"""What a start of healer takes from its ledger: every state, and what was left undone. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from healer.decisions import Decisions
from healer.drift.compare import DriftState
from healer.events import Instant
from healer.ledger.entry import Entry
from healer.records import Record
from healer.safeswitch.deployment import is_other
from healer.safeswitch.untold import Untold


@dataclass(slots=True)
class History:
    """What became of the runs before this one.

    ``last_run`` is the last record of a run's begin or end. ``intents`` are those that have no
    outcome, by their number in the ledger. ``boot_rollback`` is the boot in which the last known
    rollback early in a boot was done. ``unmeasured`` is when the last other system became active,
    if the ledger does not say how it differs from the one before.
    """

    last_run: Record | None = None
    intents: dict[int, Entry] = field(default_factory=dict)
    drift: DriftState = field(default_factory=DriftState)
    boot_rollback: str | None = None
    unmeasured: Record | None = None
    untold: Untold = field(default_factory=Untold)


def fold(entries: Iterable[Entry], decisions: Decisions) -> History:
    """Fold a ledger's entries into the decisions, and return what is known beside them."""
    history = History()
    for entry in entries:
        at = Instant(entry.boot, entry.boottime_us // 1000, entry.time_us)
        record = Record(at, entry.type, entry.data, entry.incident)
        decisions.replay(record)
        history.untold.fold(entry.seq, record)
        if entry.type.startswith("healer."):
            history.last_run = record
        elif entry.type.startswith("drift."):
            history.drift = history.drift.replay(record)
        elif entry.type == "boot.rolled-back":
            history.boot_rollback = entry.data["boot"]
        elif is_other(record):
            history.unmeasured = record
        elif entry.type == "deployment.closure":
            known = history.unmeasured
            if known is not None and known.data["toplevel"] == entry.data["toplevel"]:
                history.unmeasured = None
        elif entry.type == "action.intent":
            history.intents[entry.seq] = entry
        elif entry.type == "action.outcome":
            history.intents.pop(entry.data["intent"], None)
    return history
