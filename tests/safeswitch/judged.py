"""A host as SafeSwitch's decisions see it, for tests that tell a short story."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from healer.config import Agent, Config, CrashLoop, SafeSwitch, TcpGate
from healer.decisions import Decisions
from healer.events import Changes, Context, Ended, Instant, Memory, Systems, UnitState
from healer.records import Record
from healer.safeswitch import verdicts
from healer.safeswitch.booting import BootRollback
from healer.safeswitch.untold import Untold

GOOD, BAD, OTHER = (f"/nix/store/{letter}-nixos" for letter in "gbo")
HOUR = 3600


class KilledError(Exception):
    """healer was killed while it recorded, and has come back with what of that was durable."""


@dataclass
class Judged:
    """A host with some agents. ``sec`` counts since the boot; a gate is declared for each name."""

    agents: tuple[str, ...] = ("db", "web", "mail")
    gates: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    stable_sec: float = 60
    early_death_sec: float = 10
    boot: int = 1
    sec: float = 0
    current: str = GOOD
    booted: str = GOOD
    switching: bool = False
    base: str | None = None  # of which what runs is a specialisation
    counted: bool = False  # whether its boots are, so that healer may excuse them
    trouble: list[str] = field(default_factory=list)
    ledger: list[Record] = field(default_factory=list)
    # What root's helper has done of the open rollback and will say again: what ran afterwards.
    done: str | None = None
    # When healer is to be killed: of the next records that are as many, so many are durable.
    killed_after: int | None = None

    def __post_init__(self) -> None:
        agent = {
            name: Agent(
                unit=f"{name}.service",
                crash_loop=CrashLoop(
                    max_crashes=5, window_sec=60, early_death_sec=self.early_death_sec
                ),
                stable_sec=self.stable_sec,
            )
            for name in self.agents
        }
        gates = tuple(TcpGate(name=name, host="::1", port=1) for name in self.gates)
        switch = SafeSwitch(probation_sec=300, gates=gates, **self.options)
        self.config = Config(version=1, agents=agent, safe_switch=switch)
        self.decisions = Decisions(self.config)
        self.runs = 0
        self.units: dict[str, UnitState] = {}
        self.under: dict[str, str] = {}
        self.looks: dict[str, tuple[bool, str]] = {}
        self.tell([Record(self.now(), "healer.started", {"agents": list(self.agents)})])
        for name in self.agents:
            self.start(name)
        self.look()

    def now(self) -> Instant:
        return Instant(f"boot{self.boot}", int(self.sec * 1000))

    def tell(self, records: Iterable[Record]) -> None:
        for record in records:
            self.decisions.replay(record)
            self.ledger.append(record)

    def keep(self, records: Iterable[Record]) -> None:
        made, durable = [*records], self.killed_after
        if durable is None or durable >= len(made):
            self.ledger.extend(made)
            return
        self.ledger.extend(made[:durable])
        self.killed_after = None
        self.come_back()
        self.tell([Record(self.now(), "healer.started", {"agents": list(self.agents)})])
        raise KilledError

    def systems(self) -> Systems:
        return Systems(self.current, self.booted, self.current, 1, self.switching, base=self.base)

    def start(self, name: str) -> None:
        self.runs += 1
        since = int(self.sec * 1000)
        self.under[name] = self.current
        invocation = f"{self.runs:032x}"
        self.units[f"{name}.service"] = UnitState(
            "active", "running", invocation, self.runs, 0, "", 0, since, since
        )

    def look(self) -> None:
        now = self.now()
        self.keep(self.decisions.on_systems(self.systems(), now))
        for gate, (ok, detail) in self.looks.items():
            self.keep(self.decisions.on_gate(gate, ok, detail, now))
        for unit, state in self.units.items():
            self.keep(self.decisions.on_unit(unit, state, self.systems(), now))
        # What is told of at one look is judged at the next.
        for _ in range(2):
            self.keep(self.decisions.on_tick(self.units, self.systems(), now, self.trouble))
        if self.counted:
            units, systems = self.units, self.systems()
            self.keep(self.decisions.on_boot(units, systems, now, environment=self.trouble))

    def gate(self, name: str, ok: bool, detail: str = "as seen") -> None:
        """Let a gate pass, or fail, from now on, at each look."""
        self.looks[name] = (ok, detail)
        self.look()

    def after(self, seconds: float) -> None:
        """Let time pass, with a look at each of the moments at which something could end."""
        until = self.sec + seconds
        while self.sec < until:
            self.sec = min(until, self.sec + 30)
            self.look()

    def deploy(
        self, toplevel: str, *changed: str, shared: tuple[str, ...] = (), known: bool = True
    ) -> None:
        """Switch to another system; the agents that it changes are restarted under it."""
        self.current = toplevel
        agents = {name: "changed" if name in changed else "same" for name in self.agents}
        changes = Changes(agents, shared) if known else None
        self.keep(self.decisions.on_systems(self.systems(), self.now(), changes))
        for name in self.agents if shared else changed:
            self.stop(name)
            self.start(name)
        self.look()

    def ended(self, name: str, status: str, code: str, result: str, **more: Any) -> Ended:
        state = self.units[f"{name}.service"]
        now = self.now()
        return Ended(
            f"{name}.service",
            state.invocation,
            now.boot,
            result,
            code,
            status,
            state.active_enter_ms,
            now.uptime_ms,
            self.under[name],
            more.pop("memory", None),
            "stamp",
            **more,
        )

    def stop(self, name: str) -> None:
        end = self.ended(name, "TERM", "killed", "success")
        context = Context(stop_requested=True, switching=True)
        self.keep(self.decisions.on_ended(end, context, self.now()))

    def crash(self, *names: str, times: int = 1, after: float = 1, status: str = "1") -> None:
        """Let these agents run so long and crash, in turn, so many times."""
        for _ in range(times):
            self.sec += after
            for name in names:
                end = self.ended(name, status, "exited", "exit-code")
                self.keep(self.decisions.on_ended(end, Context(), self.now()))
                self.start(name)
            self.look()

    def starve(self, name: str, times: int, oom: int) -> None:
        """Let the kernel kill an agent for want of memory; ``oom`` times at its own limit."""
        for _ in range(times):
            self.sec += 1
            memory = Memory(None, None, 1, None, oom=oom)
            end = self.ended(name, "KILL", "killed", "oom-kill", memory=memory)
            self.keep(self.decisions.on_ended(end, Context(), self.now()))
            self.start(name)
            self.look()

    def open_intent(self) -> Record | None:
        done = sum(record.type == "action.outcome" for record in self.ledger)
        intents = [record for record in self.ledger if record.type == "action.intent"]
        return intents[done] if len(intents) > done else None

    def comes_of_it(self, ok: bool = True, *, lasts: bool = True) -> None:
        """Carry out the open intent, or fail to; what root has done already is told again."""
        intent = self.open_intent()
        assert intent is not None
        done = self.done
        if done is None and ok and intent.data["action"] == "rollback":
            self.current = self.done = intent.data["target"]
            self.keep(self.decisions.on_systems(self.systems(), self.now()))
            for name in self.agents:
                self.stop(name)
                self.start(name)
        self.keep(self.decisions.on_systems(self.systems(), self.now()))
        ok = ok or done is not None
        ran = done or self.current
        self.done = ran if ok and intent.data["action"] == "rollback" else None
        seq = next(n for n, record in enumerate(self.ledger) if record is intent)
        data = {"intent": seq, "action": intent.data["action"], "ok": ok, "running": ran}
        data |= {"lasts": lasts, "detail": "x"}
        outcome = Record(self.now(), "action.outcome", data, intent.incident)
        try:
            self.keep(self.decisions.on_outcome(outcome, intent))
        finally:
            if self.open_intent() is not intent:
                self.done = None
        self.look()

    def while_healer_is_down(self, deployed: str | None = None) -> None:
        """Have root's helper go back, and perhaps somebody deploy, before healer comes back."""
        intent = self.open_intent()
        assert intent is not None
        self.done = intent.data["target"]
        self.current = deployed or self.done
        self.restart_healer()
        self.keep(self.decisions.on_systems(self.systems(), self.now()))
        for name in self.agents:
            self.stop(name)
            self.start(name)
        self.look()

    def ask(self, action: str, **data: Any) -> None:
        """Have a person's wish recorded and carried out."""
        intent = Record(
            self.now(),
            "action.intent",
            {"action": action, "asked_by": "alice", "reason": "alice asked for it", **data},
        )
        self.tell([intent])
        self.comes_of_it()

    def reboot(self, after_sec: float = 20) -> None:
        self.boot += 1
        self.sec = after_sec
        self.booted = self.current
        for name in self.agents:
            self.start(name)
        self.restart_healer()
        self.look()

    def boot_goes_back(self) -> None:
        """Boot a system that does not come up, until root goes back to the last known-good."""
        source, target = self.current, self.decisions.deployment.known_good
        assert target is not None
        self.boot += 1
        self.sec = 20
        self.current = self.booted = target
        for name in self.agents:
            self.start(name)
        self.come_back()
        rolled_back = BootRollback(source, target, 3, f"boot{self.boot - 1}").record(self.now())
        self.tell([rolled_back, verdicts.condemned_by_boot(rolled_back)])
        self.tell([Record(self.now(), "healer.started", {"agents": list(self.agents)})])
        self.look()

    def restart_healer(self) -> None:
        """Let healer come back with nothing but its ledger, which holds all that it knew."""
        before, entries = self.decisions.deployment, len(self.ledger)
        self.come_back()
        assert self.decisions.deployment == before
        assert len(self.ledger) == entries
        self.tell([Record(self.now(), "healer.started", {"agents": list(self.agents)})])

    def come_back(self) -> None:
        """Let healer come back with nothing but its ledger, and look at nothing yet.

        It tells what the ledger leaves untold.
        """
        self.looks = {}
        self.decisions, untold = Decisions(self.config), Untold()
        for seq, record in enumerate(self.ledger):
            self.decisions.replay(record)
            untold.fold(seq, record)
        self.tell(untold.records(self.now()))

    def promoted(self) -> "Judged":
        """Let the running system become known-good."""
        self.after(400)
        intent = self.open_intent()
        assert intent is not None
        assert intent.data["action"] == "promote", self.told()
        self.comes_of_it()
        return self

    def of(self, kind: str) -> list[Record]:
        return [record for record in self.ledger if record.type == kind]

    def told(self) -> list[str]:
        """Return all verdicts, each with its reason."""
        told = (record.data for record in self.of("safeswitch.verdict"))
        return [f"{data['verdict']}: {data['reason']}" for data in told]

    def verdict(self) -> tuple[str, str]:
        data = self.of("safeswitch.verdict")[-1].data
        return data["verdict"], data["reason"]

    def rolls_back(self) -> bool:
        intent = self.open_intent()
        return intent is not None and intent.data["action"] == "rollback"


def lived(hours: float = 48, **more: Any) -> Judged:
    """Return a host whose system has been known-good for so long, without a crash."""
    host = Judged(**more).promoted()
    host.sec += hours * HOUR
    host.look()
    return host
