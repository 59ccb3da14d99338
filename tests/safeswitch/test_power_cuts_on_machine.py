"""The power is cut at every step of a rollback, in one machine that keeps its disk.

A container loses all its processes and /run; a virtual machine also loses what was not synced, but
an emulated one takes minutes for each cut.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest

from healer.host.switching import UNIT
from tests.conftest import Boot
from tests.machine.agents import assert_intact, entries, system, wait_for_entries, wait_for_entry
from tests.machine.local import PROFILE, LocalMachine
from tests.machine.vm import VirtualMachine, has_kvm
from tests.safeswitch.test_on_machine import promoted

# Programs that start fast: emulation is slow.
COMMANDS = {"good": ["/bin/sleep", "infinity"], "bad": ["/bin/sh", "-c", "exit 3"]}
PROGRESS = "/var/lib/healer-helper/rollback-*"
RESULT = "/run/healer-rollback-*.result"
LEDGER = "/var/lib/healer/ledger/*.jsonl"
RAN = "/var/lib/worker/ran"
HOLD = "/run/hold-the-hook"


class Step(NamedTuple):
    """What a shell waits for until the power is cut; $good is the target.

    ``reboots``: the host then boots the bad system once more, and healer reboots it from that.
    ``ran``: how often the agent's hook has run in the end.
    """

    condition: str
    reboots: bool = False
    ran: int = 0


INTENT = '\'"action":"rollback".*"type":"action.intent"\''
PROFILE_SET = f"[ {PROFILE} -ef $good ]"
BOOT_LOADER = "grep -qs init=$good $entries/$(sed -n s/^default.//p $conf)"
SWITCH = {
    "the intent is durable": Step(f'[ "$(cat {LEDGER} | grep -c {INTENT})" -gt $before ]'),
    "the unit has begun": Step(f"grep -qs begun {RESULT}"),
    "the profile is set": Step(PROFILE_SET),
    "the boot loader is installed": Step(BOOT_LOADER),
    "the system is activated": Step("[ /run/current-system -ef $good ]"),
    "the switch has ended": Step(f"grep -qs switch {RESULT}"),
    "the result is written down": Step(f"grep -qs '\"done\":true' {PROGRESS}.json"),
}
# Where a lost sector would hurt most.
WORST = "the profile is set"
REBOOT = {
    "the profile is set": Step(PROFILE_SET, reboots=True),
    "the boot loader is installed": Step(BOOT_LOADER),
    "it is staged": Step(f'grep -qs \'"staged":"\' {PROGRESS}.json'),
}
HOOK = {
    "a hook runs": Step(f"grep -qs here {RAN}", ran=2),
    "the hooks have run": Step(f"grep -qs '\"prepared\":true' {PROGRESS}.json", ran=1),
}

# Who rolls back is stopped in its tracks, so that the power is cut at this step and no later one.
# In an emulated machine a step takes seconds, and a loop without a pause one of its processors.
CUTTER = """\
entries=/boot/loader/entries conf=/boot/loader/loader.conf good={good} before={before}
until {condition}; do {pause}; done
for group in {unit} 'system-healer\\x2dhelper.slice'; do
  echo 1 >"/sys/fs/cgroup/system.slice/$group/cgroup.freeze"
