"""SafeSwitch's memory of deployments: how records change it, and when another system runs.

Pure: ``apply`` folds records into the state of healer/safeswitch/state.py.
"""

from collections.abc import Callable, Iterator

from msgspec.structs import replace

from healer.events import Changes, Instant, Systems
from healer.ledger import shrink
from healer.records import Record
from healer.safeswitch import crash_state, gate_state
from healer.safeswitch.state import DAY_MS, DeploymentState, Observation

# What a switch installs and only a boot makes run; healer/host/changes.py names them so.
_BOOTED = frozenset({"kernel", "initrd", "kernel-modules", "kernel-params"})


def apply(state: DeploymentState, record: Record) -> DeploymentState:
    """Fold one record into the state."""
    step = _STEPS.get(record.type)
    return state if step is None else step(state.advanced(record.at), record)


def on_systems(
    state: DeploymentState, systems: Systems, changes: Changes | None, now: Instant
) -> Iterator[Record]:
    """Record that another toplevel became active, or the same one in a new boot.

    ``changes`` is what it changed against the one before, None where that is not known.
    """
    same_boot = state.since is not None and state.since.boot == now.boot
    if systems.current is None or (systems.current == state.current and same_boot):
        return
    cause = state.pending if state.rolling_back else None
    if cause is not None and systems.current != cause.data["target"]:
        cause = None
    if state.current is None:
        kind = "first"
    elif cause is not None:
        kind = "rollback"
    else:
        kind = "switch" if same_boot else "boot"
    yield Record(
        now,
        "deployment.activated",
        {
            "toplevel": systems.current,
            "previous": state.current,
            "generation": systems.generation,
            "kind": kind,
            "condemned": systems.current in state.condemned,
            "base": systems.base,
            "specialisation": systems.specialisation,
            "profile": systems.profile,
            "booted": systems.booted,
            "boot_default": systems.boot_default,
            "changes": None
            if changes is None
            else {"agents": dict(changes.agents), "shared": list(changes.shared)},
        },
        cause.incident if cause is not None else None,
    )


def is_other(record: Record) -> bool:
    """Whether it tells of another system than the one that ran before, however that came."""
    data = record.data
    if record.type != "deployment.activated":
        return False
    return data["previous"] not in {None, data["toplevel"]}


def _activated(state: DeploymentState, record: Record) -> DeploymentState:
    toplevel = record.data["toplevel"]
    new_boot = state.since is None or state.since.boot != record.at.boot
    booted = new_boot and record.data.get("booted") in {None, toplevel}
    from_good = not state.on_probation
    # What a deployment was convicted of is over with it.
    convicted = state.answered or record.data.get("kind") == "rollback"
    same = toplevel == state.current
    state = gate_state.begin_anew(state, forget=not same and (from_good or convicted))
    state = replace(state, since=record.at, waiting_for=None, lasts=True)
    if same:
        # A new boot of the same deployment: what it served stays, and so does the answer it got.
        return _booted(state) if booted else state
    unwell = {} if convicted else state.unwell
    unwell_before = {} if from_good or convicted else state.unwell_before
    state = _changed(state, record, afresh=from_good or toplevel == state.known_good)
    state = _booted(state) if booted else state
    observation = state.observation
    if observation is not None and observation.target != toplevel:
        observation = None
    known = {toplevel: record.data.get("base") or toplevel, **state.bases}
    return replace(
        state,
        current=toplevel,
        bases={each: known[each] for each in (*state.known_goods, toplevel) if each in known},
        crashes={},
        carried={},
        suspect_ms=None,
        looped={},
        incidents={},
        unwell=unwell,
        unwell_before={**crash_state.looping(unwell), **unwell_before},
        redeployed=record.data.get("condemned") is True,
        answered=False,
        observation=observation,
        trouble=(),
        caution_ms=0,
        promotion_failed_ms=None,
        held_ms=0,
        began_ms=state.elapsed_ms,
    )


def _changed(state: DeploymentState, record: Record, *, afresh: bool) -> DeploymentState:
    """Add up what changed since the known-good: it is all undone by going back to that."""
    changes = record.data.get("changes")
    if afresh:
        state = replace(
            state, changes={}, shared=frozenset(), unbooted=frozenset(), changes_known=True
        )
    if not changes:
        return replace(state, changes_known=False)
    agents: dict[str, str] = {**state.changes}
    for name, change in changes["agents"].items():
        if agents.get(name) not in {"changed", "added"}:
            agents[name] = change
    shared = frozenset(changes["shared"])
    return replace(
        state,
        changes=agents,
        shared=state.shared | (shared - _BOOTED),
        unbooted=state.unbooted | (shared & _BOOTED),
    )


def _booted(state: DeploymentState) -> DeploymentState:
    """Count among what all share what runs only now that its system was booted."""
    return replace(state, shared=state.shared | state.unbooted, unbooted=frozenset())


def _known_good(state: DeploymentState, record: Record) -> DeploymentState:
    toplevel = record.data["toplevel"]
    others = tuple(good for good in state.known_goods if good != toplevel)
    return replace(
        state,
        known_goods=(*others, toplevel),
        condemned=state.condemned - {toplevel},
        passed_by_good=frozenset(state.passed),
        unwell={},
    )


