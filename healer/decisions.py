"""All of healer's decisions in one place: facts in, records out, and the state between them.

Pure but for its own state: no clock, no I/O. Each method applies the records that it returns, in
the same way in which ``replay`` applies those that are read back from the ledger.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping

from healer.config import Config, HealthCheck
from healer.events import Changes, Context, CoreDump, Ended, Instant, Systems, UnitState
from healer.records import Record
from healer.safeswitch import attribution, deployment, probation, verdicts
from healer.safeswitch.state import DeploymentState
from healer.safeswitch.verdicts import Facts
from healer.watchdog import agent, agent_state, backoff, counting, gone, groups, health, ladder
from healer.watchdog.agent_state import AgentState
from healer.watchdog.counting import Count
from healer.watchdog.health import Outcome, Streak
from healer.watchdog.holding import Holds
from healer.watchdog.remembered import Remembered

_UNKNOWN = AgentState()


class Decisions:
    """The state of one host, and what follows from each new fact."""

    def __init__(self, config: Config) -> None:
        self.configure(config)
        self.agents: dict[str, AgentState] = {}
        # The runs whose end is recorded, and those whose core dump is.
        self._ended, self._dumped = Remembered(), Remembered()
        self.counts: dict[str, Count] = {}
        self.holds = Holds()
        # Of these units it is told, in this boot and under this deployment, that there are none.
        self.missing: set[str] = set()
        self.deployment = DeploymentState()
        self.trial: Record | None = None
        self.came_up: str | None = None
        self.excused: str | None = None
        self.reboots: tuple[Instant, ...] = ()
        self._switching = False

    def configure(self, config: Config) -> None:
        """Decide by this configuration from now on."""
        self.config = config
        self._names = {agent.unit: name for name, agent in config.agents.items()}
        self.units = frozenset(self._names)
        # Under the same name there may be another check.
        self.streaks: dict[tuple[str, str], Streak] = {}

    def replay(self, record: Record) -> None:
        """Fold one record into the state, new or read back."""
        data, name = record.data, record.data.get("agent")
        run = (data.get("unit", ""), data.get("invocation", ""))
        concerned = [*self.agents] if record.type == "deployment.activated" else [name]
        for each in concerned:
            if isinstance(each, str):
                over = run in self._ended
                self.agents[each] = agent_state.apply(self.agent(each), record, each, over=over)
        if record.type in {"agent.crash", "agent.exit", "agent.stopped"}:
            self._ended.add(run)
        if record.type == "agent.coredump":
            self._dumped.add(run)
        if record.type == "agent.missing":
            self.missing.add(record.data["unit"])
        if record.type in {"deployment.activated", "host.boot"}:
            self.missing.clear()
        if record.type == "host.up":
            self.came_up = record.at.boot
        if record.type == "boot.excused":
            self.excused = record.at.boot
        if record.type == "action.intent" and record.data["action"] == "reboot":
            self.reboots = (*self.reboots, record.at)
        counting.apply(self.counts, record)
        self.holds.apply(record)
        if record.type.startswith("action.") and record.data["action"] == "try":
            self.trial = record if record.type == "action.intent" else None
        self.deployment = deployment.apply(self.deployment, record)

    def agent(self, name: str) -> AgentState:
        """Return what is known of an agent."""
        return self.agents.get(name, _UNKNOWN)

    def knows(self, ended: Ended) -> bool:
        """Whether this end is recorded, also where its unit was that of another agent then."""
        return (ended.unit, ended.invocation) in self._ended

    def is_alone(self, name: str) -> bool:
        """Whether no other agent is unwell."""
        others = self.config.agents.keys() - {name}
        return all(self.agent(other).incident is None for other in others)

    def agent_of(self, unit: str) -> str | None:
        """Return the name of the agent that a unit is, or None."""
        return self._names.get(unit)

    def in_incidents(self) -> list[str]:
        """Return the units of agents with an open incident: of no other there is an answer."""
        agents = self.config.agents
        hurt = (name for name, state in self.agents.items() if state.story is not None)
        return [agents[name].unit for name in hurt if name in agents]

    def on_gone(self, units: Iterable[str], systems: Systems, now: Instant) -> list[Record]:
        """Answer whom the configuration declares no more, and that systemd knows no such units.

        During a switch or a rollback a unit may be away for a moment only.
        """
        records = self._apply(gone.undeclared(self.agents, self._names, now))
        if systems.switching or self.deployment.rolling_back:
            return records
        for unit in units:
            if (name := self.agent_of(unit)) is not None:
                told = unit in self.missing
                records += self._apply(gone.missing(unit, name, self.agent(name), now, told=told))
        return records

    def on_holds(self, held: Collection[str], now: Instant) -> list[Record]:
        """Answer which units are held back: a person's hold that is not there any more is over."""
        return self._apply(self.holds.ended(held, now))

    def on_ended(self, ended: Ended, context: Context, now: Instant) -> list[Record]:
        """Answer the end of an agent's invocation; with nothing where it is recorded."""
        name = self.agent_of(ended.unit)
        if name is None or self.knows(ended):
            return []
        declared, state = self.config.agents[name], self.agent(name)
        mate = groups.cause(self.config, self.agents, name, ended)
        return self._apply(agent.on_ended(name, declared, state, ended, context, now, mate=mate))

    def on_dump(self, dump: CoreDump, now: Instant, *, is_main: bool) -> list[Record]:
        """Answer a core dump of a process of an agent's, its main process if ``is_main``."""
        name = self.agent_of(dump.unit)
        run = (dump.unit, dump.invocation)
        if name is None or run in self._dumped:
            return []
        dies = is_main and run not in self._ended
        return self._apply(agent.on_dump(name, self.agent(name), dump, now, dies=dies))

    def on_unit(self, unit: str, state: UnitState, systems: Systems, now: Instant) -> list[Record]:
        """Answer what systemd says of an agent's unit now.

        A unit that is down during a switch or a rollback is on its way; that ends no incident.
        """
        name = self.agent_of(unit)
        if name is None or self.agent(name).story is None:
            return []
        if state.gave_up and (systems.switching or self.deployment.rolling_back):
            return []
        declared, known = self.config.agents[name], self.agent(name)
        started = health.may_have_started(name, declared, known, self.streaks, state, now)
        return self._apply(agent.on_state(name, declared, known, state, now, started=started))

    def on_restarts(self, units: Mapping[str, UnitState], now: Instant) -> list[Record]:
        """Have the backoff begin anew of agents that are stable without ever having crashed."""
        records: list[Record] = []
        for unit, state in units.items():
            name = self.agent_of(unit) if state.n_restarts else None
            if name is None or self.agent(name).incident is not None:
                continue
            declared, known = self.config.agents[name], self.agent(name)
            if known.begun_anew != state.invocation:
                records += self._apply(backoff.begin_anew(name, declared, None, state, now))
        return records

    def on_counts(self, units: Mapping[str, UnitState], now: Instant) -> list[Record]:
        """Answer systemd's counts of restarts, once all evidence that there is was recorded.

        ``units`` must have been asked for after their last recorded ends.
        """
        new: dict[str, UnitState] = {}
        lost: list[Record] = []
        for unit, state in units.items():
            name = self.agent_of(unit)
            if name is None:
                continue
            count = self.counts.get(unit)
            # What runs had not ended when systemd was asked.
            ended = not state.running and (unit, state.invocation) in self._ended
            if count is None or count.boot != now.boot:
                new[unit] = state
                continue
            restarts, running = state.n_restarts, state.running
            count = counting.look(count, restarts, int(ended), now, running=running)
            self.counts[unit] = count
            lost += counting.losses(name, unit, count, now)
        return self._apply([*counting.begun(new, now), *lost])

    def on_probe(
        self,
        name: str,
        check: HealthCheck,
        unit: UnitState,
        outcome: Outcome,
        detail: str,
        now: Instant,
    ) -> list[Record]:
        """Answer one health check."""
        if name not in self.config.agents:
            return []
        key = (name, check.name)
        if outcome is Outcome.OK and health.is_well(self.streaks.get(key), check, unit):
            return []  # and so it is nearly always
        declared, state = self.config.agents[name], self.agent(name)
        started = health.has_started(declared, state, unit)
        before = self.streaks.get(key, Streak())
        streak = health.observe(before, check, unit, outcome, now, started=started)
        self.streaks[key] = streak
        return self._apply(
            health.on_streak(name, declared, state, check, streak, unit, detail, now)
        )

    def on_systems(
        self, systems: Systems, now: Instant, changes: Changes | None = None
    ) -> list[Record]:
        """Answer which toplevel is active now, and what it changed where it is another one."""
        self._switching = systems.switching
        activated = list(deployment.on_systems(self.deployment, systems, changes, now))
        for record in [*activated]:
            activated += verdicts.redeployed(record, self.config.safe_switch)
        return self._apply(activated)

    def on_gate(self, gate: str, ok: bool, detail: str, now: Instant) -> list[Record]:
        """Answer what a probe of one of the owner's gates found.

        That it passes while a switch is under way tells nothing of the deployment yet: what the
        gate looks at may be restarted last.
        """
        if ok and self._switching:
            return []
        return self._apply(probation.on_gate(self.deployment, gate, ok=ok, detail=detail, now=now))

    def on_tick(
        self,
        units: Mapping[str, UnitState],
        systems: Systems,
        now: Instant,
        environment: Collection[str] | None = None,
        fresh: Collection[str] | None = None,
    ) -> list[Record]:
        """Answer the passing of time; ``environment`` says what is wrong with the host.

        ``fresh`` names the units whose states are not older than their last recorded ends; None
        means all. Of what ended so lately that it cannot be stable again no state is needed.
        Before a reboot that is under way nothing is begun.
        """
        if any(state.ladder.pending == "reboot" for state in self.agents.values()):
            return []
        config = self.config
        # Each agent is asked after here, and most of a host's life nobody needs to know.
        asked = verdicts.asks_for_agents(self.deployment, config.safe_switch, now)
        unready = dict(self._unready(units, now)) if asked else {}
        if self.trial is not None:
            unready["the system"] = "is on trial, and not confirmed yet"
        gates = [gate.name for gate in config.safe_switch.gates]
        unsafe = [name for name, agent in config.agents.items() if not agent.rollback_safe]
        unsure = [
            name
            for name in unready
            if fresh is not None and not (self._is_in(fresh, name) or self._just_ended(name, now))
        ]
        facts = Facts(systems, unready, gates, environment, unsafe, unsure)
        return self._apply(
            verdicts.decide(self.deployment, config.safe_switch, config.agents, facts, now)
        )

    def on_boot(
        self,
        units: Mapping[str, UnitState],
        systems: Systems,
        now: Instant,
        *,
        environment: Collection[str] | None = None,
    ) -> list[Record]:
        """Say, once in each boot, that the host has come up: every agent, and every gate asked.

        Or, where ``environment`` says what is wrong with the host, that it has not for what is no
        fault of the deployment. That is None where this boot is not counted against it.
        """
        state = self.deployment
        if self.came_up == now.boot or systems.switching or systems.current != state.current:
            return []
        asked = self.config.safe_switch.gates if state.on_probation else ()
        gates = [gate.name for gate in asked if gate.name not in state.passed]
        unready = dict(self._unready(units, now, up_is_enough=True))
        if not gates and not unready:
            data = {"toplevel": systems.current, "after_ms": now.uptime_ms}
            return self._apply([Record(now, "host.up", data)])
        if environment is None or self.excused == now.boot or not self._had_time(now):
            return []
        why = attribution.excuse(state, self.config.agents, unready, gates, environment)
        data = {"toplevel": systems.current, "reason": why}
        return self._apply([] if why is None else [Record(now, "boot.excused", data)])

    def _had_time(self, now: Instant) -> bool:
        """Whether healer has been up in this boot for as long as the slowest agent is unstable."""
        since = self.deployment.since
        if since is None or since.boot != now.boot:
            return False
        stable_sec = max((agent.stable_sec for agent in self.config.agents.values()), default=0)
        return now.uptime_ms - since.uptime_ms >= stable_sec * 1000

    def escalate(
        self, units: Mapping[str, UnitState], systems: Systems, now: Instant
    ) -> list[Record]:
        """Climb the ladder for agents in a crash loop, once SafeSwitch was asked (``on_tick``).

        ``units`` holds those states only that are not older than the units' last recorded ends.
        """
        records: list[Record] = []
        for name, state in list(self.agents.items()):
            if state.ladder.is_still or (declared := self.config.agents.get(name)) is None:
                continue
            host, unit = self._host(systems, now), units.get(declared.unit)
            steps = ladder.decide(name, declared, state.ladder, state.incident, unit, host, now)
            records += self._apply(steps)
        return records

    def on_outcome(self, outcome: Record, intent: Record) -> list[Record]:
        """Answer the outcome of an action, once it was looked at which system runs after it."""
        if intent.data["action"] == "kill":
            # A kill that failed is intended again after as many failures as the first took.
            for key in [key for key in self.streaks if key[0] == intent.data["agent"]]:
                del self.streaks[key]
        told = verdicts.as_it_runs(outcome, self.deployment.current)
        return self._apply([told, *verdicts.follows(told, intent)])

    def _apply(self, records: Iterable[Record]) -> list[Record]:
        made = list(records)
        for record in made:
            self.replay(record)
        return made

    def _host(self, systems: Systems, now: Instant) -> ladder.Host:
        limits = self.config.escalation
        rebooted = ladder.reboots_in_a_day(self.reboots, now)
        state = self.deployment
        return ladder.Host(
            known_good=state.known_good,
            may_reboot=limits.reboot and rebooted < limits.max_reboots_per_day,
            deploying=state.rolling_back or self.trial is not None,
            switching=systems.switching,
            judging=state.on_probation and state.known_good is not None and not state.answered,
            minding=(*self._minding(),),
        )

    def _minding(self) -> Iterator[str]:
        """Name the agents that a boot of the known-good would take back, and that mind.

        A reboot is no rollback: it runs no hooks, and a deployment that needs some, or that cannot
        be undone, stays as it is.
        """
        state = self.deployment
        if state.current == state.known_good:
            return
        for name, declared in sorted(self.config.agents.items()):
            hooks = declared.snapshot is not None or declared.before_rollback is not None
            if (hooks or not declared.rollback_safe) and state.change_of(name) != "same":
                yield name

    def _is_in(self, units: Collection[str], name: str) -> bool:
        agent = self.config.agents.get(name)
        return agent is not None and agent.unit in units

    def _just_ended(self, name: str, now: Instant) -> bool:
        """Whether an agent's last end is a crash so recent that it cannot be stable again."""
        end, declared = self.agent(name).last_end, self.config.agents.get(name)
        if end is None or declared is None or end.type != "agent.crash":
            return False
        stop = end.data["stop_uptime_ms"]
        if stop is None or end.data["boot"] != now.boot:
            return False
        return bool(now.uptime_ms - stop < declared.stable_sec * 1000)

    def _unready(
        self, units: Mapping[str, UnitState], now: Instant, *, up_is_enough: bool = False
    ) -> Iterator[tuple[str, str]]:
        """Name each agent that keeps the running deployment from being known-good, or from being
        up at all.

        An agent that ended for good under an earlier deployment is none of this one's doing; one
        that was given up, and is held back since, is no sign of a bad boot.
        """
        for name, declared in self.config.agents.items():
            state, unit = self.agent(name), units.get(declared.unit)
            up_sec = declared.stable_sec
            if up_is_enough:  # what died before would say that it does not start
                up_sec = min(up_sec, declared.crash_loop.early_death_sec)
            if state.incident is not None:
                yield name, "has crashed and is not stable yet"
            elif state.foretold is not None:
                yield name, "has failed a health check and is not well yet"
            elif state.ladder.gave_up is not None:
                if not up_is_enough and not self._rests(name, state):
                    yield name, "was given up"
            elif unit is None:
                yield name, f"has no unit {declared.unit}"
            elif unit.running:
                if now.uptime_ms - unit.active_enter_ms < up_sec * 1000:
                    yield name, f"is not up for {up_sec:g} s yet"
                elif (why := health.why_unready(declared, state, unit)) is not None:
                    yield name, why
            elif unit.active_state == "activating":
                yield name, "is still starting"
            elif not self._rests(name, state):
                yield name, f"is not running ({unit.active_state})"

    def _rests(self, name: str, state: AgentState) -> bool:
        """Whether an agent that is down is so for a reason that the deployment did not give.

        It ended under an earlier one for good, somebody stopped it, or its work is done.
        """
        end = state.last_end
        if end is None or (end.type == "agent.stopped" and end.data["by"] in {"switch", "group"}):
            return False
        if end.type == "agent.exit":
            return self.config.agents[name].restart.on == "failure"
        if end.type == "agent.stopped" and end.data["by"] != "healer":
            return True
        return bool(end.data["toplevel"] != self.deployment.current)
