"""Systems on trial by `healer safeswitch run`, on a real systemd with real generations."""

import shlex
from typing import Any

import pytest

from tests.conftest import Boot
from tests.machine.agents import (
    agent,
    assert_intact,
    entries,
    main_pid,
    system,
    wait_for_entries,
    wait_for_entry,
    wait_until_told,
)
from tests.machine.local import PROFILE, LocalMachine
from tests.safeswitch.asking import TRIAL, ask, gated, refused, status, where


def file_gate(path: str) -> dict[str, Any]:
    return {"name": "smoke", "type": "command", "command": ["/usr/bin/test", "-e", path]}


def trial_outcome(machine: LocalMachine) -> dict[str, Any]:
    outcome = wait_for_entry(machine, "action.outcome", action="try")
    data: dict[str, Any] = outcome["data"]
    return data


def test_a_trial_that_is_confirmed(container: Boot) -> None:
    machine = container(system=gated("old"))
    old = machine.current_system()
    new = machine.build(gated("new", file_gate("/run/ready")))
    machine.succeed("touch /run/ready")
    machine.succeed(f"ln -s {new} /root/result")
    done, out = ask(machine, "run /root/result --confirm-within 10m")
    assert done, out
    assert f"{new} runs on trial" in out
    # Until it is confirmed, a reboot goes back.
    assert where(machine) == (new, old, old)
    trial = status(machine)["trial"]
    assert (trial["target"], trial["source"], trial["phase"]) == (new, old, "waiting")
    assert 0 < trial["confirm_left_s"] <= 600
    assert f"on trial:    {new}" in machine.succeed("healer safeswitch status")
    machine.wait_until_succeeds("(healer status || true) | grep 'left to confirm it'")
    for link in ("target", "source"):
        machine.succeed(f"nix-store --gc --print-roots | grep healer-trial-{link}")
    machine.wait_until_succeeds("healer safeswitch confirm")
    assert where(machine) == (new, new, new)
    assert trial_outcome(machine)["ok"]
    intent = wait_for_entry(machine, "action.intent", action="try")
    assert intent["data"]["asked_by"] == "alice (by sudo)"
    assert wait_for_entry(machine, "action.intent", action="confirm")["data"]["target"] == new
    assert status(machine)["trial"] is None
    machine.fail("ls /nix/var/nix/gcroots | grep healer-trial")
    machine.wait_until_succeeds("! systemctl is-active healer-trial")
    # It runs and boots, and is on probation like any other; a second word ends that too.
    assert status(machine)["state"] == "provisional"
    done, out = ask(machine, "confirm")
    assert done, out
    wait_for_entry(machine, "deployment.known-good", toplevel=new)
    refused(machine, "confirm", "known-good already")
    assert_intact(machine)


def test_a_trial_that_nobody_confirms_with_session_and_healer_dead(container: Boot) -> None:
    machine = container(system=gated("old"))
    old, pid = machine.current_system(), main_pid(machine, "worker.service")
    new = machine.build({**gated("new"), "healerTag": "another version"})
    # The session is a unit whose processes all die, as a login's do when its network goes.
    command = shlex.quote(f"healer safeswitch run {new} --confirm-within 15s; sleep 1000")
    machine.succeed(f"systemd-run --unit=session --setenv=PATH=$PATH sh -c {command}")
    machine.wait_until_succeeds(f"grep -q waiting {TRIAL}")
    machine.succeed("systemctl kill --signal=KILL session")
    # A unit in /etc is not masked at runtime; and going back would start it.
    off = "/run/systemd/system/healer.service.d/off.conf"
    machine.write_file(off, "[Unit]\nConditionPathExists=!/run/off\n")
    machine.succeed("touch /run/off && systemctl daemon-reload")
    machine.succeed("systemctl kill --signal=KILL healer")
    machine.wait_until_fails("systemctl is-active healer")
    # What carries it dies as well, twice: PID 1 starts it again.
    for _ in range(2):
        machine.wait_until_succeeds(
            "p=$(systemctl show -P MainPID healer-trial); test $p != 0 && kill -KILL $p"
        )
    machine.wait_until_succeeds(f'grep -q \'"phase":"done"\' {TRIAL}')
    assert where(machine) == (old, old, old)
    machine.fail("systemctl is-active healer")
    machine.succeed("rm /run/off", "systemctl start healer")
    outcome = trial_outcome(machine)
    assert not outcome["ok"]
    assert outcome["running"] == old
    assert "nobody confirmed it within 15 s" in outcome["detail"]
    assert pid == main_pid(machine, "worker.service")
    assert_intact(machine)


