"""A trial: a system that runs until somebody confirms it, and goes away by itself if nobody does.

A dead-man's switch, for a change that may cut off whoever makes it. Root's process here switches
by `test`, which changes neither the profile nor what boots, so that a power cut goes back as well;
only a confirmed system is made the one that boots. The process has a transient unit of its own:
PID 1 starts it again wherever it was killed, and it goes on from the trial's file, which it writes
before each step. It needs neither the daemon nor a configuration nor the session that asked, and
runs the healer that was there before.
"""

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from healer.errors import HealerError, RefusedError
from healer.files import write_atomically
from healer.host import activation, clock, nix
from healer.host.activation import Activated
from healer.ledger.entry import Entry
from healer.safeswitch import rollback
from healer.safeswitch.watching import Watch

UNIT = "healer-trial.service"
PATH = rollback.PROGRESS_DIR / "trial.json"
_WORD = rollback.PROGRESS_DIR / "trial-word.json"
_ROOTS = Path("/nix/var/nix/gcroots")
_POLL_SEC = 0.2
_ATTEMPTS = 3
# switch-to-configuration's exit codes that say that nothing was changed: a check failed, the lock
# is held, a reboot is needed.
_UNCHANGED = frozenset({1, 11, 100})
_ACTIVATION_FAILED = 2


@dataclass(slots=True)
class Trial:
    """How far a trial is; the file that holds it is readable by everybody.

    It is of one intent, by the hash of its entry, and of one boot. ``package`` is the healer that
    carries it; ``judge`` is the one that watches the gates of ``config``, as the user ``uid``.
    ``until_ms`` is when it goes back, in milliseconds since boot, and ``why`` says why.
    """

    leaf: str
    boot: str
    target: str
    source: str
    profile: str
    profile_before: str | None
    confirm_sec: int
    timeout_sec: float
    package: str
    judge: str
    config: str
    uid: int
    gid: int
    phase: Literal["switching", "waiting", "keeping", "returning", "done"] = "switching"
    until_ms: int | None = None
    gates: dict[str, str] = field(default_factory=dict)
    why: str = ""
    ok: bool = False
    detail: str = ""
    running: str | None = None

    def write(self) -> None:
        """Write the file, durably; a full disk does not keep the system from going back."""
        try:
            write_atomically(PATH, msgspec.json.encode(self), 0o644)
        except OSError as error:
            print(f"healer trial: cannot write {PATH}: {error.strerror}", file=sys.stderr)

    def finish(self, *, ok: bool, detail: str) -> None:
        """End the trial, and say what came of it."""
        self.phase, self.ok, self.detail = "done", ok, detail
        self.running = _running(self)
        self.write()
        _WORD.unlink(missing_ok=True)
        for link in _links():
            link.unlink(missing_ok=True)
        print(f"healer trial: {detail}", file=sys.stderr, flush=True)

    def goes_back(self, why: str) -> None:
        """Have the next step go back."""
        self.phase, self.why = "returning", why
        self.write()
        print(f"healer trial: goes back: {why}", file=sys.stderr, flush=True)


class Word(msgspec.Struct, frozen=True):
    """What a person said of the trial of this intent."""

    leaf: str
    keep: bool
    said: str


def read() -> Trial | None:
    """Return the last trial, under way or done; None when there was none."""
    try:
        return msgspec.json.decode(PATH.read_bytes(), type=Trial)
    except (OSError, msgspec.MsgspecError):
        return None


def of(intent: Entry) -> Trial | None:
    """Return the trial that this intent began; None when it has not begun."""
    trial = read()
    return trial if trial is not None and trial.leaf == intent.leaf else None


def under_way() -> Trial | None:
    """Return the trial that is under way in this boot."""
    trial = read()
    going = trial is not None and trial.phase != "done" and trial.boot == clock.boot_id()
    return trial if going else None


def begin(trial: Trial) -> None:
    """Write the trial down and start its unit; raises RefusedError when that is not possible."""
    for link, target in zip(_links(), (trial.target, trial.source), strict=True):
        # Neither may be collected as garbage meanwhile, whatever becomes of the profile.
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    _WORD.unlink(missing_ok=True)
    write_atomically(PATH, msgspec.json.encode(trial), 0o644)
    try:
        start(trial)
    except RefusedError as error:
        trial.finish(ok=False, detail=str(error))
        raise


