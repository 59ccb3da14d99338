"""What a person asks of healer for an agent, under what comes between."""

from tests.conftest import Boot
from tests.machine.agents import agent, assert_intact, entries, system, wait_for_entry


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
