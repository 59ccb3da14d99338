"""Invented histories of root's own steps: what must hold whatever comes between two of them.

The helper is killed between any two looks at the host, the unit at any of its steps, programs fail
as the real ones do, the power is cut, and somebody deploys or stages another system meanwhile. The
rollback's own code runs, on real files (tree.py).
"""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from healer.config import Agent
from healer.host import nix, transient
from healer.ledger.entry import Entry
from healer.safeswitch.rollback import Progress
from tests.safeswitch.tree import MOMENTS, STEPS, host

HOW = ("switch", "boot", "test")
# So often root is asked before an end must have come, with nothing left that interrupts it.
_PATIENCE = 3


class _KilledError(BaseException):
    """The helper was killed here."""


class RollbackHistories(RuleBasedStateMachine):
    """One host with one deployment to go back from, and anything that can come between."""

    def __init__(self) -> None:
        super().__init__()
        self.exits = ExitStack()
        root = Path(self.exits.enter_context(tempfile.TemporaryDirectory()))
        tree = self.tree = self.exits.enter_context(host(root, reboot="at-once"))
        names = {"good": "6.12", "older": "6.12", "kernel": "6.18", "bad": "6.12", "fix": "6.12"}
        self.systems = {name: tree.system(name, kernel) for name, kernel in names.items()}
        self.systems |= {name: tree.system(name) for name in ("unknown", "other")}
        for name in ("older", "kernel", "good"):
            tree.deploy(self.systems[name])
            tree.root_known_good(self.systems[name])
        self.bad = self.systems["bad"]
        tree.deploy(self.bad)
        tree.reboot()
        self.intent: Entry | None = None
        self.done: Progress | None = None
        # At which look at the host something comes between, and what.
        self.looks = 0
        self.between: Callable[[], None] | None = None
        patch = self.exits.enter_context(pytest.MonkeyPatch.context())
        for module, name in ((nix, "systems"), (nix, "lock_holder"), (transient, "is_over")):
            patch.setattr(module, name, self._looked(getattr(module, name)))

    def teardown(self) -> None:
        """Come to an end, whatever has happened: the helper is asked, and reboots are done."""
        try:
            self.between = None
            if self.intent is not None:
                for _ in range(_PATIENCE):
                    self.run_on(0, None)
                assert self.done is not None, "it does not end"
        finally:
            self.exits.close()

    def _looked(self, look: Callable[..., Any]) -> Callable[..., Any]:
        def looked(*arguments: Any, **more: Any) -> Any:
            self.looks -= 1
            if self.looks < 0 and self.between is not None:
                come, self.between = self.between, None
                come()
            return look(*arguments, **more)

        return looked

    @precondition(lambda self: self.intent is None)
    @rule(
        name=st.sampled_from(["good", "good", "older", "kernel", "unknown"]),
        hook=st.sampled_from([0, 0, 0, 1]),
    )
    def decide(self, name: str, hook: int) -> None:
        """Intend a rollback, perhaps to what root does not know."""
        command = ("/bin/sh", "-c", f"exit {hook}")
        self.tree.agents = {"db": Agent(unit="db.service", before_rollback=command)}
        self.forbidden = name == "unknown" or hook == 1
        self.target = self.systems[name]
        self.intent = self.tree.intent(self.bad, self.target)

    @rule(steps=st.sets(st.sampled_from(STEPS), max_size=2))
    def programs_fail(self, steps: set[str]) -> None:
        self.tree.fail(*steps)

    @rule(moment=st.sampled_from(MOMENTS))
    def the_unit_is_to_be_killed(self, moment: str) -> None:
        self.tree.kill_unit_at(moment)

    @rule()
    def the_power_is_cut(self) -> None:
        self.tree.reboot()

    @rule(name=st.sampled_from(["fix", "other", "bad"]), how=st.sampled_from(HOW))
    def somebody_deploys(self, name: str, how: str) -> None:
        self.tree.deploy(self.systems[name], how)

    @precondition(lambda self: self.intent is not None)
    @rule(
        looks=st.integers(0, 8),
        between=st.sampled_from([None, "kill", "kill", "power cut", "switch", "boot", "test"]),
    )
    def run_on(self, looks: int, between: str | None) -> None:
        """Ask root to carry out the intent, or to go on with it; something may come between."""
        assert self.intent is not None
        self.looks, self.between = looks, self._comes(between) if between else None
        begun = len(self.tree.switched)
        try:
            came = self.tree.roll_back(self.intent)
        except _KilledError:
            return
        finally:
            self.between = None
        if self.done is not None:
            # It is told the same, and nothing is done: there is one rollback for a deployment.
            assert came == self.done
            assert len(self.tree.switched) == begun
        elif came.done:
            self.done = came
            self._check(came)
        else:
            assert came.waiting
            assert self.tree.boots == self.target or between in HOW
            self.tree.reboot()

    def _comes(self, what: str) -> Callable[[], None]:
        def come() -> None:
            if what in HOW:
                self.tree.deploy(self.systems["fix"], what)
                return
            if what == "power cut":
                self.tree.reboot()
            raise _KilledError

        return come

    def _check(self, came: Progress) -> None:
        """What the outcome says is what is there."""
        tree = self.tree
        assert came.running == tree.runs
        overtaken = f"superseded since: {tree.runs} runs now" in came.detail
        assert came.ok == (tree.runs == self.target or overtaken), came.detail
        if len({tree.runs, tree.boots, tree.in_profile}) > 1:
            told = f"the profile is {tree.in_profile}, {tree.boots} boots next, {tree.runs} runs"
            assert told in came.detail

    @invariant()
    def nothing_but_the_target_is_switched_to(self) -> None:
        targets = {toplevel for _, toplevel in self.tree.switched}
        assert targets <= ({self.target} if self.intent is not None else set())
        if self.intent is not None and self.forbidden:
            assert not targets


TestRollbackHistories = RollbackHistories.TestCase
TestRollbackHistories.settings = settings(
    max_examples=100,
    stateful_step_count=12,
)
