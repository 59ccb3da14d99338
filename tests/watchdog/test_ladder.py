"""The ladder under invented histories: storms, late evidence, kills, reboots, lost timers."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from healer.config import Agent, AgentEscalation, Config, CrashLoop, Escalation, SafeSwitch
from healer.decisions import Decisions
from healer.events import Context, Ended, Instant, Systems, UnitState
from healer.records import Record
from healer.watchdog import ladder
from healer.watchdog.ladder import Ladder

UNIT = "web.service"
STABLE_MS = 30_000
QUARANTINE_SEC = 60
MOST = 2
STEPS = ("quarantine", "reboot", "give-up")


def config(*, reboot: bool = True, enable: bool = True) -> Config:
    web = Agent(
        unit=UNIT,
        crash_loop=CrashLoop(max_crashes=3, window_sec=20, early_death_sec=5),
        stable_sec=STABLE_MS / 1000,
        escalation=AgentEscalation(
            enable=enable, quarantine_sec=QUARANTINE_SEC, max_quarantines=MOST
        ),
    )
    return Config(
        version=1,
        agents={"web": web},
        escalation=Escalation(reboot=reboot, max_reboots_per_day=1),
        safe_switch=SafeSwitch(enable=False),
    )


@dataclass
class Hold:
    """What root's helper wrote; ``until_ms`` is None for an agent that was given up."""

    intent: int
    until_ms: int | None
    by_person: bool = False


