"""What shows only after a boot, on a real systemd: counted boots, and the way back from them."""

import pytest

from healer.host import known_good
from tests.conftest import Boot
from tests.machine.agents import (
    agent,
    assert_intact,
    entries,
    system,
    wait_for_entries,
    wait_for_entry,
)
from tests.machine.container import ContainerMachine
from tests.machine.local import PROFILE, LocalMachine, SystemSpec
from tests.safeswitch.test_on_machine import assert_rolled_back, promoted

COUNT = "/var/lib/healer-helper/boots"
EXCUSED = "/var/lib/healer-helper/excused"
CAME_UP = "/var/lib/healer-helper/came-up"
# In front of the real one on the PATH.
CUTTER = "/usr/local/sbin/nix-env"
GOOD = system({"worker": agent()}, label="good")


def provisional(label: str, **more: object) -> SystemSpec:
    """A system that stays on probation, and has one boot to come up in."""
    patient = {"safeSwitch": {"probationSec": 600, "bootTries": 1}}
    return system({"worker": agent()}, label=label, healer=patient, **more)


def booted_into(machine: LocalMachine, toplevel: str) -> None:
    machine.reboot()
    machine.wait_for_unit("multi-user.target")
    assert machine.current_system() == toplevel


@pytest.mark.slow_when_emulated
def test_a_system_whose_healer_does_not_start_is_rolled_back_in_the_boot(boot: Boot) -> None:
    machine = boot(system=GOOD)
    good = promoted(machine)
    bad = machine.deploy(broken(), how="boot")
    booted_into(machine, bad)
    assert machine.succeed(f"cat {COUNT}").startswith(f"{bad} 1 ")

    machine.reboot()
    assert_went_back(machine, bad, good)
    # It is told once, also when healer starts again.
    machine.succeed("systemctl restart healer")
    wait_for_entry(machine, "host.up")
    assert len(entries(machine, "boot.rolled-back")) == 1


@pytest.mark.parametrize("step", ["profile", "boot loader"])
def test_a_power_cut_on_the_way_back_leaves_nothing_untold(container: Boot, step: str) -> None:
    machine = container(system=GOOD)
    good = promoted(machine)
    bad = machine.deploy(broken(), how="boot")
    booted_into(machine, bad)
    # Once, behind the step before it.
    install = f"{good}/bin/switch-to-configuration boot" if step == "boot loader" else ""
    machine.write_file(
        CUTTER,
        f"""#!/bin/sh
        /usr/bin/nix-env "$@"
        {install}
        mv {CUTTER} /var/cut
        systemctl reboot --force --force""",
    )
    machine.succeed(f"chmod +x {CUTTER}")

    machine.reboot()
    assert_went_back(machine, bad, good)
    machine.succeed("test -e /var/cut")


def broken() -> SystemSpec:
    """A system whose healer does not start."""
    return provisional("bad", etc={"healer/config.yaml": "this is no configuration"})


def assert_went_back(machine: LocalMachine, bad: str, good: str) -> None:
    """It boots the bad system once more, goes back, boots again, and tells of it."""
    machine.wait_until_succeeds(f"test $(readlink -f /run/current-system) = {good}", timeout=600)
    machine.wait_for_unit("multi-user.target")
    assert machine.succeed(f"readlink -f /run/booted-system {PROFILE}").split() == [good, good]
    rolled_back = wait_for_entry(machine, "boot.rolled-back")
    assert rolled_back["data"]["from"] == bad
    condemned = wait_for_entry(machine, "deployment.condemned", toplevel=bad)
    assert "did not come up in 1 boots" in condemned["data"]["reason"]
    machine.fail(f"test -e {COUNT}")
    assert_intact(machine)


def test_a_system_that_was_good_until_it_was_booted_is_gone_back_from(container: Boot) -> None:
    machine = container(system=GOOD)
    good = promoted(machine)
    other = machine.succeed("readlink -f /run/booted-system").strip()
    for toplevel in (other, good):
        machine.succeed(f"nix-env --profile {known_good.PROFILE} --set {toplevel}")
    booted_into(machine, good)
    machine.wait_until_succeeds(f"grep -x {good} {CAME_UP}")
    late = "if test -e /run/booted-system/etc/late; then exit 3; fi; exec sleep infinity"
    slowly = {"policy": "exponential", "delaySec": 0.2, "maxDelaySec": 5}
    worker = agent(command=["/bin/sh", "-c", late], restart=slowly)
    # What has come up is kept all the same.
    hasty = {"safeSwitch": {"probationSec": 4, "bootTries": 1, "keep": 1}}
    bad = machine.deploy(
        system({"worker": worker}, label="bad", healer=hasty, etc={"late": "is it booted?"})
    )
    promoted(machine)
    kept = machine.succeed(f"readlink -f {known_good.PROFILE}-*-link").split()
    assert sorted(kept) == sorted([good, bad])
    machine.succeed("nix-collect-garbage -d >&2")
    machine.succeed(f"test $(readlink -f {known_good.PROFILE}-*-link) = {bad}", f"test -e {good}")
    booted_into(machine, bad)
    assert machine.succeed(f"cat {COUNT}").startswith(f"{bad} 1 ")

    machine.reboot()
    assert_went_back(machine, bad, good)
    assert machine.succeed(f"cat {CAME_UP}").split() == [good]


