"""What SafeSwitch remembers: the state that healer/safeswitch/deployment.py folds records into.

Three clocks are kept in it, in milliseconds, and all are monotonic: they add up the time within
each boot from one record to the next, and the time from one boot to the next does not count.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from healer.events import Instant
from healer.records import Record
from healer.safeswitch.baseline import SUSPICIOUS, Baseline, threshold

DAY_MS = 86_400_000
TOGETHER_MS = 60_000
"""What begins to fail within this time met the same trouble."""

# A common cause would end the one or the other first. That it was always the same one is less
# likely than SUSPICIOUS after so many times.
_DRAGGED = 10


@dataclass(frozen=True, slots=True)
class Crash:
    """One crash of a run that was started under the running deployment, as attribution needs it.

    ``first`` says that it is the agent's first, ``at_ms`` for how long the deployment had been
    active. ``temporary`` says that the agent itself called it a temporary failure, ``starved`` that
    memory ran out on the host and not in the agent's own bounds, ``rule`` that a restart rule
    answers such a crash with a rollback. ``led`` says of an agent that was not changed that it ran
    until just after a crash of one that was; it is None where it ran for too short to tell.
    """

    first: bool
    at_ms: int
    runtime_ms: int | None
    early: bool
    temporary: bool
    starved: bool
    rule: bool
    led: bool | None = None


@dataclass(frozen=True, slots=True)
class Streak:
    """An agent's crashes since it was last well, and when they began (``elapsed_ms``)."""

    crashes: int
    since_ms: int


@dataclass(frozen=True, slots=True)
class Failing:
    """A gate, or a readiness check, that fails since ``since_ms`` on the clock ``elapsed_ms``."""

    since_ms: int
    detail: str


@dataclass(frozen=True, slots=True)
class Observation:
    """An automatic rollback whose effect is still to be seen: was the deployment to blame?

    One for neither an agent nor a gate was early in a boot, for the host did not come up.
    """

    source: str
    target: str
    agent: str | None
    gate: str | None
    since_ms: int
    incident: str | None


