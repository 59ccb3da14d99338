"""The daemon: one asyncio loop that looks at the host, decides, records and acts.

Everything that happens only wakes one loop, and the loop looks: at the active system, the stamps,
the units, the journal. So a storm of events costs one look, a lost event costs a second, and the
order of looking is the order of causes. What is decided becomes durable in the ledger's own
thread; healing does not wait for it, except that an intent is carried out only once it is durable.
"""

import asyncio
import concurrent.futures
import logging
import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from systemd.daemon import notify

from healer import __version__, control, helper, report
from healer.active_system import ActiveSystem
from healer.actor import Actor
from healer.coming_up import ComingUp
from healer.config import Config, Loaded, load, package_of
from healer.decisions import Decisions
from healer.drift.compare import Finding
from healer.drift.watch import DriftWatcher
from healer.errors import ConfigError, HealerError
from healer.events import Systems
from healer.history import History, fold
from healer.host import clock, holds, nix
from healer.host.environment import Environment
from healer.ledger.entry import Entry
from healer.ledger.writer import Ledger
from healer.records import Record
from healer.safeswitch import booting, deployment, verdicts
from healer.safeswitch.gating import GateProber
from healer.status import Status
from healer.watchdog.beats import next_beat
from healer.watchdog.probing import Prober
from healer.watchdog.recorder import Recorder
from healer.watchdog.status_texts import StatusTexts
from healer.watchdog.units import Units

log = logging.getLogger("healer")

_TICK_SEC = 1.0
_SETTLE_SEC = 0.05
# A run of this length is stable: systemd is to restart healer at once again.
_STABLE_SEC = 30.0
_CLOCK_STEP_US = 2_000_000
# A long ledger may take longer to read than systemd waits for a start (TimeoutStartSec=).
# After each so many entries it is told to wait for a minute more, sd_notify(3).
_TOLD_ENTRIES = 10_000
_STILL_STARTING = "EXTEND_TIMEOUT_USEC=60000000"


