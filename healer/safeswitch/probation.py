"""Probation: how long every gate has held, and when that makes a deployment known-good.

Pure. The gates are the agents (each ready and stable, none crashing beyond its baseline) and what
the owner declared. A gate that fails, and a crash beyond the agent's baseline, begin the time anew;
an agent that is late, or that crashes no more than it always did, only delays the end. The time is
monotonic and goes on after a reboot.
"""

from collections.abc import Collection, Iterator, Mapping

from healer.config import SafeSwitch
from healer.events import Instant
from healer.records import Record
from healer.safeswitch.state import DeploymentState

# A promotion that failed (no space, say) is tried again after this.
_PROMOTE_AGAIN_MS = 600_000
# Crashes beyond the baseline prolong the probation to so many times its length at most.
_MOST_CAUTION = 4
# What a power cut may cost of the time served: this, or a tenth of the probation.
_CHECKPOINT_MS = 60_000
# A gate that has passed for so long was not broken by the switch. The least that would do is the
# 45 s for which the kernel takes a gateway that is gone for one that answers.
_LONG_PASSED_MS = 60_000


def probation_left_ms(state: DeploymentState, config: SafeSwitch, now: Instant) -> int | None:
    """Return how much of the probation is left, in milliseconds; None when there is none."""
    if not state.on_probation:
        return None
    probation_ms = int(config.probation_sec * 1000)
    whole_ms = min(max(probation_ms, state.caution_ms), _MOST_CAUTION * probation_ms)
    return whole_ms if state.failing else max(0, whole_ms - state.advanced(now).held_ms)


def checkpoint(state: DeploymentState, config: SafeSwitch, now: Instant) -> Iterator[Record]:
    """Record now and then how far the probation is, so that a power cut does not undo it."""
    left_ms = probation_left_ms(state, config, now)
    if not left_ms or state.failing or state.clock is None or state.clock.boot != now.boot:
        return
    interval_ms = max(_CHECKPOINT_MS, int(config.probation_sec * 100))
    if now.uptime_ms - state.clock.uptime_ms < interval_ms:
        return
    held_ms = state.advanced(now).held_ms
    data = {"toplevel": state.current, "held_ms": held_ms, "left_ms": left_ms}
    yield Record(now, "deployment.probation", data)


def what_is_missing(
    state: DeploymentState, unready: Mapping[str, str], gates: Collection[str]
) -> str | None:
    """Say which gates do not hold; None when all do."""
    missing = [f"{agent} {why}" for agent, why in sorted(unready.items())]
    for gate in sorted(gates):
        if gate in state.failing:
            missing.append(f"the gate {gate} fails: {state.failing[gate].detail}")
        elif gate not in state.passed:
            missing.append(f"the gate {gate} has not passed yet")
    return "; ".join(missing) or None


def is_due(state: DeploymentState, config: SafeSwitch, now: Instant) -> bool:
    """Whether the probation is over, and a promotion has not just failed."""
    if probation_left_ms(state, config, now) != 0:
        return False
    failed_ms = state.promotion_failed_ms
    return failed_ms is None or state.advanced(now).elapsed_ms - failed_ms >= _PROMOTE_AGAIN_MS


def on_gate(
    state: DeploymentState, gate: str, *, ok: bool, detail: str, now: Instant
) -> Iterator[Record]:
    """Record what a probe of a gate found, if that is new.

    A gate passes for as long as from the first look that found it so to this one: not until it is
    said to fail, which takes some looks.
    """
    told = {"gate": gate, "toplevel": state.current}
    if not ok:
        if gate not in state.failing:
            yield Record(now, "gate.failed", {**told, "detail": detail})
    elif gate not in state.passed:
        yield Record(now, "gate.passed", {**told, "detail": detail})
    elif state.on_probation and gate not in state.long_passed:
        held_ms = state.advanced(now).elapsed_ms - state.passed[gate]
        if held_ms >= _LONG_PASSED_MS:
            yield Record(now, "gate.held", {**told, "held_ms": held_ms})