def test_a_system_that_comes_up_may_be_booted_as_often_as_one_likes(container: Boot) -> None:
    machine = container(system=GOOD)
    promoted(machine)
    new = machine.deploy(provisional("new"), how="boot")
    for number in range(3):
        booted_into(machine, new)
        wait_for_entries(machine, number + 2, "host.up")
        machine.wait_until_succeeds(f"! test -e {COUNT}")
    # As if healer had been killed before root's helper took note.
    machine.succeed(
        f"echo {new} 1 $(tr -d - </proc/sys/kernel/random/boot_id) >{COUNT}",
        "systemctl kill --signal=KILL healer",
    )
    machine.wait_until_succeeds(f"! test -e {COUNT}")
    # An agent that was not changed, and that what is on the disk keeps down, is no fault of it.
    machine.succeed("mkdir /var/lib/worker/counter.new")
    booted_into(machine, new)
    excused = wait_for_entry(machine, "boot.excused", toplevel=new)
    assert "neither its unit nor what all share was changed" in excused["data"]["reason"]
    machine.wait_until_succeeds(f"grep '^{new} 1 ' {EXCUSED}")
    # It has but one boot to come up in, and this one is the second.
    booted_into(machine, new)
    assert machine.succeed(f"cat {COUNT}").startswith(f"{new} 2 ")
    machine.succeed("rmdir /var/lib/worker/counter.new")
    machine.wait_until_succeeds(f"! test -e {COUNT} -o -e {EXCUSED}")
    assert len(entries(machine, "boot.excused")) == 1
    # What a boot loader that counts boots waits for.
    machine.succeed("systemctl start boot-complete.target")
    machine.require_unit_state("healer-boot-complete.service")


@pytest.mark.parametrize("how", ["known-good", "nothing known-good"])
def test_nothing_is_counted_where_there_is_nothing_to_go_back_to(container: Boot, how: str) -> None:
    machine = container()
    if how == "known-good":
        machine.deploy(GOOD)
        promoted(machine)
    else:
        machine.deploy(provisional("new"))
    machine.reboot()
    machine.wait_for_unit("healer-boot.service")
    machine.fail(f"test -e {COUNT}")


@pytest.mark.slow_when_emulated
def test_a_system_that_is_bad_only_when_it_was_booted(boot: Boot) -> None:
    machine = boot(system=GOOD)
    good = promoted(machine)
    late = "if test -e /run/booted-system/etc/late; then exit 3; fi; exec sleep infinity"
    slowly = {"policy": "exponential", "delaySec": 0.2, "maxDelaySec": 5}
    worker = {"command": ["/bin/sh", "-c", late], "stableSec": 2, "restart": slowly}
    patient = {"safeSwitch": {"probationSec": 600}}
    bad = machine.deploy(
        system({"worker": worker}, label="bad", healer=patient, etc={"late": "is it booted?"})
    )
    wait_for_entry(machine, "deployment.activated", toplevel=bad)
    machine.wait_until_succeeds("systemctl is-active worker")
    assert entries(machine, "agent.crash") == []
    machine.reboot()
    assert_rolled_back(machine, bad, good)
    activated = [
        e for e in entries(machine, "deployment.activated") if e["data"]["toplevel"] == bad
    ]
    assert [e["data"]["kind"] for e in activated] == ["switch", "boot"]
    assert {e["boot"] for e in entries(machine, "agent.crash")} == {activated[1]["boot"]}


@pytest.mark.slow_when_emulated
def test_a_probation_goes_on_after_a_reboot(boot: Boot) -> None:
    machine = boot()
    slowness = 1 if isinstance(machine, ContainerMachine) else 5
    probation_sec = 40 * slowness
    probation = {"safeSwitch": {"probationSec": probation_sec}}
    new = machine.deploy(system({"worker": agent()}, label="new", healer=probation))
    wait_for_entry(machine, "host.up")
    machine.sleep(15 * slowness)
    booted_into(machine, new)
    assert promoted(machine) == new
    again = entries(machine, "deployment.activated")[-1]
    assert (again["data"]["toplevel"], again["data"]["kind"]) == (new, "boot")
    good = wait_for_entry(machine, "deployment.known-good", toplevel=new)
    assert good["boot"] == again["boot"]
    # What was served before the reboot counts: it did not begin anew.
    assert good["boottime_us"] - again["boottime_us"] < probation_sec * 1_000_000