@dataclass
class World:
    """One agent, PID 1, root's helper and healer, in as far as the ladder can see them."""

    config: Config
    timer_works: bool = True
    toplevel: str = "/nix/store/a-nixos"
    boot: int = 1
    uptime_ms: int = 1000
    invocations: int = 0
    hold: Hold | None = None
    unread: list[tuple[Ended, Context]] = field(default_factory=list)
    ledger: list[Record] = field(default_factory=list)
    crashes: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.decisions = Decisions(self.config)
        self.start()
        known_good = {"toplevel": "/nix/store/good-nixos"}
        self.note([Record(self.now(), "deployment.known-good", known_good)])
        for record in self.ledger:
            self.decisions.replay(record)
        self.look()

    # The host

    def now(self) -> Instant:
        at = self.boot * 10_000_000 + self.uptime_ms
        return Instant(f"boot{self.boot}", self.uptime_ms, at * 1000)

    def start(self) -> None:
        self.invocations += 1
        self.unit = UnitState(
            active_state="active",
            sub_state="running",
            invocation=f"{self.invocations:032x}",
            main_pid=self.invocations,
            n_restarts=0,
            status_text="",
            since_us=0,
            since_ms=self.uptime_ms,
            active_enter_ms=self.uptime_ms,
        )

    def down(self, state: str = "inactive") -> None:
        self.unit = replace(
            self.unit, active_state=state, sub_state="dead", since_ms=self.uptime_ms
        )

    def end(self, *, asked: bool) -> Ended:
        ended = Ended(
            unit=UNIT,
            invocation=self.unit.invocation,
            boot=self.now().boot,
            result="success" if asked else "signal",
            code="killed",
            status="TERM" if asked else "SEGV",
            start_uptime_ms=self.unit.active_enter_ms,
            stop_uptime_ms=self.uptime_ms,
            toplevel=self.toplevel,
            memory=None,
            source="stamp",
        )
        self.unread.append((ended, Context(stop_requested=asked)))
        return ended

    def crash(self, after_ms: int) -> None:
        self.uptime_ms += after_ms
        self.end(asked=False)
        self.crashes.append((self.now().boot, self.uptime_ms))
        self.uptime_ms += 1
        self.start()

    def pass_time(self, milliseconds: int) -> None:
        self.uptime_ms += milliseconds
        until_ms = self.hold.until_ms if self.hold else None
        if until_ms is not None and until_ms <= self.uptime_ms and self.timer_works:
            self.let_go()

    def let_go(self) -> None:
        self.hold = None
        if not self.unit.running:
            self.start()

    def stop(self) -> None:
        if self.unit.running:
            self.end(asked=True)
            self.down()

    def reboot(self) -> None:
        self.boot += 1
        self.uptime_ms = 1000
        self.down()
        if self.hold is None or self.hold.until_ms is not None:
            self.hold = None
            self.start()

    # healer

    def note(self, records: Iterable[Record]) -> None:
        self.ledger.extend(records)

    def systems(self) -> Systems:
        return Systems(self.toplevel, self.toplevel, self.toplevel, 1, switching=False)

    def read(self) -> None:
        for ended, context in self.unread:
            self.note(self.decisions.on_ended(ended, context, self.now()))
        self.unread.clear()

    def look(self, *, late: bool = False) -> None:
        if not late:
            self.read()
        now = self.now()
        self.note(self.decisions.on_unit(UNIT, self.unit, self.systems(), now))
        self.note(self.decisions.on_tick({UNIT: self.unit}, self.systems(), now))
        self.note(self.decisions.escalate({UNIT: self.unit}, self.systems(), now))

    def is_killed(self) -> None:
        before = self.decisions
        self.decisions = Decisions(self.config)
        for record in self.ledger:
            self.decisions.replay(record)
        assert self.decisions.agents == before.agents
        assert self.decisions.reboots == before.reboots

    def open_intents(self) -> list[int]:
        done = {r.data["intent"] for r in self.ledger if r.type == "action.outcome"}
        return [
            seq
            for seq, r in enumerate(self.ledger)
            if r.type == "action.intent" and seq not in done
        ]

    def ask(self, verb: str, **more: Any) -> None:
        data = {"action": verb, "target": UNIT, "agent": "web", "asked_by": "alice", "reason": "x"}
        intent = Record(self.now(), "action.intent", {**data, **more})
        self.decisions.replay(intent)
        self.note([intent])
        self.act(len(self.ledger) - 1)

    def act(self, seq: int, *, works: bool = True, interrupted: bool = False) -> None:
        """Have root do what the intent says; ``interrupted`` loses the outcome."""
        intent = self.ledger[seq]
        ok = works and self.do(seq, intent)
        if interrupted or (intent.data["action"] == "reboot" and intent.at.boot == self.now().boot):
            return
        data = {
            "intent": seq,
            "action": intent.data["action"],
            "agent": "web",
            "asked_by": intent.data.get("asked_by"),
            "ok": ok,
            "detail": "",
        }
        outcome = Record(self.now(), "action.outcome", data, intent.incident)
        self.note(self.decisions.on_outcome(outcome, intent))

    def do(self, seq: int, intent: Record) -> bool:
        """What healer/helper.py does."""
        action, data = intent.data["action"], intent.data
        if action in {"hold", "quarantine"}:
            until_ms = intent.at.uptime_ms + data["ttl_sec"] * 1000
            if intent.at.boot != self.now().boot or until_ms <= self.uptime_ms:
                return False
            other = self.hold
            longer = other and (other.until_ms is None or other.until_ms > until_ms)
            if longer and "asked_by" not in data:
                return False
            if not (other and other.until_ms is None):
                self.hold = Hold(seq, until_ms, by_person="asked_by" in data)
            self.stop()
        elif action == "give-up":
            self.hold = Hold(seq, None)
            self.stop()
        elif action == "release":
            other_hold = self.hold is not None and self.hold.intent != data.get("hold")
            if "asked_by" in data or not other_hold:
                self.let_go()
        elif action == "restart":
            if self.hold is not None:
                return False
            self.stop()
            self.start()
        return True

    # What is told afterwards

    def types(self) -> list[str]:
        return [r.type for r in self.ledger]

    def actions(self) -> list[str]:
        return [r.data["action"] for r in self.ledger if r.type == "action.intent"]

    @property
    def state(self) -> Ladder:
        return self.decisions.agent("web").ladder

    @property
    def incident(self) -> str | None:
        return self.decisions.agent("web").incident

    def crash_loop(self, times: int = 3) -> None:
        for _ in range(times):
            self.crash(10)
        self.look()

    def obey(self) -> None:
        """Carry out what was intended, and look again."""
        for seq in self.open_intents():
            if self.ledger[seq].data["action"] == "reboot":
                if self.ledger[seq].at.boot == self.now().boot:
                    self.reboot()
                    self.is_killed()
                self.act(seq)
            else:
                self.act(seq)
        self.look()