class Daemon:
    """One run of ``healer daemon``, from an opened ledger to the end of the process."""

    def __init__(self, path: Path, loaded: Loaded, ledger: Ledger) -> None:
        self._path = path
        self._loaded = loaded
        self._ledger = ledger
        self._decisions = Decisions(loaded.config)
        self._runtime_dir = Path(loaded.config.runtime_dir)
        self._publisher = report.Publisher(self._runtime_dir)
        self._texts = StatusTexts(loaded.config)
        self._system = ActiveSystem(self._decisions, self._record, self._ask_reload)
        self._units = Units(self._decisions.units, self._texts, self._unit_changed, self._died)
        self._drift = DriftWatcher(
            loaded.config, self._drifted, lambda: nix.is_locked(nix.SWITCH_LOCK)
        )
        self._actor = Actor(
            self._decisions,
            self._units,
            self._append,
            self._record,
            self._system.look,
            self._leave,
        )
        self._recorder = Recorder(
            self._decisions,
            self._units,
            ledger,
            self._record,
            self._system.look,
            self._actor.remove_stamps,
            self._settle,
        )
        self._prober = Prober(self._decisions, self._units, self._record, self._publisher.changed)
        self._gates = GateProber(self._decisions, self._units.active_state_of, self._record)
        self._environment = Environment()
        self._coming_up = ComingUp(
            self._decisions,
            self._environment,
            self._record,
            self._actor.tell_up,
            self._actor.tell_excused,
        )
        self._wake = asyncio.Event()
        self._stop = asyncio.Event()
        self._leaving = "asked to stop"
        self._history = History()
        self._settling: asyncio.TimerHandle | None = None
        self._look_sec = 0.0
        self._clock_offset_us = _clock_offset_us()
        self._ledger_trouble: str | None = None
        self._reload = False
        self._spent = False
        self._safe_switch_off = self._why_safe_switch_is_off()

    @property
    def _config(self) -> Config:
        return self._decisions.config

    async def run(self) -> None:
        """Run until SIGTERM, or until the switch to another healer asks for a restart."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        loop.add_signal_handler(signal.SIGINT, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._ask_reload)
        self._remember()
        await self._started()
        notify("READY=1")
        loop.call_later(_STABLE_SEC, self._actor.tell_stable)
        async with asyncio.TaskGroup() as group:
            running = [
                group.create_task(job)
                for job in (
                    self._units.keep_connected(),
                    self._look_again_and_again(),
                    self._recorder.run(),
                    self._prober.run(),
                    self._gates.run(),
                    self._drift.run(),
                    control.serve(self._runtime_dir / control.NAME, self._actor.ask),
                )
            ]
            await self._stop.wait()
            notify("STOPPING=1")
            self._actor.cancel()
            for task in running:
                task.cancel()
        self._system.close()
        self._record([Record(clock.now(), "healer.stopped", {"reason": self._leaving})])

    # Memory

    def _remember(self) -> None:
        """Take up what the ledger tells of the runs before, and what they left untold."""
        self._history = history = fold(self._entries(), self._decisions)
        self._drift.state = history.drift
        for record in history.untold.records(clock.now()):
            self._tell(record)
        boot = history.last_run.at.boot if history.last_run is not None else None
        if boot != clock.boot_id():
            self._record([Record(clock.now(), "host.boot", {"previous_boot": boot})])
        booted = nix.systems(Path(self._config.safe_switch.profile)).booted
        rolled_back = booting.rolled_back(booted)
        if rolled_back is not None and rolled_back.boot != history.boot_rollback:
            record = rolled_back.record(clock.now())
            self._tell(record)
            self._tell(verdicts.condemned_by_boot(record))

    def _entries(self) -> Iterator[Entry]:
        """Read the ledger as far as it goes back."""
        for entry in self._ledger.history():
            if entry.seq % _TOLD_ENTRIES == 0:
                notify(_STILL_STARTING)
            yield entry

    async def _started(self) -> None:
        off = self._safe_switch_off
        data = {
            "version": __version__,
            "config_sha256": self._loaded.sha256,
            "agents": sorted(self._config.agents),
            "units": sorted(self._decisions.units),
            "safe_switch": f"off: {off}" if off else "on",
            "previous_end": await self._recorder.previous_end(self._history.last_run),
        }
        self._tell(Record(clock.now(), "healer.started", data))
        for intent in self._history.intents.values():
            self._actor.resume(intent)
        if self._history.unmeasured is not None:
            self._actor.measure(self._history.unmeasured)

    def _tell(self, record: Record) -> None:
        """Record a fact that was not decided, and decide by it from now on."""
        self._decisions.replay(record)
        self._record([record])

    def _record(self, records: Iterable[Record]) -> list["concurrent.futures.Future[Entry]"]:
        """Hand decided records to the ledger; intents among them are carried out when durable."""
        written = []
        for record in records:
            future = self._append(record)
            written.append(future)
            if record.type == "action.intent":
                self._actor.begin(record, future)
            elif record.type == "agent.crash" and self._may_roll_back:
                self._actor.expect_rollback()
            elif record.type == "agent.crash-loop" and self._may_roll_back:
                # Where others are unwell, what becomes of them in a moment is evidence, too.
                if self._decisions.is_alone(record.data["agent"]):
                    self._spent = True
                    self._wake.set()
            elif deployment.is_other(record):
                self._actor.measure(record)
        return written

    @property
    def _may_roll_back(self) -> bool:
        """Whether a crash may be the one to roll back for: then no moment is lost."""
        if self._safe_switch_off is not None:
            return False
        state = self._decisions.deployment
        return state.on_probation and state.known_good is not None and not state.answered

    def _append(self, record: Record) -> "concurrent.futures.Future[Entry]":
        log.log(report.level(record), "%s", report.one_line(record))
        self._publisher.changed()
        return self._ledger.append(record.type, record.data, incident=record.incident)

    # Looking

    async def _look_again_and_again(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await self._look()
            self._look_sec = loop.time() - began
            self._alive()
            try:
                async with asyncio.timeout_at(next_beat(loop.time(), 0, _TICK_SEC)):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    async def _look(self) -> None:
        """Look at the host once, in the order of causes, and record what follows."""
        if self._reload:
            self._reload_config()
        systems = await self._system.look()
        self._alive()  # on a host that is overloaded a single step of these takes seconds
        await self._recorder.look_at_stamps(self._alive)
        if self._spent:
            # PID 1 is busy restarting: no answer of its is needed to judge who crashed just now.
            self._spent = False
            self._judge(systems)
        if await self._recorder.look_at_journal(self._alive):
            self._wake.set()
        self._alive()
        # Last, and nothing is waited for between this and the decisions: whoever crashed while
        # healer was away may be well again.
        await self._look_at_units(systems)
        self._alive()
        self._look_at_clock()
        self._look_at_ledger()
        if self._safe_switch_off is None:
            self._judge(systems)
            self._coming_up.look(systems, self._units.states)
        self._gates.look_again()
        self._record(self._decisions.escalate(self._units.fresh, systems, clock.now()))
        self._publisher.publish(lambda: self._status(systems))

    def _judge(self, systems: Systems) -> None:
        """Judge the deployment by what is recorded, and by the host's state where it is known."""
        judging = self._decisions.deployment.on_probation
        trouble = self._environment.look() if judging else None
        states, fresh, now = self._units.states, self._units.fresh, clock.now()
        self._record(self._decisions.on_tick(states, systems, now, trouble, fresh))

    async def _look_at_units(self, systems: Systems) -> None:
        await self._units.refresh(self._alive)
        now = clock.now()
        states = self._units.fresh
        for unit in self._decisions.in_incidents():
            if unit in states:
                self._record(self._decisions.on_unit(unit, states[unit], systems, now))
        self._record(self._decisions.on_restarts(states, now))
        if not self._reload:  # else what a deployment took away may be declared no more in a moment
            self._record(self._decisions.on_gone(self._units.gone, systems, now))
        if self._decisions.holds.placed:
            self._record(self._decisions.on_holds(holds.units(self._runtime_dir), now))

    def _look_at_clock(self) -> None:
        offset = _clock_offset_us()
        step = offset - self._clock_offset_us
        self._clock_offset_us = offset
        if abs(step) > _CLOCK_STEP_US:
            self._record([Record(clock.now(), "host.clock-step", {"step_us": step})])

    def _look_at_ledger(self) -> None:
        reason = self._ledger.health().reason
        if reason != self._ledger_trouble:
            if reason is None:
                log.info("the ledger can be written again")
            else:
                log.error("%s; entries wait in memory", reason)
            self._ledger_trouble = reason
            self._publisher.changed()

    def _leave(self, reason: str) -> None:
        """End this run; Restart=always begins the next."""
        log.info("leaving: %s", reason)
        self._leaving = reason
        self._stop.set()

    def _alive(self) -> None:
        """Tell systemd that the loop gets on (WatchdogSec=)."""
        notify("WATCHDOG=1")

    def _unit_changed(self, failed: bool) -> None:
        """Wake the loop; after a failure the journal's record of it is there soon."""
        self._publisher.changed()
        if failed:
            self._recorder.journal_soon()
        self._settle()

    def _died(self, unit: str, invocation: str) -> None:
        self._system.expect()
        self._recorder.died(unit, invocation)

    def _settle(self) -> None:
        """Wake the loop in a moment: one restart is a dozen signals, and each look asks PID 1, who
        is busy restarting.
        """
        loop = asyncio.get_running_loop()
        if self._settling is None or self._settling.when() <= loop.time():
            # In a storm a look takes long, and the next one finds the more.
            rest = min(max(_SETTLE_SEC, self._look_sec), _TICK_SEC)
            self._settling = loop.call_later(rest, self._wake.set)

    # Drift

    def _drifted(self, found: Iterable[Finding], resolved: Iterable[Finding]) -> None:
        now = clock.now()
        self._record(Record(now, "drift.found", f.found(), f.incident) for f in found)
        self._record(Record(now, "drift.resolved", f.resolved(), f.incident) for f in resolved)

    # Configuration

    def _ask_reload(self) -> None:
        self._reload = True
        self._wake.set()

    def _reload_config(self) -> None:
        """Take over a new configuration; a bad one is refused and the old one stays in force."""
        if self._system.switching:
            return
        self._reload = False
        try:
            loaded = load(self._path)
        except ConfigError as error:
            if package_of(self._path) not in {None, self._config.package}:
                # Another version may have other options.
                self._give_way()
                return
            log.error("%s; the old configuration stays in force", error)
            self._record(
                [Record(clock.now(), "config.refused", {"errors": str(error).split("\n")})]
            )
            return
        if loaded.sha256 == self._loaded.sha256:
            return
        self._loaded = loaded
        replaced = loaded.config.package != self._config.package
        self._decisions.configure(loaded.config)
        self._drift.reload(loaded.config)
        self._prober.reload()
        self._safe_switch_off = self._why_safe_switch_is_off()
        self._texts.configure(loaded.config)
        self._units.declare(self._decisions.units)
        data = {
            "sha256": loaded.sha256,
            "agents": sorted(loaded.config.agents),
            "units": sorted(self._decisions.units),
        }
        self._tell(Record(clock.now(), "config.loaded", data))
        if replaced:
            self._give_way()

    def _give_way(self) -> None:
        self._leave("the system has another healer now: systemd starts that")

    def _why_safe_switch_is_off(self) -> str | None:
        if not self._config.safe_switch.enable:
            return "safeSwitch.enable is false"
        why = nix.unavailable_reason(Path(self._config.safe_switch.profile))
        return why or helper.why_not_obeyed(self._ledger.public_key)

    def _status(self, systems: Systems) -> Status:
        return report.build(
            self._loaded.sha256,
            self._decisions,
            self._units.states,
            systems,
            self._ledger,
            self._drift,
            self._safe_switch_off,
            switch_stuck=self._system.stuck,
        )


