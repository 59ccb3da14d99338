"""The power is cut at every step of a rollback, in one machine that keeps its disk.

A container loses all its processes and /run; a virtual machine also loses what was not synced, but
an emulated one takes minutes for each cut.
"""

from collections.abc import Iterable
from typing import Any

import pytest

from healer.host.switching import UNIT
from tests.conftest import Boot
from tests.machine.agents import assert_intact, entries, system, wait_for_entries, wait_for_entry
from tests.machine.local import PROFILE, LocalMachine
from tests.safeswitch.test_on_machine import promoted

# Programs that start fast: emulation is slow.
COMMANDS = {"good": ["/bin/sleep", "infinity"], "bad": ["/bin/sh", "-c", "exit 3"]}
PROGRESS = "/var/lib/healer-helper/rollback-*"
RESULT = "/run/healer-rollback-*.result"
LEDGER = "/var/lib/healer/ledger/*.jsonl"

# By step: what a shell waits for until the power is cut. $good is the target.
STEPS = {
    "the intent is durable": f'[ "$(cat {LEDGER} | grep -c {{intent}})" -gt $before ]',
    "the unit has begun": f"grep -qs begun {RESULT}",
    "the profile is set": f"[ {PROFILE} -ef $good ]",
    "the boot loader is installed": "grep -qs init=$good $entries/$(sed -n s/^default.//p $conf)",
    "the system is activated": "[ /run/current-system -ef $good ]",
    "the switch has ended": f"grep -qs switch {RESULT}",
    "the result is written down": f"grep -qs '\"done\":true' {PROGRESS}.json",
}
# Where a lost sector would hurt most.
WORST = ("the profile is set", "the system is activated")
INTENT = '\'"action":"rollback".*"type":"action.intent"\''

# Who rolls back is stopped in its tracks, so that the power is cut at this step and no later one.
CUTTER = """\
entries=/boot/loader/entries conf=/boot/loader/loader.conf good={good} before={before}
until {condition}; do :; done
for group in {unit} 'system-healer\\x2dhelper.slice'; do
  echo 1 >"/sys/fs/cgroup/system.slice/$group/cgroup.freeze"
done 2>/dev/null
touch /run/cut-now
sleep infinity
"""


def declared(label: str) -> dict[str, Any]:
    agent = {"command": COMMANDS[label], "stableSec": 2}
    safe_switch = {"maxRollbacksPerDay": 100, "probationSec": 4 if label == "good" else 600}
    return system({"worker": agent}, label=label, healer={"safeSwitch": safe_switch})


def test_at_every_step_in_a_container(container: Boot) -> None:
    cut_at(STEPS, container)


def test_at_the_worst_steps_in_a_virtual_machine(vm: Boot) -> None:
    cut_at(WORST, vm)


@pytest.mark.slow_when_emulated
def test_at_the_other_steps_in_a_virtual_machine(vm: Boot) -> None:
    cut_at([step for step in STEPS if step not in WORST], vm)


def cut_at(steps: Iterable[str], boot: Boot) -> None:
    """Let one machine roll back again and again, with a power cut at each of these steps."""
    machine = boot(system=declared("good"))
    good = promoted(machine)
    bad = machine.build(declared("bad"))
    for number, step in enumerate(steps):
        with machine.nested(f"the power is cut when {step}"):
            cut(machine, STEPS[step], bad=bad, good=good, before=number)
            assert_went_back(machine, bad=bad, good=good, times=number + 1)


def cut(machine: LocalMachine, condition: str, *, bad: str, good: str, before: int) -> None:
    """Deploy the bad system, and cut the power where the rollback from it fulfils a condition."""
    machine.succeed(f"rm -f {PROGRESS}")
    condition = condition.format(intent=INTENT)
    script = CUTTER.format(condition=condition, good=good, before=before, unit=UNIT)
    machine.set_profile(bad)
    machine.write_file("/run/cutter.sh", script)
    # Not before the bad system runs: until then all is as it will be after the rollback.
    waits = f"until [ /run/current-system -ef {bad} ]; do sleep 0.1; done; exec sh /run/cutter.sh"
    machine.succeed(f"systemd-run --unit=cutter sh -c '{waits}'")
    # Nobody waits for it: who freezes a cgroup may catch PID 1 starting a process in it.
    machine.succeed(f"{bad}/bin/switch-to-configuration switch >/dev/null 2>&1 &")
    machine.wait_until_succeeds("test -e /run/cut-now", timeout=400)
    machine.crash()
    machine.start()


def assert_went_back(machine: LocalMachine, *, bad: str, good: str, times: int) -> None:
    """The rollback was completed, once, and its outcome is what runs."""
    wait_for_entries(machine, times, "deployment.condemned", timeout=600)
    assert machine.succeed(f"readlink -f /run/current-system {PROFILE}").split() == [good, good]
    intents = [e for e in entries(machine, "action.intent") if e["data"]["action"] == "rollback"]
    assert [(e["data"]["from"], e["data"]["target"]) for e in intents] == [(bad, good)] * times
    outcome = wait_for_entry(machine, "action.outcome", action="rollback")
    assert outcome["data"]["intent"] == intents[-1]["seq"]
    assert (outcome["data"]["ok"], outcome["data"]["running"]) == (True, good)
    machine.wait_until_succeeds("systemctl is-active worker", timeout=120)
    assert_intact(machine)
