"""Carrying out intents: asking root's helper, waiting for what becomes of it, telling the outcome.

An intent is durable in the ledger before anything here begins, and an action that a crash or a
power cut interrupted is begun again from its intent: each of them may be done twice.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from healer.config import Config
from healer.errors import HostUnavailableError
from healer.events import UnitState
from healer.helper import CarryOut, RemoveStamps, Reply, Request
from healer.host import clock, nix
from healer.ledger.entry import Entry
from healer.safeswitch import rollback, trial
from healer.safeswitch.rollback import Progress

_ATTEMPTS = 3
# How often the bus or the helper is tried, a second apart: a slow boot brings them up late.
_PATIENCE = 120
_RETRY_SEC = 1.0
_POLL_SEC = 0.1
_TRIAL_POLL_SEC = 0.5
# What only healer's memory has to know.
_RECORDED_ONLY = frozenset({"condemn", "forgive"})
# Stopping everything in order may take long: TimeoutStopSec= is 90 s for each unit.
_REBOOT_SEC = 600.0
RETRY_REMOVAL_SEC = 10.0
"""Pause after stamps could not be removed."""


@dataclass(frozen=True, slots=True)
class Done:
    """What became of an intent; ``steps`` holds milliseconds by step."""

    ok: bool
    detail: str
    running: str | None = None
    steps: dict[str, int] = field(default_factory=dict)


async def carry_out(
    intent: Entry,
    config: Config,
    unit_state: Callable[[str], Awaitable[UnitState | None]],
) -> Done:
    """Carry out one intent and return its outcome; bounded in attempts and in time."""
    done = Done(False, "not begun")
    for attempt in range(_PATIENCE):
        if attempt:
            await asyncio.sleep(_RETRY_SEC)
        try:
            if intent.data["action"] == "rollback":
                done = await _roll_back(intent, config, unit_state)
            elif intent.data["action"] == "try":
                done = await _try(intent, config, unit_state)
            elif intent.data["action"] in _RECORDED_ONLY:
                done = Done(True, "recorded")
            else:
                reply = await _ask(CarryOut(intent.seq), config)
                done = Done(reply.ok, reply.detail, reply.running)
                if done.ok and intent.data["action"] == "reboot" and intent.boot == clock.boot_id():
                    # The next boot tells the outcome, unless there is none.
                    await asyncio.sleep(_REBOOT_SEC)
                    done = Done(False, f"the host did not go down within {_REBOOT_SEC:g} s")
        except (OSError, TimeoutError, HostUnavailableError, msgspec.MsgspecError) as error:
            done = Done(False, f"the host does not answer: {error or type(error).__name__}")
            continue
        return done
    return done


async def _roll_back(
    intent: Entry,
    config: Config,
    unit_state: Callable[[str], Awaitable[UnitState | None]],
) -> Done:
    """Start the rollback's own unit and wait for it; begin again where it was killed half-way."""
    last = Done(False, "the rollback's unit ended before the rollback did")
    for _ in range(_ATTEMPTS):
        progress = rollback.read_progress(intent)
        if progress is None or not progress.done:
            unit = await unit_state(rollback.UNIT)
            if unit is None or unit.gave_up:
                reply = await _ask(CarryOut(intent.seq), config)
                if not reply.ok:
                    return Done(False, reply.detail)
            progress = await _wait(intent, config, unit_state)
        if progress is not None and progress.done:
            return Done(progress.ok, progress.detail, progress.running, progress.steps)
        running = nix.systems(Path(config.safe_switch.profile))
        if running.current == running.profile == intent.data["target"]:
            return Done(True, "its progress could not be written down", running.current)
    return last


async def _wait(
    intent: Entry,
    config: Config,
    unit_state: Callable[[str], Awaitable[UnitState | None]],
) -> Progress | None:
    """Wait until the rollback is done or its unit is gone; systemd bounds the unit's time."""
    async with asyncio.timeout(config.safe_switch.timeout_sec + 60):
        while True:
            await asyncio.sleep(_POLL_SEC)
            unit = await unit_state(rollback.UNIT)
            progress = rollback.read_progress(intent)
            if (progress is not None and progress.done) or unit is None or unit.gave_up:
                return progress


async def _try(
    intent: Entry,
    config: Config,
    unit_state: Callable[[str], Awaitable[UnitState | None]],
) -> Done:
    """Begin a trial and wait for its end, as long as a person takes; or take up one that began."""
    while True:
        going = trial.of(intent)
        if going is not None and going.phase == "done":
            return Done(going.ok, going.detail, going.running)
        unit = await unit_state(trial.UNIT)
        # Between two runs of its process the unit waits to be started again.
        if going is None or going.boot != clock.boot_id() or unit is None or unit.gave_up:
            reply = await _ask(CarryOut(intent.seq), config)
            if not reply.ok:
                return Done(False, reply.detail, reply.running)
        await asyncio.sleep(_TRIAL_POLL_SEC)


async def remove_stamps(names: list[str], config: Config) -> Done:
    """Have root remove stop stamps whose ends are durable in the ledger."""
    try:
        reply = await _ask(RemoveStamps(names), config)
    except (OSError, TimeoutError, msgspec.MsgspecError) as error:
        return Done(False, f"the helper does not answer: {error or type(error).__name__}")
    return Done(reply.ok, reply.detail)


async def _ask(request: Request, config: Config) -> Reply:
    """Send one request to root's helper and return its reply."""
    path = Path(config.runtime_dir) / "helper.sock"
    async with asyncio.timeout(60):
        stream, writer = await asyncio.open_unix_connection(path)
        try:
            writer.write(msgspec.json.encode(request) + b"\n")
            await writer.drain()
            return msgspec.json.decode(await stream.readline(), type=Reply)
        finally:
            writer.close()
