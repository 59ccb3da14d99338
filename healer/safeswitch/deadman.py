"""The dead-man's switch as a state machine: a trial, what happens to it, and the step that follows.

Pure. What must hold, whatever happens in whatever order: a system is kept only on a person's word
and with no gate failing; what somebody else has deployed meanwhile is left alone; and there is an
end, for each phase either has one of its own or is bounded in time.

    switching -> waiting -> keeping   -> done
              |          |  |
              `----------`--`-> returning -> done
"""

from dataclasses import dataclass, field
from typing import Literal

import msgspec

Phase = Literal["switching", "waiting", "keeping", "returning", "done"]

# switch-to-configuration's exit codes that say that nothing was changed: a check failed, the lock
# is held, a reboot is needed.
_UNCHANGED = frozenset({1, 11, 100})
_ACTIVATION_FAILED = 2


class Declared(msgspec.Struct, frozen=True, rename="camel"):
    """What an agent's declaration says of going back, whatever else it says."""

    unit: str
    rollback_safe: bool = True
    snapshot: tuple[str, ...] | None = None
    before_rollback: tuple[str, ...] | None = None
    before_rollback_timeout_sec: float = 60.0


@dataclass(slots=True)
class Trial:
    """How far a trial is; the file that holds it is readable by everybody.

    It is of one intent, by the hash of its entry, and of one boot. ``package`` is the healer that
    carries it; ``judge`` is the one that watches the gates of ``config``, as the user ``uid``.
    ``until_ms`` is when it goes back, in milliseconds since boot, and ``why`` says why. ``agents``
    are those that the trial changes; ``prepared`` says that their hooks have run.
    """

    leaf: str
    boot: str
    target: str
    source: str
    profile: str
    profile_before: str | None
    confirm_sec: int
    timeout_sec: float
    package: str
    judge: str
    config: str
    uid: int
    gid: int
    phase: Phase = "switching"
    until_ms: int | None = None
    gates: dict[str, str] = field(default_factory=dict)
    why: str = ""
    agents: dict[str, Declared] = field(default_factory=dict)
    prepared: bool = False
    ok: bool = False
    detail: str = ""
    running: str | None = None

    @property
    def not_passed(self) -> list[str]:
        """The gates that keep it from being confirmed."""
        return sorted(name for name, state in self.gates.items() if state != "passed")


class Word(msgspec.Struct, frozen=True):
    """What a person said of the trial of this intent: keep it, or go back."""

    leaf: str
    keep: bool
    said: str


@dataclass(frozen=True, slots=True)
class Step:
    """Where a trial goes next, and why; ``ok`` says of one that is done that it was kept."""

    phase: Phase
    words: str = ""
    ok: bool = False


def switched(trial: Trial, running: str | None, code: int | None, words: str) -> Step:
    """Answer the switch to the target; no code where it had to be killed."""
    if running == trial.source and code in _UNCHANGED:
        return Step("done", f"{running} still runs: {words}")
    if running != trial.target or code in {None, _ACTIVATION_FAILED}:
        return Step("returning", words)
    return Step("waiting")


def waited(
    trial: Trial, running: str | None, word: Word | None, failed: str | None, now_ms: int
) -> Step | None:
    """Answer a look around while it waits; None while there is nothing to answer.

    ``failed`` says which gate failed, and how.
    """
    if running != trial.target:
        return Step("done", f"it was superseded: {running} runs now")
    if failed is not None:
        return Step("returning", failed)
    said = word if word is not None and word.leaf == trial.leaf else None
    if said is not None and not said.keep:
        return Step("returning", said.said)
    if said is not None and not trial.not_passed:
        return Step("keeping")
    if trial.until_ms is None or now_ms >= trial.until_ms:
        return Step("returning", f"nobody confirmed it within {trial.confirm_sec} s")
    return None


def kept(trial: Trial, error: str | None) -> Step:
    """Answer the attempt to make the target the system that boots."""
    if error is not None:
        return Step("returning", f"it could not be made the system that boots: {error}")
    return Step("done", f"confirmed: {trial.target} runs, and is what boots", ok=True)


def returned(trial: Trial, running: str | None, words: str | None, *, last: bool) -> Step | None:
    """Answer an attempt to go back, or the look before it (no ``words``); None: try again."""
    if running not in {trial.target, trial.source}:
        return Step("done", f"{trial.why}; but {running} runs since")
    if words is None:
        return None
    if running == trial.source:
        return Step("done", f"{trial.why}; {running} runs again")
    failed = f"{trial.why}; going back failed ({words}), {running} runs"
    return Step("done", f"{failed}; a reboot boots what booted before") if last else None


def booted(trial: Trial, running: str | None, profile: str | None) -> Step:
    """Answer a boot that came in the middle of the trial, by what runs after it."""
    if running == profile == trial.target:
        return Step("done", f"it was confirmed, and the host booted {running}", ok=True)
    return Step("done", f"the host was booted in the trial; {running} runs")
