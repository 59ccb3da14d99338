"""The ladder on a real systemd: quarantine, its end, the reboot, giving up, and a person."""

import json
import time
from typing import Any

import pytest

from tests.conftest import Boot
from tests.machine.agents import (
    agent,
    assert_intact,
    entries,
    kill_and_wait,
    main_pid,
    running_pid,
    system,
    wait_for_entries,
    wait_for_entry,
)
from tests.machine.local import LocalMachine

# Works at first, so that its system becomes known-good; breaks when it is told to.
TWO_FACED = """\
import pathlib, sys, time

while not pathlib.Path("/run/break").exists():
    time.sleep(0.1)
time.sleep(0.5)  # so that it is seen to run
sys.exit(3)
"""

# Crashes in its first six runs, and is well after that.
SHAKY = """\
import os, pathlib, sys, time

state = pathlib.Path(os.environ["STATE_DIRECTORY"]) / "runs"
runs = int(state.read_text()) + 1 if state.exists() else 1
state.write_text(str(runs))
if runs <= 6:
    sys.exit(3)
time.sleep(1000000)
"""


def host(escalation: dict[str, Any], **more: Any) -> dict[str, Any]:
    worker = agent(
        "two-faced", crashLoop={"maxCrashes": 3}, escalation={"enable": True, **escalation}
    )
    return system({"worker": worker}, etc={"agents/two-faced.py": TWO_FACED}, **more)


def known_good(machine: LocalMachine) -> str:
    toplevel = machine.current_system()
    wait_for_entry(machine, "deployment.known-good", toplevel=toplevel)
    return toplevel


def steps(machine: LocalMachine) -> list[str]:
    return [e["data"]["action"] for e in entries(machine, "action.intent")]


def holds(machine: LocalMachine) -> str:
    return machine.succeed("ls /run/healer/holds")


def test_from_a_crash_loop_to_the_end_and_back(container: Boot) -> None:
    machine = container(system=host({"quarantineSec": 5, "maxQuarantines": 2}))
    known_good(machine)
    machine.succeed("touch /run/break")
    quarantine = wait_for_entry(machine, "action.outcome", action="quarantine")
    assert quarantine["data"]["ok"]
    assert "held back" in machine.execute("healer status")[1]
    # Nothing but PID 1 ends it.
    released = wait_for_entry(machine, "agent.released", agent="worker")
    assert released["data"]["by"] == "timer"

    gave_up = wait_for_entry(machine, "agent.gave-up", agent="worker")
    assert gave_up["data"]["stopped"] is True
    assert "after 2 quarantines" in gave_up["data"]["reason"]
    assert steps(machine) == ["promote", "quarantine", "quarantine", "give-up"]
    # One story from the first crash to the end.
    assert {e["incident"] for e in entries(machine, "agent.crash")} == {gave_up["incident"]}
    assert machine.get_unit_property("worker.service", "ActiveState") in {"inactive", "failed"}
    assert "GIVEN UP" in machine.succeed("journalctl -u healer -p crit --output=cat")
    machine.wait_until_succeeds("(healer status || true) | grep 'GIVEN UP'")
    code, out = machine.execute("healer status --json")
    status = json.loads(out)
    assert code == 1
    assert "after 2 quarantines" in status["agents"]["worker"]["gave_up"]
    story = machine.succeed(f"healer incident {gave_up['incident']}")
    for part in ("quarantine 1 of 2", "is held back no more", "GIVEN UP", "given up"):
        assert part in story, story

    # Neither systemctl nor a restart of healer starts it; a person does.
    machine.succeed("systemctl start worker", "systemctl restart healer")
    machine.wait_until_succeeds("test -S /run/healer/control.sock")
    assert machine.get_unit_property("worker.service", "ActiveState") in {"inactive", "failed"}
    assert machine.execute("healer agent worker restart 2>&1")[0] == 1
    machine.succeed("rm /run/break")
    machine.wait_until_succeeds("healer agent worker release")
    machine.wait_for_unit("worker.service")
    kill_and_wait(machine, "worker.service")
    wait_for_entry(machine, "agent.recovered", agent="worker")
    machine.wait_until_succeeds("healer status")
    assert_intact(machine)


def test_what_was_given_up_stays_down_over_a_reboot(container: Boot) -> None:
    machine = container(system=host({"maxQuarantines": 0}))
    known_good(machine)
    machine.succeed("touch /run/break")
    wait_for_entry(machine, "agent.gave-up", agent="worker")
    machine.reboot()
    machine.wait_for_unit("healer.service")
    machine.wait_until_succeeds("(healer status || true) | grep 'GIVEN UP'")
    assert machine.get_unit_property("worker.service", "ActiveState") == "inactive"
    machine.wait_until_succeeds("SUDO_USER=alice healer agent worker release")
    machine.wait_for_unit("worker.service")
    assert_intact(machine)


# Healer is killed while it waits for the boot loader, and asks for the same again.
KILLER = """\
if test -e /run/break && ! test -e /run/killed; then
  touch /run/killed
  systemctl kill --signal=KILL healer
  sleep 5
fi
"""


