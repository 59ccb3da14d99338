"""One agent's life as the watchdog sees it: what follows from each new fact.

Pure: facts and a moment go in, records come out; ``agent_state.apply`` folds those into the state.
An incident opens with a crash, or with what foretells one, and it ends when the agent has been up
for ``stableSec`` again, or when systemd will not start it again.
"""

from collections.abc import Iterator, Mapping

from healer.config import Agent
from healer.events import Context, CoreDump, Ended, Instant, UnitState
from healer.records import Record
from healer.watchdog import agent_state, backoff, budget, waiting
from healer.watchdog import foretold as omens
from healer.watchdog import ladder as steps
from healer.watchdog.agent_state import AgentState
from healer.watchdog.classify import crash_class, is_crash
from healer.watchdog.policy import answer


def on_ended(
    name: str,
    agent: Agent,
    state: AgentState,
    ended: Ended,
    context: Context,
    now: Instant,
    *,
    mate: tuple[str, str | None] | None = None,
) -> Iterator[Record]:
    """Record an invocation's end; a crash, and whether it spends the crash-loop budget.

    ``mate`` is the agent of its group with which it ended, and that agent's incident.
    """
    common = {
        "agent": name,
        "unit": ended.unit,
        "invocation": ended.invocation,
        "boot": ended.boot,
        "code": ended.code,
        "status": ended.status,
        "runtime_ms": ended.runtime_ms,
        "toplevel": ended.toplevel,
    }
    health_check = state.failed_check(ended.invocation)
    requested = context.stop_requested if ended.asked is None else ended.asked
    if not is_crash(ended, stop_requested=requested, health_check=health_check):
        if requested:
            yield _stopped(state, ended, context, now, common, mate)
        else:
            yield Record(now, "agent.exit", common, state.story)
        return
    crash = _crash(name, agent, state, ended, context, now, common)
    yield crash
    if not steps.is_answered(state.ladder, crash):
        after = agent_state.apply(state, crash, name)
        if ended.toplevel is None or after.looped_in != ended.toplevel:
            deaths = [death for death in after.deaths if death.toplevel == ended.toplevel]
            yield from budget.crash_loop(agent, deaths, state.ladder.quarantines, crash)


def on_state(
    name: str, agent: Agent, state: AgentState, unit: UnitState, now: Instant, *, started: bool
) -> Iterator[Record]:
    """Record what happened in an open incident: running again, given up, or stable again.

    ``started`` says that every startup check has succeeded, or cannot tell: before that no run is
    stable.
    """
    if state.ladder.held or state.ladder.giving_up:
        return
    if state.incident is None or state.last_crash is None:
        yield from _on_foretold(name, agent, state, unit, now, started=started)
        return
    crash = state.last_crash.data
    common = {"agent": name, "unit": agent.unit}
    if unit.running and unit.invocation != crash["invocation"]:
        following = state.restarted_as
        if following is not None and following[0] != now.boot:
            following = None  # it went with its boot
        stable_ms = now.uptime_ms - unit.active_enter_ms
        is_stable = started and stable_ms >= agent.stable_sec * 1000
        if following not in {None, (now.boot, unit.invocation)} and not is_stable:
            # The run before this one has ended too. How will be learnt by then, or never.
            return
        if following is None:
            yield Record(
                now,
                "agent.restarted",
                {
                    **common,
                    "invocation": unit.invocation,
                    "previous": crash["invocation"],
                    "pid": unit.main_pid or None,
                    "delay_ms": _delay_ms(crash, unit, now),
                    "n_restarts": unit.n_restarts,
                },
                state.incident,
            )
        if is_stable:
            yield _recovered(agent, state, common, unit, stable_ms, now)
            yield from backoff.begin_anew(name, agent, state.incident, unit, now)
    elif state.ladder.knows_more(agent):
        return
    elif unit.gave_up and now.uptime_ms - unit.since_ms >= waiting.settled_ms(state.last_crash):
        why = {**common, "reason": _why_down(state, crash, unit)}
        yield Record(now, "agent.not-restarted", why, state.incident)


def _on_foretold(
    name: str, agent: Agent, state: AgentState, unit: UnitState, now: Instant, *, started: bool
) -> Iterator[Record]:
    """End an incident that came to no crash, or to one that nobody will learn of."""
    if (foretold := state.foretold) is None:
        return
    common = {"agent": name, "unit": agent.unit}
    stable_ms = omens.is_well(foretold, unit, now, agent.stable_sec) if started else None
    if stable_ms is not None:
        yield _recovered(agent, state, common, unit, stable_ms, now)
    elif omens.is_over(unit, now):
        reason = f"systemd left the unit {unit.active_state} ({unit.sub_state})"
        yield Record(now, "agent.not-restarted", {**common, "reason": reason}, state.story)


