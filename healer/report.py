"""What the daemon tells people: a line in the journal for each record, and the status file."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from healer import __version__, status
from healer.decisions import Decisions
from healer.drift.watch import DriftWatcher
from healer.events import Instant, Systems, UnitState
from healer.host import clock, holds, timers
from healer.incident import words
from healer.ledger.writer import Ledger
from healer.records import Record
from healer.safeswitch import trial
from healer.safeswitch.probation import probation_left_ms
from healer.safeswitch.state import DeploymentState
from healer.status import (
    AgentStatus,
    DeploymentStatus,
    GateStatus,
    LastCrash,
    LedgerStatus,
    Status,
)
from healer.watchdog import waiting
from healer.watchdog.health import Outcome

log = logging.getLogger(__name__)

# `healer status` takes an older file for a sign that healer does not run.
_REPEAT_MS = 10_000
_CRITICAL = frozenset(
    {"agent.gave-up", "agent.missing", "boot.rolled-back", "rollback.staged", "switch.stuck"}
)
# However fast things change, saying so takes at most this part of one core.
_PART = 10

_HEALTH: dict[Outcome | None, Literal["ok", "failing", "unknown"]] = {
    Outcome.OK: "ok",
    Outcome.FAILED: "failing",
}


def one_line(record: Record) -> str:
    """Return a record as one line for the journal."""
    incident = f" [{record.incident}]" if record.incident else ""
    return words.line(record.type, record.data) + incident


def level(record: Record) -> int:
    """Return the priority of that line: what needs a person is critical."""
    critical = record.type in _CRITICAL or _needs_a_person(record)
    return logging.CRITICAL if critical else logging.INFO


def _needs_a_person(record: Record) -> bool:
    """Whether it tells that a rollback failed, or does not outlive the next boot."""
    data = record.data
    if record.type != "action.outcome" or data["action"] != "rollback":
        return False
    return data.get("lasts") is False or (not data["ok"] and data.get("asked_by") is None)


class Publisher:
    """Writes the status file after a change, and from time to time as a sign of life."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / status.NAME
        self._due_ms = 0
        self._rested_ms = 0
        self._trouble: str | None = None

    def changed(self) -> None:
        """Have the next ``publish`` write."""
        self._due_ms = 0

    def publish(self, build: Callable[[], Status]) -> None:
        """Write the status that ``build`` makes, if it is time."""
        now = clock.uptime_ms()
        if now < max(self._due_ms, self._rested_ms):
            return
        self._due_ms = now + _REPEAT_MS
        trouble = None
        try:
            status.write(self._path, build())
        except OSError as error:
            trouble = error.strerror
        if trouble is not None and trouble != self._trouble:
            log.warning("cannot write %s: %s; trying again", self._path, trouble)
        self._trouble = trouble
        done = clock.uptime_ms()
        self._rested_ms = done + (done - now) * _PART


def build(
    config_sha256: str,
    decisions: Decisions,
    units: dict[str, UnitState],
    systems: Systems,
    ledger: Ledger,
    drift: DriftWatcher,
    safe_switch_off: str | None,
    *,
    switch_stuck: bool,
) -> Status:
    """Say how the host is now."""
    now = clock.now()
    health = ledger.health()
    held = holds.units(Path(decisions.config.runtime_dir))
    return Status(
        updated_us=time.time_ns() // 1000,
        updated_boottime_us=now.uptime_ms * 1000,
        pid=os.getpid(),
        version=__version__,
        config_sha256=config_sha256,
        agents={
            name: _agent(name, decisions, units.get(agent.unit), held, now)
            for name, agent in decisions.config.agents.items()
        },
        deployment=msgspec.structs.replace(
            _deployment(decisions, systems, safe_switch_off, now), switch_stuck=switch_stuck
        ),
        drift=tuple(finding.found() for finding in sorted(drift.state.known, key=str)),
        drift_off=drift.off,
        ledger=LedgerStatus(
            size=health.size,
            head=health.head,
            ok=health.ok,
            reason=health.reason,
            spooled=health.spooled,
        ),
    )


