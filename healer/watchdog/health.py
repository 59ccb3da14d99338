"""When what a health check found becomes an action, or a word on the agent. Pure.

A check has one purpose. *Liveness*: once it has failed often enough in a row, behind the start
grace and behind the agent's startup, the agent is killed, once, and systemd restarts it by its
policy. *Startup*: it has to succeed in each invocation before liveness counts; where it has not by
the end of its grace, the agent is killed as well. *Readiness*: whether the agent can do its work
now, the services that it depends on included; it is recorded and gates the probation of a
deployment, and never kills. The check's own error (it could not be made) is neither a failure nor
a success.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from healer.config import Agent, HealthCheck
from healer.events import Instant, UnitState
from healer.records import Record
from healer.watchdog.agent_state import AgentState


class Outcome(StrEnum):
    """What a check found: the agent well, the agent failing, or nothing (the check's own error)."""

    OK = "ok"
    FAILED = "failed"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Streak:
    """How often in a row a check failed or succeeded in one invocation."""

    invocation: str = ""
    failures: int = 0
    successes: int = 0
    outcome: Outcome | None = None


def is_well(streak: Streak | None, check: HealthCheck, unit: UnitState) -> bool:
    """Whether one more success of this invocation changes nothing, and leads to nothing."""
    return (
        streak is not None
        and streak.invocation == unit.invocation
        and streak.outcome is Outcome.OK
        and streak.successes >= check.success_threshold
    )


def is_due(check: HealthCheck, state: AgentState, unit: UnitState) -> bool:
    """Whether the check still tells anything: a startup has succeeded once and for all."""
    return check.purpose != "startup" or not state.has_passed(check.name, unit.invocation)


def observe(
    streak: Streak,
    check: HealthCheck,
    unit: UnitState,
    outcome: Outcome,
    now: Instant,
    *,
    started: bool,
) -> Streak:
    """Count one check's outcome; ``started`` says that no startup check is still to succeed."""
    if streak.invocation != unit.invocation:
        streak = Streak(unit.invocation)
    failures, successes = streak.failures, streak.successes
    if outcome is Outcome.OK:
        successes += 1
        if successes >= check.success_threshold:
            failures = 0
    elif outcome is Outcome.FAILED:
        successes = 0
        if _counts(check, unit, now, started=started):
            failures += 1
    return Streak(unit.invocation, failures, successes, outcome)


def has_started(agent: Agent, state: AgentState, unit: UnitState) -> bool:
    """Whether every startup check has succeeded in this invocation."""
    return not any(is_due(check, state, unit) for check in agent.health if _is_startup(check))


def may_have_started(
    name: str,
    agent: Agent,
    state: AgentState,
    streaks: Mapping[tuple[str, str], Streak],
    unit: UnitState,
    now: Instant,
) -> bool:
    """Whether no startup check says or may still say that this invocation has not started.

    One that cannot be made tells nothing: behind its grace it is waited for no longer.
    """

    def cannot_tell(check: HealthCheck) -> bool:
        streak = streaks.get((name, check.name), Streak())
        errs = streak.invocation == unit.invocation and streak.outcome is Outcome.ERROR
        return errs and not _in_grace(check, unit, now)

    startups = (check for check in agent.health if _is_startup(check))
    return not any(is_due(check, state, unit) and not cannot_tell(check) for check in startups)


def why_unready(agent: Agent, state: AgentState, unit: UnitState) -> str | None:
    """Return what keeps a running agent from being ready; None when nothing does."""
    for check in agent.health:
        if check.purpose != "liveness" and not state.has_passed(check.name, unit.invocation):
            return f"is not ready: its {check.purpose} check {check.name} does not succeed"
    return None


def on_streak(
    name: str,
    agent: Agent,
    state: AgentState,
    check: HealthCheck,
    streak: Streak,
    unit: UnitState,
    detail: str,
    now: Instant,
) -> Iterator[Record]:
    """Say what follows from a check's outcomes so far; the same is never said twice."""
    data = {
        "agent": name,
        "unit": agent.unit,
        "invocation": streak.invocation,
        "check": check.name,
        "purpose": check.purpose,
    }
    passed = state.has_passed(check.name, streak.invocation)
    failed = streak.failures >= check.failure_threshold
    if check.purpose != "liveness" and not passed and streak.successes >= check.success_threshold:
        after_ms = now.uptime_ms - unit.active_enter_ms
        yield Record(now, "health.passed", {**data, "after_ms": after_ms}, state.incident)
    elif check.purpose == "readiness":
        if passed and failed:
            why = {"failures": streak.failures, "detail": detail}
            yield Record(now, "health.unready", {**data, **why}, state.incident)
    elif failed and not (_is_startup(check) and (passed or _in_grace(check, unit, now))):
        yield from _kill(name, agent, state, check, streak, detail, now, data)


def _kill(
    name: str,
    agent: Agent,
    state: AgentState,
    check: HealthCheck,
    streak: Streak,
    detail: str,
    now: Instant,
    data: dict[str, str],
) -> Iterator[Record]:
    """Record the failure and intend the kill, once for each invocation."""
    if state.failed_check(streak.invocation) is not None:
        return
    incident = state.story or f"{name}-{streak.invocation[:8]}"
    failed = {**data, "failures": streak.failures, "detail": detail}
    yield Record(now, "health.failed", failed, incident)
    intent = {
        "action": "kill",
        "target": agent.unit,
        "agent": name,
        "invocation": streak.invocation,
        "reason": f"health check {check.name} failed {streak.failures} times in a row: {detail}",
    }
    yield Record(now, "action.intent", intent, incident)


def _counts(check: HealthCheck, unit: UnitState, now: Instant, *, started: bool) -> bool:
    """Whether a failure counts: a startup's always, for its grace bounds what follows from it."""
    if _is_startup(check):
        return True
    return not _in_grace(check, unit, now) and (started or check.purpose == "readiness")


def _is_startup(check: HealthCheck) -> bool:
    return check.purpose == "startup"


def _in_grace(check: HealthCheck, unit: UnitState, now: Instant) -> bool:
    return now.uptime_ms - unit.active_enter_ms < check.start_grace_sec * 1000
