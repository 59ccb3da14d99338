"""Carrying out intents: asking root's helper, waiting for what becomes of it, telling the outcome.

An intent is durable in the ledger before anything here begins, and an action that a crash or a
power cut interrupted is begun again from its intent: each of them may be done twice.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from healer.config import Config
from healer.errors import HostUnavailableError
from healer.events import UnitState
from healer.helper import (
    CarryOut,
    Measure,
    RemoveStamps,
    Reply,
    Request,
    TellExcused,
    TellStable,
    TellUp,
)
from healer.host import clock, nix
from healer.ledger.entry import Entry
from healer.safeswitch import rebooting, rollback, trial

# How often the bus or the helper is tried, a second apart: a slow boot brings them up late.
_PATIENCE = 120
_RETRY_SEC = 1.0
# How long the helper may take for what is soon done.
_ANSWER_SEC = 60.0
_TRIAL_POLL_SEC = 0.5
# What only healer's memory has to know.
_RECORDED_ONLY = frozenset({"forgive"})
# What answers the crashes of an agent, and only these.
_FOR_CRASHES = frozenset({"quarantine", "reboot", "give-up", "rollback"})
# What is tried again so often: systemd refuses what it is asked while it is executed anew.
_AGAIN = frozenset({"reset", "release"})
_TRIES = 10
# Stopping everything in order may take long: TimeoutStopSec= is 90 s for each unit.
_REBOOT_SEC = 600.0
_MEASURE_SEC = 300.0
_JUST_NOW_MS = 500
_DROPPED_SEC = 0.2
# What PID 1 starts a helper from, unless the system that it belongs to is gone.
_HELPER = Path("/etc/systemd/system/healer-helper@.service")
# How long a helper is kept ready after the last crash.
_STANDBY_SEC = 60.0
RETRY_REMOVAL_SEC = 10.0
"""Pause after stamps could not be removed."""

UnitStates = Callable[[str], Awaitable[UnitState | None]]
_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True)
class Done:
    """What became of an intent, as root's helper says in a ``Reply``."""

    ok: bool
    detail: str
    running: str | None = None
    lasts: bool = True
    steps: dict[str, int] = field(default_factory=dict)
    waiting: str | None = None
    figures: dict[str, int] = field(default_factory=dict)


class Standby:
    """A helper that has started already, for the request that is expected soon.

    Starting one takes longer than what it then has to do before a switch begins. It has read its
    configuration already: where that is another one now, it is let go.
    """

    def __init__(self) -> None:
        self._config: Config | None = None
        self._connection: _Connection | None = None
        self._end: asyncio.TimerHandle | None = None
        self._turn = asyncio.Lock()

    async def prepare(self, config: Config) -> None:
        """Have a helper ready for a while; does nothing but extend that if one is ready."""
        async with self._turn:
            if self._end is not None:
                self._end.cancel()
            if self._config is not config:
                self.close()
            if self._connection is None:
                self._config = config
                # A host that does not answer is met again by the request itself.
                with contextlib.suppress(OSError, TimeoutError):
                    self._connection = await _connect(config)
            self._end = asyncio.get_running_loop().call_later(_STANDBY_SEC, self.close)

    def take(self, config: Config) -> "_Connection | None":
        """Return the connection to the helper that is ready, if one is, and have none any more."""
        connection = None
        if self._config is config:
            connection, self._connection = self._connection, None
        self.close()
        return connection

    def close(self) -> None:
        """Let the helper go."""
        if self._end is not None:
            self._end.cancel()
            self._end = None
        if self._connection is not None:
            self._connection[1].close()
            self._connection = None


