"""SafeSwitch's memory and decisions: which deployment is on probation, known-good, to blame.

Pure: facts and a moment go in, records come out, and ``apply`` folds records into the state. What
must hold, whatever the history:

- a rollback is intended only to a toplevel that was recorded known-good, and never to the one that
  runs;
- at most once for each deployment;
- never for a deployment that has stood its probation, and never without a known-good;
- inconclusive evidence records why and intends nothing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from healer.config import SafeSwitch
from healer.events import Changes, Instant, Systems
from healer.records import Record

# A switch that has blamed crashes wait for longer than this is told of.
_LONG_SWITCH_MS = 60_000
# A promotion that failed (no space, say) is tried again after this.
_PROMOTE_AGAIN_MS = 600_000


@dataclass(frozen=True, slots=True)
class Blame:
    """An agent spent its crash-loop budget under the deployment that is on probation."""

    agent: str
    incident: str | None
    reason: str
    at: Instant


@dataclass(frozen=True, slots=True)
class DeploymentState:
    """What the records say of the deployment that runs.

    ``since`` is when it became active, or when the boot after that began. ``pending`` is the
    action that was intended and has no outcome yet.
    """

    current: str | None = None
    since: Instant | None = None
    known_good: str | None = None
    condemned: frozenset[str] = frozenset()
    blame: Blame | None = None
    answered: bool = False
    pending: str | None = None
    pending_target: str | None = None
    pending_incident: str | None = None
    waiting_for: str | None = None
    promotion_failed: Instant | None = None

    @property
    def on_probation(self) -> bool:
        """Whether the running deployment has still to show that it is good."""
        return self.current not in {None, self.known_good}


def apply(state: DeploymentState, record: Record) -> DeploymentState:
    """Fold one record into the state."""
    data = record.data
    match record.type:
        case "deployment.activated":
            return _activated(state, record)
        case "deployment.known-good":
            return replace(
                state,
                known_good=data["toplevel"],
                condemned=state.condemned - {data["toplevel"]},
            )
        case "deployment.condemned":
            return replace(state, condemned=state.condemned | {data["toplevel"]})
        case "agent.crash-loop" if data["toplevel"] == state.current and state.blame is None:
            return replace(
                state, blame=Blame(data["agent"], record.incident, data["reason"], record.at)
            )
        case "agent.recovered" if state.blame is not None and state.blame.agent == data["agent"]:
            return replace(state, blame=None)
        case "safeswitch.verdict":
            waiting = data["reason"] if data["verdict"] == "inconclusive" else None
            return replace(state, waiting_for=waiting)
        case "action.intent" if data["action"] in {"rollback", "promote"}:
            return replace(
                state,
                pending=data["action"],
                pending_target=data["target"],
                pending_incident=record.incident,
                answered=state.answered or data["action"] == "rollback",
            )
        case "action.outcome" if data["action"] in {"rollback", "promote"}:
            failed = data["action"] == "promote" and not data["ok"]
            return replace(
                state,
                pending=None,
                pending_target=None,
                pending_incident=None,
                promotion_failed=record.at if failed else None,
            )
        case _:
            return state


def on_systems(
    state: DeploymentState, systems: Systems, changes: Changes | None, now: Instant
) -> Iterator[Record]:
    """Record that another toplevel became active, or the same one in a new boot.

    ``changes`` is what it changed against the one before, None where that is not known.
    """
    if systems.current is None:
        return
    same_boot = state.since is not None and state.since.boot == now.boot
    if systems.current == state.current and same_boot:
        return
    rolled_back = state.pending == "rollback" and systems.current == state.pending_target
    if state.current is None:
        kind = "first"
    elif rolled_back:
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
            "base": systems.base,
            "specialisation": systems.specialisation,
            "profile": systems.profile,
            "booted": systems.booted,
            "boot_default": systems.boot_default,
            "changes": None
            if changes is None
            else {"agents": dict(changes.agents), "shared": list(changes.shared)},
        },
        state.pending_incident if rolled_back else None,
    )


def decide(
    state: DeploymentState,
    config: SafeSwitch,
    unready: Mapping[str, str],
    systems: Systems,
    now: Instant,
) -> Iterator[Record]:
    """Decide whether to roll back, to promote, or to go on waiting.

    ``unready`` names each agent that does not hold the probation's gate, and why.
    """
    if not config.enable or state.pending is not None or not state.on_probation:
        return
    if state.since is None or systems.current != state.current:
        return
    # An agent that has recovered is to blame no more, whoever mended it.
    blame = state.blame if state.blame is not None and state.blame.agent in unready else None
    if systems.switching:
        if blame is not None and not _within(blame.at, now, _LONG_SWITCH_MS):
            reason = f"{blame.agent}: {blame.reason}, but a switch that is under way does not end"
            yield from _inconclusive(state, reason, now, blame.incident)
    elif blame is None:
        yield from _promote(state, config, unready, now)
    elif not state.answered:
        yield from _answer_blame(state, blame, now)


def probation_left_ms(state: DeploymentState, config: SafeSwitch, now: Instant) -> int | None:
    """Return how much of the probation is left, in milliseconds; None when there is none."""
    if not state.on_probation or state.since is None or state.since.boot != now.boot:
        return None
    return max(0, int(config.probation_sec * 1000) - (now.uptime_ms - state.since.uptime_ms))


def _answer_blame(state: DeploymentState, blame: Blame, now: Instant) -> Iterator[Record]:
    if state.known_good is None:
        reason = f"{blame.agent}: {blame.reason}, but no deployment is known to be good yet"
        yield from _inconclusive(state, reason, now, blame.incident)
        return
    verdict = {
        "verdict": "unhealthy",
        "toplevel": state.current,
        "agent": blame.agent,
        "reason": f"{blame.agent}: {blame.reason}, all in invocations started under it",
    }
    yield Record(now, "safeswitch.verdict", verdict, blame.incident)
    intent = {
        "action": "rollback",
        "target": state.known_good,
        "from": state.current,
        "agent": blame.agent,
        "reason": blame.reason,
    }
    yield Record(now, "action.intent", intent, blame.incident)


def _promote(
    state: DeploymentState, config: SafeSwitch, unready: Mapping[str, str], now: Instant
) -> Iterator[Record]:
    if probation_left_ms(state, config, now) != 0:
        return
    failed = state.promotion_failed
    if failed is not None and _within(failed, now, _PROMOTE_AGAIN_MS):
        return
    if unready:
        reason = "; ".join(f"{agent} {why}" for agent, why in sorted(unready.items()))
        yield from _inconclusive(state, f"the probation is over, but {reason}", now, None)
        return
    verdict = {
        "verdict": "healthy",
        "toplevel": state.current,
        "agent": None,
        "reason": f"every agent held for the probation of {config.probation_sec:g} s",
    }
    yield Record(now, "safeswitch.verdict", verdict)
    reason = "it stood its probation"
    intent = {"action": "promote", "target": state.current, "reason": reason}
    yield Record(now, "action.intent", intent)


def _within(moment: Instant, now: Instant, milliseconds: int) -> bool:
    return moment.boot == now.boot and now.uptime_ms - moment.uptime_ms < milliseconds


def _inconclusive(
    state: DeploymentState, reason: str, now: Instant, incident: str | None
) -> Iterator[Record]:
    """Say once why nothing is done."""
    if state.waiting_for != reason:
        verdict = {
            "verdict": "inconclusive",
            "toplevel": state.current,
            "agent": None,
            "reason": reason,
        }
        yield Record(now, "safeswitch.verdict", verdict, incident)


def _activated(state: DeploymentState, record: Record) -> DeploymentState:
    toplevel = record.data["toplevel"]
    if toplevel == state.current:
        # A new boot of the same deployment: its probation begins again; the answer it got stays.
        return replace(state, since=record.at, waiting_for=None)
    return replace(
        state,
        current=toplevel,
        since=record.at,
        condemned=state.condemned - {toplevel},
        blame=None,
        answered=False,
        waiting_for=None,
        promotion_failed=None,
    )
