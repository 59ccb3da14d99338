"""Root's side: a few fixed verbs, each done only for a signed intent that has no outcome yet.

The daemon runs without root. For what needs root it asks over a socket that only it can open, and
systemd starts one of these for each request. The request names nothing but an intent, by its
sequence number in the ledger; what to do is read from there and checked: the entry's signature
against the key that root pinned when it first saw the ledger, that no outcome follows, and that
the machine allows it (a unit that is declared, a toplevel that root itself rooted as known-good).
So whoever takes over the daemon can restart and stop agents, and return to a system that was good,
with a reboot or without; no more. For more, root itself must have asked: see
healer/safeswitch/requests.py.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import msgspec

from healer.config import Config
from healer.errors import HealerError, LedgerError, RefusedError
from healer.host import clock, closure, holds, known_good, nix, power, stamps
from healer.ledger import entry as ledger_entry
from healer.ledger import keys, reader
from healer.ledger.entry import Entry
from healer.safeswitch import booting, requests, rollback

_PINNED_KEY = rollback.PROGRESS_DIR / "ledger.pub"
_MAX_REQUEST = 1024 * 1024
_KILL_GRACE_SEC = 10.0
# Less than the daemon waits for an answer.
_STOP_SEC = 50.0


class CarryOut(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The request to carry out the intent at this sequence number of the ledger."""

    intent: int


