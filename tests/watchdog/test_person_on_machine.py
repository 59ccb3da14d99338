"""What a person asks of healer for an agent, under what comes between."""

import re

from tests.conftest import Boot
from tests.machine.agents import agent, assert_intact, entries, system, wait_for_entry
from tests.machine.local import PROFILE, LocalMachine

NOBODY = "setpriv --reuid 65534 --clear-groups"
KNOWN_GOOD = "/nix/var/nix/profiles/system-profiles/healer-known-good"


def test_a_boot_overtakes_what_was_asked_before_it(container: Boot) -> None:
    machine = container(system=system({"worker": agent()}))
    machine.wait_for_unit("worker.service")
    machine.wait_until_succeeds("test -S /run/healer/control.sock")
    # Root's helper is kept from answering: there is an intent, and no outcome.
    machine.succeed("systemctl stop healer-helper.socket")
    verbs = ("restart", "reset", "hold")
    for verb in verbs:
        machine.execute(f"healer agent worker {verb} &>/dev/null &", check_output=False)
        wait_for_entry(machine, "action.intent", action=verb)
    machine.crash()
    machine.start()
    for verb in verbs:
        outcome = wait_for_entry(machine, "action.outcome", action=verb)["data"]
        assert (outcome["ok"], outcome["asked_by"]) == (False, "root")
        assert "the host has booted since" in outcome["detail"]
    machine.wait_for_unit("worker.service")
    assert machine.succeed("journalctl -b -u worker | grep -c 'resuming at job'") == "1\n"
    assert entries(machine, "agent.crash") == []
    assert_intact(machine)


def test_a_hold_outlives_the_healer_that_placed_it(container: Boot) -> None:
    """Another system comes, without healer, and all else is collected as garbage."""
    agents = {"worker": agent(), "other": agent(stateDirectory="other")}
    machine = container(system=system(agents, healerTag="old"))
    machine.wait_until_succeeds("test -S /run/healer/control.sock")
    old, package = machine.succeed(
        "readlink -f /run/current-system", "dirname $(dirname $(readlink -f $(which healer)))"
    ).split()
    for name in agents:
        machine.wait_for_unit(f"{name}.service")
        machine.succeed(f"healer agent {name} hold --for 45s")
    worker = {"serviceConfig": {"ExecStart": "/bin/sleep infinity"}}
    machine.deploy({"label": "without healer", "services": {"worker": worker}}, status={0, 4})
    machine.succeed("systemctl stop healer worker healer-helper.socket")
    machine.succeed(
        f"nix-env -p {PROFILE} --delete-generations old; rm -f {KNOWN_GOOD}*", "nix-store --gc"
    )
    machine.fail(f"test -e {old}")
    machine.succeed(f"test -e {package}", "test -e /run/healer/holds/worker.service")
    machine.wait_until_succeeds("systemctl is-active worker")
    machine.wait_until_succeeds("! ls /run/healer/holds | grep .")
    machine.wait_until_fails("systemctl list-units --all | grep healer-release")


def test_a_hold_ends_though_the_disk_is_read_only(container: Boot) -> None:
    machine = container(system=system({"worker": agent()}))
    machine.wait_for_unit("worker.service")
    machine.wait_until_succeeds("test -S /run/healer/control.sock")
    directory = "/var/lib/healer-helper"
    machine.succeed(f"mkdir -p {directory}", f"mount --bind {directory} {directory}")
    machine.succeed("healer agent worker hold --for 10s")
    machine.succeed(f"mount -o remount,bind,ro {directory}", f"! touch {directory}/any")
    machine.wait_until_succeeds("systemctl is-active worker")
    machine.succeed("test ! -e /run/healer/holds/worker.service")
    assert wait_for_entry(machine, "agent.released", agent="worker")["data"]["by"] == "timer"


def refused(machine: LocalMachine, command: str) -> tuple[int, str]:
    """Run a command that prints nothing but an error; return its exit code, and that."""
    code, out = machine.execute(f"{command} 2>/tmp/stderr")
    assert out == "", command
    return code, machine.succeed("cat /tmp/stderr")


def test_what_a_person_gets_wrong_is_one_clear_error(container: Boot) -> None:
    machine = container(system=system({"worker": agent(), "other": agent(stateDirectory="other")}))
    machine.wait_for_unit("worker.service")
    machine.wait_until_succeeds("test -S /run/healer/control.sock")
    machine.succeed("healer agent other hold")
    for command, code, error in (
        ("healer agent nobody hold", 1, "there is no agent nobody; there are: other, worker"),
        ("healer agent worker.service reset", 1, "there is no agent worker.service"),
        ("healer agent other restart", 1, "root asked for it; release it instead"),
        (f"{NOBODY} healer agent worker hold", 77, "only root and the group healer may ask this"),
        ("healer agent worker hold --for 0s", 2, "write 90s, 30m, 12h or 7d"),
        ("healer agent worker hold --for 31d", 2, "30d at the most"),
        ("healer agent worker restart --for 5m", 2, "--for says how long a hold lasts"),
        ("healer agent worker fly", 2, "choose from hold, release, restart, reset"),
    ):
        said = refused(machine, command)
        assert said[0] == code, (command, said)
        *usage, line = said[1].splitlines()
        assert error in line.replace("'", ""), command
        assert usage == [] or code == 2, command
    machine.succeed("systemctl stop healer")
    code, error = refused(machine, "healer agent worker reset")
    assert code == 69
    assert "look at: systemctl status healer" in error
    intents = [entry["data"]["action"] for entry in entries(machine, "action.intent")]
    assert [action for action in intents if action != "promote"] == ["hold", "restart"]


def test_a_hold_is_replaced_and_ends_with_its_boot(container: Boot) -> None:
    machine = container(system=system({"worker": agent()}))
    machine.wait_for_unit("worker.service")
    machine.wait_until_succeeds("test -S /run/healer/control.sock")
    assert "was not held back" in machine.succeed("healer agent worker release")
    said = machine.succeed("healer agent worker hold --for 2h")
    assert re.search(r"for 7(200|19\d) s, or until a reboot", said)
    machine.succeed("healer agent worker hold --for 5s")
    machine.wait_until_succeeds("systemctl is-active worker")
    over = wait_for_entry(machine, "agent.released", agent="worker")["data"]
    assert (over["by"], over["asked_by"]) == ("timer", "root")
    machine.succeed("healer agent worker hold --for 7d")
    assert "held back" in machine.execute("healer status")[1]
    machine.reboot()
    machine.wait_for_unit("worker.service")
    machine.wait_until_succeeds("healer agent worker release | grep 'not held back'")
    assert "held back" not in machine.execute("healer status")[1]
    # Neither does a timer of the boot before end anything in this one.
    assert machine.succeed("systemctl list-timers --all --no-legend 'healer-release-*'") == ""
    told = entries(machine, "agent.released")
    assert [entry["data"]["by"] for entry in told] == ["timer", "boot"]
    assert_intact(machine)
