"""An agent that waits for the delay of a restart rule: a timer of PID 1's starts it. Pure.

To systemd such a unit is failed, like one that it has given up (nix/stamp-rules.sh).
"""

from healer.events import Instant, UnitState
from healer.records import Record

# A restart job passes through "inactive": a unit that is down for this long stays down.
_SETTLED_MS = 1000
# A rule's own delay: PID 1's timer has started the next run this soon after it is over, also on a
# host that is overloaded.
_TIMER_MS = 60_000


def settled_ms(crash: Record) -> int:
    """Return for how long a unit must be down after this crash to stay so."""
    delay_ms = _delay_ms(crash)
    return _SETTLED_MS if delay_ms is None else delay_ms + _TIMER_MS


def until_ms(crash: Record | None, unit: UnitState, now: Instant) -> int | None:
    """Return when the timer is due, in milliseconds since boot; None where there can be none."""
    if crash is None or not unit.gave_up or crash.data["boot"] != now.boot:
        return None
    delay_ms, stop_ms = _delay_ms(crash), crash.data["stop_uptime_ms"]
    if delay_ms is None or stop_ms is None or crash.data["invocation"] != unit.invocation:
        return None
    return int(stop_ms) + delay_ms


def _delay_ms(crash: Record) -> int | None:
    """Return the delay that a timer counts; None where there is none, or systemd counts it."""
    delay_ms = crash.data.get("restart_delay_ms")
    restarts = crash.data["restart"] == "will-restart"
    return delay_ms if restarts and isinstance(delay_ms, int) and delay_ms > 0 else None