class RemoveStamps(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The request to remove stop stamps, by file name, whose ends are durable in the ledger.

    It needs no intent: the daemon could as well not have recorded them.
    """

    names: list[str]


class TellUp(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The request to begin the count of boots anew, because every agent is up.

    It needs no intent: the daemon decides by itself what is up.
    """


class Measure(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The request to measure how two toplevels differ. It needs no intent: it changes nothing."""

    before: str
    after: str


Request = CarryOut | RemoveStamps | TellUp | Measure


class Reply(msgspec.Struct, frozen=True):
    """What became of it; ``running`` is the active toplevel where that matters.

    ``steps`` holds milliseconds by step. ``waiting`` says what it waits for that is not done yet.
    ``figures`` holds what was measured.
    """

    ok: bool
    detail: str
    running: str | None = None
    steps: dict[str, int] = {}
    waiting: str | None = None
    figures: dict[str, int] = {}


def serve(config: Config) -> None:
    """Answer the one request on standard input, on standard output; both are the socket.

    The request may come later than the connection: healer has a helper ready when it expects to
    need one soon. None comes when it was not needed.
    """
    line = sys.stdin.buffer.readline(_MAX_REQUEST)
    if not line:
        return
    try:
        reply = _answer(config, line)
    except msgspec.MsgspecError as error:
        reply = Reply(False, f"not a request: {error}")
    except (HealerError, OSError) as error:
        reply = Reply(False, str(error))
    print(f"healer helper: {reply.detail}", file=sys.stderr)
    # Whoever asked may be gone; what was done is done, and told to who asks again.
    with contextlib.suppress(BrokenPipeError, ConnectionError):
        sys.stdout.buffer.write(msgspec.json.encode(reply) + b"\n")
        sys.stdout.flush()


def _answer(config: Config, line: bytes) -> Reply:
    request: Request = msgspec.json.decode(line, type=Request)
    if isinstance(request, RemoveStamps):
        try:
            removed = stamps.remove(Path(config.runtime_dir) / "stamps", request.names)
        except ValueError as error:
            raise RefusedError(str(error)) from error
        return Reply(True, f"removed {removed} stamps")
    if isinstance(request, TellUp):
        booting.forget()
        return Reply(True, "the host is up")
    if isinstance(request, Measure):
        nix.check_toplevel(request.before)
        nix.check_toplevel(request.after)
        figures = asdict(closure.between(request.before, request.after))
        return Reply(True, f"measured {request.after}", figures=figures)
    intent = signed_intent(config, request.intent)
    return _VERBS[str(intent.data["action"])](config, intent)


def signed_intent(config: Config, seq: int) -> Entry:
    """Return the intent at ``seq`` once everything about it was checked; else RefusedError."""
    directory = Path(config.state_dir) / "ledger"
    found: Entry | None = None
    for entry in reader.mentioning(directory, seq):
        if entry.seq == seq:
            found = entry
        elif entry.type == "action.outcome" and entry.data.get("intent") == seq:
            raise RefusedError(f"intent {seq} has its outcome already, in entry {entry.seq}")
    if found is None:
        raise RefusedError(f"the ledger in {directory} has no entry {seq}")
    if found.type != "action.intent" or found.data.get("action") not in _VERBS:
        raise RefusedError(f"entry {seq} is no intent that the helper knows ({found.type})")
    _check_signature(found, directory)
    return found


def _pinned_key(directory: Path) -> bytes:
    """Return the key that root saw first; the ledger cannot change it afterwards."""
    if not _PINNED_KEY.exists():
        _PINNED_KEY.parent.mkdir(mode=0o755, exist_ok=True)
        offered = directory / keys.PUBLIC_KEY_FILE
        if offered.is_symlink():
            raise RefusedError(f"{offered} is a link")
        keys.export_public(_PINNED_KEY.parent, keys.public_key(keys.load_public(offered)))
    return keys.load_public(_PINNED_KEY)


def _check_signature(intent: Entry, directory: Path) -> None:
    try:
        ledger_entry.check_signature(intent, keys.public_key(_pinned_key(directory)))
    except LedgerError as error:
        raise RefusedError(
            f"entry {intent.seq}: {error}. If the ledger was begun anew on purpose, remove "
            f"{_PINNED_KEY}: it holds the key of the ledger that root saw first"
        ) from error


def _kill(config: Config, intent: Entry) -> Reply:
    """End an agent that fails its health check, so that systemd restarts it by its policy.

    SIGABRT as systemd's own watchdog sends (systemd.service(5) WatchdogSignal=), then SIGKILL. A
    restart job would reset systemd's restart counter, and with it the backoff.
    """
    unit, invocation = _agent_unit(config, intent), intent.data["invocation"]
    if _invocation(unit) == invocation:
        stamps.mark_unhealthy(Path(config.runtime_dir) / "stamps", unit, invocation)
    for signal, wait_sec in (("SIGABRT", _KILL_GRACE_SEC), ("SIGKILL", _KILL_GRACE_SEC)):
        if _invocation(unit) != invocation:
            return Reply(True, f"invocation {invocation} of {unit} is gone")
        _systemctl("kill", "--kill-whom=main", f"--signal={signal}", unit)
        if _wait(lambda: _invocation(unit) != invocation, wait_sec):
            return Reply(True, f"{signal} ended invocation {invocation} of {unit}")
    return Reply(False, f"{unit} survives SIGKILL: it hangs in the kernel")


def _reset(config: Config, intent: Entry) -> Reply:
    """Reset systemd's restart counter, from which RestartSteps= takes the delay."""
    unit = _agent_unit(config, intent)
    _systemctl("reset-failed", unit)
    return Reply(True, f"the restart counter of {unit} is 0")


def _restart(config: Config, intent: Entry) -> Reply:
    """Restart an agent, once, because somebody asked."""
    unit = _agent_unit(config, intent)
    hold = holds.read(Path(config.runtime_dir), unit)
    if hold is not None:
        raise RefusedError(f"{unit} is held back: {hold.reason}; release it instead")
    _systemctl("restart", unit)
    return Reply(True, f"{unit} was restarted")


def _hold(config: Config, intent: Entry) -> Reply:
    """Stop an agent and keep it down; a timer of PID 1's ends that, also without healer.

    The end is counted from the intent, so that to do it twice is to do it once. A quarantine does
    not replace a hold that lasts longer; what a person asks for replaces any.
    """
    unit, reason = _agent_unit(config, intent), str(intent.data["reason"])
    until_ms = intent.boottime_us // 1000 + int(intent.data["ttl_sec"]) * 1000
    left_ms = until_ms - clock.uptime_ms()
    if intent.boot != clock.boot_id():
        raise RefusedError("the host has booted since, and a hold ends with its boot")
    if left_ms <= 0:
        return Reply(False, f"the time for which {unit} was to be held back is over")
    with holds.exclusively():
        before = holds.read(Path(config.runtime_dir), unit)
        if before is not None and _outlasts(before, intent, until_ms):
            return Reply(False, f"{unit} is held back already: {before.reason}")
        # The timer comes first: nothing is ever held that nothing will release.
        _arm_release(config, unit, intent.seq, left_ms)
        holds.write(Path(config.runtime_dir), unit, holds.Hold(reason, until_ms, intent.seq))
        _systemctl("stop", "--no-block", unit)
        if before is not None and before.intent != intent.seq:
            _disarm_release(unit, before)
    if not _wait_until_down(config, unit, intent.seq):
        return Reply(False, f"{unit} was let go again before it was down")
    return Reply(True, f"{unit} is held back for at most {left_ms // 1000} s")


def _outlasts(hold: holds.Hold, intent: Entry, until_ms: int) -> bool:
    """Whether a hold stays as it is: whom healer gave up a person releases first."""
    if hold.until_ms is None:
        return True
    return "asked_by" not in intent.data and hold.until_ms > until_ms


def _give_up(config: Config, intent: Entry) -> Reply:
    """Stop an agent and keep it down, over reboots too, until somebody releases it."""
    unit = _agent_unit(config, intent)
    hold = holds.Hold(str(intent.data["reason"]), None, intent.seq)
    with holds.exclusively():
        holds.write(Path(config.runtime_dir), unit, hold)
        _systemctl("stop", "--no-block", unit)
        holds.write_lasting(unit, hold)
    if not _wait_until_down(config, unit, intent.seq):
        return Reply(False, f"{unit} was let go again before it was down")
    return Reply(True, f"{unit} is stopped and held back until somebody releases it")


def _arm_release(config: Config, unit: str, intent_seq: int, left_ms: int) -> None:
    """Have PID 1 release this very hold, once; a timer that is there already is the same one."""
    if config.package is None:
        raise RefusedError("config: package is null, so there is no program to release the agent")
    name = _release_unit(unit, intent_seq)
    if _systemctl("show", "--property=LoadState", "--value", f"{name}.timer").strip() == "loaded":
        return
    _systemd_run(
        f"--on-active={left_ms}ms",
        "--timer-property=AccuracySec=1s",
        f"--unit={name}",
        f"{config.package}/bin/healer",
        "helper",
        f"--release={unit}",
        f"--hold={intent_seq}",
    )


def _disarm_release(unit: str, hold: holds.Hold) -> None:
    """Remove the timer of a hold that is over; left alone it would do nothing."""
    _systemctl("stop", f"{_release_unit(unit, hold.intent)}.timer", check=False)


def _release_unit(unit: str, intent_seq: int) -> str:
    return f"healer-release-{unit.removesuffix('.service')}-{intent_seq}"


def _wait_until_down(config: Config, unit: str, intent_seq: int) -> bool:
    """Wait until a held unit is down or stops very slowly; False when it is not held any more."""

    def is_held() -> bool:
        hold = holds.read(Path(config.runtime_dir), unit)
        return hold is not None and hold.intent == intent_seq

    def is_down() -> bool:
        return _active_state(unit) in {"inactive", "failed"} or not is_held()

    _wait(is_down, _STOP_SEC)
    return is_held()


def _release(config: Config, intent: Entry) -> Reply:
    """End a hold and start the agent: any hold for a person, and for healer its own."""
    unit, own = _agent_unit(config, intent), intent.data.get("hold")
    with holds.exclusively():
        hold = holds.read(Path(config.runtime_dir), unit)
        if hold is not None and own is not None and hold.intent != own:
            return Reply(True, f"{unit} stays held back: {hold.reason}")
        _let_go(config, unit, hold)
    return Reply(True, f"{unit} is let go and started")


def release(config: Config, unit: str, intent_seq: int) -> None:
    """End the hold of this intent, if it is still the one in force, and start the agent."""
    with holds.exclusively():
        hold = holds.read(Path(config.runtime_dir), unit)
        if hold is not None and hold.intent == intent_seq:
            _let_go(config, unit, hold)


def _let_go(config: Config, unit: str, hold: holds.Hold | None) -> None:
    holds.remove(Path(config.runtime_dir), unit)
    _systemctl("start", "--no-block", unit)
    if hold is not None:
        _disarm_release(unit, hold)


def _reboot(config: Config, intent: Entry) -> Reply:
    """Make the known-good system the one that boots, and ask for a reboot.

    In any boot after that of the intent it tells what came of it, and does nothing.
    """
    target, profile = str(intent.data["target"]), Path(config.safe_switch.profile)
    systems = nix.systems(profile)
    if intent.boot != clock.boot_id():
        return Reply(systems.booted == target, f"the host booted {systems.booted}", systems.current)
    if not known_good.holds(target):
        raise RefusedError(f"{target} is not among the known-good systems at {known_good.PROFILE}")
    goal = known_good.find(target, profile)
    if systems.switching:
        raise RefusedError("a switch-to-configuration is under way")
    if systems.profile != goal.base:
        nix.run_nix_env("--profile", str(profile), "--set", goal.base)
    _run(goal.switch, "boot")
    power.reboot(str(intent.data["reason"]))
    return Reply(True, f"the host goes down, to boot {target}", systems.current)


def _agent_unit(config: Config, intent: Entry) -> str:
    unit = str(intent.data["target"])
    if unit not in {agent.unit for agent in config.agents.values()}:
        raise RefusedError(f"{unit} is not the unit of a declared agent")
    return unit


def _promote(config: Config, intent: Entry) -> Reply:
    """Root the system that runs against garbage collection, as known-good."""
    target, profile = str(intent.data["target"]), Path(config.safe_switch.profile)
    nix.check_toplevel(target)
    running = nix.systems(profile).current
    if running != target:
        raise RefusedError(f"{target} does not run, {running} does: it cannot be known to be good")
    rooted = known_good.root(target, profile, config.safe_switch.keep)
    return Reply(True, f"{known_good.PROFILE} is {rooted}", running)


def _rollback(config: Config, intent: Entry) -> Reply:
    """Go back to a known-good system, or where root itself asked for.

    The answer comes when that runs, or waits for a reboot.
    """
    target, profile = str(intent.data["target"]), Path(config.safe_switch.profile)
    try:
        nix.check_toplevel(target)
        if not (known_good.holds(target) or rollback.has_begun(intent)):
            requests.check_generation(intent, profile)
    except RefusedError as error:
        return Reply(False, str(error), nix.systems(profile).current)
    came = rollback.roll_back(config, intent)
    return Reply(came.ok, came.detail, came.running, came.steps, waiting=came.waiting)


def _try(config: Config, intent: Entry) -> Reply:
    return Reply(True, requests.try_out(config, intent))


def _confirm(_config: Config, intent: Entry) -> Reply:
    return Reply(True, requests.confirm(intent))


def _abandon(_config: Config, intent: Entry) -> Reply:
    return Reply(True, requests.abandon(intent))


_VERBS: dict[str, Callable[[Config, Entry], Reply]] = {
    "abandon": _abandon,
    "confirm": _confirm,
    "give-up": _give_up,
    "hold": _hold,
    "kill": _kill,
    "promote": _promote,
    "quarantine": _hold,
    "reboot": _reboot,
    "release": _release,
    "reset": _reset,
    "restart": _restart,
    "rollback": _rollback,
    "try": _try,
}


def _invocation(unit: str) -> str:
    return _systemctl("show", "--property=InvocationID", "--value", unit).strip()


def _active_state(unit: str) -> str:
    return _systemctl("show", "--property=ActiveState", "--value", unit).strip()


def _systemctl(*arguments: str, check: bool = True) -> str:
    return _run("systemctl", *arguments, check=check)


def _systemd_run(*arguments: str) -> str:
    environment = f"--setenv=PATH={os.environ.get('PATH', os.defpath)}"
    return _run("systemd-run", "--collect", "--quiet", environment, *arguments)


def _run(name: str, *arguments: str, check: bool = True) -> str:
    program = shutil.which(name)
    if program is None:
        raise RefusedError(f"{name} is not on the PATH of healer-helper@.service")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise RefusedError(f"{name} {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _wait(condition: Callable[[], bool], timeout_sec: float) -> bool:
    deadline = time.monotonic() + timeout_sec
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False
