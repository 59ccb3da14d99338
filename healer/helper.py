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
import select
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from healer.config import Config
from healer.errors import HealerError, LedgerError, RefusedError
from healer.host import clock, closure, known_good, nix, power, stamps, transient
from healer.host.switching import Switch
from healer.ledger import entry as ledger_entry
from healer.ledger import keys, reader
from healer.ledger.entry import Entry
from healer.safeswitch import booting, requests, rollback
from healer.watchdog import itself, keeping

_PINNED_KEY = rollback.PROGRESS_DIR / "ledger.pub"
_BEGUN_ANEW = (
    f"If the ledger was begun anew on purpose, remove {_PINNED_KEY}, which holds the key of the "
    "ledger that root saw first, and restart healer"
)
_MAX_REQUEST = 1024 * 1024
# A hold ends with its boot, and a boot starts every agent, with a restart counter of 0.
_OF_ONE_BOOT = frozenset({"hold", "quarantine", "reset", "restart"})


class CarryOut(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The request to carry out the intent at this sequence number of the ledger."""

    intent: int


class RemoveStamps(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The request to remove stop stamps, by file name, whose ends are durable in the ledger.

    It needs no intent: the daemon could as well not have recorded them.
    """

    names: list[str]


class TellUp(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The request to begin the count of boots anew, and note the system, as every agent is up.

    It needs no intent: the daemon decides by itself what is up.
    """


class TellExcused(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The request not to count this boot against its system: what is down is no fault of that.

    It needs no intent, which a full disk would keep from being durable: the daemon could as well
    have said that the host is up. Root excuses each boot once, and so many in all as it has tries.
    """


class TellStable(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The request to begin the count of healer's own restarts anew, because it stays up.

    systemd waits longer with each of them, and never forgets one by itself. It needs no intent: it
    is about nobody but the daemon.
    """


class Measure(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The request to measure how two toplevels differ. It needs no intent: it changes nothing."""

    before: str
    after: str


Request = CarryOut | RemoveStamps | TellUp | TellExcused | TellStable | Measure


class Reply(msgspec.Struct, frozen=True):
    """What became of it; ``running`` is the active toplevel where that matters.

    ``lasts`` is false of a rollback that the next boot may undo (``Progress.lasts``).
    ``steps`` holds milliseconds by step. ``waiting`` says what it waits for that is not done yet.
    ``figures`` holds what was measured.
    """

    ok: bool
    detail: str
    running: str | None = None
    lasts: bool = True
    steps: dict[str, int] = {}
    waiting: str | None = None
    figures: dict[str, int] = {}


def serve(config: Config) -> None:
    """Answer the one request on standard input, on standard output; both are the socket.

    The request may come later than the connection: healer has a helper ready when it expects to
    need one soon. None comes when it was not needed.
    """
    if not select.select([sys.stdin], [], [], 0)[0]:
        _prepare(config)
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


def _prepare(config: Config) -> None:
    """Do ahead of a request for a rollback what takes most of the time until the switch begins."""
    with contextlib.suppress(HealerError, OSError):
        keys.public_key(_pinned_key(Path(config.state_dir) / "ledger"))
    transient.prepare()


def _answer(config: Config, line: bytes) -> Reply:
    request: Request = msgspec.json.decode(line, type=Request)
    if isinstance(request, RemoveStamps):
        try:
            removed = stamps.remove(Path(config.runtime_dir) / "stamps", request.names)
        except ValueError as error:
            raise RefusedError(str(error)) from error
        return Reply(True, f"removed {removed} stamps")
    if isinstance(request, TellUp):
        booting.note_up(nix.systems(Path(config.safe_switch.profile)))
        return Reply(True, "the host is up")
    if isinstance(request, TellExcused):
        switch = config.safe_switch
        systems = nix.systems(Path(switch.profile))
        if booting.excuse(systems, clock.boot_id(), switch.boot_tries):
            return Reply(True, f"this boot is not counted against {systems.booted}")
        return Reply(False, "there is no count of this boot that could be taken back")
    if isinstance(request, TellStable):
        return Reply(*keeping.reset(itself.UNIT))
    if isinstance(request, Measure):
        nix.check_toplevel(request.before)
        nix.check_toplevel(request.after)
        figures = asdict(closure.between(request.before, request.after))
        return Reply(True, f"measured {request.after}", figures=figures)
    return carry_out(config, signed_intent(config, request.intent))


def carry_out(config: Config, intent: Entry) -> Reply:
    """Do what a checked intent says; RefusedError where that is not possible."""
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
        raise RefusedError(f"entry {intent.seq}: {error}. {_BEGUN_ANEW}") from error


def why_not_obeyed(key: Ed25519PublicKey) -> str | None:
    """Say why root would refuse all that is signed with this key; None where it would not."""
    try:
        pinned = keys.load_public(_PINNED_KEY)
    except HealerError:  # there is none yet, or root will say what is wrong with it
        return None
    if pinned == keys.raw_public(key):
        return None
    return f"root's helper obeys the ledger of another key. {_BEGUN_ANEW}"


def _about_agent(config: Config, intent: Entry) -> Reply:
    """Do to an agent's unit what the intent says."""
    unit = str(intent.data["target"])
    if unit not in {agent.unit for agent in config.agents.values()}:
        raise RefusedError(f"{unit} is not the unit of a declared agent")

    if intent.boot != clock.boot_id() and intent.data["action"] in _OF_ONE_BOOT:
        return Reply(False, f"the host has booted since, and began {unit} anew by that")

    def still_due() -> Entry:
        return signed_intent(config, intent.seq)

    match intent.data["action"]:
        case "kill":
            came = keeping.kill(config, unit, intent)
        case "reset":
            came = keeping.reset(unit)
        case "restart":
            came = keeping.restart(config, unit, intent)
        case "hold" | "quarantine":
            came = keeping.hold(config, unit, intent, still_due)
        case "give-up":
            came = keeping.give_up(config, unit, intent, still_due)
        case _:
            came = keeping.release(config, unit, intent, still_due)
    return Reply(*came)


def _reboot(config: Config, intent: Entry) -> Reply:
    """Make the known-good system the one that boots, and ask for a reboot.

    What somebody has staged for the next boot is left, as by a rollback, and nobody reboots then.
    In any boot after that of the intent it tells what came of it, and does nothing. Who asks again
    meanwhile waits for the first, and does it again.
    """
    before = nix.systems(Path(config.safe_switch.profile)).current
    with rollback.exclusively():
        signed_intent(config, intent.seq)  # it may have its outcome by now
        return _reboot_from(before, config, intent)


def _reboot_from(before: str | None, config: Config, intent: Entry) -> Reply:
    target, profile = str(intent.data["target"]), Path(config.safe_switch.profile)
    systems = nix.systems(profile)
    if intent.boot != clock.boot_id():
        return Reply(systems.booted == target, f"the host booted {systems.booted}", systems.current)
    if not known_good.holds(target):
        raise RefusedError(f"{target} is not among the known-good systems at {known_good.PROFILE}")
    if systems.current != before:
        raise RefusedError(f"{systems.current} runs by now")
    goal = known_good.find(target, profile)
    result = rollback.RESULT_DIR / f"healer-reboot-{intent.seq}-{intent.leaf[:16]}.result"
    # Where there is a result, the switch under way may be its own, begun before.
    if nix.is_locked(nix.SWITCH_LOCK) and not result.exists():
        raise RefusedError("a switch-to-configuration is under way")
    staged = rollback.is_staged(systems, systems.base, goal)
    if staged and systems.boot_default != systems.base:
        raise RefusedError(f"{systems.profile} is in the profile, and is left there for a boot")
    ran = Switch(
        str(systems.current),
        goal,
        profile,
        result,
        config.safe_switch.timeout_sec,
        time.monotonic() + config.safe_switch.lock_timeout_sec,
        sets_profile=not staged and systems.profile != goal.base,
    ).run("boot")
    if ran.code != 0:
        raise RefusedError(ran.words)
    power.reboot(str(intent.data["reason"]))
    return Reply(True, f"the host goes down, to boot {target}", systems.current)


def _promote(config: Config, intent: Entry) -> Reply:
    """Root the system that runs against garbage collection, as known-good."""
    target, profile = str(intent.data["target"]), Path(config.safe_switch.profile)
    nix.check_toplevel(target)
    running = nix.systems(profile).current
    if running != target:
        raise RefusedError(f"{target} does not run, {running} does: it cannot be known to be good")
    rooted = known_good.root(target, profile, config.safe_switch.keep, booting.came_up())
    return Reply(True, f"{known_good.PROFILE} is {rooted}", running)


def _condemn(_config: Config, intent: Entry) -> Reply:
    """Have a system be known-good no more, so that no boot goes back to it either."""
    return Reply(True, known_good.drop(str(intent.data["target"])))


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
    if came.done and came.ok and intent.data.get("asked_by") is None:
        _drop(str(intent.data["from"]), target, profile)
    return Reply(came.ok, came.detail, came.running, came.lasts, came.steps, waiting=came.waiting)


def _drop(condemned: str, target: str, profile: Path) -> None:
    """Have what was gone back from be known-good no more, unless the target is rooted by it."""
    try:
        if known_good.find(target, profile).base != condemned:
            known_good.drop(condemned)
    except HealerError as error:  # it is gone back from all the same
        print(f"healer helper: {condemned} stays known-good: {error}", file=sys.stderr)


def _try(config: Config, intent: Entry) -> Reply:
    return Reply(True, requests.try_out(config, intent))


def _confirm(_config: Config, intent: Entry) -> Reply:
    return Reply(True, requests.confirm(intent))


def _abandon(_config: Config, intent: Entry) -> Reply:
    return Reply(True, requests.abandon(intent))


_VERBS: dict[str, Callable[[Config, Entry], Reply]] = {
    "abandon": _abandon,
    "condemn": _condemn,
    "confirm": _confirm,
    "give-up": _about_agent,
    "hold": _about_agent,
    "kill": _about_agent,
    "promote": _promote,
    "quarantine": _about_agent,
    "reboot": _reboot,
    "release": _about_agent,
    "reset": _about_agent,
    "restart": _about_agent,
    "rollback": _rollback,
    "try": _try,
}
