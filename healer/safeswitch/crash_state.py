"""What is remembered of the crashes under a deployment, as evidence for or against it. Pure."""

from collections.abc import Mapping

from msgspec.structs import replace

from healer.records import Record
from healer.safeswitch import gate_state
from healer.safeswitch.baseline import Baseline
from healer.safeswitch.state import TOGETHER_MS, Crash, DeploymentState, Streak

# More crashes of one agent under one deployment than these tell nothing new.
_REMEMBERED = 256
# As many crashes in one incident are more than bad luck.
_LOOPING = 3
# What an agent drags along crashes within this: by the end of a connection, or a time limit.
_LED_MS = 30_000
# Crashes that came at random would hardly leave a gap of so many of their intervals.
_QUIET = 5
# sysexits.h(3head): EX_TEMPFAIL, try again later.
_TEMPORARY = "75"


def looping(unwell: Mapping[str, Streak]) -> dict[str, int]:
    """Name those that crash again and again, each with when that began."""
    streaks = unwell.items()
    return {name: streak.since_ms for name, streak in streaks if streak.crashes >= _LOOPING}


def crashed(state: DeploymentState, record: Record) -> DeploymentState:
    """Note a crash: among the evidence on probation, in the baseline otherwise."""
    data, name = record.data, record.data["agent"]
    baselines = dict(state.baselines)
    baselines.setdefault(name, Baseline(0, state.good_ms))
    crash = _crash(state, record)
    if data["toplevel"] not in {None, state.current}:
        # At first it may be the switch that brings it about: it restarts what the agent needs.
        new = {name: crash} if state.served_ms >= _LED_MS else {}
        return replace(state, baselines=baselines, carried={**new, **state.carried})
    if not state.on_probation:
        baselines[name] = baselines[name].crash(state.good_ms)
    elif data["toplevel"] is None:
        return state
    streak = state.unwell.get(name, Streak(0, state.elapsed_ms))
    streak = Streak(streak.crashes + 1, streak.since_ms)
    crashes = (*state.crashes.get(name, ()), crash)[:_REMEMBERED]
    state = replace(
        state,
        baselines=baselines,
        unwell={**state.unwell, name: streak},
        crashes={**state.crashes, name: crashes},
        suspect_ms=state.suspect_ms if state.is_unchanged(name) else state.served_ms,
        incidents={**state.incidents, name: record.incident},
    )
    # Before anything is known to be good there is nothing that a deployment could be worse than.
    judged = state.on_probation and state.known_good is not None
    if not judged or not state.is_suspicious(name, len(crashes), state.served_ms):
        return state
    # Quiet for long enough means long against the time from crash to crash.
    caution_ms = _QUIET * state.served_ms // len(crashes)
    return replace(state, held_ms=0, caution_ms=max(state.caution_ms, caution_ms))


def _crash(state: DeploymentState, record: Record) -> Crash:
    data, name = record.data, record.data["agent"]
    memory = data.get("memory") or {}
    return Crash(
        first=name not in state.incidents,
        at_ms=state.served_ms,
        runtime_ms=data["runtime_ms"],
        early=data["early"],
        temporary=data["code"] == "exited" and data["status"] == _TEMPORARY,
        starved=data["class"] == "oom" and memory.get("oom") == 0,
        rule=data.get("answer") == "rollback",
        led=_is_led(state, name, data["runtime_ms"]),
    )


def _is_led(state: DeploymentState, name: str, runtime_ms: int | None) -> bool | None:
    """Whether a run ended just after another agent's crash, as ``Crash.led`` says."""
    if runtime_ms is None or runtime_ms < _LED_MS or not state.is_unchanged(name):
        return None
    return state.suspect_ms is not None and state.served_ms - state.suspect_ms <= _LED_MS


def looped(state: DeploymentState, record: Record) -> DeploymentState:
    """Note that an agent spent its crash-loop budget under this deployment."""
    data = record.data
    if data["toplevel"] != state.current:
        return state
    looped = {data["agent"]: data["reason"], **state.looped}
    incidents = {**state.incidents, data["agent"]: record.incident}
    return replace(state, looped=looped, incidents=incidents)


def recovered(state: DeploymentState, record: Record) -> DeploymentState:
    """Note that an agent is well: what it and others crashed of may be over."""
    agent = record.data["agent"]
    if agent in looping(state.unwell):
        # While it waited for its restarts, it did not show that it holds.
        state = replace(state, held_ms=0)
    if state.on_probation and _told_of_environment(state, agent):
        state = _begin_evidence_anew(state, agent)
    if agent in state.unwell_before:
        # What made it crash before this deployment is over, also for those that it hit with it.
        began_ms = state.unwell_before[agent]
        others = {
            name: since_ms
            for name, since_ms in state.unwell_before.items()
            if abs(since_ms - began_ms) > TOGETHER_MS
        }
        state = replace(_begin_evidence_anew(state, None), unwell_before=others)
    return replace(
        state,
        unwell={name: streak for name, streak in state.unwell.items() if name != agent},
        looped={name: why for name, why in state.looped.items() if name != agent},
    )


def _told_of_environment(state: DeploymentState, agent: str) -> bool:
    """Whether an agent crashed again and again for what cannot be the deployment's doing."""
    crashes = state.crashes.get(agent, ())
    if len(crashes) < _LOOPING or state.is_dragged(agent):
        return False
    return state.is_unchanged(agent) or crashes[-1].temporary or crashes[-1].starved


def troubled(state: DeploymentState, record: Record) -> DeploymentState:
    """Note what is wrong with the host; once that is over, the evidence begins anew."""
    trouble = tuple(record.data["trouble"])
    if state.on_probation and not trouble:
        state = _begin_evidence_anew(state, None)
    return gate_state.troubled(replace(state, trouble=trouble))


def _begin_evidence_anew(state: DeploymentState, kept: str | None) -> DeploymentState:
    """Forget the crashes of a time when something was wrong that is well again now.

    A deployment that is bad nevertheless goes on crashing. Only ``kept`` keeps its own, and those
    that no deployment could be blamed for.
    """

    def counts(name: str) -> bool:
        return name == kept or (kept is not None and state.is_unchanged(name))

    crashes = {name: crashes for name, crashes in state.crashes.items() if counts(name)}
    carried = {name: crash for name, crash in state.carried.items() if counts(name)}
    looped = {name: why for name, why in state.looped.items() if name == kept}
    return replace(state, crashes=crashes, carried=carried, looped=looped, held_ms=0)