def _clock_offset_us() -> int:
    """Return how far CLOCK_REALTIME is ahead of CLOCK_BOOTTIME, in microseconds."""
    boottime = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return (time.clock_gettime_ns(time.CLOCK_REALTIME) - boottime) // 1000


async def run(path: Path, kept: Path | None = None) -> None:
    """Load the configuration, open the ledger and run the daemon until it is asked to stop.

    ``kept`` is read where the configuration at ``path`` is gone, at the start only: what was read
    anew since may be newer. Raises ConfigError, LedgerError, LedgerIOError or AlreadyRunningError
    before anything is done.
    """
    loaded = load(path, kept)
    config = loaded.config
    directory = Path(config.state_dir) / "ledger"
    credential = None
    if config.ledger.key_credential is not None:
        # systemd.exec(5), ImportCredential=; systemd sets no directory when it found none.
        directory_of = os.environ.get("CREDENTIALS_DIRECTORY", "/run/credentials/healer.service")
        credential = Path(directory_of) / config.ledger.key_credential
    ledger = Ledger.open(
        directory, origin=config.ledger.origin, boot=clock.boot_id(), credential=credential
    )
    try:
        await Daemon(path, loaded, ledger).run()
    except* HealerError as group:
        raise group.exceptions[0] from group
    finally:
        ledger.close()