async def carry_out(
    intent: Entry,
    config: Config,
    unit_state: UnitStates,
    standby: Standby,
    waits: Callable[[Done], None],
) -> Done:
    """Carry out one intent and return its outcome; bounded in attempts and in time.

    ``waits`` is told, once, of a rollback that is complete only after a reboot.
    """
    done = Done(False, "not begun")
    for attempt in range(_PATIENCE):
        if attempt:
            await asyncio.sleep(_RETRY_SEC)
        try:
            if (why := await _has_held(intent, config, unit_state)) is not None:
                return Done(False, why)
            if intent.data["action"] == "rollback":
                done = await _roll_back(intent, config, standby, waits)
            elif intent.data["action"] == "try":
                done = await _try(intent, config, unit_state)
            elif intent.data["action"] in _RECORDED_ONLY:
                done = Done(True, "recorded")
            else:
                is_reboot = intent.data["action"] == "reboot"
                limit = rollback.longest_sec(config) if is_reboot else _ANSWER_SEC
                done = await _done(CarryOut(intent.seq), config, limit)
                if done.ok and is_reboot and intent.boot == clock.boot_id():
                    # The next boot tells the outcome, unless there is none.
                    await asyncio.sleep(_REBOOT_SEC)
                    done = Done(False, f"the host did not go down within {_REBOOT_SEC:g} s")
        except (OSError, TimeoutError, HostUnavailableError, msgspec.MsgspecError) as error:
            done = Done(False, f"the host does not answer: {error or type(error).__name__}")
            continue
        if done.ok or not _is_tried_again(intent, attempt):
            return done
    return done


def _is_tried_again(intent: Entry, attempt: int) -> bool:
    """Whether a refusal may be a matter of the moment; a person who asked is told of it instead."""
    if intent.data["action"] not in _AGAIN or intent.data.get("asked_by") is not None:
        return False
    return intent.boot == clock.boot_id() and attempt + 1 < _TRIES


async def _has_held(intent: Entry, config: Config, unit_state: UnitStates) -> str | None:
    """Say that the agent whose crashes an intent answers is well again, before anything is done.

    Between the two healer may have been down, or the host too busy to answer.
    """
    data = intent.data
    agent = config.agents.get(data.get("agent") or "")
    if agent is None or data["action"] not in _FOR_CRASHES or data.get("asked_by") is not None:
        return None
    going_back = data["action"] == "rollback"
    if intent.boot != clock.boot_id() or (going_back and rollback.has_begun(intent)):
        return None
    if going_back and clock.uptime_ms() - intent.boottime_us // 1000 < _JUST_NOW_MS:
        return None  # it was asked for that decision, and systemd is busy restarting the agent
    try:
        unit = await unit_state(agent.unit)
    except HostUnavailableError:
        if going_back:  # needs no bus, and may be what brings it back
            return None
        raise
    if unit is None or not unit.has_held(agent.stable_sec, clock.uptime_ms()):
        return None
    return f"{agent.unit} has been up for {agent.stable_sec:g} s: there is nothing to answer"


async def _roll_back(
    intent: Entry, config: Config, standby: Standby, waits: Callable[[Done], None]
) -> Done:
    """Have the rollback done; where it waits for a reboot, ask again when it can go on."""
    limit = rollback.longest_sec(config)
    done = await _done(CarryOut(intent.seq), config, limit, standby.take(config))
    if done.waiting is not None:
        waits(done)
    while done.waiting is not None:
        goes_down = await _until_it_may_go_on(config)
        done = await _done(CarryOut(intent.seq), config, limit)
        if goes_down and done.waiting is not None:
            await asyncio.sleep(_REBOOT_SEC)
    return done


async def _until_it_may_go_on(config: Config) -> bool:
    """Wait until the host may be rebooted; False when another system runs, or is to boot, before.

    Only one of the two makes a difference to a rollback that waits for a reboot.
    """
    profile = Path(config.safe_switch.profile)
    before = nix.systems(profile)
    while not rebooting.may_reboot(config.safe_switch, clock.minute_of_day()):
        await asyncio.sleep(_RETRY_SEC)
        now = nix.systems(profile)
        if (now.current, now.profile) != (before.current, before.profile):
            return False
    return True