@pytest.mark.parametrize("boot_loader", ["", KILLER], ids=["", "killed meanwhile"])
def test_a_reboot_into_the_known_good(container: Boot, boot_loader: str) -> None:
    limits = {"escalation": {"reboot": True}, "safeSwitch": {"probationSec": 4}}
    declared = host({"maxQuarantines": 0}, healer=limits, bootLoaderScript=boot_loader)
    machine = container(system=declared)
    good = known_good(machine)
    boot = machine.succeed("cat /proc/sys/kernel/random/boot_id")
    machine.succeed("touch /run/break")
    # /run goes with the boot, and what broke the agent with it.
    machine.wait_for_shutdown()
    machine.start()
    machine.wait_for_unit("worker.service")
    outcome = wait_for_entry(machine, "action.outcome", action="reboot")
    assert outcome["data"]["ok"], outcome
    assert good in outcome["data"]["detail"]
    assert boot != machine.succeed("cat /proc/sys/kernel/random/boot_id")
    wait_for_entry(machine, "agent.recovered", agent="worker")
    # Once in a day.
    machine.succeed("touch /run/break")
    wait_for_entry(machine, "agent.gave-up", agent="worker")
    assert steps(machine) == ["promote", "reboot", "give-up"]
    assert_intact(machine)


def test_healer_killed_between_intent_and_outcome(container: Boot) -> None:
    """The quarantine is done once, whoever is killed, and ends without healer."""
    slow = host({"quarantineSec": 15, "maxQuarantines": 1})
    machine = container(system=slow)
    known_good(machine)
    # Root's helper is kept from answering, so that there is a long way between the two.
    machine.succeed("systemctl stop healer-helper.socket", "touch /run/break")
    intent = wait_for_entry(machine, "action.intent", action="quarantine")
    machine.succeed(f"kill -KILL {running_pid(machine, 'healer.service')}")
    machine.succeed("systemctl start healer-helper.socket")
    outcome = wait_for_entry(machine, "action.outcome", action="quarantine")
    assert outcome["data"]["ok"], outcome
    assert outcome["data"]["intent"] == intent["seq"]
    assert steps(machine) == ["promote", "quarantine"]
    machine.succeed("rm /run/break", "systemctl stop healer")
    machine.wait_until_succeeds("systemctl is-active worker")
    assert holds(machine) == ""
    machine.succeed("systemctl start healer")
    wait_for_entry(machine, "agent.recovered", agent="worker")
    assert_intact(machine)


def test_a_person_ends_a_quarantine_and_holds_for_longer(container: Boot) -> None:
    machine = container(system=host({"quarantineSec": 600, "maxQuarantines": 5}))
    known_good(machine)
    machine.succeed("touch /run/break")
    wait_for_entry(machine, "action.outcome", action="quarantine")
    machine.succeed("rm /run/break", "healer agent worker release")
    machine.wait_for_unit("worker.service")
    wait_for_entry(machine, "agent.recovered", agent="worker")
    pid = main_pid(machine, "worker.service")

    # A timer of an earlier hold ends no later one.
    machine.succeed("healer agent worker hold --for 5s", "healer agent worker hold --for 30m")
    machine.sleep(7)
    assert machine.get_unit_property("worker.service", "ActiveState") == "inactive"
    assert "worker.service" in holds(machine)
    machine.succeed("healer agent worker release")
    machine.wait_for_unit("worker.service")
    assert main_pid(machine, "worker.service") != pid
    timers = machine.succeed("systemctl list-timers --all --no-legend 'healer-release-*'")
    assert timers == "", "a hold that is over leaves its timer behind"
    assert_intact(machine)


def test_who_is_well_again_when_healer_can_see_is_left_alone(container: Boot) -> None:
    """healer was down in the crash loop, and comes back before the bus does."""
    machine = container(system=system({"worker": agent()}, label="good"))
    known_good(machine)
    off = "/run/systemd/system/healer.service.d/off.conf"
    machine.write_file(off, "[Unit]\nConditionPathExists=!/run/off\n")
    machine.succeed("touch /run/off", "systemctl daemon-reload", "systemctl stop healer")
    shaky = agent("shaky", stateDirectory="shaky", escalation={"enable": True})
    spec = system({"worker": shaky}, label="shaky", etc={"agents/shaky.py": SHAKY})
    deployed = machine.deploy(spec, status={0, 4})
    machine.wait_until_succeeds("test $(cat /var/lib/shaky/runs) = 7")
    machine.sleep(3)
    dbus = "dbus.socket dbus.service"
    machine.succeed(f"rm /run/off; systemctl mask --runtime --now {dbus}", "systemctl start healer")
    wait_for_entry(machine, "agent.crash-loop", agent="worker")
    machine.sleep(3)
    machine.succeed(f"systemctl unmask --runtime {dbus}", "systemctl start dbus.socket")
    wait_for_entry(machine, "deployment.known-good", toplevel=deployed)
    assert steps(machine) == ["promote", "promote"]
    assert len(entries(machine, "agent.crash")) == 6
    assert_intact(machine)