class DeploymentState(msgspec.Struct, frozen=True):
    """What the records say.

    ``since`` is when ``current`` became active, or when the boot after that began. ``known_goods``
    holds all known-good toplevels, the newest last, and ``bases`` the base of each of these and of
    ``current``: another one where that is a specialisation. ``changes`` says of each agent whether
    its unit is changed, same or added since the known-good, ``shared`` which inputs of all changed,
    and ``unbooted`` which more will have once they are booted; ``changes_known`` is false where a
    deployment's record did not say. ``crashes`` and ``looped`` are of runs that were started under
    the current deployment, ``carried`` is each agent's crash of a run that was started before, but
    for those that the switch itself may have brought about.
    ``suspect_ms`` is when an agent last crashed that may be the deployment's doing (``served_ms``).
    ``unwell`` counts each agent's crashes since it last recovered, without those that an earlier
    deployment was convicted of.
    ``unwell_before`` names the agents that were looping so when the deployment on probation became
    active, and have not recovered since, each with when that began (``elapsed_ms``).

    ``passed`` names the gates that pass, each with since when (``elapsed_ms``), ``long_passed``
    those that have passed for long under the current deployment in this boot, whatever they do now,
    and ``excused`` those whose failure is no fault of the deployment's until they pass, each with
    why.

    ``redeployed`` says that the current deployment was condemned when it became active,
    ``answered`` that it got its one automatic rollback, ``pending`` is the intent that has no
    outcome yet, ``staged`` what that waits for if it is a reboot, in words, ``lasts`` is false
    where a rollback could not have the next boot start ``current`` as well, ``trouble`` is what is
    wrong with the host itself, and ``waiting_for`` the last reason that was told for doing nothing.

    The clocks: ``elapsed_ms`` is the host's time, ``good_ms`` that under known-good deployments,
    and ``held_ms`` that of the probation since a gate last failed or an agent last crashed beyond
    its baseline; ``caution_ms`` is what such crashes ask for instead of the probation's time, if it
    is more. They stand as of ``clock``. ``began_ms``, on the first, is when ``current`` became
    active.
    """

    current: str | None = None
    since: Instant | None = None
    known_goods: tuple[str, ...] = ()
    bases: Mapping[str, str] = {}
    condemned: frozenset[str] = frozenset()
    changes: Mapping[str, str] = {}
    shared: frozenset[str] = frozenset()
    unbooted: frozenset[str] = frozenset()
    changes_known: bool = True
    crashes: Mapping[str, tuple[Crash, ...]] = {}
    carried: Mapping[str, Crash] = {}
    suspect_ms: int | None = None
    looped: Mapping[str, str] = {}
    incidents: Mapping[str, str | None] = {}
    failing: Mapping[str, Failing] = {}
    passed: Mapping[str, int] = {}
    long_passed: frozenset[str] = frozenset()
    excused: Mapping[str, str] = {}
    passed_by_good: frozenset[str] = frozenset()
    baselines: Mapping[str, Baseline] = {}
    unwell: Mapping[str, Streak] = {}
    unwell_before: Mapping[str, int] = {}
    redeployed: bool = False
    answered: bool = False
    rollbacks: tuple[int, ...] = ()
    pending: Record | None = None
    staged: str | None = None
    lasts: bool = True
    observation: Observation | None = None
    trouble: tuple[str, ...] = ()
    waiting_for: str | None = None
    promotion_failed_ms: int | None = None
    clock: Instant | None = None
    elapsed_ms: int = 0
    good_ms: int = 0
    held_ms: int = 0
    caution_ms: int = 0
    began_ms: int = 0

    @property
    def known_good(self) -> str | None:
        """The last known-good toplevel: where a rollback goes."""
        return self.known_goods[-1] if self.known_goods else None

    @property
    def served_ms(self) -> int:
        """For how long the current deployment has been active, without the time between boots."""
        return self.elapsed_ms - self.began_ms

    @property
    def on_probation(self) -> bool:
        """Whether the running deployment has still to show that it is good."""
        return self.current not in {None, self.known_good}

    @property
    def rolling_back(self) -> bool:
        """Whether a rollback was intended and has no outcome yet."""
        return self.pending is not None and self.pending.data["action"] == "rollback"

    @property
    def under_observation(self) -> bool:
        """Whether it matters now how the gates are: on probation, or after a rollback."""
        return self.on_probation or self.observation is not None

    def advanced(self, now: Instant) -> "DeploymentState":
        """Return the state with its clocks at ``now``."""
        if now == self.clock:
            return self
        passed_ms = 0
        if self.clock is not None and self.clock.boot == now.boot:
            passed_ms = max(0, now.uptime_ms - self.clock.uptime_ms)
        good_ms = self.good_ms + (0 if self.on_probation or self.current is None else passed_ms)
        return replace(
            self,
            clock=now,
            elapsed_ms=self.elapsed_ms + passed_ms,
            good_ms=good_ms,
            held_ms=self.held_ms + (passed_ms if self.on_probation else 0),
        )

    def change_of(self, agent: str) -> str:
        """Return changed, added, same or unknown: the agent's unit against the known-good."""
        change = self.changes.get(agent, "unknown")
        return "unknown" if change == "same" and not self.changes_known else change

    def is_unchanged(self, agent: str) -> bool:
        """Whether all that could break the agent is known to be as under the known-good."""
        return self.change_of(agent) == "same" and not self.shared

    def is_suspicious(self, agent: str, crashes: int, window_ms: int) -> bool:
        """Whether so many crashes are beyond the agent's baseline; with none, more than one."""
        baseline = self.baseline(agent)
        if not baseline.is_warm(self.good_ms):
            return crashes > 1
        return crashes >= threshold(baseline.expected(self.good_ms, window_ms), SUSPICIOUS, least=1)

    def is_dragged(self, agent: str) -> bool:
        """Whether an agent that was not changed crashes for want of one that was.

        That is when it has run well again and again, and ended each time just after that one.
        """
        runs = [crash for crash in self.all_crashes(agent) if crash.led is not None]
        return self.is_unchanged(agent) and len(runs) >= _DRAGGED and all(run.led for run in runs)

    def all_crashes(self, agent: str) -> tuple[Crash, ...]:
        """Return the agent's crashes under this deployment, whatever its run was started under."""
        carried = self.carried.get(agent)
        return (*(() if carried is None else (carried,)), *self.crashes.get(agent, ()))

    def baseline(self, agent: str) -> Baseline:
        """Return the agent's baseline; one that nothing is known of begins now."""
        return self.baselines.get(agent, Baseline(0, self.good_ms))
