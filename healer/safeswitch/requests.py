"""Root's answer to what a person asks of SafeSwitch: checks before anything changes.

What root's helper lets through, and why:

- `try` (run a system on trial) runs any complete system in the store, so as root whatever it was
  built to run. Anybody may put such a thing into a store. So it takes a grant: root itself asked.
- `rollback` goes to a known-good system on the daemon's word alone, as it always did. A person may
  name any other generation of the profile: root deployed it once; but it may be an old one with
  known holes, which whoever takes over the daemon must not be able to bring back. So that takes a
  grant as well. What is no generation is refused even so: `try` is for that.
- `confirm` and `abandon` end a trial that root began, either way; the group healer may.
"""

import pwd
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from healer.config import Config
from healer.config.reader import YamlError, parse
from healer.errors import RefusedError
from healer.host import changes, clock, known_good, nix, program, space
from healer.host.switching import UNIT
from healer.ledger.entry import Entry
from healer.safeswitch import grants, rollback, trial
from healer.safeswitch.deadman import Declared, Trial

_CONFIG = Path("etc/healer/config.yaml")
# Less than the daemon waits for an answer.
_KEEP_SEC = 50.0


def try_out(config: Config, intent: Entry) -> str:
    """Begin a trial, or take up one that was begun; return what is under way or came of it.

    Raises RefusedError before anything is changed.
    """
    begun = trial.of(intent)
    if begun is not None:
        return _take_up(begun)
    target = str(intent.data["target"])
    profile = Path(config.safe_switch.profile)
    if intent.boot != clock.boot_id():
        raise RefusedError("the host was booted before the trial began")
    grants.redeem(intent)
    check_possible(target, profile)
    if config.package is None:
        raise RefusedError("config: package is null, so there is no program for the trial's unit")
    systems, user, judge = nix.systems(profile), _user(), _judge(target)
    if systems.current == target:
        # A trial goes back to what ran before it: there would be nothing to go back to.
        raise RefusedError(f"{target} runs already")
    agents = _changed(str(systems.current), target, judge.agents)
    trial.begin(
        Trial(
            leaf=intent.leaf,
            boot=intent.boot,
            target=target,
            source=str(systems.current),
            profile=str(profile),
            profile_before=systems.profile,
            confirm_sec=int(intent.data["confirm_sec"]),
            timeout_sec=config.safe_switch.timeout_sec,
            package=config.package,
            judge=judge.package,
            config=str(judge.config),
            uid=user.pw_uid,
            gid=user.pw_gid,
            gates=dict.fromkeys(judge.gates, "unknown"),
            agents=agents,
        )
    )
    return f"{trial.UNIT} runs {target} on trial"


def _changed(source: str, target: str, agents: dict[str, Declared]) -> dict[str, Declared]:
    """Return the agents that a trial changes; RefusedError where one cannot be taken back.

    A trial goes back by itself, so it has to be safe from the start.
    """
    how = changes.between(source, target, {name: each.unit for name, each in agents.items()})
    found = {name: each for name, each in agents.items() if how.agents[name] != "same"}
    unsafe = sorted(name for name, each in found.items() if not each.rollback_safe)
    if unsafe:
        raise RefusedError(
            f"rollbackSafe is false for {', '.join(unsafe)}, which {target} changes, and a trial "
            "goes back by itself: deploy it by nixos-rebuild switch"
        )
    return found


def _user() -> pwd.struct_passwd:
    """Return the user that gates are looked at as."""
    try:
        return pwd.getpwnam("healer")
    except KeyError:
        raise RefusedError("there is no user healer, as whom the gates are looked at") from None


def _take_up(begun: Trial) -> str:
    if begun.phase != "done" and begun.boot != clock.boot_id():
        trial.settle(begun)
    elif begun.phase != "done" and not _is_active(trial.UNIT):
        trial.start(begun)
    return begun.detail or f"{trial.UNIT} runs {begun.target} on trial"


def confirm(intent: Entry) -> str:
    """Have the trial's system kept, and wait for that; raises RefusedError where it cannot be."""
    going = _begun(intent)
    if going.phase not in {"keeping", "done"}:  # else it was confirmed before, as by this intent
        _check_confirmable(going)
        trial.say(going, keep=True, said=str(intent.data["reason"]))
    return _came_of(going, kept=True)


