"""The backoff begins anew after a stable run: systemd forgets no restart by itself. Pure.

systemd counts each automatic restart towards the next one's delay (RestartSteps= of
systemd.service(5)), also those that follow a clean exit.
"""

from collections.abc import Iterator

from healer.config import Agent
from healer.events import Instant, UnitState
from healer.records import Record
from healer.watchdog.policy import backs_off


def begin_anew(
    name: str, agent: Agent, incident: str | None, unit: UnitState, now: Instant
) -> Iterator[Record]:
    """Have systemd forget the restarts of an agent whose run is stable, where it counts them."""
    grown = unit.n_restarts > 0 and backs_off(agent.restart)
    if not (grown and unit.has_held(agent.stable_sec, now.uptime_ms)):
        return
    intent = {
        "action": "reset",
        "target": agent.unit,
        "agent": name,
        "invocation": unit.invocation,
        "reason": f"stable again after {unit.n_restarts} restarts: the backoff begins anew",
    }
    yield Record(now, "action.intent", intent, incident)
