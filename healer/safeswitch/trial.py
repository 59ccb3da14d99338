"""A trial: a system that runs until somebody confirms it, and goes away by itself if nobody does.

A dead-man's switch, for a change that may cut off whoever makes it. Root's process here switches
by `test`, which changes neither the profile nor what boots, so that a power cut goes back as well;
only a confirmed system is made the one that boots. The process has a transient unit of its own:
PID 1 starts it again wherever it was killed, and it goes on from the trial's file, which it writes
before each step. It needs neither the daemon nor a configuration nor the session that asked, and
runs the healer that was there before.
"""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from healer.config import Agent
from healer.errors import HealerError, RefusedError
from healer.files import write_atomically
from healer.host import activation, clock, hooks, nix, program
from healer.host.activation import Activated
from healer.ledger.entry import Entry
from healer.safeswitch import deadman, rollback
from healer.safeswitch.deadman import Step, Trial, Word
from healer.safeswitch.watching import Watch

UNIT = "healer-trial.service"
PATH = rollback.PROGRESS_DIR / "trial.json"
# The same once more: there is room here also when a disk is full.
_OF_THIS_BOOT = rollback.RESULT_DIR / "healer-trial.json"
# What a person said. Whoever carries a trial may be another version of healer than who is asked.
_WORDS = (
    rollback.PROGRESS_DIR / "trial-word.json",
    rollback.RESULT_DIR / "healer-trial-word.json",
)
_ROOTS = Path("/nix/var/nix/gcroots")
_POLL_SEC = 0.2
_ATTEMPTS = 3


def read() -> Trial | None:
    """Return the last trial, under way or done; None when there was none."""
    kept, newer = _read(PATH), _read(_OF_THIS_BOOT)
    # Another version of healer may have begun another one since, and writes the first only.
    return newer if newer and (kept is None or kept.leaf == newer.leaf) else kept


def _read(path: Path) -> Trial | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Trial)
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
    for path in (*_WORDS, _OF_THIS_BOOT):
        path.unlink(missing_ok=True)
    write_atomically(PATH, msgspec.json.encode(trial), 0o644)
    try:
        start(trial)
    except RefusedError as error:
        _take(trial, Step("done", str(error)))
        raise


def start(trial: Trial) -> None:
    """Start the unit; raises RefusedError when systemd does not."""
    done = program.completed(
        "systemd-run",
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
    )
    if done.returncode != 0:
        raise RefusedError(f"systemd-run refused {UNIT}: {program.last_words(done)}")


def say(trial: Trial, *, keep: bool, said: str) -> None:
    """Tell the trial's process what a person said. Needs root.

    RefusedError where there is no room for that anywhere.
    """
    word = msgspec.json.encode(Word(trial.leaf, keep, said))
    written = [_put(path, word) for path in _WORDS]
    if not any(written):
        raise RefusedError(f"neither of {', '.join(map(str, _WORDS))} can be written")


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
    systems = nix.systems(Path(trial.profile))
    step = deadman.booted(trial, systems.current, systems.profile)
    if not step.ok and systems.profile == trial.target:
        _restore_profile(trial)
    _take(trial, step)


def _take(trial: Trial, step: Step) -> None:
    """Go to the next phase, which is written down before anything is done in it."""
    trial.phase = step.phase
    if step.phase == "waiting":
        trial.until_ms = clock.uptime_ms() + trial.confirm_sec * 1000
    elif step.phase == "returning":
        trial.why = step.words
    elif step.phase == "done":
        trial.ok, trial.detail, trial.running = step.ok, step.words, _running(trial)
    _write(trial)
    print(f"healer trial: {step.phase}: {step.words}", file=sys.stderr, flush=True)
    if step.phase == "done":
        noted = PATH.parent.glob(f"{_ends(trial).name}.*")
        for path in (*_WORDS, *_links(), *noted):
            path.unlink(missing_ok=True)


def _write(trial: Trial) -> None:
    """Write the files; a full disk does not keep the system from going back, and only once."""
    data = msgspec.json.encode(trial)
    is_newer = _put(_OF_THIS_BOOT, data)
    if _put(PATH, data) and not is_newer:
        _OF_THIS_BOOT.unlink(missing_ok=True)


