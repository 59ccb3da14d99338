"""A switch-to-configuration that holds its lock for too long: nothing else is deployed meanwhile.

It waits for jobs without a timeout, so one that hangs is not seen by anybody who does not look.
Pure.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from healer.events import Instant
from healer.records import Record


@dataclass(frozen=True, slots=True)
class Held:
    """Since when the lock is seen to be held, and whether that was told."""

    since: Instant
    told: bool = False


def look(held: Held | None, now: Instant, *, switching: bool) -> Held | None:
    """Return for how long the lock is held, after one more look at it."""
    if not switching:
        return None
    return Held(now) if held is None or held.since.boot != now.boot else held


def tell(
    held: Held | None, limit_sec: float, holder: Callable[[], str | None], now: Instant
) -> tuple[Held | None, Iterator[Record]]:
    """Say once of each lock that it is stuck, and who holds it."""
    if held is None or held.told or now.uptime_ms - held.since.uptime_ms < limit_sec * 1000:
        return held, iter(())
    data = {"held_ms": now.uptime_ms - held.since.uptime_ms, "holder": holder()}
    return replace(held, told=True), iter([Record(now, "switch.stuck", data)])