def start(trial: Trial) -> None:
    """Start the unit; raises RefusedError when systemd does not."""
    systemd_run = shutil.which("systemd-run")
    if systemd_run is None:
        raise RefusedError("systemd-run is not on the PATH of healer-helper@.service")
    command = [
        systemd_run,
        f"--unit={UNIT}",
        "--description=healer: a system on trial",
        "--collect",
        "--no-ask-password",
        "--quiet",
        "--service-type=exec",
        # However it is killed, PID 1 starts it again.
        "--property=Restart=on-failure",
        "--property=RestartSec=1s",
        "--property=StartLimitIntervalSec=0",
        "--property=OOMScoreAdjust=-900",
        f"--setenv=PATH={os.environ.get('PATH', os.defpath)}",
        f"{trial.package}/bin/healer",
        "helper",
        "--trial",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RefusedError(f"systemd-run refused {UNIT}: {done.stderr.strip()}")


def say(trial: Trial, *, keep: bool, said: str) -> None:
    """Tell the trial's process what a person said. Needs root."""
    word = Word(trial.leaf, keep, said)
    write_atomically(_WORD, msgspec.json.encode(word), 0o644)


def run() -> None:
    """Carry the trial from wherever it is to its end, in this process. Needs root."""
    trial = read()
    if trial is None or trial.phase == "done":
        return
    if trial.boot != clock.boot_id():
        settle(trial)
    steps = {"switching": _switch, "waiting": _wait, "keeping": _keep, "returning": _return}
    while (step := steps.get(trial.phase)) is not None:
        step(trial)


def settle(trial: Trial) -> None:
    """End a trial that a reboot or a power cut came upon, by what runs now. Needs root."""
    running, profile = _running(trial), nix.systems(Path(trial.profile)).profile
    if running == profile == trial.target:
        trial.finish(ok=True, detail=f"it was confirmed, and the host booted {running}")
        return
    if profile == trial.target and trial.profile_before is not None:
        nix.run_nix_env("--profile", trial.profile, "--set", trial.profile_before)
    trial.finish(ok=False, detail=f"the host was booted in the trial; {running} runs")


def _switch(trial: Trial) -> None:
    done = _activate(trial, trial.target, "test")
    running = _running(trial)
    if running == trial.source and done.code in _UNCHANGED:
        trial.finish(ok=False, detail=f"{running} still runs: {done.words}")
    elif running != trial.target or done.code in {None, _ACTIVATION_FAILED}:
        trial.goes_back(done.words)
    else:
        trial.phase = "waiting"
        trial.until_ms = clock.uptime_ms() + trial.confirm_sec * 1000
        trial.write()


def _wait(trial: Trial) -> None:
    """Wait for a word, a gate that fails, another system, or the end of the time."""
    with Watch(trial.judge, trial.config, trial.uid, trial.gid) as watch:
        while trial.phase == "waiting":
            running, word = _running(trial), _word(trial)
            if running != trial.target:
                trial.finish(ok=False, detail=f"it was superseded: {running} runs now")
            elif watch.failed is not None:
                trial.goes_back(watch.failed)
            elif word is not None and not word.keep:
                trial.goes_back(word.said)
            elif word is not None:
                trial.phase = "keeping"
                trial.write()
            elif clock.uptime_ms() >= (trial.until_ms or 0):
                trial.goes_back(f"nobody confirmed it within {trial.confirm_sec} s")
            elif not trial.gates:
                time.sleep(_POLL_SEC)
            elif watch.changed(_POLL_SEC):
                trial.gates |= watch.states
                trial.write()


def _keep(trial: Trial) -> None:
    """Make the target the system that boots."""
    try:
        nix.run_nix_env("--profile", trial.profile, "--set", trial.target)
        done = _activate(trial, trial.target, "boot")
        if done.code != 0:
            raise RefusedError(done.words)
    except HealerError as error:
        if trial.profile_before is not None:
            with suppress(HealerError):
                nix.run_nix_env("--profile", trial.profile, "--set", trial.profile_before)
        trial.goes_back(f"it could not be made the system that boots: {error}")
        return
    trial.finish(ok=True, detail=f"confirmed: {trial.target} runs, and is what boots")


def _return(trial: Trial) -> None:
    """Make the source the system that runs, unless somebody has deployed another since."""
    said = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(1)
        _wait_for_lock(trial)
        if _running(trial) not in {trial.target, trial.source}:
            trial.finish(ok=False, detail=f"{trial.why}; but {_running(trial)} runs since")
            return
        said = _activate(trial, trial.source, "test").words
        if _running(trial) == trial.source:
            trial.finish(ok=False, detail=f"{trial.why}; {trial.source} runs again")
            return
    trial.finish(
        ok=False,
        detail=f"{trial.why}; going back failed ({said}), {_running(trial)} runs; a reboot boots "
        "what booted before",
    )


def _activate(trial: Trial, toplevel: str, action: str) -> Activated:
    return activation.activate(toplevel, action, trial.timeout_sec)


def _wait_for_lock(trial: Trial) -> None:
    deadline = time.monotonic() + trial.timeout_sec
    while nix.is_locked(nix.SWITCH_LOCK) and time.monotonic() < deadline:
        time.sleep(_POLL_SEC)


def _word(trial: Trial) -> Word | None:
    try:
        word = msgspec.json.decode(_WORD.read_bytes(), type=Word)
    except (OSError, msgspec.MsgspecError):
        return None
    return word if word.leaf == trial.leaf else None


def _running(trial: Trial) -> str | None:
    return nix.systems(Path(trial.profile)).current


def _links() -> tuple[Path, Path]:
    return _ROOTS / "healer-trial-target", _ROOTS / "healer-trial-source"