def test_a_trial_that_has_no_disk_any_more_goes_back_once(container: Boot) -> None:
    machine = container(system=gated("old"))
    old = machine.current_system()
    new = machine.build({**gated("new"), "activationScript": "echo activated >>/run/activated"})
    assert ask(machine, f"run {new} --confirm-within 10m")[0]
    machine.wait_until_succeeds(f"grep -q waiting {TRIAL}")
    directory = TRIAL.rpartition("/")[0]
    machine.succeed(f"mount --bind {directory} {directory}")
    machine.succeed(f"mount -o remount,bind,ro {directory}")
    done, out = ask(machine, "rollback")
    assert done, out
    assert where(machine) == (old, old, old)
    assert trial_outcome(machine)["running"] == old
    machine.wait_until_succeeds("! systemctl is-active healer-trial")
    machine.sleep(3)
    machine.fail("systemctl is-active healer-trial")
    assert machine.succeed("cat /run/activated") == "activated\n"
    assert_intact(machine)


def test_a_trial_whose_gate_fails_goes_back_at_once(container: Boot) -> None:
    machine = container(system=gated("old"))
    old = machine.current_system()
    new = machine.build(gated("new", file_gate("/run/ready")))
    machine.succeed("touch /run/ready")
    assert ask(machine, f"run {new} --confirm-within 10m")[0]
    machine.wait_until_succeeds(f'grep -q \'"smoke":"passed"\' {TRIAL}')
    machine.succeed("rm /run/ready")
    outcome = trial_outcome(machine)
    assert not outcome["ok"]
    assert "the gate smoke failed: /usr/bin/test exited with 1" in outcome["detail"]
    assert where(machine) == (old, old, old)
    # A gate runs as the user healer, not as root.
    spy = {"name": "spy", "type": "command", "command": ["/usr/bin/touch", "/root/spied"]}
    assert ask(machine, f"run {machine.build(gated('spy', spy))} --confirm-within 10m")[0]
    wait_until_told(machine, "action.outcome", "gate spy failed", 1)
    machine.fail("test -e /root/spied")


def test_a_trial_ends_early(container: Boot) -> None:
    machine = container(system=gated("old"))
    old = machine.current_system()
    other = machine.build(gated("other"))
    # By the person: a gate that has not passed keeps it from being confirmed.
    slow = machine.build(gated("slow", {**file_gate("/run/never"), "failureThreshold": 1000}))
    assert ask(machine, f"run {slow} --confirm-within 10m")[0]
    refused(machine, "confirm", "smoke has not passed")
    refused(machine, f"run {other}", "on trial")
    done, out = ask(machine, "rollback")
    assert done, out
    assert "alice (by sudo) asked for it" in out
    assert where(machine) == (old, old, old)
    # By another deployment: what somebody deployed since stays.
    assert ask(machine, f"run {slow} --confirm-within 10m")[0]
    machine.set_profile(other)
    assert machine.switch(other) == 0
    machine.wait_until_succeeds(f"grep -q superseded {TRIAL}")
    # Until healer has its outcome, another one is refused.
    wait_for_entries(machine, 2, "action.outcome", action="try")
    assert where(machine) == (other, other, other)
    # By a reboot: what was not confirmed does not boot.
    assert ask(machine, f"run {slow} --confirm-within 10m")[0]
    machine.reboot()
    machine.wait_for_unit("multi-user.target")
    assert where(machine) == (other, other, other)
    machine.wait_until_succeeds(f"grep -q 'booted in the trial' {TRIAL}")
    wait_until_told(machine, "action.outcome", "booted in the trial", 1)


def test_a_trial_that_cannot_be_switched_to_or_kept(container: Boot) -> None:
    old_spec = gated("old")
    old_spec["healer"]["safeSwitch"]["timeoutSec"] = 20
    machine = container(system=old_spec)
    old = machine.current_system()
    # Each is asked for as soon as the one before it is answered.
    hangs, fails, unbootable = (
        machine.build({**gated("bad"), **fault})
        for fault in (
            {"activationScript": "sleep 1000"},
            {"activationScript": "exit 1"},
            {"bootLoaderScript": "exit 1"},
        )
    )
    # Its activation hangs, with the switch's lock held.
    done, out = ask(machine, f"run {hangs}")
    assert not done
    assert "switch-to-configuration test did not end within 20 s" in out
    assert f"{old} runs again" in out
    assert where(machine) == (old, old, old)
    # Its activation fails.
    done, out = ask(machine, f"run {fails}")
    assert not done
    assert "exited with 2" in out
    assert where(machine) == (old, old, old)
    # It runs, but cannot be made the system that boots.
    done, out = ask(machine, f"run {unbootable}")
    assert done, out
    done, out = ask(machine, "confirm")
    assert not done
    assert "could not be made the system that boots" in out
    assert where(machine) == (old, old, old)
    outcomes = [e["data"]["ok"] for e in entries(machine, "action.outcome")]
    assert outcomes == [False] * len(outcomes)
    assert_intact(machine)


