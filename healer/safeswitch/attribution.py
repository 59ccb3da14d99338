"""Attribution: is the deployment to blame for an agent's crashes? Three verdicts, from evidence.

Pure. A deployment is blamed when all of this holds, and otherwise the verdict is inconclusive, with
the reason:

- the crashes are of runs that were started under it;
- the agent's unit, or something that all share, is not the same as under the known-good;
- they are beyond what the agent's own baseline brings (healer/safeswitch/baseline.py), or, with no
  baseline yet, they spend the declared budget;
- nothing points at the environment: not agents that did not change and crash too, not memory, disk
  or network, not the agent's own word (exit code 75), and not the time at which it began.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from statistics import median_low

from healer.config import Agent, SafeSwitch
from healer.safeswitch import gate_state
from healer.safeswitch.baseline import BLAMED, threshold
from healer.safeswitch.state import Crash, DeploymentState

# So many names are told; the rest is counted.
_NAMED = 3
# An agent's last crashes tell how it is now.
_RECENT = 5
# A first run of so many times the usual one was no run of the same kind. Shorter ones than this all
# count as so long: to start for the first time takes a broken program some seconds more.
_MANY_TIMES = 8
_SHORT_MS = 1000


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the evidence says of one accused agent's crashes, or of a gate that fails.

    ``against`` says why the deployment is not blamed, None if it is; ``age_ms`` is for how long
    there has been something to answer.
    """

    agent: str | None
    gate: str | None
    incident: str | None
    reason: str
    against: str | None
    evidence: tuple[str, ...]
    age_ms: int

    @property
    def words(self) -> str:
        """Who is accused of what."""
        name = self.agent if self.agent is not None else self.gate
        return self.reason if name is None else f"{name}: {self.reason}"


def accused(
    state: DeploymentState,
    agents: Mapping[str, Agent],
    unready: Collection[str],
    *,
    strict: bool = False,
) -> list[str]:
    """Name the agents whose crashes are too many, the first to crash first.

    An agent that is well again is accused of nothing, whoever mended it. ``strict`` accuses after
    a single crash.
    """
    names = [
        name
        for name, crashes in state.crashes.items()
        if name in unready
        and name in agents
        and (strict or name in state.looped or _too_many(state, name, agents[name], crashes))
    ]
    return sorted(names, key=lambda name: (state.crashes[name][0].at_ms, name))


def judge(
    state: DeploymentState,
    agents: Mapping[str, Agent],
    name: str,
    unready: Collection[str],
    *,
    strict: bool = False,
) -> Judgement:
    """Weigh the evidence for and against the deployment in the matter of one accused agent.

    ``unready`` names the agents that are not well now.
    """
    crashes = state.crashes[name]
    rate, usual = _rate(state, agents[name], name)
    objections = list(_objections(state, agents, name, unready))
    if usual and not strict:
        objections.insert(0, "its own baseline explains as many")
    reason = state.looped.get(name) or "crashes beyond its own baseline"
    if strict:
        count = "a crash" if len(crashes) == 1 else "crashes"
        reason = f"{count} under a deployment that was condemned before"
    elif name not in state.looped and not state.baseline(name).is_warm(state.good_ms):
        reason = "as many crashes as its budget allows"
    evidence = [
        f"{len(crashes)} of its crashes were of runs that started under this deployment",
        _change(state, name),
        rate,
        *objections,
    ]
    if not objections:
        evidence.append("nothing points at the environment")
    return Judgement(
        agent=name,
        gate=None,
        incident=state.incidents.get(name),
        reason=reason,
        against="; ".join(objections) or None,
        evidence=tuple(evidence),
        age_ms=state.served_ms - crashes[0].at_ms,
    )


def failed_gates(
    state: DeploymentState, config: SafeSwitch, gates: Collection[str]
) -> Iterator[Judgement]:
    """Judge the owner's gates that have failed for as long as a probation lasts."""
    for gate, failing in state.failing.items():
        age_ms = state.elapsed_ms - failing.since_ms
        if gate not in gates or age_ms < config.probation_sec * 1000:
            continue
        against = _no_fault(state, gate)
        yield Judgement(
            agent=None,
            gate=gate,
            incident=None,
            reason=f"the gate has failed for {config.probation_sec:g} s",
            against=against,
            evidence=(
                f"what it says: {failing.detail}",
                against or "it passed under the known-good deployment",
            ),
            age_ms=age_ms,
        )


def _no_fault(state: DeploymentState, gate: str) -> str | None:
    """Say why a gate that fails is no sign of a bad deployment; None if it is one."""
    if gate not in state.passed_by_good:
        return "it is not known to have passed under the known-good"
    return state.excused.get(gate)


def excuse(
    state: DeploymentState,
    agents: Mapping[str, Agent],
    unready: Mapping[str, str],
    gates: Collection[str],
    environment: Collection[str],
) -> str | None:
    """Say why it is no fault of the deployment that a boot does not come up; None if it may be.

    ``unready`` says of each agent that is not up why, ``gates`` names those that have not passed,
    and ``environment`` says what is wrong with the host. Where that is nothing, for each agent and
    each gate something has to speak against blaming the deployment; for a gate, also where it is
    the network that is gone.
    """
    found = [*environment]
    for name, why in () if environment else sorted(unready.items()):
        against = "; ".join(_objections(state, agents, name, unready))
        if not against:
            return None
        found.append(f"{name} {why}, but {against}")
    for gate in () if gate_state.beyond_a_deployment(environment) else sorted(gates):
        objection = _no_fault(state, gate)
        if objection is None:
            return None
        found.append(f"the gate {gate} has not passed, but {objection}")
    return "; ".join(found) or None


