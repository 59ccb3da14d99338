"""What the records say of one agent: how each of them changes it. Pure."""

import sys
from collections.abc import Mapping

import msgspec
from msgspec.structs import replace

from healer.records import Record
from healer.watchdog import foretold as omens
from healer.watchdog import ladder as steps
from healer.watchdog.budget import Death
from healer.watchdog.foretold import Foretold
from healer.watchdog.ladder import Ladder

# How many crashes of one agent are remembered: more than the largest budget can count.
_DEATHS = 4096


class AgentState(msgspec.Struct, frozen=True):
    """What the records say of one agent.

    ``deaths`` holds its last crashes, oldest first; ``restarted_as`` names the run (boot and
    invocation) that follows the last crash, ``looped_in`` the toplevel in which the crash-loop
    budget was last spent, and ``unhealthy`` the invocation that a health check found failing, and
    that check. ``passed`` pairs each startup and readiness check with the invocation in which it
    succeeds, and ``ready`` says in which one such a check began to succeed last, and when.
    ``restarts`` counts the crashes of the last incident. In the invocation ``begun_anew`` healer
    last had the backoff begin anew. ``foretold`` is a story that has come to no crash yet.
    """

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
    begun_anew: str | None = None
    foretold: Foretold | None = None

    @property
    def story(self) -> str | None:
        """The incident that is open, be it by a crash or by what foretells one."""
        return self.incident or (self.foretold.incident if self.foretold else None)

    def failed_check(self, invocation: str) -> str | None:
        """The health check that found this invocation failing, if one did."""
        if self.unhealthy is None or self.unhealthy[0] != invocation:
            return None
        return self.unhealthy[1]

    def has_passed(self, check: str, invocation: str) -> bool:
        """Whether this startup or readiness check has succeeded, and not failed again since."""
        return (check, invocation) in self.passed


def apply(state: AgentState, record: Record, name: str, *, over: bool = False) -> AgentState:
    """Fold a record that concerns the agent ``name`` into its state.

    ``over`` says that the end of the invocation that the record is of is recorded already.
    """
    folded = _apply(state, record)
    ladder = steps.apply(state.ladder, record, name)
    foretold = state.foretold
    # A core dump of a run whose end is recorded foretells nothing.
    if record.type != "agent.coredump" or not over:
        foretold = omens.apply(foretold, state.incident, record)
    if ladder is state.ladder and foretold is state.foretold:
        return folded
    return replace(folded, ladder=ladder, foretold=foretold)


def _apply(state: AgentState, record: Record) -> AgentState:
    data = record.data
    match record.type:
        case "agent.crash":
            death = _death(record)
            counts = not steps.is_answered(state.ladder, record)
            return replace(
                _end(state, record),
                deaths=(*state.deaths, death)[-_DEATHS:] if counts else state.deaths,
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


def _end(state: AgentState, record: Record) -> AgentState:
    identity = (record.data["boot"], record.data["invocation"])
    return replace(
        state,
        last_end=record,
        restarted_as=None if state.restarted_as == identity else state.restarted_as,
    )


def _other_checks(state: AgentState, data: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    return tuple(passed for passed in state.passed if passed[0] != data["check"])


def _death(record: Record) -> Death:
    """Return a crash as the budget counts it, when it was in its own boot.

    Where that is unknown, it is when it was recorded. What thousands of them have in common is kept
    once: each entry that is read back has a copy of its own.
    """
    data, stop = record.data, record.data["stop_uptime_ms"]
    toplevel = data["toplevel"]
    return Death(
        boot=sys.intern(data["boot"]),
        uptime_ms=int(stop) if stop is not None else record.at.uptime_ms,
        toplevel=None if toplevel is None else sys.intern(toplevel),
        early=data["early"],
    )