def test_a_trial_that_takes_healer_away_comes_back(container: Boot) -> None:
    machine = container(system=gated("old"))
    old = machine.current_system()
    without = machine.build({"label": "without"})
    assert ask(machine, f"run {without} --confirm-within 10")[0]
    machine.succeed("systemctl kill --signal=KILL healer; systemctl stop healer")
    machine.wait_until_succeeds(f'grep -q \'"phase":"done"\' {TRIAL}')
    assert where(machine) == (old, old, old)
    machine.wait_for_unit("healer.service")
    machine.wait_for_unit("worker.service")
    assert "nobody confirmed" in trial_outcome(machine)["detail"]
    assert_intact(machine)


def hooked(label: str, *gates: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Declare a system in which the worker's unit says which system it is of, and has hooks."""
    made = gated(label, *gates)
    made["healer"]["agents"]["worker"] = agent(environment={"LABEL": label}, **options)
    return made


def test_a_trial_goes_back_by_the_hooks_of_the_agents_that_it_changes(container: Boot) -> None:
    machine = container(system=hooked("old"))
    old = machine.current_system()
    note = "echo $HEALER_AGENT $(id -u) $(readlink -f /run/current-system)"
    migrated = {
        "snapshot": ["/bin/sh", "-c", f"{note} >>/run/snapshot"],
        "beforeRollback": ["/bin/sh", "-c", f"{note} >>$STATE_DIRECTORY/prepared"],
    }
    new = machine.build(hooked("new", **migrated))
    assert ask(machine, f"run {new} --confirm-within 10m")[0]
    machine.fail("test -e /run/snapshot")
    done, out = ask(machine, "rollback")
    assert done, out
    assert where(machine) == (old, old, old)
    assert machine.succeed("cat /run/snapshot").split() == ["worker", "0", new]
    name, user, ran = machine.succeed("cat /var/lib/worker/prepared").split()
    assert (name, ran) == ("worker", new)
    assert user != "0"
    # Going back matters more: who is cut off has nobody to mend a hook.
    broken = {"beforeRollback": ["/bin/false"], "snapshot": ["/bin/sleep", "1000"]}
    failing = machine.build(hooked("failing", beforeRollbackTimeoutSec=1, **broken))
    assert ask(machine, f"run {failing} --confirm-within 10m")[0]
    done, out = ask(machine, "rollback")
    assert done, out
    assert where(machine) == (old, old, old)
    assert "snapshot of worker took too long" in out
    # What cannot be taken back is not tried out; where it stays the same, nobody minds.
    unsafe = machine.build(hooked("unsafe", rollbackSafe=False))
    refused(machine, f"run {unsafe}", "rollbackSafe is false for worker, which")
    refused(machine, f"run {unsafe}", "deploy it by nixos-rebuild switch")
    machine.set_profile(unsafe)
    assert machine.switch(unsafe) == 0
    same = machine.build({**hooked("unsafe", rollbackSafe=False), "label": "another"})
    assert ask(machine, f"run {same} --confirm-within 10m")[0]
    assert ask(machine, "rollback")[0]
    assert where(machine) == (unsafe, unsafe, unsafe)
    assert_intact(machine)


def test_agents_that_crash_in_a_trial_end_it(container: Boot) -> None:
    """healer's own rollback is not in the trial's way, nor the trial in that one's."""
    machine = container(system=gated("good", probation_sec=3))
    good = machine.current_system()
    wait_for_entry(machine, "deployment.known-good", toplevel=good)
    bad = machine.build({**system({"worker": agent("broken")}), "label": "bad"})
    ask(machine, f"run {bad} --confirm-within 10m")
    wait_for_entry(machine, "deployment.condemned", toplevel=bad)
    outcome = trial_outcome(machine)
    assert not outcome["ok"]
    assert "superseded" in outcome["detail"]
    machine.wait_until_succeeds("! systemctl is-active healer-trial")
    assert where(machine) == (good, good, good)
    assert_intact(machine)


def test_no_system_is_known_good_while_it_is_on_trial(container: Boot) -> None:
    machine = container(system=gated("old", probation_sec=1))
    old = machine.current_system()
    wait_for_entry(machine, "deployment.known-good", toplevel=old)
    new = machine.build(gated("new", probation_sec=1))
    assert ask(machine, f"run {new} --confirm-within 20")[0]
    verdict = wait_for_entry(machine, "safeswitch.verdict", toplevel=new)
    assert verdict["data"]["verdict"] == "inconclusive"
    machine.wait_until_succeeds("healer safeswitch status | grep 'on trial, and not confirmed yet'")
    assert "nobody confirmed" in trial_outcome(machine)["detail"]
    assert [e["data"]["toplevel"] for e in entries(machine, "deployment.known-good")] == [old]


@pytest.mark.parametrize("moment", ["switching", "keeping", "returning"])
def test_a_trial_killed_in_its_steps(container: Boot, moment: str) -> None:
    machine = container(system={**gated("old"), "activationScript": "sleep 1"})
    old = machine.current_system()
    new = machine.build(
        {**gated("new"), "bootLoaderScript": "sleep 1", "activationScript": "sleep 1"}
    )
    machine.write_file(
        "/run/killer.sh",
        f'until grep -qs \'"phase":"{moment}"\' {TRIAL}; do :; done\n'
        "sleep 0.3; systemctl kill --signal=KILL healer-trial\n"
        "systemctl kill --signal=KILL healer\n",
    )
    machine.succeed("systemd-run --unit=killer sh /run/killer.sh")
    ask(machine, f"run {new} --confirm-within 10m")
    machine.wait_until_succeeds(f'grep -q \'"phase":"waiting"\' {TRIAL}')
    machine.wait_for_unit("healer.service")
    goes_back = moment == "returning"
    machine.execute(f"healer safeswitch {'rollback' if goes_back else 'confirm'}")
    # What a person asked for is told as what became of it, also where healer asks for it again.
    asked = wait_for_entry(machine, "action.intent", action="abandon" if goes_back else "confirm")
    assert wait_for_entry(machine, "action.outcome", intent=asked["seq"])["data"]["ok"]
    machine.wait_until_succeeds(f'grep -q \'"phase":"done"\' {TRIAL}')
    runs = old if goes_back else new
    assert where(machine) == (runs, runs, runs)
    assert trial_outcome(machine)["ok"] is not goes_back
    machine.wait_until_succeeds("! systemctl is-active killer")
    assert_intact(machine)


def test_a_trial_that_cuts_off_the_network(container: Boot) -> None:
    machine = container()
    machine.succeed(
        "ip link add eth0 type veth peer name peer", "ip address add 192.0.2.10/24 dev eth0"
    )
    machine.succeed("ip link set peer up")
    address = {"name": "net", "type": "network", "interface": "eth0", "addresses": ["192.0.2.10"]}
    up, down = (f"ip link set eth0 {how}" for how in ("up", "down"))
    old = machine.deploy({**gated("old", address), "activationScript": up})
    new = machine.build({**gated("new", address), "activationScript": down})
    ask(machine, f"run {new} --confirm-within 10m")
    assert "the gate net failed: eth0 is not up" in trial_outcome(machine)["detail"]
    assert where(machine) == (old, old, old)
    assert "UP" in machine.succeed("ip link show eth0")


@pytest.mark.slow_when_emulated
def test_a_machine_that_goes_down_hard_in_a_trial_goes_back(boot: Boot) -> None:
    machine = boot(system=gated("old"))
    old = machine.current_system()
    new = machine.build({**gated("new"), "bootLoaderScript": "sleep 60"})
    assert ask(machine, f"run {new} --confirm-within 10m")[0]
    machine.wait_until_succeeds(f"grep -q waiting {TRIAL}")
    assert where(machine) == (new, old, old)
    machine.crash()
    machine.start()
    machine.wait_for_unit("multi-user.target")
    assert where(machine) == (old, old, old)
    assert "was booted in the trial" in trial_outcome(machine)["detail"]
    # Once more, and now while it is made the system that boots.
    assert ask(machine, f"run {new} --confirm-within 10m")[0]
    path = machine.succeed("echo $PATH").strip()
    machine.succeed(f"systemd-run --setenv=PATH={path} healer safeswitch confirm")
    machine.wait_until_succeeds(f"grep -q keeping {TRIAL}")
    machine.wait_until_succeeds(f"test $(readlink -f {PROFILE}) = {new}")
    machine.crash()
    machine.start()
    machine.wait_for_unit("multi-user.target")
    tries = wait_for_entries(machine, 2, "action.outcome", action="try")
    assert "booted in the trial" in tries[-1]["data"]["detail"]
    assert where(machine) == (old, old, old)
    # That of the confirmation is told, too.
    wait_for_entries(machine, 3, "action.outcome")
    assert [e["data"]["ok"] for e in entries(machine, "action.outcome")] == [False] * 3
    assert_intact(machine)
