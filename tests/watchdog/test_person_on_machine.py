"""What a person asks of healer for an agent, under what comes between."""

from tests.conftest import Boot
from tests.machine.agents import agent, assert_intact, entries, system, wait_for_entry
from tests.machine.local import PROFILE

KNOWN_GOOD = "/nix/var/nix/profiles/system-profiles/healer-known-good"


def test_a_boot_overtakes_what_was_asked_before_it(container: Boot) -> None:
    machine = container(system=system({"worker": agent()}))
    machine.wait_for_unit("worker.service")
    machine.wait_until_succeeds("test -S /run/healer/control.sock", timeout=60)
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
    machine.wait_until_succeeds("test -S /run/healer/control.sock", timeout=60)
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
    machine.wait_until_succeeds("systemctl is-active worker", timeout=60)
    machine.wait_until_succeeds("! ls /run/healer/holds | grep .", timeout=10)
    machine.wait_until_fails("systemctl list-units --all | grep healer-release", timeout=10)