def go_on(world: World, *, broken: bool) -> None:
    """Let time pass for the agent that crashes again and again, or that does so no more."""
    for _ in range(60):
        if broken and world.unit.running:
            for _ in range(3):
                world.crash(10)
        world.pass_time(10_000)
        world.look()
        world.obey()


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
    @rule(works=st.booleans(), interrupted=st.booleans(), late=st.booleans())
    def root_acts(self, works: bool, interrupted: bool, late: bool) -> None:
        world = self.world
        world.act(world.open_intents()[0], works=works, interrupted=interrupted)
        if interrupted:
            world.is_killed()
        world.look(late=late)

    @rule()
    def healer_is_killed(self) -> None:
        self.world.is_killed()

    @rule()
    def the_host_reboots(self) -> None:
        self.world.reboot()
        self.world.is_killed()
        self.world.look()

    @rule(
        verb=st.sampled_from(["hold", "release", "restart", "reset"]),
        ttl_sec=st.sampled_from([5, 300]),
    )
    def a_person_steps_in(self, verb: str, ttl_sec: int) -> None:
        self.world.ask(verb, **({"ttl_sec": ttl_sec} if verb == "hold" else {}))
        self.world.look()

    @rule(changed=st.sampled_from(["changed", "same", None]))
    def a_system_is_deployed(self, changed: str | None) -> None:
        world = self.world
        previous, world.toplevel = world.toplevel, f"/nix/store/{len(world.ledger)}-nixos"
        data: dict[str, Any] = {"toplevel": world.toplevel, "previous": previous, "kind": "switch"}
        if changed is not None:
            data["changes"] = {"agents": {"web": changed}, "shared": []}
        activated = Record(world.now(), "deployment.activated", {**data, "generation": 1})
        world.decisions.replay(activated)
        world.note([activated])
        world.look()

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
        healthy = copy.deepcopy(self.world)
        go_on(healthy, broken=False)
        assert healthy.incident is None
        if healthy.state.gave_up is None and not (healthy.hold and healthy.hold.by_person):
            assert healthy.hold is None
            assert healthy.unit.running
        broken = self.world
        go_on(broken, broken=True)
        if not (broken.hold and broken.hold.by_person):
            assert broken.state.gave_up is not None
            assert broken.hold is not None
            assert broken.hold.until_ms is None
            assert not broken.unit.running
        assert broken.incident is None
        assert not broken.open_intents()


def order(boot: str, uptime_ms: int) -> tuple[int, int]:
    return (int(boot.removeprefix("boot")), uptime_ms)


def order_of(at: Instant) -> tuple[int, int]:
    return order(at.boot, at.uptime_ms)


Histories.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestHistories = Histories.TestCase


@pytest.fixture
def world() -> World:
    return World(config(reboot=False))


def test_from_the_first_crash_to_the_end(world: World) -> None:
    for done in range(MOST):
        world.crash_loop()
        (seq,) = world.open_intents()
        assert world.ledger[seq].data["action"] == "quarantine"
        assert f"quarantine {done + 1} of {MOST}" in world.ledger[seq].data["reason"]
        assert world.ledger[seq].data["ttl_sec"] == QUARANTINE_SEC
        world.obey()
        assert not world.unit.running
        assert world.incident is not None
        world.pass_time(QUARANTINE_SEC * 1000)
        world.look()
        assert world.unit.running
    world.crash_loop()
    assert world.actions() == ["quarantine"] * MOST + ["give-up"]
    world.obey()
    world.pass_time(2000)
    world.look()
    assert world.types()[-1] == "agent.gave-up"
    assert world.ledger[-1].data["stopped"] is True
    assert (world.incident, world.unit.running) == (None, False)
    assert len({r.incident for r in world.ledger if r.type == "agent.crash"}) == 1
    # Nothing but a person ends that, and then it begins anew.
    world.pass_time(1_000_000)
    world.reboot()
    world.is_killed()
    world.look()
    assert not world.unit.running
    world.ask("release")
    world.look()
    assert world.unit.running
    world.crash_loop()
    assert world.actions()[-2:] == ["release", "quarantine"]


def test_a_recovery_begins_the_ladder_anew(world: World) -> None:
    for _ in range(2 * MOST):
        world.crash_loop()
        world.obey()
        world.pass_time(QUARANTINE_SEC * 1000)
        world.look()
        world.pass_time(STABLE_MS)
        world.look()
        assert world.types()[-1] == "agent.recovered"
    assert world.actions() == ["quarantine"] * 2 * MOST
    assert world.state.quarantines == 0


def test_crashes_that_are_learnt_of_late_are_answered_already(world: World) -> None:
    world.crash_loop()
    for _ in range(20):
        world.crash(10)
    world.obey()
    assert world.actions() == ["quarantine"]
    assert world.types().count("agent.crash") == 23
    assert world.state.held is not None
    world.pass_time(QUARANTINE_SEC * 1000)
    world.crash_loop(2)
    assert world.actions() == ["quarantine"]
    world.crash_loop(1)
    assert world.actions() == ["quarantine"] * 2


def test_healer_lets_go_what_the_timer_did_not() -> None:
    world = World(config(), timer_works=False)
    world.crash_loop()
    world.obey()
    world.pass_time(QUARANTINE_SEC * 1000)
    world.look()
    assert not world.unit.running
    world.pass_time(10_000)
    world.look()
    (seq,) = world.open_intents()
    assert world.ledger[seq].data["action"] == "release"
    world.act(seq, works=False)
    world.pass_time(90_000)
    world.look()
    world.obey()
    assert world.unit.running


