"""One host of the simulated fleet (bench/fleet.py), in the world of bench/world.py.

All decisions are the real ones (healer/decisions.py); this only plays the host.
"""

import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import count

from bench.world import (
    AGENTS,
    DAY,
    MIN,
    PERSON,
    RESTART,
    SEC,
    UNLUCKY,
    UPSTREAMS,
    YEAR,
    Deployed,
    SimulatedAgent,
    Trouble,
    World,
    around,
    draw_agent,
    draw_deployment,
    suffers,
)
from healer.config import Agent, Config, CrashLoop, SafeSwitch
from healer.decisions import Decisions
from healer.events import Changes, Context, Ended, Instant, Memory, Systems, UnitState
from healer.records import Record

_PROBATION = 300 * SEC
_STABLE = 60 * SEC
_MAX_RESTART = 5 * MIN
_ROLLBACK = 8 * SEC
# Fewer crashes are never blamed.
_BLAMED = 3


class Host:
    """One host and its year."""

    def __init__(self, number: int, world: World, seed: int) -> None:
        self.random = random.Random(seed * 1_000_003 + number)
        self.world = world
        self.now_ms = 0
        self.boot, self.booted_ms = 0, 0
        self.agents = {name: draw_agent(self.random, world, name) for name in AGENTS}
        self.units: dict[str, UnitState] = {}
        self.decisions = Decisions(_config(self.agents))
        self.numbers = count(1)
        self.events: list[tuple[int, int, Callable[[], None]]] = []
        self.running = Deployed("/nix/store/0", frozenset(self.agents))
        self.systems = {self.running.toplevel: self.running}
        self.troubles: list[Trouble] = []
        self.counts: Counter[str] = Counter()
        self.next_look_ms = 0
        self.trouble_ended_ms = -DAY
        self.promoted: set[str] = set()
        self.rolled_back: set[str] = set()
        self.doubted: dict[str, bool] = {}
        self.judged: set[str] = set()
        self.seen: Counter[str] = Counter()
        self.weekly = self.random.random()
        self.story: list[tuple[int, object]] = []
        self.odd: list[int] = []

    # The story

    def live(self, until_ms: int) -> Counter[str]:
        """Live until then, and return what was counted."""
        self._tell(Record(self._now(), "healer.started", {"agents": sorted(self.agents)}))
        for agent in self.agents.values():
            self._start(agent)
        self._tell_all(self.decisions.on_systems(self._systems(), self._now()))
        self._look()
        share = self.weekly
        per_year = 52 if share < 0.7 else 180 if share < 0.95 else 365
        self._again(YEAR / (per_year * self.world.deployments / 100), self._deploy)
        self._again(30 * DAY, self._reboot)
        for kind, rate in (
            ("full", self.world.full),
            ("unplugged", self.world.unplugged),
            ("out of memory", self.world.out_of_memory),
        ):
            self._again_trouble(kind, rate)
        for upstream in range(UPSTREAMS):
            self._again_trouble(f"upstream {upstream}", self.world.upstream_down)
        while self.events and self.events[0][0] <= until_ms:
            self.now_ms, _, event = heapq.heappop(self.events)
            event()
        self._close(self.running)
        # What is to come holds on to the host, and there are thousands of them.
        self.events.clear()
        return self.counts

    def _again(self, mean_ms: float, event: Callable[[], None]) -> None:
        """Have something happen again and again, in no rhythm."""

        def happen() -> None:
            event()
            self._in(self.random.expovariate(1 / mean_ms), happen)

        self._in(self.random.expovariate(1 / mean_ms), happen)

    def _again_trouble(self, kind: str, rate: float) -> None:
        if rate:
            self._again(YEAR / rate, lambda: self._begin_trouble(kind))

    def _in(self, after_ms: float, event: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now_ms + int(after_ms), next(self.numbers), event))

    # Agents

    def _start(self, agent: SimulatedAgent) -> None:
        agent.run += 1
        agent.up = True
        agent.started_ms, agent.started_under = self.now_ms, self.running.toplevel
        self._show(agent)
        self._plan(agent)

    def _plan(self, agent: SimulatedAgent, *, cut_off: bool = False) -> None:
        """Decide when and why this run ends, if nothing comes between.

        ``cut_off`` says that what it cannot live without has just gone.
        """
        lasts, why = self.random.expovariate(1 / agent.mean_ms), "chance"
        broken = self.running.broken.get(agent.name)
        if broken is not None and agent.started_under == self.running.toplevel:
            if self.running.slow:
                lasts = min(lasts, self.random.expovariate(1 / broken))
            else:
                lasts = min(lasts, around(self.random, broken, 0.5))
        if cut_off or (agent.name in self.running.dragged and self._is_one_down()):
            lasts = min(lasts, around(self.random, 3 * SEC, 0.5))
        for trouble in self.troubles:
            if agent.name in trouble.agents:
                lasts, why = min(lasts, around(self.random, 2 * SEC, 0.7)), trouble.kind
        run, ends_ms = agent.run, max(self.now_ms, agent.started_ms) + int(lasts)
        if ends_ms - self.now_ms < YEAR:
            self._in(ends_ms - self.now_ms, lambda: self._crash(agent, run, ends_ms, why))
        agent.ends_ms = ends_ms

    def _is_one_down(self) -> bool:
        """Whether a broken agent is down, or up so shortly that nobody can live with it."""
        return any(
            not self.agents[name].up or lasts < 5 * SEC
            for name, lasts in self.running.broken.items()
        )

    def _crash(self, agent: SimulatedAgent, run: int, ends_ms: int, why: str) -> None:
        if agent.run != run or not agent.up or agent.ends_ms != ends_ms:
            return
        self.counts["crashes"] += 1
        agent.up = False
        self._show(agent)
        result, code, status, memory = "exit-code", "exited", "1", None
        if why.startswith("upstream") and agent.says_temporary:
            status = "75"
        elif why == "out of memory":
            result, code, status = "oom-kill", "killed", "KILL"
            memory = Memory(None, None, 1, None, oom=0)
        ended = self._ended(agent, result, code, status, memory)
        self._tell_all(self.decisions.on_ended(ended, Context(), self._now()))
        if agent.name in self.running.broken and self.running.toplevel not in self.promoted:
            self.seen[self.running.toplevel] += 1
        if agent.name in self.running.broken:
            for name in sorted(self.running.dragged):
                self._plan(self.agents[name])
        lasted = self.now_ms - agent.started_ms
        agent.delay_ms = RESTART if lasted >= _STABLE else min(agent.delay_ms * 2, _MAX_RESTART)

        def restart() -> None:
            if agent.run == run and not agent.up:
                self._start(agent)
                self._look_if_judging()

        self._in(agent.delay_ms, restart)
        self._look_if_judging()

    def _stop(self, agent: SimulatedAgent) -> None:
        """A switch stops an agent; that is no crash."""
        ended = self._ended(agent, "success", "killed", "TERM", None)
        context = Context(stop_requested=True, switching=True)
        self._tell_all(self.decisions.on_ended(ended, context, self._now()))

    def _ended(
        self, agent: SimulatedAgent, result: str, code: str, status: str, memory: Memory | None
    ) -> Ended:
        now = self._now()
        return Ended(
            f"{agent.name}.service",
            f"{agent.name}-{agent.run}",
            now.boot,
            result,
            code,
            status,
            agent.started_ms - self.booted_ms,
            now.uptime_ms,
            agent.started_under,
            memory,
            "stamp",
        )

    # The world

    def _begin_trouble(self, kind: str) -> None:
        """Let something fail for a while; now and then a person deploys because of it."""
        self.counts["troubles"] += 1
        names = frozenset(a.name for a in self.agents.values() if suffers(self.random, a, kind))
        words = {
            "full": "there is no space left on /var",
            "unplugged": "the default route is gone",
        }.get(kind)
        lasts = around(self.random, 3 * SEC if kind == "out of memory" else 15 * MIN, 1.0)
        trouble = Trouble(kind, names, self.now_ms + int(lasts), words)
        self.story.append((self.now_ms, trouble))
        self.troubles.append(trouble)
        self._in(lasts, lambda: self._end_trouble(trouble))
        for name in sorted(names):
            self._plan(self.agents[name])
        if names and self.random.random() < self.world.reacts:
            self._in(around(self.random, 3 * MIN, 0.7), lambda: self._deploy(sorted(names)))

    def _end_trouble(self, trouble: Trouble) -> None:
        self.troubles.remove(trouble)
        self.trouble_ended_ms = self.now_ms
        for name in sorted(trouble.agents):
            self._plan(self.agents[name])

    # Deployments

    def _deploy(self, meant: Iterable[str] = ()) -> None:
        """Deploy a new system, upon what runs or, if that is bad, upon what was good."""
        name = f"/nix/store/{next(self.numbers)}"
        new = draw_deployment(self.random, self.world, name, meant)
        self._switch(new)
        self.counts["deployments"] += 1
        if self.world.unlucky and self.random.random() < self.world.unlucky:
            upstream = self.random.randrange(UPSTREAMS)
            after_ms = self.random.uniform(0, UNLUCKY)
            self._in(after_ms, lambda: self._begin_trouble(f"upstream {upstream}"))
            self.counts["unlucky"] += 1
        if new.broken:
            self.counts["slow" if new.slow else "bad"] += 1
            self._in(PERSON, lambda: self._mend(name))

    def _mend(self, bad: str) -> None:
        """A person puts an end to a bad system that runs still."""
        if self.running.toplevel == bad:
            fix = f"/nix/store/{next(self.numbers)}"
            self._switch(Deployed(fix, self.running.changed, self.running.shared))

    def _switch(self, to: Deployed) -> None:
        """Make another system run: what differs is restarted."""
        self._close(self.running)
        self.story.append((self.now_ms, to))
        before, self.running = self.running, to
        self.systems[to.toplevel] = to
        changed = to.changed | (before.changed if before.broken else frozenset())
        how = {name: "changed" if name in changed else "same" for name in self.agents}
        changes = Changes(how, to.shared)
        self._tell_all(self.decisions.on_systems(self._systems(), self._now(), changes))
        for name, agent in self.agents.items():
            if name in changed:
                if agent.up:
                    self._stop(agent)
                agent.delay_ms = RESTART
                self._start(agent)
            elif name in before.dragged | to.dragged:
                self._plan(agent, cut_off=name in to.dragged)
        self._look()

    def _close(self, ended: Deployed) -> None:
        """Count what became of a bad system that runs no more."""
        if not ended.broken or ended.toplevel in self.judged:
            return
        self.judged.add(ended.toplevel)
        if ended.toplevel in self.rolled_back:
            word = "rolled back"
        elif self.seen[ended.toplevel] < _BLAMED:
            # Nobody could have known in time.
            late = ended.toplevel in self.promoted
            word = "too late to be seen" if late else "replaced before it was seen"
        elif ended.toplevel in self.promoted:
            word = "missed"
        else:
            cause = self.doubted.get(ended.toplevel)
            word = "told, for the world failed too" if cause else "missed"
        self.counts[f"{'slow' if ended.slow else 'bad'}: {word}"] += 1
        if word == "missed":
            self.odd.append(self.now_ms)

    def _reboot(self) -> None:
        self._tell(Record(self._now(), "healer.stopped", {"reason": "reboot"}))
        self.now_ms += 30 * SEC
        self.boot, self.booted_ms = self.boot + 1, self.now_ms
        self._tell_all(self.decisions.on_systems(self._systems(), self._now()))
        for agent in self.agents.values():
            self._start(agent)
        self._look()

    # What healer sees, and does

    def _look(self) -> None:
        """Let healer look, and come back when time alone could change what it decides."""
        now, decisions, systems = self._now(), self.decisions, self._systems()
        ill = [a for a in self.agents.values() if decisions.agent(a.name).incident is not None]
        for agent in ill:
            unit = f"{agent.name}.service"
            self._tell_all(decisions.on_unit(unit, self.units[unit], systems, now))
        if decisions.deployment.under_observation:
            words = [trouble.words for trouble in self.troubles if trouble.words]
            self._tell_all(decisions.on_tick(self.units, systems, now, words))
            self._look_in(MIN)
        for agent in ill:
            stable_ms = agent.started_ms + _STABLE
            if agent.up and self.now_ms < stable_ms:
                self._look_in(stable_ms - self.now_ms)

    def _look_in(self, after_ms: int) -> None:
        due_ms = self.now_ms + after_ms
        if not self.now_ms < self.next_look_ms <= due_ms:
            self.next_look_ms = due_ms
            self._in(after_ms, self._look)

    def _look_if_judging(self) -> None:
        """Look now while a deployment is judged; else when the last to start could be stable."""
        if self.decisions.deployment.under_observation:
            self._look()
        else:
            self._look_in(_STABLE)

    def _tell_all(self, records: Iterable[Record]) -> None:
        for record in records:
            self._heed(record)

    def _tell(self, record: Record) -> None:
        self.decisions.replay(record)

    def _heed(self, record: Record) -> None:
        """Do what was decided, and count it."""
        data = record.data
        self.story.append((self.now_ms, record))
        if record.type == "action.intent" and data["action"] == "promote":
            self._in(SEC, lambda: self._came_of(record, data["target"]))
        elif record.type == "action.intent" and data["action"] == "rollback":
            self.rolled_back.add(data["from"])
            self._in(_ROLLBACK, lambda: self._roll_back(record))
        elif record.type == "deployment.known-good":
            self.promoted.add(data["toplevel"])
        elif record.type == "deployment.refuted":
            self.counts["refuted"] += 1
        elif record.type == "safeswitch.verdict" and data["verdict"] == "inconclusive":
            # Who crashed in it is not well yet when it is over.
            over = self.now_ms - self.trouble_ended_ms > 2 * _MAX_RESTART
            told = self.doubted.get(data["toplevel"], False)
            self.doubted[data["toplevel"]] = told or bool(self.troubles) or not over

    def _came_of(self, intent: Record, needs: str) -> None:
        """Tell the outcome: root's helper refuses where a person has deployed another system."""
        ok = self.running.toplevel == needs
        data = {"action": intent.data["action"], "intent": 0, "ok": ok}
        outcome = Record(self._now(), "action.outcome", data, intent.incident)
        self._tell_all(self.decisions.on_outcome(outcome, intent))
        self._look()

    def _roll_back(self, intent: Record) -> None:
        source, target = self.systems[intent.data["from"]], self.systems[intent.data["target"]]
        if self.running is not source:
            self._came_of(intent, source.toplevel)
            return
        self.counts["rollbacks"] += 1
        if not source.broken:
            self.counts["false rollbacks"] += 1
            self.odd.append(self.now_ms)
            kinds = sorted(t.kind.split()[0] for t in self.troubles)
            self.counts[f"false: {' '.join(kinds) or 'chance'}"] += 1
        self._switch(Deployed(target.toplevel, source.changed, source.shared, target.broken))
        self._came_of(intent, target.toplevel)

    # Facts

    def _now(self) -> Instant:
        return Instant(f"boot{self.boot}", self.now_ms - self.booted_ms)

    def _systems(self) -> Systems:
        top = self.running.toplevel
        return Systems(top, top, top, 1, False)

    def _show(self, agent: SimulatedAgent) -> None:
        """Have systemd say how an agent is from now on."""
        since = agent.started_ms - self.booted_ms
        self.units[f"{agent.name}.service"] = UnitState(
            active_state="active" if agent.up else "activating",
            sub_state="running" if agent.up else "auto-restart",
            invocation=f"{agent.name}-{agent.run}",
            main_pid=agent.run,
            n_restarts=0,
            status_text="",
            since_us=0,
            since_ms=since,
            active_enter_ms=since,
        )


def _config(names: Iterable[str]) -> Config:
    """Every agent with the defaults, but no escalation: that is the watchdog's."""
    agents = {name: Agent(unit=f"{name}.service", crash_loop=CrashLoop()) for name in names}
    return Config(version=1, agents=agents, safe_switch=SafeSwitch(probation_sec=_PROBATION / SEC))
