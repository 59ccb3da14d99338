"""The rollback itself: root, to an absolute target, through a transient unit of its own.

The helper checks and prepares; what changes the host (setting the profile, then switching) is a
few lines of sh in a transient unit. That bears the name which nixos-rebuild uses for its own
switch, so the two exclude each other, it has a run-time bound, and it goes on when the helper is
killed. The steps, each of which may be done again::

    lock -> not superseded -> hooks -> profile -> switch -> verified
                                               -> boot -> (reboot, by policy) -> verified
                                    -> test -> verified

``boot`` is for what no live switch can do: across a switch inhibitor, to a kernel that is neither
the booted system's nor that of the one that is left, and where switch-to-configuration itself
refuses (exit 1) or asks for a boot (exit 100). ``test`` is for what cannot be made the system that
boots, as when /boot is full: it is activated all the same, for a system whose agents crash is worse
than one that does not outlive a boot; and that is told. It is also for where somebody has staged
another system for the next boot, as by ``nixos-rebuild boot``: that is left. What was reached is
kept in a progress file that only root writes; whoever asks again is told the same once more, and a
power cut or SIGKILL anywhere in between costs nothing but doing a step twice.
"""

import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from healer.config import Config
from healer.errors import HealerError, RefusedError
from healer.events import Systems
from healer.files import write_atomically
from healer.host import changes, clock, hooks, known_good, nix, power, space, switching
from healer.host.known_good import Goal
from healer.host.switching import Ran, Switch
from healer.ledger.entry import Entry
from healer.safeswitch import rebooting

PROGRESS_DIR = Path("/var/lib/healer-helper")
RESULT_DIR = Path("/run")
"""Where the unit writes how far it came: there is room here also when a disk is full."""


@dataclass(slots=True)
class Progress:
    """How far a rollback came. ``done`` is set last; ``steps`` holds milliseconds by step.

    ``lasts`` is false where the target runs, but is not known to be what boots next, and neither is
    anything that somebody has staged. ``prepared`` says that the agents' hooks have run. ``staged``
    says why the target is only the system that boots next, ``staged_in`` in which boot that was
    arranged.
    """

    intent: int
    target: str
    done: bool = False
    ok: bool = False
    detail: str = ""
    running: str | None = None
    lasts: bool = True
    steps: dict[str, int] = field(default_factory=dict)
    prepared: bool = False
    staged: str | None = None
    staged_in: str | None = None

    @property
    def waiting(self) -> str | None:
        """What it waits for, when it is not done."""
        return None if self.done else self.staged