def _condemned(state: DeploymentState, record: Record) -> DeploymentState:
    """Remember a system as bad, which is known-good no more.

    Neither are its specialisations: it is what boots after any of these was gone back to. But one
    that is condemned leaves its base as it was, which is another system.
    """
    toplevel = record.data["toplevel"]
    if toplevel == state.current:
        state = replace(state, held_ms=0, redeployed=False)
    goods = state.known_goods
    return replace(
        state,
        condemned=state.condemned | {toplevel},
        known_goods=tuple(good for good in goods if toplevel not in {good, state.bases.get(good)}),
    )


def _acquitted(state: DeploymentState, record: Record) -> DeploymentState:
    return replace(state, condemned=state.condemned - {record.data["toplevel"]})


def _forgiven(state: DeploymentState, record: Record) -> DeploymentState:
    """Have a system be judged like any other, also the one that runs."""
    if record.data["toplevel"] == state.current:
        state = replace(state, redeployed=False, waiting_for=None)
    return _acquitted(state, record)


def _refuted(state: DeploymentState, record: Record) -> DeploymentState:
    return replace(_acquitted(state, record), observation=None)


def _intended(state: DeploymentState, record: Record) -> DeploymentState:
    data = record.data
    if data["action"] not in {"rollback", "promote"}:
        return state
    state = replace(state, pending=record, staged=None)
    if data["action"] == "promote" or data.get("asked_by") is not None:
        return state
    return replace(_counted(state), answered=True)


def _counted(state: DeploymentState) -> DeploymentState:
    """Count an automatic rollback among those of the day."""
    recent = (at for at in state.rollbacks if state.elapsed_ms - at < DAY_MS)
    return replace(state, rollbacks=(*recent, state.elapsed_ms))


def _rolled_back_by_boot(state: DeploymentState, record: Record) -> DeploymentState:
    """Take note of an automatic rollback that healer hears of only once it is done."""
    source, target = record.data["from"], record.data["target"]
    return replace(
        _counted(state),
        answered=state.answered or source == state.current,
        observation=Observation(source, target, None, None, state.elapsed_ms, None),
    )


def _came_of(state: DeploymentState, record: Record) -> DeploymentState:
    """Close the pending intent; an automatic rollback is a hypothesis, to be observed from now."""
    intent, data = state.pending, record.data
    if intent is None or intent.data["action"] != data["action"]:
        return state
    state = replace(state, pending=None, staged=None)
    if data["action"] == "promote":
        return replace(state, promotion_failed_ms=None if data["ok"] else state.elapsed_ms)
    if data["ok"]:
        state = replace(state, lasts=data.get("lasts") is not False)
    source, target = intent.data.get("from"), intent.data["target"]
    if data["ok"] and source == state.current == data.get("running"):
        # Root saw the target run, healer did not: what runs now was deployed again since.
        return replace(state, current=target)
    agent, gate = intent.data.get("agent"), intent.data.get("gate")
    asked = intent.data.get("asked_by") is not None
    if not data["ok"] or asked or (agent is None and gate is None):
        return state
    if target != state.current:
        return state  # superseded before anything could be seen of its effect
    observation = Observation(
        source=intent.data["from"],
        target=target,
        agent=agent,
        gate=gate,
        since_ms=state.elapsed_ms,
        incident=intent.incident,
    )
    return replace(state, observation=observation)


def _declared(state: DeploymentState, record: Record) -> DeploymentState:
    """Begin the baseline of each agent that is new; those that are gone are forgotten."""
    names = shrink.whole(record.data["agents"])
    if names is not None:  # else nobody knows who is gone, and forgets nobody
        state = replace(state, baselines={name: state.baseline(name) for name in names})
    promoting = state.pending is not None and state.pending.data["action"] == "promote"
    if state.under_observation and not promoting:
        # Nobody looked at the gates for a while: each has to pass again.
        state = replace(state, passed={})
    # What failed may be declared no more; what still does is found again.
    return replace(state, failing={}, held_ms=0) if state.failing else state


def _judged(state: DeploymentState, record: Record) -> DeploymentState:
    inconclusive = record.data["verdict"] == "inconclusive"
    return replace(state, waiting_for=record.data["reason"] if inconclusive else None)


_STEPS: dict[str, Callable[[DeploymentState, Record], DeploymentState]] = {
    "action.intent": _intended,
    "action.outcome": _came_of,
    "agent.crash": lambda state, record: gate_state.troubled(crash_state.crashed(state, record)),
    "agent.crash-loop": crash_state.looped,
    "agent.recovered": crash_state.recovered,
    "boot.rolled-back": _rolled_back_by_boot,
    "config.loaded": _declared,
    "deployment.activated": _activated,
    "deployment.condemned": _condemned,
    "deployment.forgiven": _forgiven,
    "deployment.known-good": _known_good,
    "deployment.probation": lambda state, _: state,
    "deployment.recovered": lambda state, _: replace(state, observation=None),
    "deployment.refuted": _refuted,
    "gate.failed": gate_state.failed,
    "gate.held": gate_state.held,
    "gate.passed": gate_state.passed,
    "healer.started": _declared,
    "healer.stopped": lambda state, _: state,
    "host.trouble": crash_state.troubled,
    "rollback.staged": lambda state, record: replace(state, staged=record.data["detail"]),
    "health.passed": gate_state.passed,
    "health.unready": gate_state.failed,
    "safeswitch.verdict": _judged,
}