done 2>/dev/null
touch /run/cut-now
sleep infinity
"""


def declared(
    label: str, inhibitor: str = "old", *, hooks: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    agent = {"command": COMMANDS[label], "stableSec": 2, **(hooks or {})}
    safe_switch = {
        "maxRollbacksPerDay": 100,
        "probationSec": 4 if label == "good" else 600,
        "reboot": "at-once",
    }
    return system(
        {"worker": agent},
        label=label,
        healer={"safeSwitch": safe_switch},
        switchInhibitors={"init": inhibitor},
    )


def hooks() -> dict[str, Any]:
    """Hooks that say durably that they run; one goes on only once nobody holds it."""
    note = "echo here >>{0}; sync {0}"
    waits = f"while test -e {HOLD}; do sleep 0.2; done"
    return {
        "stateDirectory": "worker",
        "snapshot": ["/bin/sh", "-c", note.format(f"{RAN}-before")],
        "beforeRollback": ["/bin/sh", "-c", f"{note.format(RAN)}; {waits}"],
    }


def by_switch() -> dict[str, Any]:
    return declared("bad")


def by_reboot() -> dict[str, Any]:
    return declared("bad", "new")


def after_hooks() -> dict[str, Any]:
    return declared("bad", hooks=hooks())


@pytest.mark.parametrize(
    ("bad", "steps"),
    [(by_switch(), SWITCH), (by_reboot(), REBOOT), (after_hooks(), HOOK)],
    ids=["by a switch", "by a reboot", "after hooks"],
)
def test_at_every_step_in_a_container(
    container: Boot, bad: dict[str, Any], steps: dict[str, Step]
) -> None:
    cut_at(steps, bad, container)


def test_at_the_worst_step_in_a_virtual_machine(vm: Boot) -> None:
    cut_at({WORST: SWITCH[WORST]}, by_switch(), vm)


@pytest.mark.slow_when_emulated
@pytest.mark.parametrize(
    ("bad", "steps"),
    [
        (by_switch(), {name: step for name, step in SWITCH.items() if name != WORST}),
        (by_reboot(), REBOOT),
        (after_hooks(), HOOK),
    ],
    ids=["by a switch", "by a reboot", "after hooks"],
)
def test_at_the_other_steps_in_a_virtual_machine(
    vm: Boot, bad: dict[str, Any], steps: dict[str, Step]
) -> None:
    cut_at(steps, bad, vm)


def cut_at(steps: Mapping[str, Step], declared_bad: dict[str, Any], boot: Boot) -> None:
    """Let one machine roll back again and again, with a power cut at each of these steps."""
    machine = boot(system=declared("good"))
    good = promoted(machine)
    bad = machine.build(declared_bad)
    for number, (name, step) in enumerate(steps.items()):
        with machine.nested(f"the power is cut when {name}"):
            cut(machine, step, bad=bad, good=good, before=number)
            if step.reboots:
                machine.wait_for_shutdown()
                machine.start()
            assert_went_back(machine, step, bad=bad, good=good, times=number + 1)


def cut(machine: LocalMachine, step: Step, *, bad: str, good: str, before: int) -> None:
    """Deploy the bad system, and cut the power where the rollback from it fulfils a condition."""
    machine.succeed(f"rm -f {PROGRESS} {RAN}*")
    pause = "sleep 0.05" if isinstance(machine, VirtualMachine) and not has_kvm() else ":"
    script = CUTTER.format(
        condition=step.condition, pause=pause, good=good, before=before, unit=UNIT
    )
    machine.set_profile(bad)
    machine.write_file("/run/cutter.sh", script)
    if step.ran > 1:
        machine.succeed(f"touch {HOLD}")
    # Not before the bad system runs: until then all is as it will be after the rollback.
    waits = f"until [ /run/current-system -ef {bad} ]; do sleep 0.1; done; exec sh /run/cutter.sh"
    machine.succeed(f"systemd-run --unit=cutter sh -c '{waits}'")
    # Nobody waits for it: who freezes a cgroup may catch PID 1 starting a process in it. And who
    # deploys does so across an inhibitor.
    switch = f"NIXOS_NO_CHECK=1 {bad}/bin/switch-to-configuration switch"
    machine.succeed(f"{switch} >/dev/null 2>&1 &")
    machine.wait_until_succeeds("test -e /run/cut-now", timeout=400)
    machine.crash()
    machine.start()


def assert_went_back(machine: LocalMachine, step: Step, *, bad: str, good: str, times: int) -> None:
    """The rollback was completed, once, and its outcome is what runs."""
    wait_for_entries(machine, times, "deployment.condemned", timeout=600)
    assert machine.succeed(f"readlink -f /run/current-system {PROFILE}").split() == [good, good]
    intents = [e for e in entries(machine, "action.intent") if e["data"]["action"] == "rollback"]
    assert [(e["data"]["from"], e["data"]["target"]) for e in intents] == [(bad, good)] * times
    outcome = wait_for_entry(machine, "action.outcome", action="rollback")
    assert outcome["data"]["intent"] == intents[-1]["seq"]
    assert (outcome["data"]["ok"], outcome["data"]["running"]) == (True, good)
    machine.wait_until_succeeds("systemctl is-active worker")
    if step.ran:
        # Only what was interrupted has run again.
        assert machine.succeed(f"cat {RAN}-before").split() == ["here"]
        assert machine.succeed(f"cat {RAN}").split() == ["here"] * step.ran
    assert_intact(machine)
