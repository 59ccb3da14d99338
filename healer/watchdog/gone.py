"""Agents that can have no next run: declared no more, or without a unit. Pure.

Whatever becomes of them, nobody will learn it: that ends an open incident, once an action that is
under way has its outcome.
"""

from collections.abc import Iterator, Mapping

from healer.events import Instant
from healer.records import Record
from healer.watchdog.agent_state import AgentState


def undeclared(
    agents: Mapping[str, AgentState], names: Mapping[str, str], now: Instant
) -> Iterator[Record]:
    """End the incidents of agents that are declared no more; ``names`` holds agents by unit."""
    declared = {*names.values()}
    for name, state in agents.items():
        if name in declared or state.ladder.pending is not None:
            continue
        if (unit := _unit(state)) is not None:
            data = {"agent": name, "unit": unit, "other": names.get(unit)}
            yield Record(now, "agent.undeclared", data, state.story)


def missing(
    unit: str, name: str, state: AgentState, now: Instant, *, told: bool
) -> Iterator[Record]:
    """Say that systemd knows no such unit: once, and again where an incident has to end."""
    busy = state.ladder.pending is not None or state.ladder.giving_up is not None
    if not (told if state.story is None else busy):
        yield Record(now, "agent.missing", {"agent": name, "unit": unit}, state.story)


def _unit(state: AgentState) -> str | None:
    """Return the unit of which an open incident tells; None where none is open."""
    if state.incident is not None and state.last_crash is not None:
        return str(state.last_crash.data["unit"])
    return None if state.foretold is None else state.foretold.unit
