"""An agent, PID 1, root's helper and healer, in as far as the ladder can see them."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from msgspec.structs import replace as replace_struct

from healer.config import Agent, AgentEscalation, Config, CrashLoop, Escalation, SafeSwitch
from healer.decisions import Decisions
from healer.events import Context, Ended, Instant, Systems, UnitState
from healer.records import Record
from healer.watchdog.ladder import Ladder

UNIT = "web.service"
OTHER_UNIT = "site.service"
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
    unit_name: str = UNIT
    has_unit: bool = True
    holds: dict[str, Hold] = field(default_factory=dict)
    unread: list[tuple[Ended, Context]] = field(default_factory=list)
    ledger: list[Record] = field(default_factory=list)
    crashes: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.decisions = Decisions(self.config)
        self.declared = self.config.agents["web"]
        self.start()
        known_good = {"toplevel": "/nix/store/good-nixos"}
        self.note([Record(self.now(), "deployment.known-good", known_good)])
        for record in self.ledger:
            self.decisions.replay(record)
        self.look()

    # The host

    @property
    def hold(self) -> Hold | None:
        return self.holds.get(self.unit_name)

    @property
    def is_declared(self) -> bool:
        return "web" in self.config.agents

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
            unit=self.unit_name,
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
        for unit, hold in [*self.holds.items()]:
            over = hold.until_ms is not None and hold.until_ms <= self.uptime_ms
            if over and self.timer_works:
                self.let_go(unit)

    def let_go(self, unit: str) -> None:
        self.holds.pop(unit, None)
        if unit == self.unit_name:
            self.come_up()

    def come_up(self) -> None:
        """Start the agent, unless it is held back, runs, or cannot run."""
        if self.has_unit and self.hold is None and not self.unit.running:
            self.start()

    def stop(self) -> None:
        if self.unit.running:
            self.end(asked=True)
            self.down()

    def reboot(self) -> None:
        self.boot += 1
        self.uptime_ms = 1000
        self.down()
        self.holds = {unit: h for unit, h in self.holds.items() if h.until_ms is None}
        self.come_up()

    def deploy(self, changed: str | None = None) -> None:
        """Switch to another system, which says how it changes the agent, if it is known."""
        previous, self.toplevel = self.toplevel, f"/nix/store/{len(self.ledger)}-nixos"
        data: dict[str, Any] = {"toplevel": self.toplevel, "previous": previous, "kind": "switch"}
        if changed is not None:
            data["changes"] = {"agents": {"web": changed}, "shared": []}
        activated = Record(self.now(), "deployment.activated", {**data, "generation": 1})
        self.decisions.replay(activated)
        self.note([activated])

    def declare(self, unit: str | None, *, runs_on: bool = False) -> None:
        """Switch to a system in which the agent is this unit; or to one without the agent.

        The unit of one that was adopted ``runs_on``, and nobody watches it.
        """
        runs_on = runs_on and unit is None and self.has_unit
        if unit != self.unit_name and not runs_on:
            self.stop()
            # A failing timer is not made up for under a name that the unit has no more.
            self.timer_works = True
        before = self.is_declared
        self.deploy(None if unit is None else "changed" if before else "added")
        agents = {} if unit is None else {"web": replace_struct(self.declared, unit=unit)}
        self.configure(replace_struct(self.config, agents=agents))
        self.unit_name, self.has_unit = unit or self.unit_name, unit is not None or runs_on
        self.come_up()

    def lose_unit(self) -> None:
        """Take the unit's file away."""
        self.stop()
        self.has_unit = False

    def find_unit(self) -> None:
        """Put the unit's file back."""
        self.has_unit = True
        self.come_up()

    # healer

    def note(self, records: Iterable[Record]) -> None:
        self.ledger.extend(records)

    def configure(self, config: Config) -> None:
        self.config = config
        self.decisions.configure(config)
        units = sorted(self.decisions.units)
        loaded = Record(self.now(), "config.loaded", {"agents": [*config.agents], "units": units})
        self.decisions.replay(loaded)
        self.note([loaded])

    def systems(self) -> Systems:
        return Systems(self.toplevel, self.toplevel, self.toplevel, 1, switching=False)

    def read(self) -> None:
        for ended, context in self.unread:
            self.note(self.decisions.on_ended(ended, context, self.now()))
        self.unread.clear()

    def look(self, *, late: bool = False) -> None:
        if not late:
            self.read()
        now, systems = self.now(), self.systems()
        known = {self.unit_name: self.unit} if self.has_unit and self.is_declared else {}
        gone = [] if self.has_unit else [self.unit_name]
        for unit, state in known.items():
            self.note(self.decisions.on_unit(unit, state, systems, now))
        self.note(self.decisions.on_gone(gone, systems, now))
        self.note(self.decisions.on_holds({*self.holds}, now))
        self.note(self.decisions.on_tick(known, systems, now))
        self.note(self.decisions.escalate(known, systems, now))

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
        data = {
            "action": verb,
            "target": self.unit_name,
            "agent": "web",
            "asked_by": "alice",
            "reason": "x",
        }
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
        action, data, unit = intent.data["action"], intent.data, intent.data["target"]
        if action == "reboot":
            return True
        if unit not in self.decisions.units:
            return False
        there = unit == self.unit_name and self.has_unit
        other = self.holds.get(unit)
        if action in {"hold", "quarantine"}:
            until_ms = intent.at.uptime_ms + data["ttl_sec"] * 1000
            if intent.at.boot != self.now().boot or until_ms <= self.uptime_ms:
                return False
            longer = other and (other.until_ms is None or other.until_ms > until_ms)
            if longer and "asked_by" not in data:
                return False
            if not (other and other.until_ms is None):
                self.holds[unit] = Hold(seq, until_ms, by_person="asked_by" in data)
            if there:
                self.stop()
        elif action == "give-up" and there:
            self.holds[unit] = Hold(seq, None)
            self.stop()
        elif action == "release":
            if "asked_by" in data or other is None or other.intent == data.get("hold"):
                self.let_go(unit)
        elif action == "restart":
            if other is not None or not there:
                return False
            self.stop()
            self.start()
        return there

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
