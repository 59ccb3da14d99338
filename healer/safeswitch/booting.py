"""What root keeps of the boots of a system that is not known to be good (nix/boot.sh).

The count lies in a file of root's and is removed when every agent is up; what a boot was rolled
back from is left in another, for the ledger.
"""

from dataclasses import dataclass
from pathlib import Path

from healer.events import Instant
from healer.records import Record
from healer.safeswitch.rollback import PROGRESS_DIR

COUNT = PROGRESS_DIR / "boots"
ROLLED_BACK = PROGRESS_DIR / "boot-rollback"


@dataclass(frozen=True, slots=True)
class BootRollback:
    """A rollback early in a boot: from which system to which, after how many boots, and when."""

    source: str
    target: str
    tries: int
    boot: str

    def records(self, now: Instant) -> tuple[Record, Record]:
        """Say so, and that the system is condemned."""
        reason = f"it did not come up in {self.tries} boots"
        data = {"from": self.source, "target": self.target, "boot": self.boot, "reason": reason}
        condemned = {"toplevel": self.source, "reason": reason}
        return (
            Record(now, "boot.rolled-back", data),
            Record(now, "deployment.condemned", condemned),
        )


def forget() -> None:
    """Begin the count anew: the system that runs has come up. Needs root."""
    COUNT.unlink(missing_ok=True)


def rolled_back(booted: str | None, path: Path = ROLLED_BACK) -> BootRollback | None:
    """Return the last rollback early in a boot, where ``booted`` is what it went back to.

    None when there was none, or when a power cut kept it from coming about.
    """
    try:
        source, target, tries, boot = path.read_text(encoding="utf-8").split()
        intended = BootRollback(source, target, int(tries), boot.replace("-", ""))
    except (OSError, ValueError):
        return None
    return intended if intended.target == booted else None
