"""One agent's life as the watchdog sees it: what it has recorded, and what follows from it.

Pure: facts and a moment go in, records come out, and ``apply`` folds records into the state. An
incident opens with a crash, or with what foretells one, and it ends when the agent has been up for
``stableSec`` again, or when systemd will not start it again.
"""

from collections.abc import Iterator, Mapping

import msgspec
from msgspec.structs import replace

from healer.config import Agent
from healer.events import Context, CoreDump, Ended, Instant, UnitState
from healer.records import Record
from healer.watchdog import backoff, budget, waiting
from healer.watchdog import foretold as omens
from healer.watchdog import ladder as steps
from healer.watchdog.budget import Death
from healer.watchdog.classify import crash_class, is_crash
from healer.watchdog.foretold import Foretold
from healer.watchdog.ladder import Ladder
from healer.watchdog.policy import answer

# How many ended invocations and crashes of one agent are remembered, so that the same end is not
# recorded twice. The journal can tell again of all that happened since healer was last up.
_REMEMBERED = 4096


class AgentState(msgspec.Struct, frozen=True):
    """What the records say of one agent.

    ``ended`` holds the identities of its last ended invocations, ``deaths`` its last crashes,
    oldest first; ``restarted_as`` names the run (boot and invocation) that follows the last crash,
    ``looped_in`` the toplevel in which the crash-loop budget was last spent, and ``unhealthy`` the
    invocation that a health check found failing, and that check. ``passed`` pairs each startup and
    readiness check with the invocation in which it succeeds, and ``ready`` says in which one such a
    check began to succeed last, and when. ``restarts`` counts the crashes of the last incident, and
    ``dumped`` names the invocations whose core dump is recorded. In the invocation ``begun_anew``
    healer last had the backoff begin anew. ``foretold`` is a story that has come to no crash yet.
    """

    ended: tuple[tuple[str, str], ...] = ()
    deaths: tuple[Death, ...] = ()
    crashes: int = 0
    last_crash: Record | None = None
    incident: str | None = None
    restarted_as: tuple[str, str] | None = None
    last_end: Record | None = None
    looped_in: str | None = None
    unhealthy: tuple[str, str] | None = None
    passed: tuple[tuple[str, str], ...] = ()
    ladder: Ladder = msgspec.field(default_factory=Ladder)
    ready: tuple[str, int] | None = None
    restarts: int = 0
    dumped: tuple[str, ...] = ()
    begun_anew: str | None = None
    foretold: Foretold | None = None

    @property
    def story(self) -> str | None:
        """The incident that is open, be it by a crash or by what foretells one."""
        return self.incident or (self.foretold.incident if self.foretold else None)

    def has_ended(self, boot: str, invocation: str) -> bool:
        """Whether the end of this invocation is recorded."""
        return (boot, invocation) in self.ended

    def failed_check(self, invocation: str) -> str | None:
        """The health check that found this invocation failing, if one did."""
        if self.unhealthy is None or self.unhealthy[0] != invocation:
            return None
        return self.unhealthy[1]

    def has_passed(self, check: str, invocation: str) -> bool:
        """Whether this startup or readiness check has succeeded, and not failed again since."""
        return (check, invocation) in self.passed


def apply(state: AgentState, record: Record, name: str) -> AgentState:
    """Fold a record that concerns the agent ``name`` into its state."""
    folded = _apply(state, record)
    ladder = steps.apply(state.ladder, record, name)
    foretold = omens.apply(state.foretold, state.incident, record)
    if ladder is state.ladder and foretold is state.foretold:
        return folded
    return replace(folded, ladder=ladder, foretold=foretold)