def _check_confirmable(going: Trial) -> None:
    if going.phase != "waiting":
        raise RefusedError(f"{going.target} cannot be confirmed: it is {going.phase}")
    if going.not_passed:
        raise RefusedError(
            f"{going.target} cannot be confirmed yet: {', '.join(going.not_passed)} has not passed"
        )


def abandon(intent: Entry) -> str:
    """Have the trial go back now, and wait for that; raises RefusedError where it does not."""
    going = _begun(intent, by="from")
    if going.phase != "done":
        trial.say(going, keep=False, said=str(intent.data["reason"]))
    return _came_of(going, kept=False)


def _begun(intent: Entry, by: str = "target") -> Trial:
    """Return the trial that an intent is about; one that a boot came upon is over."""
    begun = trial.read()
    wanted = intent.data["target"]
    if begun is None or (begun.target if by == "target" else begun.source) != wanted:
        raise RefusedError("no such trial is under way")
    if begun.phase != "done" and begun.boot != clock.boot_id():
        trial.settle(begun)
    return begun


def _came_of(going: Trial, *, kept: bool) -> str:
    deadline = time.monotonic() + _KEEP_SEC
    while time.monotonic() < deadline:
        now = trial.read()
        if now is None or now.leaf != going.leaf:
            raise RefusedError("the trial's file is gone")
        if now.phase == "done":
            if now.ok != kept:
                raise RefusedError(now.detail)
            return now.detail
        time.sleep(0.1)
    return "it is under way: healer safeswitch status tells how it goes"


def check_possible(target: str, profile: Path) -> None:
    """Refuse, in words and before anything changes, what cannot be switched to now."""
    nix.check_toplevel(target)
    check = program.completed("nix-store", "--check-validity", target)
    if check.returncode != 0:
        raise RefusedError(f"{target} is not valid in the Nix store: {program.last_words(check)}")
    running = trial.under_way()
    if running is not None:
        raise RefusedError(f"{running.target} is on trial: confirm it, or roll back, first")
    if nix.is_locked(nix.SWITCH_LOCK):
        raise RefusedError(f"another switch is under way: it holds {nix.SWITCH_LOCK}")
    for unit in (UNIT, trial.UNIT):
        if _is_active(unit):
            raise RefusedError(f"another switch is under way: {unit} is active")
    needed = {rollback.PROGRESS_DIR: space.MARGIN, **space.for_switch(Path(target), profile)}
    if (short := space.shortage(needed)) is not None:
        raise RefusedError(short)


@dataclass(frozen=True, slots=True)
class _Judge:
    """The healer that watches the gates, the configuration that declares them, their names.

    ``agents`` holds what the same configuration says of going back.
    """

    package: str
    config: Path
    gates: tuple[str, ...]
    agents: dict[str, Declared]


def _judge(target: str) -> _Judge:
    """Return who judges the target: its own healer by its own gates; without one, today's.

    Another version of healer may have options that this one does not know, so only what is needed
    is read; its own healer reads the rest, and gates that it cannot look at never pass.
    """
    own = Path(target) / _CONFIG
    path = (own if own.exists() else Path("/") / _CONFIG).resolve()
    try:
        document: Any = parse(path.read_text(encoding="utf-8"))
        gates = tuple(str(gate["name"]) for gate in document["safeSwitch"]["gates"])
        agents = msgspec.convert(document["agents"], dict[str, Declared])
        return _Judge(str(document["package"]), path, gates, agents)
    except (OSError, ValueError, YamlError, LookupError, TypeError) as error:
        raise RefusedError(f"what {path} declares cannot be read: {error}") from error


def check_generation(intent: Entry, profile: Path) -> None:
    """Refuse a target that is no generation of the profile, or that root did not ask for."""
    target = str(intent.data["target"])
    try:
        known_good.find(target, profile)
    except RefusedError as error:
        raise RefusedError(
            f"{target} is neither known-good nor a generation of {profile}; to run what was never "
            "deployed: healer safeswitch run"
        ) from error
    grants.redeem(intent)


def _is_active(unit: str) -> bool:
    state = program.completed("systemctl", "is-active", unit).stdout.strip()
    return state in {"active", "activating", "deactivating", "reloading"}
