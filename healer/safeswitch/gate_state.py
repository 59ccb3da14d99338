"""What is remembered of the gates: how records change it, and which failures are excused.

Pure. An agent's check of readiness counts as a gate, too. A failure that the host's own trouble
falls into is no fault of the deployment's until the gate passes again, also when the trouble is
over: what died of a full disk may stay down. But a network that is gone excuses no gate: to see
that a deployment has cut the host off is what gates are for.
"""

from collections.abc import Iterable

from msgspec.structs import replace

from healer.events import NO_DEFAULT_ROUTE
from healer.records import Record
from healer.safeswitch.state import TOGETHER_MS, DeploymentState, Failing


def failed(state: DeploymentState, record: Record) -> DeploymentState:
    """Note that a gate fails from now on; what passed for long was not broken by a switch."""
    name, excused = _name(record), {**state.excused}
    if name in state.long_passed:
        excused.setdefault(name, "it passed for a minute or more before it began to fail")
    failing = {**state.failing, name: Failing(state.elapsed_ms, record.data["detail"])}
    passing = {gate: at_ms for gate, at_ms in state.passed.items() if gate != name}
    return troubled(replace(state, failing=failing, passed=passing, excused=excused, held_ms=0))


def passed(state: DeploymentState, record: Record) -> DeploymentState:
    """Note that a gate passes; if it failed before, the probation begins here."""
    name = _name(record)
    if "gate" in record.data:
        excused = {gate: why for gate, why in state.excused.items() if gate != name}
        state = replace(state, passed={name: state.elapsed_ms, **state.passed}, excused=excused)
    if name not in state.failing:
        return state
    failing = {gate: why for gate, why in state.failing.items() if gate != name}
    return replace(state, failing=failing, held_ms=0)


def held(state: DeploymentState, record: Record) -> DeploymentState:
    """Note that a gate has passed for long."""
    return replace(state, long_passed=state.long_passed | {record.data["gate"]})


def troubled(state: DeploymentState) -> DeploymentState:
    """Excuse the gates that fail now, where the host is in a trouble that may be why."""
    trouble = beyond_a_deployment(state.trouble)
    if _memory_ran_out(state):
        trouble.append("memory ran out on the whole host")
    if not trouble:
        return state
    why = f"the host was in trouble while it failed: {'; '.join(trouble)}"
    return replace(state, excused={**dict.fromkeys(state.failing, why), **state.excused})


def begin_anew(state: DeploymentState, *, forget: bool) -> DeploymentState:
    """Have each gate pass again, in a boot or under another deployment.

    One that fails for no fault of the deployment before is excused until then, unless that is to be
    forgotten.
    """
    excused = {} if forget else state.excused
    return replace(state, passed={}, failing={}, long_passed=frozenset(), excused=excused)


def beyond_a_deployment(trouble: Iterable[str]) -> list[str]:
    """Return what is wrong with the host that no gate is there to see."""
    return [each for each in trouble if each != NO_DEFAULT_ROUTE]


def _memory_ran_out(state: DeploymentState) -> bool:
    """Whether an agent was just killed for want of memory on the whole host."""
    return any(
        crash.starved and state.served_ms - crash.at_ms <= TOGETHER_MS
        for agent in state.crashes.keys() | state.carried.keys()
        for crash in state.all_crashes(agent)
    )


def _name(record: Record) -> str:
    """Return the name of a gate; an agent's check is one as well."""
    data = record.data
    return data["gate"] if "gate" in data else f"{data['agent']}: {data['check']}"
