"""The ladder under invented histories: storms, late evidence, kills, reboots, lost timers."""

import copy

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from healer.events import Instant
from healer.incident.fold import fold
from tests.incident.story import Story
from tests.watchdog.climbing import MOST, OTHER_UNIT, STEPS, UNIT, World, config, go_on


class Histories(RuleBasedStateMachine):
    """What must hold, whatever happens in whatever order."""

    @initialize(timer_works=st.booleans(), reboot=st.booleans())
    def begin(self, timer_works: bool, reboot: bool) -> None:
        self.world = World(config(reboot=reboot), timer_works)

    @precondition(lambda self: self.world.unit.running)
    @rule(times=st.integers(1, 4), runtime=st.integers(0, 12_000), late=st.booleans())
    def crash(self, times: int, runtime: int, late: bool) -> None:
        for _ in range(times):
            self.world.crash(runtime)
        self.world.look(late=late)

    @rule(seconds=st.sampled_from([1, 7, 31, 61, 200]), late=st.booleans())
    def time_passes(self, seconds: int, late: bool) -> None:
        self.world.pass_time(seconds * 1000)
        self.world.look(late=late)

    @precondition(lambda self: self.world.open_intents())
    @rule(
        works=st.booleans(),
        interrupted=st.booleans(),
        late=st.booleans(),
        crashes=st.integers(0, 4),
    )
    def root_acts(self, works: bool, interrupted: bool, late: bool, crashes: int) -> None:
        world = self.world
        world.act(world.open_intents()[0], works=works, interrupted=interrupted)
        if interrupted:
            world.is_killed()
        for _ in range(crashes if world.unit.running else 0):
            world.crash(10)
            world.read()
        world.look(late=late)

    @rule()
    def healer_is_killed(self) -> None:
        self.world.is_killed()

    @rule()
    def the_host_reboots(self) -> None:
        self.world.reboot()
        self.world.is_killed()
        self.world.look()

    @precondition(lambda self: self.world.is_declared)
    @rule(
        verb=st.sampled_from(["hold", "release", "restart", "reset"]),
        ttl_sec=st.sampled_from([5, 300]),
    )
    def a_person_steps_in(self, verb: str, ttl_sec: int) -> None:
        self.world.ask(verb, **({"ttl_sec": ttl_sec} if verb == "hold" else {}))
        self.world.look()

    @rule(changed=st.sampled_from(["changed", "same", None]))
    def a_system_is_deployed(self, changed: str | None) -> None:
        self.world.deploy(changed)
        self.world.look()

    @rule(unit=st.sampled_from([UNIT, OTHER_UNIT, None]), runs_on=st.booleans(), late=st.booleans())
    def a_system_declares_the_agent_otherwise(
        self, unit: str | None, runs_on: bool, late: bool
    ) -> None:
        if not late:
            self.world.read()
        self.world.declare(unit, runs_on=runs_on)
        self.world.look(late=late)

    @precondition(lambda self: self.world.is_declared)
    @rule(there=st.booleans())
    def its_unit_goes_or_comes_back(self, there: bool) -> None:
        if there:
            self.world.find_unit()
        else:
            self.world.lose_unit()
        self.world.look()

    @invariant()
    def one_step_at_a_time(self) -> None:
        assert len(self.world.open_intents()) <= 1

    @invariant()
    def each_step_answers_a_crash_of_its_own(self) -> None:
        """Between the end of one step and the next there is a crash that happened there."""
        answered = (0, 0)
        for record in self.world.ledger:
            if record.type == "action.intent" and record.data["action"] in STEPS:
                crashes = [order(*crash) for crash in self.world.crashes]
                assert any(answered < crash <= order_of(record.at) for crash in crashes)
            elif record.type == "action.outcome" and record.data["action"] in STEPS:
                answered = order_of(record.at)

    @invariant()
    def the_steps_go_up_to_an_end(self) -> None:
        quarantines, reboots, gave_up, since = 0, 0, False, Instant("boot0", 0)
        for record in self.world.ledger:
            kind, data = record.type, record.data
            by_person = data.get("asked_by") is not None
            if kind == "action.intent" and data["action"] in STEPS:
                assert not gave_up
                quarantines += data["action"] == "quarantine"
                reboots += data["action"] == "reboot"
                assert quarantines <= MOST
                if data["action"] != "quarantine":
                    assert quarantines == MOST
            elif kind == "agent.gave-up":
                gave_up, since = True, record.at
            elif kind == "agent.crash" and gave_up:
                # It could not be stopped, or somebody started it all the same.
                gave_up = order_of(record.at) <= order_of(since)
            elif kind == "action.outcome" and data["ok"] and data["action"] == "release":
                quarantines, gave_up = 0 if by_person or gave_up else quarantines, False
                if not by_person and data["intent"] in self.changed_releases():
                    quarantines = 0
            elif kind == "action.outcome" and data["ok"] and by_person:
                quarantines = 0
            elif kind in {"agent.recovered", "deployment.activated"}:
                quarantines = 0
                gave_up = gave_up and kind != "agent.recovered"
        assert reboots <= 1, "more than one in a day"

    def changed_releases(self) -> set[int]:
        return {
            seq
            for seq, r in enumerate(self.world.ledger)
            if r.type == "action.intent" and "changed" in str(r.data["reason"])
        }

    @invariant()
    def what_is_held_does_not_run(self) -> None:
        if self.world.hold is not None:
            assert not self.world.unit.running

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        healthy, broken = self.world, copy.deepcopy(self.world)
        go_on(healthy, broken=False)
        assert_over(healthy)
        go_on(broken, broken=True)
        assert_over(broken)
        # Wherever the agent was, it is there now.
        for world in (healthy, broken):
            world.declare(UNIT)
        go_on(healthy, broken=False)
        assert_over(healthy)
        if healthy.state.gave_up is None and not (healthy.hold and healthy.hold.by_person):
            assert healthy.hold is None
            assert healthy.unit.running
        go_on(broken, broken=True)
        assert_over(broken)
        if not (broken.hold and broken.hold.by_person):
            assert broken.state.gave_up is not None
            assert broken.hold is not None
            assert broken.hold.until_ms is None
            assert not broken.unit.running


def assert_over(world: World) -> None:
    """Nothing is under way, and each story has its end, also for who reads the ledger."""
    assert world.incident is None
    assert not world.open_intents()
    if not any(hold.by_person for hold in world.holds.values()):
        assert not world.decisions.holds.placed
    story = Story()
    for record in world.ledger:
        at_us, boot = record.at.uptime_ms * 1000, record.at.boot
        story.add(at_us, record.type, record.data, incident=record.incident, boot=boot)
    assert all(incident.closed is not None for incident in fold(story.entries))


def order(boot: str, uptime_ms: int) -> tuple[int, int]:
    return (int(boot.removeprefix("boot")), uptime_ms)


def order_of(at: Instant) -> tuple[int, int]:
    return order(at.boot, at.uptime_ms)


Histories.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestHistories = Histories.TestCase
