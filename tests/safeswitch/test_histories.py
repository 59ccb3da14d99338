"""Invented histories of deployments: what must hold whatever comes between what.

Crashes of every kind, deployments on top of each other, reboots with and without a word, healer
killed between any two entries, rollbacks that fail or that somebody overtakes, gates, a host in
trouble, and a person who meddles.
"""

import itertools
from collections.abc import Callable
from functools import partial

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from healer.events import NO_DEFAULT_ROUTE
from healer.records import Record
from tests.safeswitch.judged import HOUR, Judged, KilledError

TOPLEVELS = [f"/nix/store/{letter}-nixos" for letter in "gbcd"]
# A person seldom condemns what was good, or there would be nothing to go back to.
MEDDLED = [*TOPLEVELS[1:], *TOPLEVELS[1:], *TOPLEVELS]
NAMES = ("db", "web", "mail")
GATE = "port"
PROBATION_MS = 300_000
DAY_MS = 86_400_000
A_DAY = 2


class DeploymentHistories(RuleBasedStateMachine):
    """One host, and anything that can happen to it."""

    def __init__(self) -> None:
        super().__init__()
        options = {"max_rollbacks_per_day": A_DAY, "condemned": "zero-tolerance"}
        self.host = Judged(NAMES, (GATE,), options, counted=True)

    @rule(
        toplevel=st.sampled_from(TOPLEVELS),
        changed=st.sets(st.sampled_from(NAMES)),
        shared=st.booleans(),
        known=st.booleans(),
    )
    def deploy(self, toplevel: str, changed: set[str], shared: bool, known: bool) -> None:
        inputs = ("systemd",) if shared else ()
        self.host.deploy(toplevel, *sorted(changed), shared=inputs, known=known)

    @initialize(hours=st.sampled_from([48, 0]))
    def begin(self, hours: float) -> None:
        """Begin with a system that has been known-good for long, or for no time at all."""
        host = self.host
        host.gate(GATE, True)
        host.promoted()
        host.sec += hours * HOUR
        host.look()

    @rule(toplevel=st.sampled_from(TOPLEVELS), name=st.sampled_from(NAMES), times=st.integers(3, 6))
    def deploy_a_bad_one(self, toplevel: str, name: str, times: int) -> None:
        self.host.deploy(toplevel, name)
        self.host.crash(name, times=times)

    @rule(seconds=st.sampled_from([1, 100]))
    def a_switch_takes_its_time(self, seconds: int) -> None:
        self.host.switching = True
        self.host.after(seconds)
        self.host.switching = False
        self.host.look()

    @rule(
        names=st.sets(st.sampled_from(NAMES), min_size=1),
        times=st.integers(1, 6),
        after=st.sampled_from([1, 20, 70]),
        status=st.sampled_from(["1", "1", "1", "75"]),
    )
    def crash(self, names: set[str], times: int, after: int, status: str) -> None:
        self.host.crash(*sorted(names), times=times, after=after, status=status)

    @rule(name=st.sampled_from(NAMES), times=st.integers(1, 5), oom=st.integers(0, 1))
    def starve(self, name: str, times: int, oom: int) -> None:
        self.host.starve(name, times, oom)

    @rule(seconds=st.sampled_from([1, 61, 320, 7000]))
    def time_passes(self, seconds: int) -> None:
        self.host.after(seconds)

    @rule(words=st.sampled_from(["there is no space left on /var", NO_DEFAULT_ROUTE, ""]))
    def trouble(self, words: str) -> None:
        self.host.trouble = [words] if words else []
        self.host.look()

    @rule(ok=st.booleans())
    def gate(self, ok: bool) -> None:
        self.host.gate(GATE, ok)

    @rule(cleanly=st.booleans())
    def reboot(self, cleanly: bool) -> None:
        if cleanly:
            self.host.tell([Record(self.host.now(), "healer.stopped", {"reason": "reboot"})])
        self.host.reboot()

    @precondition(lambda self: self.host.decisions.deployment.on_probation)
    @rule()
    def it_does_not_come_up_and_root_goes_back_in_the_boot(self) -> None:
        if self.host.open_intent() is None and self.host.decisions.deployment.known_good:
            self.host.boot_goes_back()

    @rule()
    def healer_is_killed(self) -> None:
        self.host.restart_healer()

    @precondition(lambda self: self.host.rolls_back())
    @rule()
    def a_rollback_has_switched_but_told_nothing_yet(self) -> None:
        intent = self.host.open_intent()
        assert intent is not None
        if self.host.current == intent.data["from"]:
            self.host.deploy(intent.data["target"], *NAMES)

    @precondition(lambda self: self.host.rolls_back() and self.host.done is None)
    @rule(since=st.sampled_from([None, *TOPLEVELS]))
    def a_rollback_is_done_and_perhaps_superseded_before_healer_looks(
        self, since: str | None
    ) -> None:
        intent = self.host.open_intent()
        assert intent is not None
        if self.host.current == intent.data["from"]:
            self.host.while_healer_is_down(since)

    @precondition(lambda self: self.host.open_intent() is not None)
    @rule(works=st.booleans())
    def an_action_ends(self, works: bool) -> None:
        """Root's helper does what it was told, if nobody came before it, or fails."""
        host, intent = self.host, self.host.open_intent()
        assert intent is not None
        data = intent.data
        expected = {data["target"], data.get("from", data["target"])}
        by_hand = data["action"] in {"condemn", "forgive"}
        host.comes_of_it(by_hand or (works and host.current in expected))

    @rule(entries=st.integers(0, 2), data=st.data())
    def healer_is_killed_between_two_entries(self, entries: int, data: st.DataObject) -> None:
        """Of what is recorded next, a beginning is durable; who comes back is to make up for it."""
        host = self.host
        meanwhile: dict[str, Callable[[], object]] = {
            "time passes": lambda: host.after(330),
            "an agent crashes": lambda: host.crash("web", times=3),
            "it is deployed": lambda: host.deploy(TOPLEVELS[1], "web"),
        }
        if host.open_intent() is not None:
            meanwhile["an action ends"] = lambda: self.an_action_ends(works=True)
        else:
            for verb in ("condemn", "forgive"):
                meanwhile[verb] = partial(host.ask, verb, target=TOPLEVELS[1])
        what = data.draw(st.sampled_from(sorted(meanwhile)))
        host.killed_after = entries
        try:
            meanwhile[what]()
        except KilledError:
            for name in NAMES:
                host.stop(name)
                host.start(name)
        host.killed_after = None
        host.look()

    @precondition(lambda self: self.host.open_intent() is None)
    @rule(verb=st.sampled_from(["condemn", "forgive"]), toplevel=st.sampled_from(MEDDLED))
    def a_person_judges(self, verb: str, toplevel: str) -> None:
        self.host.ask(verb, target=toplevel)

    @precondition(lambda self: self.host.open_intent() is None)
    @rule(toplevel=st.sampled_from(TOPLEVELS))
    def a_person_rolls_back(self, toplevel: str) -> None:
        self.host.ask("rollback", **{"target": toplevel, "from": self.host.current})

    @invariant()
    def what_healer_believes_to_run_runs(self) -> None:
        assert self.host.decisions.deployment.current == self.host.current

    @invariant()
    def an_outcome_says_what_runs(self) -> None:
        running = None
        for record in self.host.ledger:
            if record.type == "deployment.activated":
                running = record.data["toplevel"]
            elif record.type == "action.outcome":
                assert record.data["running"] == running

    @invariant()
    def what_follows_from_an_outcome_is_told_after_it(self) -> None:
        ledger = self.host.ledger
        for outcome, after in itertools.pairwise([*ledger, None]):
            if outcome is None or outcome.type != "action.outcome" or not outcome.data["ok"]:
                continue
            intent = ledger[outcome.data["intent"]].data
            by_hand = "asked_by" in intent
            told = None if after is None else (after.type, after.data.get("toplevel"))
            if intent["action"] == "promote":
                assert told == ("deployment.known-good", intent["target"])
            elif intent["action"] == "rollback" and not by_hand:
                assert told == ("deployment.condemned", intent["from"])
            elif intent["action"] == "condemn":
                assert told == ("deployment.condemned", intent["target"])
            elif intent["action"] == "forgive":
                assert told == ("deployment.forgiven", intent["target"])

    @invariant()
    def what_is_observed_runs(self) -> None:
        observation = self.host.decisions.deployment.observation
        assert observation is None or observation.target == self.host.current

    @invariant()
    def rollbacks_keep_to_their_bounds(self) -> None:
        running: str | None = None
        goods: list[str] = []
        answered = False
        elapsed_ms, last = 0, None
        rollbacks: list[int] = []
        before: Record | None = None
        for record in self.host.ledger:
            data = record.data
            if last is not None and record.at.boot == last.boot:
                elapsed_ms += record.at.uptime_ms - last.uptime_ms
            last = record.at
            if record.type == "deployment.activated" and data["toplevel"] != running:
                running, answered = data["toplevel"], False
            elif record.type == "deployment.known-good":
                assert data["toplevel"] == running
                goods = [*(good for good in goods if good != data["toplevel"]), data["toplevel"]]
            elif record.type == "deployment.condemned":
                goods = [good for good in goods if good != data["toplevel"]]
            elif record.type == "boot.rolled-back":
                # It is root's, and not bound; but what comes after it is.
                rollbacks.append(elapsed_ms)
            elif record.type == "action.intent" and "asked_by" not in data:
                assert before is not None
                assert before.type == "safeswitch.verdict"
                assert before.data["toplevel"] == running
                if data["action"] == "rollback":
                    assert before.data["verdict"] == "unhealthy"
                    assert before.data["evidence"]
                    assert data["from"] == running
                    assert data["target"] == goods[-1] != running
                    assert not answered
                    answered = True
                    rollbacks = [at for at in rollbacks if elapsed_ms - at < DAY_MS]
                    rollbacks.append(elapsed_ms)
                    assert len(rollbacks) <= A_DAY
                else:
                    assert before.data["verdict"] == "healthy"
                    assert data["target"] == running
            before = record

    @invariant()
    def promotion_is_earned(self) -> None:
        """No known-good without the probation's time, in which no gate failed."""
        served_ms, running, last = 0, None, None
        for record in self.host.ledger:
            data = record.data
            if last is not None and record.at.boot == last.boot:
                served_ms += record.at.uptime_ms - last.uptime_ms
            last = record.at
            if record.type == "deployment.activated" and data["toplevel"] != running:
                served_ms, running = 0, data["toplevel"]
            elif record.type == "gate.failed":
                served_ms = 0
            elif record.type == "action.intent" and data["action"] == "promote":
                assert served_ms >= PROBATION_MS

    @invariant()
    def no_promotion_before_the_gate_was_seen_to_pass(self) -> None:
        """Since the boot, the switch and healer's start, but one in the midst of a promotion."""
        passes = promoting = False
        for record in self.host.ledger:
            if record.type in {"gate.failed", "gate.passed"}:
                passes = record.type == "gate.passed"
            elif record.type == "deployment.activated":
                passes = False
            elif record.type == "healer.started":
                passes = passes and promoting
            elif record.type in {"action.intent", "action.outcome"}:
                intended = record.type == "action.intent"
                promoting = intended and record.data["action"] == "promote"
                assert passes or not promoting

    @invariant()
    def a_gate_that_held_for_long_is_no_reason_to_roll_back(self) -> None:
        held = False
        for record in self.host.ledger:
            if record.type in {"deployment.activated", "gate.held"}:
                held = record.type == "gate.held"
            elif record.type == "action.intent" and record.data.get("gate") is not None:
                assert not held

    @invariant()
    def a_gate_that_failed_while_the_disk_was_full_is_no_reason_to_roll_back(self) -> None:
        fails = is_full = excused = False
        for record in self.host.ledger:
            if record.type in {"gate.failed", "gate.passed"}:
                fails = record.type == "gate.failed"
                excused = excused and fails
            elif record.type == "host.trouble":
                is_full = any("space" in each for each in record.data["trouble"])
            elif record.type == "deployment.activated":
                fails = excused = is_full = False
            elif record.type in {"healer.started", "config.loaded"}:
                fails = False
            elif record.type == "action.intent" and record.data.get("gate") is not None:
                assert not excused
            excused = excused or (fails and is_full)

    @invariant()
    def a_boot_is_excused_once_and_never_while_the_deployment_is_convicted(self) -> None:
        told: set[tuple[str, str]] = set()
        trouble: list[str] = []
        convicted = None
        for record in self.host.ledger:
            if record.type == "host.trouble":
                trouble = record.data["trouble"]
            elif record.type == "deployment.activated":
                trouble = []
            elif record.type == "safeswitch.verdict" and record.data["verdict"] == "unhealthy":
                convicted = record.at
            elif record.type == "boot.excused":
                assert not {(kind, record.at.boot) for kind in ("boot.excused", "host.up")} & told
                assert record.data["reason"]
                assert trouble or convicted != record.at
            told.add((record.type, record.at.boot))

    @invariant()
    def each_rollback_is_observed_to_one_end(self) -> None:
        kinds = {"deployment.recovered", "deployment.refuted"}
        ends = [record.data for record in self.host.ledger if record.type in kinds]
        ok = [
            record
            for record in self.host.ledger
            if record.type == "boot.rolled-back"
            or (
                record.type == "action.outcome"
                and record.data["action"] == "rollback"
                and record.data["ok"]
            )
        ]
        assert len(ends) <= len(ok)

    def teardown(self) -> None:
        """Leave the host alone, with all well: everything comes to its end, and soon."""
        host = self.host
        host.trouble = []
        for _ in range(12):
            host.gate(GATE, True)
            host.after(330)
            if host.open_intent() is not None:
                self.an_action_ends(works=True)
        state = host.decisions.deployment
        assert host.open_intent() is None
        assert state.pending is None
        assert state.observation is None
        if state.on_probation:
            assert host.verdict()[0] == "inconclusive"
            assert "it is condemned" in host.verdict()[1]


DeploymentHistories.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestDeploymentHistories = DeploymentHistories.TestCase