def _apply(state: AgentState, record: Record) -> AgentState:
    data = record.data
    match record.type:
        case "agent.crash":
            death = Death(data["boot"], _uptime_ms(record), data["toplevel"], data["early"])
            counts = not steps.is_answered(state.ladder, record)
            return replace(
                _end(state, record),
                deaths=(*state.deaths, death)[-_REMEMBERED:] if counts else state.deaths,
                crashes=state.crashes + 1,
                last_crash=record,
                incident=record.incident,
                restarted_as=None,
                restarts=1 if state.incident is None else state.restarts + 1,
            )
        case "agent.exit" | "agent.stopped":
            return _end(state, record)
        case "agent.restarted":
            return replace(state, restarted_as=(record.at.boot, data["invocation"]))
        case "agent.recovered":
            return replace(state, incident=None, restarted_as=None, deaths=(), looped_in=None)
        case "agent.not-restarted":
            return replace(state, incident=None, restarted_as=None)
        case "agent.gave-up" | "agent.undeclared" | "agent.missing":
            # What crashes on all the same, because root could not stop it, or crashes again once
            # it is back, is a case of its own.
            return replace(state, incident=None, restarted_as=None, deaths=(), looped_in=None)
        case "agent.released":
            # The run before the quarantine is over, also if its end was never learnt of.
            return replace(state, restarted_as=None)
        case "agent.crash-loop":
            return replace(state, looped_in=data["toplevel"])
        case "agent.coredump":
            return replace(state, dumped=(*state.dumped, data["invocation"])[-_REMEMBERED:])
        case "action.intent" | "action.outcome":
            return _acted(state, record)
        case "deployment.activated" if data["toplevel"] != data["previous"]:
            return replace(state, deaths=(), looped_in=None)
        case _:
            return _checked(state, record)


def _acted(state: AgentState, record: Record) -> AgentState:
    """Fold what was intended for the agent, and what came of it."""
    data = record.data
    if record.type == "action.intent":
        invocation = data.get("invocation") if data["action"] == "reset" else None
        return replace(state, begun_anew=invocation) if invocation else state
    if data["action"] == "kill" and not data["ok"]:
        return replace(state, unhealthy=None)
    return replace(state, deaths=(), looped_in=None) if steps.begins_anew(record) else state


def _checked(state: AgentState, record: Record) -> AgentState:
    """Fold what a health check found."""
    data = record.data
    match record.type:
        case "health.failed":
            return replace(state, unhealthy=(data["invocation"], data["check"]))
        case "health.passed":
            passed = (data["check"], data["invocation"])
            ready = (data["invocation"], record.at.uptime_ms)
            return replace(state, passed=(*_other_checks(state, data), passed), ready=ready)
        case "health.unready":
            return replace(state, passed=_other_checks(state, data))
        case _:
            return state


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
        after = apply(state, crash, name)
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
    name: str, state: AgentState, dump: CoreDump, now: Instant, *, is_main: bool
) -> Iterator[Record]:
    """Record a core dump, once for each invocation, in the incident of its crash.

    That of a main process can be known before the crash is, or it comes of a stop that somebody
    asked for. That of another is no crash.
    """
    if dump.invocation in state.dumped:
        return
    crash, incident = state.last_crash, state.story
    if crash is not None and crash.data["invocation"] == dump.invocation:
        incident = crash.incident
    elif is_main and not any(ended == dump.invocation for _, ended in state.ended):
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


def _end(state: AgentState, record: Record) -> AgentState:
    identity = (record.data["boot"], record.data["invocation"])
    return replace(
        state,
        ended=(*state.ended, identity)[-_REMEMBERED:],
        last_end=record,
        restarted_as=None if state.restarted_as == identity else state.restarted_as,
    )


def _other_checks(state: AgentState, data: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    return tuple(passed for passed in state.passed if passed[0] != data["check"])


def _uptime_ms(record: Record) -> int:
    """Return when the crash was, in its own boot; when it was recorded, where that is unknown."""
    stop = record.data["stop_uptime_ms"]
    return int(stop) if stop is not None else record.at.uptime_ms


def _delay_ms(crash: Mapping[str, object], unit: UnitState, now: Instant) -> int | None:
    stop = crash["stop_uptime_ms"]
    if not isinstance(stop, int) or crash["boot"] != now.boot:
        return None
    return max(0, unit.active_enter_ms - stop)