def _put(path: Path, data: bytes) -> bool:
    """Write a file, and return whether there was room for it."""
    try:
        write_atomically(path, data, 0o644)
    except OSError as error:
        print(f"healer trial: cannot write {path}: {error.strerror}", file=sys.stderr)
        return False
    return True


def _switch(trial: Trial) -> None:
    done = _activate(trial, trial.target, "test")
    _take(trial, deadman.switched(trial, _running(trial), done.code, done.words))


def _wait(trial: Trial) -> None:
    """Wait for a word, a gate that fails, another system, or the end of the time."""
    with Watch(trial.judge, trial.config, trial.uid, trial.gid) as watch:
        while True:
            word = _word(trial)
            step = deadman.waited(trial, _running(trial), word, watch.failed, clock.uptime_ms())
            if step is not None:
                break
            if not trial.gates:
                time.sleep(_POLL_SEC)
            elif watch.changed(_POLL_SEC):
                trial.gates |= watch.states
                _write(trial)
    _take(trial, step)


def _keep(trial: Trial) -> None:
    """Make the target the system that boots."""
    error = None
    try:
        nix.run_nix_env("--profile", trial.profile, "--set", trial.target)
        done = _activate(trial, trial.target, "boot")
        if done.code != 0:
            error = done.words
    except HealerError as refused:
        error = str(refused)
    if error is not None:
        _restore_profile(trial)
    _take(trial, deadman.kept(trial, error))


def _restore_profile(trial: Trial) -> None:
    if trial.profile_before is not None:
        with suppress(HealerError):
            nix.run_nix_env("--profile", trial.profile, "--set", trial.profile_before)


def _return(trial: Trial) -> None:
    """Make the source the system that runs, unless somebody has deployed another since."""
    if not trial.prepared and _running(trial) == trial.target:
        _prepare(trial)
    step = None
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(1)
        last = attempt == _ATTEMPTS - 1
        _wait_for_lock(trial)
        step = deadman.returned(trial, _running(trial), None, last=last)
        if step is None:
            words = _activate(trial, trial.source, "test").words
            step = deadman.returned(trial, _running(trial), words, last=last)
        if step is not None:
            break
    if step is not None:
        _take(trial, step)


def _prepare(trial: Trial) -> None:
    """Run the hooks of the agents that going back changes, once.

    One that fails is told of. It does not keep the target running: that may be what nobody can
    reach any more.
    """
    for name, said in sorted(trial.agents.items()):
        agent = Agent(
            unit=said.unit,
            snapshot=said.snapshot,
            before_rollback=said.before_rollback,
            before_rollback_timeout_sec=said.before_rollback_timeout_sec,
        )
        try:
            hooks.run({name: agent}, [name], _ends(trial))
        except (HealerError, OSError) as error:
            trial.why += f"; {error}"
    trial.prepared = True
    _write(trial)


def _activate(trial: Trial, toplevel: str, action: str) -> Activated:
    return activation.activate(toplevel, action, trial.timeout_sec)


def _wait_for_lock(trial: Trial) -> None:
    deadline = time.monotonic() + trial.timeout_sec
    while nix.is_locked(nix.SWITCH_LOCK) and time.monotonic() < deadline:
        time.sleep(_POLL_SEC)


def _word(trial: Trial) -> Word | None:
    for path in _WORDS:
        with suppress(OSError, msgspec.MsgspecError):
            word = msgspec.json.decode(path.read_bytes(), type=Word)
            if word.leaf == trial.leaf:
                return word
    return None


def _running(trial: Trial) -> str | None:
    return nix.systems(Path(trial.profile)).current


def _ends(trial: Trial) -> Path:
    """Return how the names begin of the files that tell how each hook ended."""
    return PATH.with_name(f"trial-{trial.leaf[:16]}")


def _links() -> tuple[Path, Path]:
    return _ROOTS / "healer-trial-target", _ROOTS / "healer-trial-source"
