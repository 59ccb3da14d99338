"""A person at `healer safeswitch` on a local machine, and what came of what was asked."""

import json
from typing import Any

from tests.machine.agents import agent, system
from tests.machine.local import PROFILE, LocalMachine

TRIAL = "/var/lib/healer-helper/trial.json"


def gated(label: str, *gates: dict[str, Any], probation_sec: float = 600) -> dict[str, Any]:
    """Declare a system that is not known-good by itself while a test looks."""
    quick = {"intervalSec": 0.3, "failureThreshold": 2}
    safe_switch = {"probationSec": probation_sec, "gates": [{**quick, **gate} for gate in gates]}
    return system({"worker": agent()}, label=label, healer={"safeSwitch": safe_switch})


def where(machine: LocalMachine) -> tuple[str, str, str]:
    """Return what runs, what the profile is and what boots."""
    running, profile = machine.succeed(f"readlink -f /run/current-system {PROFILE}").split()
    entry = machine.succeed("sed -n 's/^default //p' /boot/loader/loader.conf").strip()
    options = machine.succeed(f"grep -o 'init=[^ ]*' /boot/loader/entries/{entry}").strip()
    return running, profile, options.removeprefix("init=").removesuffix("/init")


def ask(machine: LocalMachine, command: str, user: str = "root") -> tuple[bool, str]:
    """Ask, as root by sudo or as somebody else; return whether it was done and what was said."""
    as_whom = "SUDO_USER=alice" if user == "root" else f"setpriv --reuid={user} --clear-groups"
    code, out = machine.execute(f"{as_whom} healer safeswitch {command} 2>&1")
    return code == 0, out


def refused(machine: LocalMachine, command: str, said: str, user: str = "root") -> None:
    """Ask for something that is refused in these words, and see that nothing has changed."""
    before = where(machine)
    done, out = ask(machine, command, user)
    assert not done, out
    assert said in out, out
    assert "Traceback" not in out
    assert where(machine) == before


def status(machine: LocalMachine) -> Any:
    return json.loads(machine.succeed("healer safeswitch status --json"))