def _agent(
    name: str, decisions: Decisions, unit: UnitState | None, held: frozenset[str], now: Instant
) -> AgentStatus:
    declared, known = decisions.config.agents[name], decisions.agent(name)
    streaks = {check.name: decisions.streaks.get((name, check.name)) for check in declared.health}
    # systemd was not asked yet, or it is not known what it says.
    state = "not-found" if declared.unit in decisions.missing else "unknown"
    due_ms = waiting.until_ms(known.last_crash, unit, now) if unit else None
    if due_ms is not None and not timers.is_armed(declared.unit):
        due_ms = None  # somebody has stopped it
    return AgentStatus(
        unit=declared.unit,
        active_state=unit.active_state if unit else state,
        sub_state=unit.sub_state if unit else state,
        pid=(unit.main_pid or None) if unit else None,
        invocation=(unit.invocation or None) if unit else None,
        since_us=(unit.since_us or None) if unit else None,
        n_restarts=unit.n_restarts if unit else 0,
        crashes=known.crashes,
        last_crash=_last_crash(known.last_crash),
        health={
            check: _HEALTH.get(streak.outcome if streak else None, "unknown")
            for check, streak in streaks.items()
        },
        incident=known.story,
        quarantines=known.ladder.quarantines,
        gave_up=known.ladder.gave_up.reason if known.ladder.gave_up is not None else None,
        held=_held(Path(decisions.config.runtime_dir), declared.unit)
        if declared.unit in held
        else None,
        restart_due_us=None if due_ms is None else now.time_us + (due_ms - now.uptime_ms) * 1000,
        restart_timer=None if due_ms is None else timers.restart_timer(declared.unit),
    )


def _held(runtime_dir: Path, unit: str) -> str | None:
    hold = holds.read(runtime_dir, unit)
    if hold is None:
        return None
    if hold.until_ms is None:
        return hold.reason
    left_us = max(0, hold.until_ms - clock.uptime_ms()) * 1000
    return f"{hold.reason}, for at most {words.duration(left_us)} more"


def _last_crash(crash: Record | None) -> LastCrash | None:
    if crash is None:
        return None
    return LastCrash(
        time_us=crash.at.time_us,
        crash_class=crash.data["class"],
        words=words.ending(crash.data),
        status=crash.data["status"],
    )


def _gate(name: str, known: DeploymentState) -> GateStatus:
    failing = known.failing.get(name)
    if failing is not None:
        return GateStatus(state="failed", detail=failing.detail)
    return GateStatus(state="passed" if name in known.passed else "unknown")


def _trial() -> str | None:
    going = trial.under_way()
    if going is None:
        return None
    if going.phase != "waiting" or going.until_ms is None:
        return f"{going.target} is {going.phase}"
    left_us = max(0, going.until_ms - clock.uptime_ms()) * 1000
    return f"{words.duration(left_us)} left to confirm it: healer safeswitch confirm"


def _deployment(
    decisions: Decisions, systems: Systems, safe_switch_off: str | None, now: Instant
) -> DeploymentStatus:
    known = decisions.deployment
    left_ms = probation_left_ms(known, decisions.config.safe_switch, now)
    state: Literal["known-good", "provisional", "unknown"] = "unknown"
    if known.current is not None:
        state = "provisional" if known.on_probation else "known-good"
    return DeploymentStatus(
        toplevel=systems.current,
        generation=systems.generation,
        state=state,
        known_good=known.known_good,
        probation_left_s=None if left_ms is None else left_ms // 1000,
        switching=systems.switching,
        safe_switch=f"off: {safe_switch_off}" if safe_switch_off else "on",
        gates={gate.name: _gate(gate.name, known) for gate in decisions.config.safe_switch.gates},
        waiting_for=known.staged or known.waiting_for,
        known_goods=known.known_goods,
        condemned=tuple(sorted(known.condemned)),
        trial=_trial(),
        booted=systems.booted,
        profile=systems.profile,
        boot_default=systems.boot_default,
        specialisation=systems.specialisation,
        base=systems.base,
        lasts=known.lasts,
    )
