"""Invented histories: crashes, deployments, reboots and restarts of healer in any order."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from healer.config import Agent, Config, CrashLoop, SafeSwitch
from healer.decisions import Decisions
from healer.events import Context, Ended, Instant, Systems, UnitState
from healer.records import Record

TOPLEVELS = [f"/nix/store/{letter}-nixos" for letter in "abcd"]
AGENTS = ["db", "web"]
CONFIG = Config(
    version=1,
    agents={
        name: Agent(
            unit=f"{name}.service",
            crash_loop=CrashLoop(max_crashes=3, window_sec=60, early_death_sec=5),
            stable_sec=30,
        )
        for name in AGENTS
    },
    safe_switch=SafeSwitch(probation_sec=120),
)


@dataclass
class Host:
    """A host as far as the decisions can see it."""

    boot: int = 1
    uptime_ms: int = 0
    current: str = TOPLEVELS[0]
    switching: bool = False
    invocations: int = 0
    units: dict[str, UnitState] = field(default_factory=dict)
    held: dict[str, int | None] = field(default_factory=dict)
    started_under: dict[str, str | None] = field(default_factory=dict)

    def now(self) -> Instant:
        return Instant(f"boot{self.boot}", self.uptime_ms)

    def start(self, name: str) -> None:
        if name in self.held:
            return
        self.invocations += 1
        self.started_under[name] = self.current
        self.units[f"{name}.service"] = UnitState(
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

    def hold(self, name: str, until_ms: int | None) -> None:
        self.held[name] = until_ms
        unit = f"{name}.service"
        down = replace(self.units[unit], active_state="inactive", sub_state="dead")
        self.units[unit] = replace(down, since_ms=self.uptime_ms)

    def release(self, name: str) -> None:
        if name in self.held:
            del self.held[name]
            self.start(name)

    def runs(self, name: str) -> bool:
        return self.units[f"{name}.service"].running


# The steps of the ladder; all other intents are about deployments.
STEPS = frozenset({"quarantine", "give-up", "release"})


class Histories(RuleBasedStateMachine):
    """What must hold, whatever happens in whatever order."""

    def __init__(self) -> None:
        super().__init__()
        self.host = Host()
        self.decisions = Decisions(CONFIG)
        self.ledger: list[Record] = []
        self.crashes: list[Ended] = []
        for name in AGENTS:
            self.host.start(name)
        self.look()

    def record(self, records: Iterable[Record]) -> None:
        self.ledger.extend(records)

    def systems(self) -> Systems:
        host = self.host
        return Systems(host.current, host.current, host.current, 1, host.switching)

    def look(self) -> None:
        now = self.host.now()
        self.record(self.decisions.on_systems(self.systems(), now))
        for unit, state in self.host.units.items():
            self.record(self.decisions.on_unit(unit, state, self.systems(), now))
        self.record(self.decisions.on_tick(self.host.units, self.systems(), now))
        self.record(self.decisions.escalate(self.host.units, self.systems(), now))

    def open_intents(self) -> list[Record]:
        return [intent for intent in self._open() if intent.data["action"] not in STEPS]

    def open_steps(self) -> list[Record]:
        return [intent for intent in self._open() if intent.data["action"] in STEPS]

    def _open(self) -> list[Record]:
        done = {r.data["intent"] for r in self.ledger if r.type == "action.outcome"}
        return [
            r for seq, r in enumerate(self.ledger) if r.type == "action.intent" and seq not in done
        ]

    @rule(name=st.sampled_from(AGENTS), times=st.integers(1, 4), runtime=st.integers(0, 20_000))
    def crash(self, name: str, times: int, runtime: int) -> None:
        for _ in range(times if self.host.runs(name) else 0):
            host, unit = self.host, f"{name}.service"
            state = host.units[unit]
            host.uptime_ms += runtime
            end = Ended(
                unit,
                state.invocation,
                host.now().boot,
                "signal",
                "killed",
                "SEGV",
                state.active_enter_ms,
                host.uptime_ms,
                host.started_under[name],
                None,
                "stamp",
            )
            self.record(self.decisions.on_systems(self.systems(), host.now()))
            self.record(self.decisions.on_ended(end, Context(), host.now()))
            self.crashes.append(end)
            host.start(name)
            self.look()

    @precondition(lambda self: self.crashes)
    @rule(data=st.data())
    def learn_again_of_an_old_crash(self, data: st.DataObject) -> None:
        old = data.draw(st.sampled_from(self.crashes[-20:]))
        assert self.decisions.on_ended(old, Context(), self.host.now()) == []

    @rule(seconds=st.sampled_from([1, 31, 121, 4000]))
    def time_passes(self, seconds: int) -> None:
        self.host.uptime_ms += seconds * 1000
        for name, until_ms in [*self.host.held.items()]:
            if until_ms is not None and until_ms <= self.host.uptime_ms:
                self.host.release(name)
        self.look()

    @rule(toplevel=st.sampled_from(TOPLEVELS), restarted=st.booleans())
    def deploy(self, toplevel: str, restarted: bool) -> None:
        self.host.switching = True
        self.host.current = toplevel
        if restarted:
            for name in AGENTS:
                self.host.start(name)
        self.look()
        self.host.switching = False

    @rule(toplevel=st.none() | st.sampled_from(TOPLEVELS))
    def reboot(self, toplevel: str | None) -> None:
        self.host.boot += 1
        self.host.uptime_ms = 0
        self.host.current = toplevel or self.host.current
        for name, until_ms in [*self.host.held.items()]:
            if until_ms is not None:
                del self.host.held[name]
        for name in AGENTS:
            self.host.start(name)
        self.restart_healer()
        self.look()

    @rule()
    def restart_healer(self) -> None:
        before = self.decisions
        self.decisions = Decisions(CONFIG)
        for record in self.ledger:
            self.decisions.replay(record)
        assert self.decisions.deployment == before.deployment
        assert self.decisions.agents == before.agents

    @precondition(lambda self: self.open_intents())
    @rule(ok=st.booleans())
    def an_action_ends(self, ok: bool) -> None:
        intent = self.open_intents()[0]
        if ok and intent.data["action"] == "rollback":
            self.host.current = intent.data["target"]
            for name in AGENTS:
                self.host.start(name)
            self.record(self.decisions.on_systems(self.systems(), self.host.now()))
        self.outcome(intent, ok=ok)

    @precondition(lambda self: self.open_steps())
    @rule(ok=st.booleans())
    def a_step_ends(self, ok: bool) -> None:
        intent = self.open_steps()[-1]
        name, action = intent.data["agent"], intent.data["action"]
        ok = ok and (action == "give-up" or intent.at.boot == self.host.now().boot)
        if ok and action == "release":
            self.host.release(name)
        elif ok and action == "quarantine":
            self.host.hold(name, self.host.uptime_ms + intent.data["ttl_sec"] * 1000)
        elif ok:
            self.host.hold(name, None)
        self.outcome(intent, ok=ok)

    @precondition(lambda self: self.host.held)
    @rule()
    def a_person_releases(self) -> None:
        name = next(iter(self.host.held))
        data = {"action": "release", "target": f"{name}.service", "agent": name, "asked_by": "al"}
        intent = Record(self.host.now(), "action.intent", {**data, "reason": "al asked for it"})
        self.decisions.replay(intent)
        self.record([intent])
        self.host.release(name)
        self.outcome(intent, ok=True)

    def outcome(self, intent: Record, *, ok: bool) -> None:
        seq = next(i for i, r in enumerate(self.ledger) if r is intent)
        data = {
            "intent": seq,
            "action": intent.data["action"],
            "agent": intent.data.get("agent"),
            "asked_by": intent.data.get("asked_by"),
            "ok": ok,
            "detail": "",
        }
        outcome = Record(self.host.now(), "action.outcome", data, intent.incident)
        self.record(self.decisions.on_outcome(outcome, intent))
        self.look()

    @invariant()
    def each_crash_is_recorded_once(self) -> None:
        crashes = [r.data for r in self.ledger if r.type == "agent.crash"]
        recorded = [(data["boot"], data["unit"], data["invocation"]) for data in crashes]
        assert recorded == [(end.boot, end.unit, end.invocation) for end in self.crashes]

    @invariant()
    def rollbacks_are_to_a_known_good_once_for_each_deployment(self) -> None:
        known_good: str | None = None
        running: str | None = None
        rolled_back = False
        for record in self.ledger:
            data = record.data
            if record.type == "deployment.activated" and data["toplevel"] != running:
                running, rolled_back = data["toplevel"], False
            elif record.type == "deployment.known-good":
                known_good = data["toplevel"]
            elif record.type == "action.intent" and data["action"] == "rollback":
                assert data["target"] == known_good is not None
                assert data["from"] == running != known_good
                assert not rolled_back
                rolled_back = True

    @invariant()
    def one_action_at_a_time(self) -> None:
        assert len(self.open_intents()) <= 1
        agents = [intent.data["agent"] for intent in self.open_steps()]
        assert len(agents) == len(set(agents))

    @invariant()
    def no_agent_is_stopped_while_its_system_is_rolled_back(self) -> None:
        rolling_back = False
        for record in self.ledger:
            if record.type == "action.intent" and record.data["action"] == "rollback":
                rolling_back = True
            elif record.type == "action.outcome" and record.data["action"] == "rollback":
                rolling_back = False
            elif record.type == "action.intent" and record.data["action"] in STEPS:
                assert not rolling_back or record.data["action"] == "release"

    @invariant()
    def promotion_is_earned(self) -> None:
        """The time in each boot counts, and that between them does not."""
        running: str | None = None
        served_ms, before = 0, Instant("", 0)
        for record in self.ledger:
            if record.at.boot == before.boot:
                served_ms += record.at.uptime_ms - before.uptime_ms
            before = record.at
            if record.type == "deployment.activated":
                if record.data["toplevel"] != running:
                    served_ms = 0
                running = record.data["toplevel"]
            elif record.type == "action.intent" and record.data["action"] == "promote":
                assert record.data["target"] == running
                assert served_ms >= 120_000


Histories.TestCase.settings = settings(max_examples=200, stateful_step_count=40)
TestHistories = Histories.TestCase
