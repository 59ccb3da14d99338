"""What root keeps of boots, for the way back early in one that does not come up (nix/boot.sh).

The boots of a system that is not known to be good, or has come up in none yet, are counted in a
file of root's. That is removed when every agent is up, and the system is noted in another: what is
known to be good of a live switch only may still fail in a boot. How many of the boots were excused
is in a third, and what a boot was rolled back from is left in a fourth, for the ledger.
"""

from dataclasses import dataclass
from pathlib import Path

from healer.events import Instant, Systems
from healer.files import write_atomically
from healer.host import known_good
from healer.records import Record
from healer.safeswitch.rollback import PROGRESS_DIR

COUNT = PROGRESS_DIR / "boots"
CAME_UP = PROGRESS_DIR / "came-up"
EXCUSED = PROGRESS_DIR / "excused"
ROLLED_BACK = PROGRESS_DIR / "boot-rollback"


@dataclass(frozen=True, slots=True)
class BootRollback:
    """A rollback early in a boot: from which system to which, after how many boots, and when."""

    source: str
    target: str
    tries: int
    boot: str

    def record(self, now: Instant) -> Record:
        """Say so; what follows is that the system is condemned."""
        reason = f"it did not come up in {self.tries} boots"
        data = {"from": self.source, "target": self.target, "boot": self.boot, "reason": reason}
        return Record(now, "boot.rolled-back", data)


def is_noted_up(systems: Systems) -> bool:
    """Whether root has noted all that ``note_up`` notes."""
    booted = systems.booted
    noted = booted is None or booted != systems.current or came_up()[-1:] == [booted]
    return noted and not COUNT.exists() and not EXCUSED.exists()


def note_up(systems: Systems) -> None:
    """Begin the count anew, and note that the booted system comes up in a boot. Needs root.

    Not where another one runs by now: then it is that one that has come up, and not by a boot. What
    is no longer among the known-good systems is dropped.
    """
    COUNT.unlink(missing_ok=True)
    EXCUSED.unlink(missing_ok=True)
    booted = systems.booted
    if booted is None or booted != systems.current:
        return
    kept = [system for system in came_up() if system != booted and known_good.holds(system)]
    CAME_UP.parent.mkdir(mode=0o755, exist_ok=True)
    write_atomically(CAME_UP, "".join(f"{system}\n" for system in [*kept, booted]).encode(), 0o644)


def may_be_excused(systems: Systems, boot: str, tries: int | None) -> bool:
    """Whether this boot is counted against the booted system, and root would take that back.

    That is done once for each boot, and for no more boots than the ``tries`` that a system has to
    come up: one that is to blame after all is gone back from as well, only later.
    """
    booted, counted = systems.booted, _words(COUNT)
    if tries is None or booted is None or booted != systems.current or len(counted) != 3:
        return False
    if (counted[0], _hex(counted[2])) != (booted, boot):
        return False
    boots, last = _excused(booted)
    return boots < tries and last != boot


def excuse(systems: Systems, boot: str, tries: int | None) -> bool:
    """Have this boot not counted against the booted system; return whether it was. Needs root."""
    if not may_be_excused(systems, boot, tries):
        return False
    boots, _ = _excused(str(systems.booted))
    write_atomically(EXCUSED, f"{systems.booted} {boots + 1} {boot}\n".encode(), 0o644)
    return True


def _excused(booted: str) -> tuple[int, str]:
    """Return how many boots of a system were excused, and the last of them."""
    match _words(EXCUSED):
        case [toplevel, boots, last] if toplevel == booted and boots.isdecimal():
            return int(boots), last
    return 0, ""


def _words(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8", "replace").split()
    except OSError:
        return []


def _hex(boot: str) -> str:
    """Return a boot's id as the kernel writes it in the way in which journald does."""
    return boot.replace("-", "")


def came_up() -> list[str]:
    """Return the systems that are known to have come up in a boot, the last one last."""
    return CAME_UP.read_text("utf-8", "replace").split() if CAME_UP.exists() else []


def rolled_back(booted: str | None, path: Path = ROLLED_BACK) -> BootRollback | None:
    """Return the last rollback early in a boot, where ``booted`` is what it went back to.

    None when there was none, or when a power cut kept it from coming about.
    """
    try:
        source, target, tries, boot = path.read_text(encoding="utf-8").split()
        intended = BootRollback(source, target, int(tries), _hex(boot))
    except (OSError, ValueError):
        return None
    return intended if intended.target == booted else None
