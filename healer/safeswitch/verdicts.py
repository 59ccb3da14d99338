"""Verdicts on the running deployment, and what follows from each: go back, call it good, or wait.

Pure: the state, the configuration, the host's facts and a moment go in, records come out. What must
hold, whatever the history:

- a rollback is intended only to a toplevel that was recorded known-good, and never to the one that
  runs;
- by itself at most once for each deployment, and ``maxRollbacksPerDay`` times in 24 hours;
- never for a deployment that has stood its probation, and never without a known-good;
- inconclusive evidence records why and intends nothing;
- after a rollback the same agent or gate is observed, or the whole host where that did not come up:
  it recovers, or the rollback is refuted.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from healer.config import Agent, SafeSwitch
from healer.events import Instant, Systems
from healer.records import Record
from healer.safeswitch import attribution, probation
from healer.safeswitch.attribution import Judgement
from healer.safeswitch.state import DAY_MS, DeploymentState, Observation

# A switch that has blamed crashes wait for longer than this is told of.
_LONG_SWITCH_MS = 60_000
# What a rollback has not mended after this, or after a probation if that is longer, it never will.
_OBSERVE_MS = 600_000


@dataclass(frozen=True, slots=True)
class Facts:
    """How the host is now.

    ``unready`` names each agent that does not hold the probation's gate, and why, for as long as
    ``asks_for_agents`` says that somebody needs to know; ``gates`` the gates that the owner
    declares; ``environment`` says in words what is wrong with the host, None if nobody looked, and
    ``unsafe`` names the agents that declare that they cannot be rolled back. ``unsure`` names those
    of which it is not known how they are now: they may be well again, as after a time in which
    healer was down or off the bus, and are accused of nothing yet.
    """

    systems: Systems
    unready: Mapping[str, str]
    gates: Collection[str] = ()
    environment: Collection[str] | None = None
    unsafe: Collection[str] = ()
    unsure: Collection[str] = ()


def asks_for_agents(state: DeploymentState, config: SafeSwitch, now: Instant) -> bool:
    """Whether it matters now which agents are well: one crashed, or the probation may be over."""
    if state.observation is not None:
        return True
    return state.on_probation and (bool(state.crashes) or _may_be_over(state, config, now))


def decide(
    state: DeploymentState,
    config: SafeSwitch,
    agents: Mapping[str, Agent],
    facts: Facts,
    now: Instant,
) -> Iterator[Record]:
    """Decide whether to roll back, to promote, to end an observation, or to go on waiting."""
    if not config.enable or state.pending is not None or facts.systems.current != state.current:
        return
    if state.observation is not None:
        yield from _observe(state, config, agents, facts, state.observation, now)
    elif state.on_probation:
        if facts.environment is not None and state.trouble != (trouble := (*facts.environment,)):
            # What was evidence until now may be none any more: judge at the next look.
            yield Record(now, "host.trouble", {"trouble": list(trouble)})
            return
        judgements = _judgements(state.advanced(now), config, agents, facts)
        if facts.systems.switching:
            yield from _wait_for_switch(state, judgements, now)
        elif judgements:
            yield from _answer(state, config, facts, judgements, now)
        else:
            yield from _promote(state, config, facts, now)


def redeployed(activated: Record, config: SafeSwitch) -> Iterator[Record]:
    """Tell that a condemned deployment is active again, and what the policy makes of it."""
    if not activated.data["condemned"] or activated.data["kind"] == "rollback":
        return
    answer = {
        "warn": "it is judged like any other",
        "zero-tolerance": "one crash is enough to roll it back again",
        "rollback": "it is rolled back at once",
    }[config.condemned]
    reason = f"it was condemned before: {answer} (safeSwitch.condemned)"
    yield Record(
        activated.at,
        "safeswitch.verdict",
        _verdict("inconclusive", activated.data["toplevel"], reason, None),
    )


def as_it_runs(outcome: Record, running: str | None) -> Record:
    """Return the outcome of an action as of now: what was done may be superseded since.

    Root tells what ran when it was done. Before healer hears of it, which may have been down,
    somebody may deploy another system.
    """
    data = outcome.data
    if data.get("running") in {None, running}:
        return outcome
    detail = f"{data['detail']}; superseded since: {running} runs now"
    return replace(outcome, data={**data, "running": running, "lasts": True, "detail": detail})


def follows(outcome: Record, intent: Record) -> Iterator[Record]:
    """Say what follows from the outcome of an action on a deployment."""
    data, action = intent.data, intent.data["action"]
    if not outcome.data["ok"]:
        return
    asked_by = data.get("asked_by")
    if action == "promote":
        yield Record(outcome.at, "deployment.known-good", {"toplevel": data["target"]})
    elif action == "rollback" and asked_by is None:
        condemned = {"toplevel": data["from"], "reason": data["reason"]}
        yield Record(outcome.at, "deployment.condemned", condemned, intent.incident)
    elif action == "condemn":
        condemned = {"toplevel": data["target"], "reason": data["reason"]}
        yield Record(outcome.at, "deployment.condemned", condemned)
    elif action == "forgive":
        forgiven = {"toplevel": data["target"], "asked_by": asked_by}
        yield Record(outcome.at, "deployment.forgiven", forgiven)


def condemned_by_boot(rolled_back: Record) -> Record:
    """Return what follows from a rollback early in a boot."""
    condemned = {"toplevel": rolled_back.data["from"], "reason": rolled_back.data["reason"]}
    return Record(rolled_back.at, "deployment.condemned", condemned)


def _judgements(
    state: DeploymentState, config: SafeSwitch, agents: Mapping[str, Agent], facts: Facts
) -> list[Judgement]:
    """Judge what speaks against the deployment; what convicts it comes first."""
    if state.redeployed and config.condemned == "rollback" and not state.answered:
        reason = "it was condemned before, and safeSwitch.condemned is rollback"
        return [Judgement(None, None, None, reason, None, (reason,), state.served_ms)]
    strict = state.redeployed and config.condemned == "zero-tolerance"
    names = attribution.accused(state, agents, facts.unready, strict=strict)
    found = [
        attribution.judge(state, agents, name, facts.unready, strict=strict)
        for name in names
        if name not in facts.unsure
    ]
    found += attribution.failed_gates(state, config, facts.gates)
    return sorted(found, key=lambda judgement: judgement.against is not None)


def _wait_for_switch(
    state: DeploymentState, judgements: list[Judgement], now: Instant
) -> Iterator[Record]:
    """Say once that a switch under way keeps the answer waiting for long."""
    for first in judgements[:1]:
        if first.age_ms >= _LONG_SWITCH_MS:
            reason = f"{first.words}, but a switch that is under way does not end"
            yield from _inconclusive(state, reason, first, now)


def _answer(
    state: DeploymentState,
    config: SafeSwitch,
    facts: Facts,
    judgements: list[Judgement],
    now: Instant,
) -> Iterator[Record]:
    """Roll back if the deployment is to blame and nothing forbids it; else say why not."""
    first = judgements[0]
    forbidden = _forbidden(state.advanced(now), config, facts)
    if state.known_good is None:
        reason = f"{first.words}, but no deployment is known to be good yet"
        yield from _inconclusive(state, reason, first, now)
    elif first.against is not None:
        reason = "; ".join(f"{each.words}, but {each.against}" for each in judgements)
        yield from _inconclusive(state, reason, first, now)
    elif forbidden is not None:
        yield from _inconclusive(state, f"{first.words}, but {forbidden}", first, now)
    else:
        yield Record(
            now,
            "safeswitch.verdict",
            _verdict("unhealthy", state.current, first.words, first),
            first.incident,
        )
        intent = {
            "action": "rollback",
            "target": state.known_good,
            "from": state.current,
            "agent": first.agent,
            "gate": first.gate,
            "reason": first.reason,
        }
        yield Record(now, "action.intent", intent, first.incident)


def _forbidden(state: DeploymentState, config: SafeSwitch, facts: Facts) -> str | None:
    """Say why a deployment that is to blame is not rolled back all the same."""
    if state.answered:
        return "it was answered with a rollback already, and gets no second one by itself"
    unsafe = [name for name in facts.unsafe if state.change_of(name) != "same"]
    if unsafe:
        return f"rollbackSafe is false for {', '.join(sorted(unsafe))}"
    today = sum(state.elapsed_ms - at < DAY_MS for at in state.rollbacks)
    if today >= config.max_rollbacks_per_day:
        return f"{today} rollbacks in 24 hours are as many as safeSwitch.maxRollbacksPerDay allows"
    return None


def _promote(
    state: DeploymentState, config: SafeSwitch, facts: Facts, now: Instant
) -> Iterator[Record]:
    if _may_be_over(state, config, now):
        yield from _end_probation(state, config, facts, now)
    yield from probation.checkpoint(state, config, now)


def _may_be_over(state: DeploymentState, config: SafeSwitch, now: Instant) -> bool:
    return _is_served(state, config, now) or probation.is_due(state, config, now)


def _is_served(state: DeploymentState, config: SafeSwitch, now: Instant) -> bool:
    """Whether the deployment has been active for as long as the probation takes."""
    return state.advanced(now).served_ms >= config.probation_sec * 1000


def _end_probation(
    state: DeploymentState, config: SafeSwitch, facts: Facts, now: Instant
) -> Iterator[Record]:
    missing = probation.what_is_missing(state, facts.unready, facts.gates)
    if state.current in state.condemned and not state.redeployed:
        missing = "it is condemned: deploy another, or forgive it"
    if missing is not None:
        if _is_served(state, config, now):
            reason = f"the probation is over, but {missing}"
            yield from _inconclusive(state, reason, None, now)
    elif probation.is_due(state, config, now):
        reason = f"every agent and gate held for the probation of {config.probation_sec:g} s"
        yield Record(now, "safeswitch.verdict", _verdict("healthy", state.current, reason, None))
        reason = "it stood its probation"
        intent = {"action": "promote", "target": state.current, "reason": reason}
        yield Record(now, "action.intent", intent)


def _observe(
    state: DeploymentState,
    config: SafeSwitch,
    agents: Mapping[str, Agent],
    facts: Facts,
    observed: Observation,
    now: Instant,
) -> Iterator[Record]:
    """End the observation of a rollback once it is known whether that helped."""
    at = state.advanced(now)
    failing = _still_failing(at, facts, agents, observed)
    after_ms = at.elapsed_ms - observed.since_ms
    data = {"agent": observed.agent, "gate": observed.gate, "after_ms": after_ms}
    if failing is None:
        recovered = {"toplevel": observed.target, "from": observed.source, **data}
        yield Record(now, "deployment.recovered", recovered, observed.incident)
        return
    names = [*facts.unready] if _is_of_boot(observed) else [observed.agent]
    sure = [name for name in names if name is not None and name not in facts.unsure]
    if accused := attribution.accused(at, agents, sure):
        failing = f"{accused[0]} crashes again and again under the known-good as well"
    elif after_ms < max(_OBSERVE_MS, config.probation_sec * 1000):
        return
    refuted = {"toplevel": observed.source, "running": observed.target, **data, "reason": failing}
    yield Record(now, "deployment.refuted", refuted, observed.incident)


def _is_of_boot(observed: Observation) -> bool:
    """Whether it was the host as a whole that did not come up."""
    return observed.agent is None and observed.gate is None


def _still_failing(
    state: DeploymentState, facts: Facts, agents: Mapping[str, Agent], observed: Observation
) -> str | None:
    """Say how what was rolled back for still fails; None when it does not, or is no part now."""
    if _is_of_boot(observed):
        return probation.what_is_missing(state, facts.unready, facts.gates)
    if observed.agent is not None:
        why = facts.unready.get(observed.agent) if observed.agent in agents else None
        return None if why is None else f"{observed.agent} {why}"
    gate = str(observed.gate)
    if gate not in facts.gates or gate in state.passed:
        return None
    failing = state.failing.get(gate)
    return f"the gate {gate} {'has not passed' if failing is None else failing.detail}"


def _inconclusive(
    state: DeploymentState, reason: str, judgement: Judgement | None, now: Instant
) -> Iterator[Record]:
    """Say once why nothing is done."""
    if state.waiting_for != reason:
        data = _verdict("inconclusive", state.current, reason, judgement)
        incident = judgement.incident if judgement is not None else None
        yield Record(now, "safeswitch.verdict", data, incident)


def _verdict(
    verdict: str, toplevel: str | None, reason: str, judgement: Judgement | None
) -> dict[str, object]:
    return {
        "verdict": verdict,
        "toplevel": toplevel,
        "agent": judgement.agent if judgement is not None else None,
        "gate": judgement.gate if judgement is not None else None,
        "reason": reason,
        "evidence": list(judgement.evidence) if judgement is not None else [],
    }