def _too_many(state: DeploymentState, name: str, agent: Agent, crashes: tuple[Crash, ...]) -> bool:
    """Whether crashes accuse although no crash loop was found: too slow, spread too far."""
    if any(crash.rule for crash in crashes):
        return True
    baseline = state.baseline(name)
    if not baseline.is_warm(state.good_ms):
        return len(crashes) >= agent.crash_loop.max_crashes
    return len(crashes) >= _threshold(state, name)


def _threshold(state: DeploymentState, name: str) -> int:
    window_ms = state.crashes[name][-1].at_ms
    return threshold(state.baseline(name).expected(state.good_ms, window_ms), BLAMED)


def _rate(state: DeploymentState, agent: Agent, name: str) -> tuple[str, bool]:
    """Say how the crashes compare with the agent's baseline, and whether that explains them."""
    crashes, baseline = state.crashes[name], state.baseline(name)
    if any(crash.rule for crash in crashes):
        return "its restart rule answers such a crash with a rollback", False
    if not baseline.is_warm(state.good_ms):
        budget = agent.crash_loop.max_crashes
        return f"no baseline yet: the declared budget of {budget} crashes counts", False
    needed = _threshold(state, name)
    hours = baseline.seen_ms(state.good_ms) // 3_600_000
    before = f"{baseline.crashes:.3g} crashes in {hours} h under known-good deployments before"
    return f"{before}: from {needed} on they are no chance", len(crashes) < needed


def _change(state: DeploymentState, name: str) -> str:
    shared = f"; changed for all: {', '.join(sorted(state.shared))}" if state.shared else ""
    if state.unbooted:
        shared += f"; changed for all, but not booted yet: {', '.join(sorted(state.unbooted))}"
    own = {
        "changed": "its unit was changed since the known-good",
        "added": "its unit is new since the known-good",
        "same": "its unit is the same as under the known-good",
    }.get(state.change_of(name), "it is not known whether its unit was changed")
    return own + shared


def _objections(
    state: DeploymentState,
    agents: Mapping[str, Agent],
    name: str,
    unready: Collection[str],
) -> Iterator[str]:
    """Say what speaks against blaming the deployment: of the agent, of others, of the host."""
    if state.is_unchanged(name):
        yield "neither its unit nor what all share was changed"
    yield from _signs(state, agents[name], name)
    controls: dict[str, list[str]] = {}
    for other, sign in _controls(state, agents, name, unready):
        controls.setdefault(sign, []).append(other)
    for sign, others in controls.items():
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        yield f"{', '.join(others[:_NAMED])}{more} crashes too, and {sign}"
    yield from state.trouble


def _signs(state: DeploymentState, agent: Agent, name: str) -> Iterator[str]:
    """Say what an agent's own crashes tell of the environment."""
    crashes = state.crashes.get(name, ())
    recent = crashes[-_RECENT:]
    if name in state.unwell_before:
        yield "it crashed again and again before this deployment as well"
    if _turned(agent, *crashes):
        yield "it ran well under this deployment before it began to end at once"
    if sum(crash.temporary for crash in recent) * 2 > len(recent):
        yield "it says itself that the failure is temporary (exit code 75)"
    if sum(crash.starved for crash in recent) * 2 > len(recent):
        yield "memory ran out on the whole host"


def _controls(
    state: DeploymentState, agents: Mapping[str, Agent], name: str, unready: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Name the other agents whose crashes tell of the environment, each with how.

    They crash more than is likely, and are not well yet: a doubt needs less than a conviction. What
    the accused drags along tells nothing: agents that crashed only after it, if it died in its
    first run, or that have crashed each time just after a changed one.
    """
    own = state.crashes.get(name, ())
    drags = bool(own) and not _lasted(agents[name], own[0])
    for other in agents:
        crashes = state.all_crashes(other)
        if other == name or other not in unready or not crashes:
            continue
        if (drags and own[0].at_ms < crashes[0].at_ms) or state.is_dragged(other):
            continue
        if other in state.looped or state.is_suspicious(other, len(crashes), crashes[-1].at_ms):
            if state.is_unchanged(other):
                yield other, "nothing of it was changed"
            for sign in _signs(state, agents[other], other):
                yield other, sign


def _lasted(agent: Agent, crash: Crash) -> bool:
    """Whether a run was stable before it ended; what is declared an early death was not."""
    stable_ms = agent.stable_sec * 1000
    return crash.runtime_ms is not None and crash.runtime_ms >= stable_ms and not crash.early


def _turned(agent: Agent, first: Crash | None = None, *later: Crash) -> bool:
    """Whether something else than the deployment made an agent crash: it came after a good run.

    That is the first of all, or the first that counts, by which it had recovered from what is over.
    What a deployment breaks ends each time after much the same time.
    """
    if first is None or first.early or first.runtime_ms is None or not later:
        return False
    lasted = _lasted(agent, first)
    if not (first.first or lasted):
        return False
    if lasted and all(crash.early for crash in later):
        return True
    usual_ms = median_low(crash.runtime_ms or 0 for crash in later)
    return first.runtime_ms >= _MANY_TIMES * max(usual_ms, _SHORT_MS)
