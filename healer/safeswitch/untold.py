"""What a ledger leaves untold: what follows from its last entry, where healer was killed then.

Pure. An outcome and what follows from it are handed to the ledger at once, but they are two
entries, and a kill or a power cut may come between them.
"""

from dataclasses import replace

from healer.events import Instant
from healer.records import Record
from healer.safeswitch import verdicts


class Untold:
    """Folds a ledger's records, each with its number in it, to its end."""

    def __init__(self) -> None:
        self._intents: dict[int, Record] = {}
        self._follows: tuple[Record, ...] = ()

    def fold(self, seq: int, record: Record) -> None:
        """Take the next record."""
        if record.type.startswith("ledger."):
            return  # that comes wherever it has to
        self._follows = ()
        if record.type == "action.intent":
            self._intents[seq] = record
        elif record.type == "action.outcome":
            intent = self._intents.pop(record.data["intent"], None)
            if intent is not None:
                self._follows = (*verdicts.follows(record, intent),)
        elif record.type == "boot.rolled-back":
            self._follows = (verdicts.condemned_by_boot(record),)

    def records(self, now: Instant) -> list[Record]:
        """Return what is to be told before anything else."""
        return [replace(record, at=now) for record in self._follows]
