"""Evidence of crashes under everything that can happen to it: nothing lost, nothing invented."""

from tests.conftest import Boot
from tests.machine.agents import (
    agent,
    assert_intact,
    entries,
    kill_and_wait,
    losses,
    system,
    wait_for_entries,
    wait_for_entry,
    wait_until_all_are_recorded,
)

CURSOR = "/var/lib/healer/journal.cursor"


def test_vanished_evidence_is_a_loss(container: Boot) -> None:
    machine = container(system=system({"worker": agent()}))
    machine.wait_for_unit("worker.service")
    wait_for_entry(machine, "restarts.counted")
    kill_and_wait(machine, "worker.service")
    wait_for_entry(machine, "agent.restarted", agent="worker")
    # Without a place to go on from there is no gap behind it.
    machine.wait_until_succeeds(f"test -s {CURSOR}")
    machine.succeed("systemctl stop healer")
    for _ in range(3):
        kill_and_wait(machine, "worker.service")
    machine.succeed(
        "journalctl --rotate --vacuum-size=1",
        "cd /run/healer/stamps; ls -t *.stop | head -2 | xargs rm",
        "systemctl start healer",
    )
    loss = wait_for_entry(machine, "loss", what="restarts")
    assert (loss["data"]["unit"], loss["data"]["count"]) == ("worker.service", 2)
    wait_for_entry(machine, "loss", what="journal")
    assert len(entries(machine, "agent.crash")) == 2
    assert "cannot be accounted for" in machine.succeed("journalctl --unit healer")
    assert_intact(machine)


def test_what_people_do_to_the_count_is_no_loss(container: Boot) -> None:
    machine = container(system=system({"worker": agent()}))
    machine.wait_for_unit("worker.service")
    wait_for_entry(machine, "restarts.counted")
    for disturbance in (
        "systemctl restart worker",
        "systemctl stop worker; systemctl start worker",
        "systemctl reset-failed worker",
        "healer agent worker restart",
        "systemctl restart healer",
        "systemctl daemon-reload",
    ):
        kill_and_wait(machine, "worker.service")
        machine.succeed(disturbance)
        kill_and_wait(machine, "worker.service")
    wait_for_entries(machine, 12, "agent.crash")
    # Twice as long as healer takes to look at systemd's counts.
    machine.sleep(22)
    assert losses(machine, "restarts") == []
    assert_intact(machine)


def test_a_journal_vacuumed_while_healer_was_down(container: Boot) -> None:
    machine = container(system=system({"worker": agent()}))
    machine.wait_for_unit("worker.service")
    wait_for_entry(machine, "restarts.counted")
    machine.wait_until_succeeds(f"test -s {CURSOR}")
    machine.succeed("systemctl stop healer")
    for _ in range(3):
        kill_and_wait(machine, "worker.service")
    machine.succeed("journalctl --rotate --vacuum-size=1", "systemctl start healer")
    wait_for_entry(machine, "loss", what="journal")
    assert wait_until_all_are_recorded(machine) == 3
    assert losses(machine, "restarts") == []


def test_a_journal_that_is_not_kept_any_more_is_one_loss(container: Boot) -> None:
    machine = container(system=system({"worker": agent()}))
    machine.wait_for_unit("worker.service")
    machine.wait_until_succeeds(f"test -s {CURSOR}")
    machine.write_file("/run/systemd/journald.conf.d/none.conf", "[Journal]\nStorage=none\n")
    machine.succeed("systemctl restart systemd-journald; rm -rf /var/log/journal /run/log/journal")
    # Each crash has healer look at the journal.
    for crashes in range(1, 4):
        kill_and_wait(machine, "worker.service")
        wait_for_entries(machine, crashes, "agent.crash")
    wait_for_entry(machine, "agent.recovered", agent="worker")
    (lost,) = losses(machine, "journal")
    assert lost["reason"] == "there is nothing in the journal that healer may read"
    assert losses(machine, "restarts") == []