def test_a_rule_takes_the_next_step_at_once(container: Boot) -> None:
    """The agent itself says by an exit code that a restart will not help."""
    rules = {
        "policy": "conditional",
        "rules": [
            {"exitCodes": [5], "action": "escalate"},
            {"exitCodes": [6], "action": "rollback"},
        ],
    }
    limits = {"enable": True, "quarantineSec": 4, "maxQuarantines": 1}
    machine = container(system=system({"worker": agent(restart=rules, escalation=limits)}))
    known_good(machine)
    machine.succeed("echo 5 > /var/lib/worker/orders")
    wait_for_entry(machine, "agent.released", agent="worker")
    (crash,) = entries(machine, "agent.crash")
    assert crash["data"]["answer"] == "escalate"
    assert steps(machine) == ["promote", "quarantine"]
    assert entries(machine, "agent.crash-loop") == []
    wait_for_entry(machine, "agent.recovered", agent="worker")

    # Under a known-good system there is nothing to roll back to: the ladder goes on.
    machine.succeed("echo 6 > /var/lib/worker/orders")
    spent = wait_for_entry(machine, "agent.crash-loop", agent="worker")
    assert "rollback" in spent["data"]["reason"]
    wait_for_entries(machine, 2, "action.outcome", action="quarantine", ok=True)
    assert steps(machine) == ["promote", "quarantine", "quarantine"]
    assert_intact(machine)


def test_a_group_is_quarantined_and_let_go_together(container: Boot) -> None:
    limits = {"enable": True, "quarantineSec": 8}
    worker = agent(
        "two-faced", crashLoop={"maxCrashes": 3}, escalation=limits, stateDirectory="one"
    )
    mate = agent(stateDirectory="two")
    groups = {"pair": {"strategy": "one-for-all", "agents": ["worker", "mate"]}}
    machine = container(
        system=system(
            {"worker": worker, "mate": mate},
            etc={"agents/two-faced.py": TWO_FACED},
            healer={"groups": groups},
        )
    )
    machine.wait_for_unit("mate.service")
    machine.succeed("touch /run/break")
    wait_for_entry(machine, "action.outcome", action="quarantine", ok=True)
    machine.succeed("rm /run/break")
    assert machine.get_unit_property("mate.service", "ActiveState") == "inactive"
    wait_for_entry(machine, "agent.recovered", agent="worker")
    machine.wait_for_unit("mate.service")
    assert {e["data"]["agent"] for e in entries(machine, "agent.crash")} == {"worker"}
    assert_intact(machine)


def test_healer_killed_at_every_point_of_an_action(container: Boot) -> None:
    """What was intended is done, and told once; what was not is not."""
    machine = container(system=system({"worker": agent()}))
    machine.wait_for_unit("worker.service")
    machine.wait_until_succeeds("test -S /run/healer/control.sock")
    began = time.monotonic()
    machine.succeed("healer agent worker reset")
    took = time.monotonic() - began
    for run, part in enumerate((0.0, 0.1, 0.3, 0.6, 1.0, 1.5, 2.5), 2):
        before = steps(machine).count("hold")
        healer = main_pid(machine, "healer.service")
        machine.execute(
            "healer agent worker hold --for 30m >/dev/null 2>&1 &\n"
            f"sleep {part * took:.2f}; kill -KILL {healer}; wait"
        )
        wait_for_entries(machine, run, "healer.started")
        machine.wait_until_succeeds("healer agent worker reset")
        if steps(machine).count("hold") == before:
            assert machine.get_unit_property("worker.service", "ActiveState") == "active"
            continue
        assert machine.get_unit_property("worker.service", "ActiveState") == "inactive"
        assert "worker.service" in holds(machine)
        machine.succeed("healer agent worker release")
        machine.wait_for_unit("worker.service")
    wait_for_entry(machine, "action.outcome", action="promote")
    intents = [e["seq"] for e in entries(machine, "action.intent")]
    assert sorted(e["data"]["intent"] for e in entries(machine, "action.outcome")) == intents
    assert steps(machine).count("hold") > 0
    assert entries(machine, "agent.crash") == []
    assert_intact(machine)


def test_a_check_that_ends_an_agent_for_good_has_succeeded(container: Boot) -> None:
    """There is no next run whose invocation could show that the kill came off."""
    check = {"name": "gone", "type": "file", "path": "/run/gone", "maxAgeSec": 1}
    quick = {"intervalSec": 0.3, "startGraceSec": 1, "failureThreshold": 2}
    worker = agent(restart={"policy": "never"}, health=[{**check, **quick}])
    machine = container(system=system({"worker": worker}))
    wait_for_entry(machine, "agent.not-restarted", agent="worker")
    outcome = wait_for_entry(machine, "action.outcome", action="kill")
    assert outcome["data"]["ok"], outcome
    assert_intact(machine)
