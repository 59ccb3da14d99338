"""Setting the profile and switching, in a transient unit that bears nixos-rebuild's own name.

So the two exclude each other: systemd has one unit of a name. The unit has a run-time bound, and
goes on when whoever started it is killed. It is a few lines of sh which write to a result file how
far they came, for a unit that ended says no more than its last exit code.
"""

import re
import time
from dataclasses import dataclass
from pathlib import Path

from healer.errors import RefusedError
from healer.host import nix, program, transient
from healer.host.known_good import Goal

UNIT = "nixos-rebuild-switch-to-configuration.service"
REFUSED = 1
"""Exit code of switch-to-configuration: a check or the boot loader refused."""
NEEDS_BOOT = 100
"""Exit code of switch-to-configuration: the init interface is another one."""
# Another run has the lock: 1, or errno's EAGAIN.
_LOCKED = frozenset({1, 11})
_ACTIONS = ("switch", "boot", "test")
_POLL_SEC = 0.2
_WATCH_SEC = 0.005
_LOOK_SEC = 1.0
_ATTEMPTS = 3

# Builtins of sh, and absolute programs. Each line of the result: a step, its exit code, and when
# it ended in seconds since boot, to a hundredth (proc_uptime(5)).
_SCRIPT = """\
result=$1 from=$2 target=$3 nix_env=$4 profile=$5 base=$6 switch=$7 action=$8 current=$9
step() { read -r now _ </proc/uptime; echo "$1 $2 $now" >>"$result"; }
running=$(cd -P "$current" && pwd)
case $running in
  "$from" | "$target") step begun 0 ;;
  *) step superseded 0; exit 1 ;;
esac
if [ "$base" ]; then
  "$nix_env" --profile "$profile" --set "$base"
  code=$?
  step profile $code
  [ $code = 0 ] || exit 1
fi
"$switch" "$action" </dev/null
code=$?
step "$action" $code
exit $code
"""


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of the unit: the exit code of each step that ended, and when, since boot.

    The steps: begun, profile, and switch, boot or test; or superseded, where another system ran.
    """

    codes: dict[str, int]
    ended: dict[str, float]
    timed_out: bool

    @property
    def code(self) -> int | None:
        """The exit code of switch-to-configuration; None when it was killed."""
        return next((self.codes[action] for action in _ACTIONS if action in self.codes), None)

    @property
    def made_it_boot(self) -> bool:
        """Whether the boot loader was set: what fails later does so with another code."""
        kept = {REFUSED, NEEDS_BOOT, None, *_LOCKED}
        return self.code not in kept and "test" not in self.codes

    @property
    def has_profile(self) -> bool:
        """Whether nix-env has not failed."""
        return self.codes.get("profile", 0) == 0

    @property
    def words(self) -> str:
        """Say how it ended."""
        if "superseded" in self.codes:
            return "another system runs by now"
        if not self.has_profile:
            return f"nix-env --set failed (see journalctl --unit={UNIT})"
        if self.code is not None:
            return f"switch-to-configuration exited with {self.code}"
        if self.timed_out:
            return "switch-to-configuration did not end within safeSwitch.timeoutSec and was ended"
        return "switch-to-configuration was killed"


@dataclass(frozen=True, slots=True)
class Switch:
    """One change of the host: from one toplevel to another, with the file for its result.

    ``timeout_sec`` bounds the unit; ``deadline`` on CLOCK_MONOTONIC the wait for another switch.
    Without ``sets_profile`` that is left as it is.
    """

    source: str
    goal: Goal
    profile: Path
    result: Path
    timeout_sec: float
    deadline: float
    sets_profile: bool = True

    def run(self, action: str) -> Ran:
        """Set the profile and run ``switch-to-configuration ACTION``: switch, or boot.

        ``test`` leaves the profile as it is, and what boots. Begun again where it was killed, and
        where another switch came first, up to three times in all. RefusedError when it cannot be
        begun.
        """
        ran = None
        for attempt in range(_ATTEMPTS):
            self.result.unlink(missing_ok=True)
            ran = self._run_once(action)
            if ran is None:
                self._wait_for_the_name()
                continue
            if "superseded" in ran.codes or not ran.has_profile or self._is_final(ran, attempt):
                return ran
            wait_for_lock(self.deadline)
        if ran is None:
            raise RefusedError(f"{UNIT} belonged to another switch {_ATTEMPTS} times")
        return ran

    def taken_up(self) -> Ran | None:
        """Wait for a unit that was started earlier for the same, and return what it did, if all."""
        if not self.result.exists():
            return None
        while not transient.is_over(UNIT):
            time.sleep(_POLL_SEC)
        ran = self._read(timed_out=False)
        return ran if ran is not None and "switch" in ran.codes else None

    def _run_once(self, action: str) -> Ran | None:
        """Run the unit; None where another has its name."""
        began = time.monotonic()
        words = "healer: switch to a known-good system"
        if not transient.start(UNIT, words, self._command(action), self.timeout_sec):
            return None
        while True:
            # It comes before systemd's word of the end, and never from a unit that was killed.
            ran = self._await(action, _LOOK_SEC)
            if ran is not None:
                return ran
            if transient.is_over(UNIT):
                break
        if not self.result.exists():
            raise RefusedError(f"{UNIT} did not begin; see journalctl --unit={UNIT}")
        return self._read(timed_out=time.monotonic() - began >= self.timeout_sec)

    def _await(self, action: str, patience_sec: float) -> Ran | None:
        """Wait for the last line of the result; None where it does not come meanwhile."""
        until = time.monotonic() + patience_sec
        while time.monotonic() < until:
            time.sleep(_WATCH_SEC)
            ran = self._read(timed_out=False)
            if ran is not None and action in ran.codes:
                return ran
        return None

    def _command(self, action: str) -> list[str]:
        base = self.goal.base if self.sets_profile and action != "test" else ""
        return [
            *("/bin/sh", "-c", _SCRIPT, "sh"),
            *(str(self.result), self.source, self.goal.toplevel, program.path("nix-env")),
            *(str(self.profile), base, self.goal.switch, action),
            str(nix.CURRENT),
        ]

    def _wait_for_the_name(self) -> None:
        time.sleep(_POLL_SEC)
        while not transient.is_over(UNIT):
            _check(self.deadline, f"{UNIT} is running")
            time.sleep(_POLL_SEC)

    def _is_final(self, ran: Ran, attempt: int) -> bool:
        """Whether to run it again would come to the same.

        Who finds the lock held is refused with the same code as whom a check refuses.
        """
        if ran.code is None:
            return ran.timed_out
        return ran.code not in _LOCKED or (ran.code == REFUSED and attempt > 0)

    def _read(self, *, timed_out: bool) -> Ran | None:
        try:
            lines = self.result.read_text(encoding="ascii").splitlines()
        except (OSError, UnicodeDecodeError):
            return None
        matches = [re.fullmatch(r"(\w+) (\d+) ([\d.]+)", line) for line in lines]
        codes = {match[1]: int(match[2]) for match in matches if match}
        ended = {match[1]: float(match[3]) for match in matches if match}
        return Ran(codes, ended, timed_out)


def wait_for_lock(deadline: float) -> None:
    """Wait for another switch to end; RefusedError after the deadline (CLOCK_MONOTONIC)."""
    while (holder := nix.lock_holder(nix.SWITCH_LOCK)) is not None:
        _check(deadline, f"{nix.SWITCH_LOCK} is held by {holder}")
        time.sleep(_POLL_SEC)


def _check(deadline: float, words: str) -> None:
    if time.monotonic() > deadline:
        raise RefusedError(f"{words} for longer than safeSwitch.lockTimeoutSec")
