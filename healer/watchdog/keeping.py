"""What root does to one agent: end it, restart it, hold it back, give it up, let it go.

Each of these may be done twice: the daemon asks again after it was killed. What it returns is
whether it came off, and how in words. ``still_due`` raises RefusedError once an intent has its
outcome: whoever waited for the lock for so long must not do it any more.
"""

import time
from collections.abc import Callable
from pathlib import Path

from healer.config import Config
from healer.errors import RefusedError
from healer.host import clock, holds, stamps
from healer.host.holds import Hold
from healer.host.systemctl import show, systemctl, systemd_run
from healer.ledger.entry import Entry

_KILL_GRACE_SEC = 10.0
# Less than the daemon waits for an answer.
_STOP_SEC = 50.0
_RELEASE_AGAIN_SEC = 10
# The states of a unit in which it can run without a main process.
_UP = frozenset({"active", "reloading", "refreshing"})
_BEGAN = "ExecMainStartTimestampMonotonic"

Came = tuple[bool, str]


def kill(config: Config, unit: str, intent: Entry) -> Came:
    """End an agent that fails its health check, so that systemd restarts it by its policy.

    SIGABRT as systemd's own watchdog sends (systemd.service(5) WatchdogSignal=), then SIGKILL. A
    restart job would reset systemd's restart counter, and with it the backoff.
    """
    invocation = str(intent.data["invocation"])

    def runs() -> dict[str, str] | None:
        now = show(unit, "InvocationID", "MainPID", "ActiveState")
        up = now["MainPID"] != "0" or now["ActiveState"] in _UP
        return now if up and now["InvocationID"] == invocation else None

    def is_over() -> bool:
        return runs() is None

    if not is_over():
        stamps.mark_unhealthy(Path(config.runtime_dir) / "stamps", unit, invocation)
    for signal, wait_sec in (("SIGABRT", _KILL_GRACE_SEC), ("SIGKILL", _KILL_GRACE_SEC)):
        if (now := runs()) is None:
            return True, f"invocation {invocation} of {unit} is gone"
        # Of ExitType=cgroup the first process may have gone long ago.
        whom = "all" if now["MainPID"] == "0" else "main"
        systemctl("kill", f"--kill-whom={whom}", f"--signal={signal}", unit)
        if _wait(is_over, wait_sec):
            return True, f"{signal} ended invocation {invocation} of {unit}"
    return False, f"{unit} survives SIGKILL: it hangs in the kernel"


def reset(unit: str) -> Came:
    """Reset systemd's restart counter, from which RestartSteps= takes the delay."""
    systemctl("reset-failed", unit)
    return True, f"the restart counter of {unit} is 0"


def restart(config: Config, unit: str, intent: Entry) -> Came:
    """Restart an agent, once, because somebody asked; wait for its start, unless that takes long.

    What has been started since it was asked for is not restarted again.
    """
    hold = holds.read(Path(config.runtime_dir), unit)
    if hold is not None:
        return False, f"{unit} is held back: {hold.reason}; release it instead"
    began_us = show(unit, _BEGAN).get(_BEGAN) or "0"
    if clock.from_monotonic_us(int(began_us)) <= intent.boottime_us // 1000:
        systemctl("restart", "--no-block", unit)
    if not _wait(lambda: show(unit, "Job").get("Job", "0") in {"", "0"}, _STOP_SEC):
        return True, f"{unit} is being restarted, which takes longer than {_STOP_SEC:g} s"
    if show(unit, "ActiveState")["ActiveState"] == "failed":
        return False, f"{unit} was restarted, and failed; look at: systemctl status {unit}"
    return True, f"{unit} was restarted"


def hold(config: Config, unit: str, intent: Entry, still_due: Callable[[], object]) -> Came:
    """Stop an agent and keep it down; a timer of PID 1's ends that, also without healer.

    The end is counted from the intent, so that to do it twice is to do it once. A quarantine does
    not replace a hold that lasts longer; what a person asks for replaces any.
    """
    until_ms = intent.boottime_us // 1000 + int(intent.data["ttl_sec"]) * 1000
    left_ms = until_ms - clock.uptime_ms()
    if left_ms <= 0:
        return False, f"the time for which {unit} was to be held back is over"
    with holds.exclusively():
        still_due()
        before = holds.read(Path(config.runtime_dir), unit)
        if before is not None and _outlasts(before, intent, until_ms):
            until = " until somebody releases it" if before.until_ms is None else ""
            return False, f"{unit} is held back already{until}: {before.reason}"
        # The timer comes first: nothing is ever held that nothing will release.
        _arm_release(config, unit, intent.seq, left_ms)
        placed = Hold(str(intent.data["reason"]), until_ms, intent.seq)
        holds.write(Path(config.runtime_dir), unit, placed)
        systemctl("stop", "--no-block", unit)
        if before is not None and before.intent != intent.seq:
            _disarm_release(unit, before)
    words = f"is held back for {left_ms / 1000:.0f} s, or until a reboot"
    return _down(config, unit, intent.seq, words)