class Rollback:
    """One run of the helper at one intent's rollback."""

    def __init__(self, config: Config, intent: Entry) -> None:
        self._config = config
        self._switch = config.safe_switch
        self._profile = Path(config.safe_switch.profile)
        self._from = str(intent.data["from"])
        self._target = str(intent.data["target"])
        self._automatic = intent.data.get("asked_by") is None
        self._path = _path(intent)
        self._result = RESULT_DIR / f"healer-{self._path.stem}.result"
        self._progress = self._read() or Progress(intent.seq, self._target)
        if "asked_by" in intent.data:
            self._write()

    def run(self) -> Progress:
        """Make the target the system that runs and the system that boots, and verify both.

        Where it cannot be made the one that boots, it is the one that runs. Never raises for what a
        rollback can meet: what went wrong is in the returned progress, and what is where. Not done
        yet is one that waits for a reboot.
        """
        progress = self._progress
        if progress.done:
            return progress
        try:
            goal = known_good.find(self._target, self._profile)
            if progress.staged is None:
                self._begin(goal)
            else:
                self._after_staging(goal)
        except (HealerError, OSError) as error:
            progress.detail, progress.done = str(error), True
        systems = nix.systems(self._profile)
        progress.running = systems.current
        if progress.ok and systems.current != self._target:
            progress.detail += f"; superseded since: {systems.current} runs now"
            progress.lasts = True  # nothing is left that could
        elif not progress.lasts:
            command = f"healer safeswitch rollback --to {self._target}"
            progress.detail += f"; it boots only once somebody has mended that and run: {command}"
        if progress.done:
            progress.detail += _apart(systems)
        self._write()
        return progress

    def _begin(self, goal: Goal) -> None:
        began = _now()
        ran = self._switch_to(goal).taken_up()
        if ran is None or not self._is_there(goal):
            ran = self._go_back(goal)
        if ran is None:
            return
        self._note_times(began, ran)
        systems = nix.systems(self._profile)
        refused = ran.code in {switching.REFUSED, switching.NEEDS_BOOT}
        if refused and systems.current != self._target and not self._is_staged(systems, goal):
            self._stage(goal, ran.words)
        elif not self._is_there(goal) and not ran.made_it_boot:
            # It came not even so far: nix-env failed, or the boot loader did not end.
            self._only_activate(goal, ran.words)
        else:
            self._verify(goal, ran.words)
            self._progress.lasts = self._lasts(goal, ran)

    def _go_back(self, goal: Goal) -> Ran | None:
        """Switch, and return what came of it; None where that is no way, and another was gone."""
        switching.wait_for_lock(self._deadline)
        self._check_not_superseded()
        self._prepare()
        systems = self._check_not_superseded()  # the hooks took their time
        reasons = changes.needs_reboot(str(systems.current), systems.booted, self._target)
        staged = self._is_staged(systems, goal)
        if staged and (reasons or systems.boot_default != self._source_base()):
            self._only_activate(goal, f"{systems.profile} is in the profile, and is left there")
            return None
        if reasons:
            self._stage(goal, ", ".join(reasons))
            return None
        short = space.shortage(space.for_switch(Path(self._target), self._profile))
        if short is not None:
            self._only_activate(goal, short)
            return None
        return self._switch_to(goal, sets_profile=not staged).run("switch")

    def _switch_to(self, goal: Goal, *, sets_profile: bool = True) -> Switch:
        limit = self._switch.timeout_sec
        where = (self._profile, self._result)
        return Switch(self._from, goal, *where, limit, self._deadline, sets_profile)

    @property
    def _deadline(self) -> float:
        return time.monotonic() + self._switch.lock_timeout_sec

    def _source_base(self) -> str:
        """Return what the profile was for the system that is gone back from."""
        return nix.base_of(self._from, self._profile, os.path.realpath(self._profile))[0]

    def _is_staged(self, systems: Systems, goal: Goal) -> bool:
        # Who asks to go back to what runs already asks for what is there to be replaced.
        return self._from != self._target and is_staged(systems, self._source_base(), goal)

    def _lasts(self, goal: Goal, ran: Ran) -> bool:
        """Whether the next boot starts the target, or what somebody has staged for it."""
        systems = nix.systems(self._profile)
        staged = systems.profile if self._is_staged(systems, goal) else None
        # Not every boot loader says what it boots: then it is whether that was set.
        boots = systems.boot_default or staged or (goal.base if ran.made_it_boot else None)
        return boots is not None and boots in {goal.base, staged}

    def _prepare(self) -> None:
        """Run the hooks of the agents that the rollback changes, once."""
        agents = self._config.agents
        if self._progress.prepared or not hooks.longest_sec(agents):
            return
        began = _now()
        units = {name: agent.unit for name, agent in agents.items()}
        found = changes.between(self._from, self._target, units)
        concerned = sorted(name for name, how in found.agents.items() if how != "same")
        try:
            hooks.run(agents, concerned, self._path.with_suffix(""))
        except RefusedError as error:
            raise RefusedError(f"nothing was changed: {error}") from error
        self._progress.prepared = True
        self._progress.steps["prepare"] = round((_now() - began) * 1000)
        self._write()

    def _stage(self, goal: Goal, reason: str) -> None:
        """Make the target the system that boots next: it cannot be switched to live."""
        ran = self._switch_to(goal).run("boot")
        if ran.code != 0 or nix.systems(self._profile).profile != goal.base:
            self._check_not_superseded()
            self._only_activate(
                goal, f"{reason}, and it cannot be made the system to boot: {ran.words}"
            )
            return
        self._progress.staged = reason
        self._progress.staged_in = clock.boot_id()
        self._progress.detail = (
            f"{self._target} is the system that boots next ({reason}); "
            f"{rebooting.in_words(self._switch)}"
        )

    def _only_activate(self, goal: Goal, why: str) -> None:
        """Make the target the system that runs, and leave what boots: for what cannot be set."""
        began = _now()
        ran = self._switch_to(goal).run("test")
        self._note_times(began, ran)
        systems = self._check_not_superseded()
        if systems.current != self._target:
            raise RefusedError(f"{why}; {ran.words}, and {systems.current} is still running")
        self._progress.detail = f"{why}; {self._target} was activated ({ran.words})"
        self._progress.lasts = self._lasts(goal, ran)
        self._progress.ok = self._progress.done = True

    def _after_staging(self, goal: Goal) -> None:
        """Go on after the boot, or reboot, or give way to whatever was deployed meanwhile."""
        systems = nix.systems(self._profile)
        if systems.current == self._target:
            self._verify(goal, f"the host booted it ({self._progress.staged})")
            return
        self._check_not_superseded()
        if systems.profile != goal.base:
            raise RefusedError(f"superseded: {systems.profile} is in the profile now")
        if self._automatic and not known_good.holds(self._target):
            raise RefusedError(
                f"{self._target} was condemned since; it still boots next: deploy another one"
            )
        if self._progress.staged_in != clock.boot_id():
            raise RefusedError(f"the host booted {systems.booted}, not {self._target}")
        if rebooting.may_reboot(self._switch, clock.minute_of_day()):
            power.reboot(f"rollback to {self._target}")

    def _check_not_superseded(self) -> Systems:
        """Refuse when somebody has deployed another system since: it is not the one to blame."""
        systems = nix.systems(self._profile)
        if systems.current not in {self._from, self._target}:
            running = systems.current
            raise RefusedError(f"superseded: {running} runs now, and it is not the one to blame")
        return systems

    def _is_there(self, goal: Goal) -> bool:
        systems = nix.systems(self._profile)
        in_place = systems.profile == goal.base or self._is_staged(systems, goal)
        return in_place and systems.current == self._target

    def _verify(self, goal: Goal, words: str) -> None:
        """Judge by what runs: exit 4 means that some unit failed, not that the switch did."""
        systems = self._check_not_superseded()
        if systems.current != self._target:
            raise RefusedError(f"{words}, and {systems.current} is still running")
        if systems.profile != goal.base and not self._is_staged(systems, goal):
            raise RefusedError(f"{words}, and {self._profile} is {systems.profile}")
        self._progress.detail = words
        self._progress.ok = self._progress.done = True

    # What is kept

    def _note_times(self, began: float, ran: Ran) -> None:
        before = began
        steps = {"begun": "start", "profile": "profile", "switch": "switch", "test": "switch"}
        for mark, step in steps.items():
            if mark in ran.ended:
                self._progress.steps[step] = max(0, round((ran.ended[mark] - before) * 1000))
                before = ran.ended[mark]

    def _read(self) -> Progress | None:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Progress)
        except (OSError, msgspec.MsgspecError):
            return None

    def _write(self) -> None:
        """Write the progress down; a full disk does not keep the system from going back.

        After a power cut that somebody went back shows without it: nobody waits for the disk.
        """
        data, durable = msgspec.json.encode(self._progress), not self._progress.ok
        try:
            write_atomically(self._path, data, 0o644, durable=durable)
        except OSError as error:
            print(f"healer rollback: cannot write {self._path}: {error.strerror}", file=sys.stderr)