def _recovered(
    agent: Agent,
    state: AgentState,
    common: Mapping[str, object],
    unit: UnitState,
    stable_ms: int,
    now: Instant,
) -> Record:
    startups = [check.name for check in agent.health if check.purpose == "startup"]
    data = {
        **common,
        "invocation": unit.invocation,
        "stable_ms": stable_ms,
        "unchecked": [name for name in startups if not state.has_passed(name, unit.invocation)],
        "first_status": unit.first_status,
        "ready_ms": _ready_ms(agent, state, unit),
        "restarts": 0 if state.incident is None else state.restarts,
        "n_restarts": unit.n_restarts,
    }
    return Record(now, "agent.recovered", data, state.story)


def _why_down(state: AgentState, crash: Mapping[str, object], unit: UnitState) -> str:
    last = state.last_end.type if state.last_end else ""
    if last == "agent.stopped":
        return "it was asked to stop"
    if last == "agent.exit":
        return "its last run ended cleanly"
    if crash["restart"] == "will-not-restart":
        return "the restart policy does not restart after this end"
    reason = f"systemd left the unit {unit.active_state} ({unit.sub_state})"
    if unit.start_limit:
        reason += "; a start limit is set that healer did not set (StartLimitBurst=)"
    return reason


def on_dump(
    name: str, state: AgentState, dump: CoreDump, now: Instant, *, dies: bool
) -> Iterator[Record]:
    """Record a core dump in the incident of its crash.

    The invocation ``dies`` of it where that is of its main process, and no end of it is recorded
    yet: it will be, or somebody has asked for a stop. That of another process is no crash.
    """
    crash, incident = state.last_crash, state.story
    if crash is not None and crash.data["invocation"] == dump.invocation:
        incident = crash.incident
    elif dies:
        incident = _incident(name, state, dump.invocation)
    data = {
        "agent": name,
        "unit": dump.unit,
        "invocation": dump.invocation,
        "pid": dump.pid,
        "executable": dump.executable,
        "signal": dump.signal,
        "stack": list(dump.stack),
    }
    yield Record(now, "agent.coredump", data, incident)


def _ready_ms(agent: Agent, state: AgentState, unit: UnitState) -> int | None:
    """Return how long an agent took to be ready, as far as anything tells that it is."""
    if unit.start_ms is None:
        return None
    checks = [check for check in agent.health if check.purpose != "liveness"]
    if checks:
        if not all(state.has_passed(check.name, unit.invocation) for check in checks):
            return None
        return state.ready[1] - unit.start_ms if state.ready else None
    return unit.active_enter_ms - unit.start_ms if unit.notifies else None


def _stopped(
    state: AgentState,
    ended: Ended,
    context: Context,
    now: Instant,
    common: Mapping[str, object],
    mate: tuple[str, str | None] | None,
) -> Record:
    by, because, incident = "request", None, state.story
    if state.ladder.stopped(ended):
        by = "healer"
    elif context.switching:
        by = "switch"
    elif mate is not None:
        by, because, incident = "group", mate[0], state.story or mate[1]
    return Record(now, "agent.stopped", {**common, "by": by, "mate": because}, incident)


def _crash(
    name: str,
    agent: Agent,
    state: AgentState,
    ended: Ended,
    context: Context,
    now: Instant,
    common: Mapping[str, object],
) -> Record:
    runtime_ms = ended.runtime_ms
    health_check = state.failed_check(ended.invocation)
    early_ms = agent.crash_loop.early_death_sec * 1000
    memory = ended.memory
    how = crash_class(ended, health_check)
    follows = answer(agent.restart, ended, how)
    data = {
        **common,
        "class": how,
        "result": ended.result,
        "unit_file": ended.unit_file,
        "stop_uptime_ms": ended.stop_uptime_ms,
        "early": runtime_ms is not None and runtime_ms < early_ms,
        "restart": "will-restart" if follows.restarts else "will-not-restart",
        "answer": follows.kind,
        "restart_delay_ms": follows.delay_ms,
        "in_a_row": ended.in_a_row,
        "n_restarts": context.n_restarts,
        "memory": None
        if memory is None
        else {
            "peak": memory.peak,
            "current": memory.current,
            "oom": memory.oom,
            "oom_kill": memory.oom_kill,
            "pressure": memory.pressure,
        },
        "health_check": health_check,
        "died_uptime_ms": context.death.uptime_ms if context.death else None,
        "wait_status": context.death.wait_status if context.death else None,
        "status_text": context.status_text,
        "breadcrumb": context.breadcrumb,
        "journal": list(context.journal),
        "source": ended.source,
    }
    return Record(now, "agent.crash", data, _incident(name, state, ended.invocation))


def _incident(name: str, state: AgentState, invocation: str) -> str:
    """Return the incident that the crash of this invocation belongs to."""
    return state.story or f"{name}-{invocation[:8]}"


def _delay_ms(crash: Mapping[str, object], unit: UnitState, now: Instant) -> int | None:
    stop = crash["stop_uptime_ms"]
    if not isinstance(stop, int) or crash["boot"] != now.boot:
        return None
    return max(0, unit.active_enter_ms - stop)
