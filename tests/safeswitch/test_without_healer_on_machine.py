"""Rollbacks from and to systems that have another healer, or none."""

import pytest

from tests.conftest import Boot
from tests.machine.agents import (
    PROGRAMS,
    assert_intact,
    entries,
    main_pid,
    system,
    wait_for_entry,
)
from tests.safeswitch.switched import bad, by_itself, good
from tests.safeswitch.test_on_machine import assert_rolled_back, promoted


def test_a_rollback_from_another_healer_brings_the_old_one_back(container: Boot) -> None:
    machine = container(system=good())
    known_good = promoted(machine)
    toplevel = machine.deploy(bad(healerTag="another version"), status={0, 4})
    assert_rolled_back(machine, toplevel, known_good)
    healer = machine.succeed(f"readlink -f {known_good}/sw/bin/healer").strip()
    machine.wait_until_succeeds(
        f"tr '\\0' ' ' </proc/$(systemctl show -P MainPID healer)/cmdline | grep {healer}",
    )


def test_a_system_without_healer_leaves_it_running_and_the_way_back(container: Boot) -> None:
    machine = container(system=good())
    known_good = promoted(machine)
    pid = main_pid(machine, "healer.service")
    bare = machine.deploy({"label": "without healer"}, status={0, 4})
    wait_for_entry(machine, "deployment.activated", toplevel=bare)
    assert main_pid(machine, "healer.service") == pid
    # PID 1 takes its word still: else WatchdogSec= would be the end of it.
    assert machine.succeed("systemctl show --value --property=NotifyAccess healer") == "main\n"
    machine.set_profile(known_good)
    assert machine.switch(known_good) == 0
    machine.wait_until_succeeds("systemctl is-active worker")
    wait_for_entry(machine, "deployment.activated", toplevel=known_good, previous=bare)
    assert [e["data"]["action"] for e in entries(machine, "action.intent")] == ["promote"]
    assert_intact(machine)


@pytest.mark.parametrize("dies", [False, True], ids=["healer lives", "healer dies"])
def test_a_bad_system_without_healer_is_rolled_back(container: Boot, dies: bool) -> None:
    """The daemon outlives the switch, or comes back; so must root's helper, and what both read."""
    adopted = {"adopt": True, "unit": "worker.service", "stableSec": 2}
    before = system({"worker": adopted}, label="good", healer={"safeSwitch": {"probationSec": 6}})
    machine = container(system={**before, "services": {"worker": by_itself("worker")}})
    known_good = promoted(machine)
    broken = by_itself("broken", Restart="always", RestartSec="200ms")
    bare = {"label": "without healer", "etc": PROGRAMS, "services": {"worker": broken}}
    if dies:  # before it can have judged
        machine.succeed("systemctl kill --signal=STOP healer")
    else:  # while PID 1 still looks for the units of the system before, a helper is asked for
        bare["activationScript"] = "systemctl kill --signal=KILL worker; sleep 2"
    toplevel = machine.deploy(bare, status={0, 4})
    if dies:
        machine.succeed("systemctl kill --signal=KILL healer")
    assert_rolled_back(machine, toplevel, known_good)
    assert len(entries(machine, "healer.started")) == 1 + dies
    assert entries(machine, "drift.found") == []


def test_the_kept_units_are_those_of_the_running_system(container: Boot) -> None:
    """Whatever a switch changed of them; also the second, by which systemd-tmpfiles has run."""
    machine = container(system=good())
    for probation_sec in (4, 5):
        assert machine.switch(machine.build(good({"probationSec": probation_sec}))) == 0
        for unit in ("healer.service", "healer-helper.socket", "healer-helper@.service"):
            machine.succeed(f"cmp /run/systemd/system/{unit} /etc/systemd/system/{unit}")