def give_up(config: Config, unit: str, intent: Entry, still_due: Callable[[], object]) -> Came:
    """Stop an agent and keep it down, over reboots too, until somebody releases it."""
    placed = Hold(str(intent.data["reason"]), None, intent.seq)
    with holds.exclusively():
        still_due()
        holds.write(Path(config.runtime_dir), unit, placed)
        systemctl("stop", "--no-block", unit)
        holds.write_lasting(unit, placed)
    return _down(config, unit, intent.seq, "is stopped and held back until somebody releases it")


def release(config: Config, unit: str, intent: Entry, still_due: Callable[[], object]) -> Came:
    """End a hold and start the agent: any hold for a person, and for healer its own."""
    own = intent.data.get("hold")
    with holds.exclusively():
        still_due()
        there = holds.read(Path(config.runtime_dir), unit)
        if there is not None and "asked_by" not in intent.data and there.intent != own:
            return True, f"{unit} stays held back: {there.reason}"
        _let_go(Path(config.runtime_dir), unit, there)
    if there is None:
        return True, f"{unit} was not held back; it is started if it was down"
    return True, f"{unit} is let go and started"


def end_hold(runtime_dir: Path, unit: str, intent_seq: int) -> None:
    """End the hold of this intent, unless another is in force, and start the agent.

    It may be tried again where the agent could not be started: the hold is gone by then.
    """
    with holds.exclusively():
        there = holds.read(runtime_dir, unit)
        if there is not None and there.intent != intent_seq:
            return
        if show(unit, "LoadState")["LoadState"] == "not-found":
            holds.remove(runtime_dir, unit)  # the system that runs has no such agent
        else:
            _let_go(runtime_dir, unit, there)


def _outlasts(there: Hold, intent: Entry, until_ms: int) -> bool:
    """Whether a hold stays as it is: whom healer gave up a person releases first."""
    if there.until_ms is None:
        return True
    return "asked_by" not in intent.data and there.until_ms > until_ms


def _let_go(runtime_dir: Path, unit: str, there: Hold | None) -> None:
    holds.remove(runtime_dir, unit)
    systemctl("start", "--no-block", unit)
    if there is not None:
        _disarm_release(unit, there)


def _arm_release(config: Config, unit: str, intent_seq: int, left_ms: int) -> None:
    """Have PID 1 end this very hold, once; a timer that is there already is the same one.

    Until then there may come a system of another healer's, or of none, and a garbage collection.
    """
    if config.package is None:
        raise RefusedError("config: package is null, so there is no program to release the agent")
    name = _release_unit(unit, intent_seq)
    if show(f"{name}.timer", "LoadState")["LoadState"] == "loaded":
        return
    systemd_run(
        f"--on-active={left_ms}ms",
        "--timer-property=AccuracySec=1s",
        f"--unit={name}",
        # Where systemd is too busy to start the agent.
        "--property=Restart=on-failure",
        f"--property=RestartSec={_RELEASE_AGAIN_SEC}s",
        "--property=StartLimitIntervalSec=0",
        f"{holds.keep_program(config.package)}/bin/healer",
        "helper",
        f"--release={unit}",
        f"--hold={intent_seq}",
        f"--runtime-dir={config.runtime_dir}",
    )


def _disarm_release(unit: str, there: Hold) -> None:
    """Remove the timer of a hold that is over; left alone it would do nothing."""
    systemctl("stop", f"{_release_unit(unit, there.intent)}.timer", check=False)


def _release_unit(unit: str, intent_seq: int) -> str:
    return f"healer-release-{unit.removesuffix('.service')}-{intent_seq}"


def _down(config: Config, unit: str, intent_seq: int, words: str) -> Came:
    """Wait until a held unit is down, or stops very slowly; it may be let go again before."""

    def is_held() -> bool:
        there = holds.read(Path(config.runtime_dir), unit)
        return there is not None and there.intent == intent_seq

    def is_down() -> bool:
        state = show(unit, "ActiveState")["ActiveState"]
        return state in {"inactive", "failed"} or not is_held()

    _wait(is_down, _STOP_SEC)
    if is_held():
        return True, f"{unit} {words}"
    return False, f"{unit} was let go again before it was down"


def _wait(condition: Callable[[], bool], timeout_sec: float) -> bool:
    deadline = time.monotonic() + timeout_sec
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False