async def _try(intent: Entry, config: Config, unit_state: UnitStates) -> Done:
    """Begin a trial and wait for its end, as long as a person takes; or take up one that began."""
    refusals = 0
    while True:
        going = trial.of(intent)
        if going is not None and going.phase == "done":
            return Done(going.ok, going.detail, going.running)
        try:
            unit = await unit_state(trial.UNIT)
        except HostUnavailableError:
            if going is None or going.boot != clock.boot_id():
                raise
            # It needs no bus, and may be about to bring it back; its file tells how it ends.
            await asyncio.sleep(_TRIAL_POLL_SEC)
            continue
        # Between two runs of its process the unit waits to be started again.
        if going is None or going.boot != clock.boot_id() or unit is None or unit.gave_up:
            begun = await _done(CarryOut(intent.seq), config)
            refusals = 0 if begun.ok else refusals + 1
            # What has begun is not given up lightly: systemd starts nothing while it shuts down.
            if refusals > (0 if going is None else _PATIENCE):
                return begun
        await asyncio.sleep(_TRIAL_POLL_SEC)


async def remove_stamps(names: list[str], config: Config) -> Done:
    """Have root remove stop stamps whose ends are durable in the ledger."""
    try:
        return await _done(RemoveStamps(names), config)
    except (OSError, TimeoutError) as error:
        return Done(False, f"the helper does not answer: {error or type(error).__name__}")


async def measure(before: str, after: str, config: Config) -> dict[str, int]:
    """Have root measure how two toplevels differ; empty where that cannot be known."""
    try:
        return (await _done(Measure(before, after), config, _MEASURE_SEC)).figures
    except (OSError, TimeoutError):
        return {}


async def tell(what: TellUp | TellExcused | TellStable, config: Config) -> None:
    """Tell root what healer has found, however long it takes until its helper answers."""
    while True:
        with contextlib.suppress(OSError, TimeoutError):
            await _done(what, config)
            return
        await asyncio.sleep(_RETRY_SEC)


async def _done(
    request: Request,
    config: Config,
    timeout_sec: float = _ANSWER_SEC,
    connection: _Connection | None = None,
) -> Done:
    """Send one request to root's helper and return what became of it.

    ``connection`` is one to a helper that waits for its request; if that one is gone, another is
    started.
    """
    async with asyncio.timeout(timeout_sec):
        if connection is not None:
            with contextlib.suppress(OSError):
                return await _ask(request, connection)
        return await _ask(request, await _connect(config))


def _is_being_dropped() -> bool:
    """Whether a switch to a system without healer is under way."""
    return not _HELPER.exists() and nix.is_locked(nix.SWITCH_LOCK)


async def _connect(config: Config) -> _Connection:
    """Have systemd start a helper; ConnectionError names the socket where it does not.

    Not while a switch drops healer: once that has taken the helper's unit away, and until PID 1 has
    found the copy of it, a start would be the end of the socket.
    """
    while _is_being_dropped():
        await asyncio.sleep(_DROPPED_SEC)
    path = Path(config.runtime_dir) / "helper.sock"
    try:
        return await asyncio.open_unix_connection(path)
    except OSError as error:
        raise ConnectionError(
            f"root's helper is not there at {path} ({error.strerror}); look at: systemctl status "
            "healer-helper.socket"
        ) from error


async def _ask(request: Request, connection: _Connection) -> Done:
    stream, writer = connection
    try:
        writer.write(msgspec.json.encode(request) + b"\n")
        await writer.drain()
        reply = msgspec.json.decode(await stream.readline(), type=Reply)
    except ValueError as error:  # longer than asyncio takes, or no reply
        raise ConnectionError(f"the helper's answer cannot be read: {error}") from error
    finally:
        writer.close()
    return Done(**msgspec.structs.asdict(reply))
