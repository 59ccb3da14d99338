"""An agent, PID 1, root's helper and healer, in as far as the ladder can see them."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from healer.config import Agent, AgentEscalation, Config, CrashLoop, Escalation, SafeSwitch
from healer.decisions import Decisions
from healer.events import Context, Ended, Instant, Systems, UnitState
from healer.records import Record
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
