"""The timers of PID 1's by which agents are restarted after a delay of a rule's own."""

from pathlib import Path

# systemd keeps a transient unit's file for as long as it knows the unit (systemd.unit(5)).
_TRANSIENT = Path("/run/systemd/transient")


def restart_timer(unit: str) -> str:
    """Return the name of the timer that nix/stamp-rules.sh arms for a unit."""
    return f"healer-restart-{unit.removesuffix('.service')}.timer"


def is_armed(unit: str) -> bool:
    """Whether that timer is there, and will start the unit."""
    return (_TRANSIENT / restart_timer(unit)).exists()
