"""When a failing health check becomes an action. Pure.

A check counts only in the invocation it looked at, and only behind the start grace. Its own error
(it could not be made) is no failure of the agent. Once a check has failed often enough in a row,
the agent is killed, once, and systemd restarts it by its policy.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from healer.config import Agent, HealthCheck
from healer.events import Instant, UnitState
from healer.records import Record
from healer.watchdog.agent import AgentState


class Outcome(StrEnum):
    """What a check found: the agent well, the agent failing, or nothing (the check's own error)."""

    OK = "ok"
    FAILED = "failed"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Streak:
    """How often in a row a check failed in one invocation."""

    invocation: str = ""
    failures: int = 0
    outcome: Outcome | None = None


def observe(
    streak: Streak, check: HealthCheck, unit: UnitState, outcome: Outcome, now: Instant
) -> Streak:
    """Count one check's outcome."""
    failures = streak.failures if streak.invocation == unit.invocation else 0
    in_grace = now.uptime_ms - unit.active_enter_ms < check.start_grace_sec * 1000
    if outcome is Outcome.OK:
        failures = 0
    elif outcome is Outcome.FAILED and not in_grace:
        failures += 1
    return Streak(unit.invocation, failures, outcome)


def on_streak(
    name: str,
    agent: Agent,
    state: AgentState,
    check: HealthCheck,
    streak: Streak,
    detail: str,
    now: Instant,
) -> Iterator[Record]:
    """Record the failure and intend the kill, once for each invocation."""
    if streak.failures < check.failure_threshold:
        return
    if state.failed_check(streak.invocation) is not None:
        return
    incident = state.incident or f"{name}-{streak.invocation[:8]}"
    yield Record(
        now,
        "health.failed",
        {
            "agent": name,
            "unit": agent.unit,
            "invocation": streak.invocation,
            "check": check.name,
            "failures": streak.failures,
            "detail": detail,
        },
        incident,
    )
    intent = {
        "action": "kill",
        "target": agent.unit,
        "agent": name,
        "invocation": streak.invocation,
        "reason": f"health check {check.name} failed {streak.failures} times in a row: {detail}",
    }
    yield Record(now, "action.intent", intent, incident)
