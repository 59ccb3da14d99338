"""systemd's count of restarts against the recorded ends, in invented histories."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from healer.config import Agent, Config
from healer.decisions import Decisions
from healer.events import Context, Ended, Instant, Systems, UnitState
from healer.records import Record

UNIT = "web.service"
CONFIG = Config(version=1, agents={"web": Agent(unit=UNIT, stable_sec=3600)})


@dataclass
class Systemd:
    """One unit as systemd 257 keeps it: ``flush`` as its flag of that name."""

    boot: int = 1
    uptime_ms: int = 0
    invocations: int = 1
    n_restarts: int = 0
    flush: bool = False
    state: str = "active"
    waiting: list[Ended] = field(default_factory=list)

    def now(self) -> Instant:
        return Instant(f"boot{self.boot}", self.uptime_ms)

    def end(self) -> Ended:
        return Ended(
            UNIT,
            f"{self.invocations:032x}",
            f"boot{self.boot}",
            "signal",
            "killed",
            "KILL",
            0,
            self.uptime_ms,
            None,
            None,
            "stamp",
        )

    def start(self) -> None:
        self.invocations += 1
        self.state = "active"

    def start_by_hand(self) -> None:
        self.n_restarts = 0
        self.start()

    def look(self) -> UnitState:
        invocation = f"{self.invocations:032x}"
        return UnitState(self.state, "", invocation, 1, self.n_restarts, "", 0, 0, 0)


class Histories(RuleBasedStateMachine):
    """Crashes recorded late or never, stops and starts by hand, restarts of healer, reboots, and
    deployments that rename the agent, take it away and bring it back.
    """

    def __init__(self) -> None:
        super().__init__()
        self.systemd = Systemd()
        self.decisions = Decisions(CONFIG)
        self.ledger: list[Record] = []
        self.vanished = 0
        self.look()

    def learn(self) -> None:
        """Record the evidence that is there, as each look does before it counts."""
        for ended in self.systemd.waiting:
            self.ledger += self.decisions.on_ended(ended, Context(), self.systemd.now())
        self.systemd.waiting.clear()

    @rule(lost=st.booleans(), restarts=st.booleans())
    def crash(self, lost: bool, restarts: bool) -> None:
        systemd = self.systemd
        if systemd.state != "active":
            return
        if lost:
            self.vanished += 1
        else:
            systemd.waiting.append(systemd.end())
        systemd.state = "activating"
        if restarts:
            self.automatic_restart()

    @rule()
    def automatic_restart(self) -> None:
        if self.systemd.state == "activating":
            self.systemd.n_restarts += 1
            self.systemd.start()

    @rule()
    def stop_by_hand(self) -> None:
        if self.systemd.state == "active":
            self.systemd.waiting.append(self.systemd.end())
        self.systemd.state = "inactive"

    @rule()
    def start_by_hand(self) -> None:
        if self.systemd.state == "inactive":
            self.systemd.start_by_hand()

    @rule()
    def reset(self) -> None:
        self.systemd.n_restarts = 0

    @rule()
    def look(self) -> None:
        self.learn()
        units = {UNIT: self.systemd.look()}
        self.ledger += self.decisions.on_counts(units, self.systemd.now())
        self.systemd.uptime_ms += 10_000

    @rule()
    def look_at_the_unit_only(self) -> None:
        self.learn()
        state, now = self.systemd.look(), self.systemd.now()
        systems = Systems(None, None, None, None, switching=False)
        self.ledger += self.decisions.on_unit(UNIT, state, systems, now)

    @rule(names=st.sampled_from([("web",), ("site",), ()]))
    def deploy(self, names: tuple[str, ...]) -> None:
        config = Config(version=1, agents=dict.fromkeys(names, CONFIG.agents["web"]))
        self.decisions.configure(config)
        data = {"agents": [*names], "units": sorted(self.decisions.units)}
        loaded = Record(self.systemd.now(), "config.loaded", data)
        self.decisions.replay(loaded)
        self.ledger.append(loaded)

    @rule()
    def restart_healer(self) -> None:
        self.decisions = Decisions(self.decisions.config)
        for record in self.ledger:
            self.decisions.replay(record)

    @rule()
    def reboot(self) -> None:
        boot, waiting = self.systemd.boot + 1, self.systemd.waiting
        invocations = self.systemd.invocations + 1
        self.systemd = Systemd(boot, invocations=invocations, waiting=waiting)
        self.restart_healer()

    def told(self) -> int:
        return sum(record.data["count"] for record in self.ledger if record.type == "loss")

    @invariant()
    def no_loss_is_invented(self) -> None:
        assert self.told() <= self.vanished


Histories.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
TestHistories = Histories.TestCase


def test_a_vanished_end_is_a_loss_once_it_stays_away() -> None:
    history = Histories()
    for lost in (True, False, True):
        history.crash(lost=lost, restarts=True)
    history.look()
    assert history.told() == 0
    history.look()
    (loss,) = (record for record in history.ledger if record.type == "loss")
    assert loss.data["unit"] == UNIT
    assert (loss.data["count"], loss.data["n_restarts"]) == (2, 3)
    history.look()
    history.look()
    assert history.told() == 2


def test_what_was_counted_is_remembered_by_the_ledger() -> None:
    history = Histories()
    history.crash(lost=False, restarts=True)
    history.look()
    for _ in range(3):
        history.crash(lost=True, restarts=True)
    history.restart_healer()
    history.look()
    history.look()
    assert history.told() == 3


def test_evidence_that_comes_late_is_no_loss() -> None:
    history = Histories()
    history.crash(lost=False, restarts=True)
    late = history.systemd.waiting.copy()
    history.systemd.waiting.clear()
    history.look()
    history.systemd.waiting = late
    history.look()
    history.look()
    assert history.told() == 0


def test_restarts_from_before_healer_counted_are_none_of_its_business() -> None:
    systemd = Systemd(n_restarts=7)
    decisions = Decisions(CONFIG)
    (begun,) = decisions.on_counts({UNIT: systemd.look()}, systemd.now())
    assert begun.data == {"counts": {UNIT: 7}, "awaited": []}
    systemd.uptime_ms += 10_000
    assert decisions.on_counts({UNIT: systemd.look()}, systemd.now()) == []


@pytest.mark.parametrize("comes", [True, False], ids=["comes", "is forestalled by a stop"])
def test_a_restart_that_was_awaited_when_the_counting_began(comes: bool) -> None:
    history = Histories()
    history.reboot()
    history.crash(lost=False, restarts=True)
    history.crash(lost=False, restarts=False)
    history.look()
    assert history.ledger[-1].data == {"counts": {UNIT: 1}, "awaited": [UNIT]}
    if comes:
        history.automatic_restart()
    else:
        history.stop_by_hand()
    history.look()
    history.look()
    assert history.told() == 0
    # From then on nothing goes unseen.
    history.start_by_hand()
    history.look()
    history.crash(lost=True, restarts=True)
    history.look()
    history.look()
    assert history.told() == 1


def test_a_thousand_agents_are_counted_in_a_few_entries() -> None:
    agents = {f"a{n:04}": Agent(unit=f"a{n:04}.service") for n in range(1000)}
    decisions = Decisions(Config(version=1, agents=agents))
    state = Systemd().look()
    units = {agent.unit: state for agent in agents.values()}
    begun = decisions.on_counts(units, Instant("boot1", 0))
    assert [len(record.data["counts"]) for record in begun] == [200] * 5
    assert decisions.on_counts(units, Instant("boot1", 10_000)) == []


@pytest.mark.parametrize("kind", ["config.loaded", "healer.started"])
def test_what_happened_while_it_was_no_agent_is_no_loss(kind: str) -> None:
    decisions, systemd = Decisions(CONFIG), Systemd()

    def look() -> list[str]:
        systemd.uptime_ms += 10_000
        made = decisions.on_counts({UNIT: systemd.look()}, systemd.now())
        return [record.type for record in made]

    assert look() == ["restarts.counted"]
    decisions.replay(Record(systemd.now(), kind, {"agents": [], "units": []}))
    systemd.n_restarts = 5
    systemd.start()
    decisions.replay(Record(systemd.now(), kind, {"agents": ["web"], "units": [UNIT]}))
    assert look() == ["restarts.counted"]
    assert look() == []
    systemd.n_restarts += 1
    systemd.start()
    assert (look(), look()) == ([], ["loss"])


@pytest.mark.parametrize("restarted", [False, True], ids=["at work", "healer restarted"])
def test_an_agent_that_has_another_unit_now_has_lost_nothing(restarted: bool) -> None:
    """The deployment that gives it one can be rolled back, which gives it the first again."""
    other = "other.service"
    renamed = Config(version=1, agents={"web": Agent(unit=other, stable_sec=3600)})
    decisions, systemd = Decisions(CONFIG), Systemd()
    ledger: list[Record] = []

    def look(config: Config, n_restarts: int) -> list[str]:
        nonlocal decisions
        (unit,) = (agent.unit for agent in config.agents.values())
        loaded = Record(systemd.now(), "config.loaded", {"agents": ["web"], "units": [unit]})
        if decisions.config is not config:
            ledger.append(loaded)
            decisions.configure(config)
            decisions.replay(loaded)
            if restarted:
                decisions = Decisions(config)
                for record in ledger:
                    decisions.replay(record)
        systemd.uptime_ms += 10_000
        state = replace(systemd.look(), n_restarts=n_restarts)
        made = decisions.on_counts({unit: state}, systemd.now())
        ledger.extend(made)
        return [record.type for record in made]

    assert look(CONFIG, 2) == ["restarts.counted"]
    assert look(renamed, 9) == ["restarts.counted"]
    assert (look(renamed, 9), look(renamed, 9)) == ([], [])
    assert look(CONFIG, 4) == ["restarts.counted"]
    assert (look(CONFIG, 4), look(CONFIG, 4)) == ([], [])
    assert (look(CONFIG, 5), look(CONFIG, 5)) == ([], ["loss"])


def test_an_agent_that_is_renamed_while_it_waits_for_its_restart_has_lost_nothing() -> None:
    history = Histories()
    history.crash(lost=False, restarts=False)
    history.look()
    history.deploy(names=("site",))
    history.look()
    history.automatic_restart()
    history.look()
    history.look()
    assert history.told() == 0