def test_a_reboot_where_it_is_allowed_and_once() -> None:
    world = World(config())
    for _ in range(MOST):
        world.crash_loop()
        world.obey()
        world.pass_time(QUARANTINE_SEC * 1000)
        world.look()
    world.crash_loop()
    (seq,) = world.open_intents()
    assert world.ledger[seq].data["action"] == "reboot"
    assert world.ledger[seq].data["target"] == "/nix/store/good-nixos"
    world.obey()
    assert world.boot == 2
    world.crash_loop()
    assert world.actions()[-1] == "give-up"
    assert "and a reboot" in world.ledger[world.open_intents()[0]].data["reason"]


def test_no_second_reboot_within_a_day_by_whatever_clock() -> None:
    day_us = 86_400_000_000
    reboots = (Instant("a", 0, 10 * day_us), Instant("b", 0, 11 * day_us))
    assert ladder.reboots_in_a_day(reboots, Instant("c", 0, 11 * day_us + 1)) == 1
    assert ladder.reboots_in_a_day(reboots, Instant("c", 0, 12 * day_us)) == 0
    assert ladder.reboots_in_a_day(reboots, Instant("c", 0, 0)) == 2, "a clock that was set back"


def test_without_escalation_systemd_restarts_for_ever() -> None:
    world = World(config(enable=False))
    go_on(world, broken=True)
    assert world.actions() == []
    assert world.unit.running


def test_an_agent_that_never_gets_stable_is_in_a_crash_loop_however_slow_it_crashes(
    world: World,
) -> None:
    for _ in range(4 * 3):
        assert world.actions() == []
        world.crash(STABLE_MS - 5000)
        world.look()
    loop = next(r for r in world.ledger if r.type == "agent.crash-loop")
    assert loop.data["reason"] == "12 crashes without 30 s up in between"
    assert world.actions() == ["quarantine"]


def test_a_persons_hold_outlasts_a_quarantine(world: World) -> None:
    for _ in range(3):
        world.crash(10)
    world.ask("hold", ttl_sec=7200)
    world.look()
    world.obey()
    world.pass_time(QUARANTINE_SEC * 1000 + 60_000)
    world.look()
    world.obey()
    assert world.hold is not None
    assert world.hold.by_person
    assert not world.unit.running


def test_a_changed_unit_is_tried_again_and_an_unchanged_one_is_not(world: World) -> None:
    def deploy(toplevel: str, changed: str) -> None:
        data = {
            "toplevel": toplevel,
            "previous": "/nix/store/a-nixos",
            "changes": {"agents": {"web": changed}, "shared": []},
        }
        activated = Record(world.now(), "deployment.activated", data)
        world.decisions.replay(activated)
        world.note([activated])
        world.look()

    for _ in range(MOST + 1):
        world.crash_loop()
        world.obey()
        world.pass_time(QUARANTINE_SEC * 1000)
        world.look()
    assert world.state.gave_up is not None
    deploy("/nix/store/b-nixos", "same")
    assert not world.open_intents()
    deploy("/nix/store/c-nixos", "changed")
    (seq,) = world.open_intents()
    assert world.ledger[seq].data["action"] == "release"
    world.obey()
    assert world.unit.running
    assert world.state == Ladder()


def crash(answer: str | None, at: Instant, stop_ms: int) -> Record:
    data: Mapping[str, Any] = {
        "agent": "web",
        "boot": at.boot,
        "stop_uptime_ms": stop_ms,
        "answer": answer,
    }
    return Record(at, "agent.crash", data, "web-1")


def test_a_rule_that_says_escalate_takes_the_next_step_at_once() -> None:
    at = Instant("boot1", 5000)
    assert ladder.apply(Ladder(), crash("restart", at, 4000), "web").spent is None
    spent = ladder.apply(Ladder(), crash("escalate", at, 4000), "web").spent
    assert spent is not None
    assert "escalate" in spent.reason
    answered = Ladder(answered=Instant("boot1", 4500))
    assert ladder.apply(answered, crash("escalate", at, 4000), "web").spent is None


def test_an_agent_that_could_not_be_stopped_is_given_up_again() -> None:
    world = World(config(reboot=False), timer_works=False)
    for _ in range(MOST + 1):
        world.crash_loop()
        world.act(world.open_intents()[0], works=False)
        world.look()
    assert world.ledger[-1].type == "agent.gave-up"
    assert world.ledger[-1].data["stopped"] is False
    world.pass_time(1000)
    world.crash_loop()
    assert world.actions()[-2:] == ["give-up", "give-up"]
    world.obey()
    assert not world.unit.running