def roll_back(config: Config, intent: Entry) -> Progress:
    """Carry out a rollback, one at a time: who comes second is told what became of the first."""
    with exclusively():
        return Rollback(config, intent).run()


def is_staged(systems: Systems, source: str | None, goal: Goal) -> bool:
    """Whether somebody has put a third system into the profile, for a boot to come.

    ``source`` is what the profile was for the system that is left.
    """
    return systems.profile not in {None, source, goal.base}


def has_begun(intent: Entry) -> bool:
    """Whether root has let this rollback begin, once."""
    return _path(intent).exists()


def longest_sec(config: Config) -> float:
    """Return how long a rollback may take before it must have answered, in seconds."""
    switch = config.safe_switch
    return 4 * (switch.timeout_sec + switch.lock_timeout_sec) + hooks.longest_sec(config.agents)


def _apart(systems: Systems) -> str:
    """Say what is where, if that is not one and the same system."""
    if len({systems.base, systems.profile, systems.boot_default} - {None}) < 2:
        return ""
    boots = systems.boot_default or "it is not known what"
    return f"; the profile is {systems.profile}, {boots} boots next, {systems.current} runs"


def _path(intent: Entry) -> Path:
    """Return the progress file; its name holds the entry's hash: a new ledger begins at 0 again."""
    return PROGRESS_DIR / f"rollback-{intent.seq}-{intent.leaf[:16]}.json"


@contextmanager
def exclusively() -> Iterator[None]:
    """Wait for another run of the helper that changes what boots, and keep the next one waiting."""
    PROGRESS_DIR.mkdir(mode=0o755, exist_ok=True)
    with (PROGRESS_DIR / "rollback.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
