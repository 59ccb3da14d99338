"""Groups on a real systemd: the mates restart with healer stopped, and none of them has crashed."""

import pytest

from tests.conftest import Boot
from tests.machine.agents import (
    agent,
    assert_intact,
    entries,
    kill_and_wait,
    running_pid,
    system,
    wait_for_entries,
    wait_for_entry,
    wait_for_new_pid,
)
from tests.machine.local import LocalMachine

NAMES = ("source", "filter", "sink")


def pids(machine: LocalMachine) -> dict[str, int]:
    return {name: running_pid(machine, f"{name}.service") for name in NAMES}


@pytest.mark.parametrize(
    ("strategy", "taken_along"),
    [
        ("one-for-one", {"filter": set()}),
        ("rest-for-one", {"filter": {"sink"}, "source": {"filter", "sink"}}),
        ("one-for-all", {"filter": {"source", "sink"}}),
    ],
)
def test_mates_restart_together(
    container: Boot, strategy: str, taken_along: dict[str, set[str]]
) -> None:
    later = [{"exitCodes": [9], "action": "restart", "delaySec": 1}]
    restart = {"policy": "conditional", "rules": later}
    group = {"strategy": strategy, "agents": list(NAMES)}
    machine = container(
        system=system(
            {name: agent(stateDirectory=name, restart=restart) for name in NAMES},
            healer={"groups": {"pipeline": group}},
        )
    )
    before = pids(machine)
    machine.wait_until_succeeds("healer status")
    machine.succeed("systemctl stop healer")
    crashed, mates = next(iter(taken_along.items()))
    # By systemd's own restart, and by a rule's timer.
    for order in ("kill -KILL {pid}", "echo 9 >/var/lib/{name}/orders"):
        machine.succeed(order.format(pid=before[crashed], name=crashed))
        for name in {crashed, *mates}:
            wait_for_new_pid(machine, f"{name}.service", before[name])
        after = pids(machine)
        for name in {*NAMES} - {crashed, *mates}:
            assert after[name] == before[name]
        before = after

    machine.succeed("systemctl start healer")
    wait_for_entries(machine, 2, "agent.crash")
    for name in mates:
        stopped = wait_for_entry(machine, "agent.stopped", agent=name)
        assert (stopped["data"]["by"], stopped["data"]["mate"]) == ("group", crashed)
    assert {e["data"]["agent"] for e in entries(machine, "agent.crash")} == {crashed}
    assert len(entries(machine, "agent.stopped")) == 2 * len(mates)
    assert entries(machine, "loss") == []
    assert_intact(machine)


def test_a_held_agent_takes_its_mates_along_and_brings_them_back(container: Boot) -> None:
    group = {"strategy": "rest-for-one", "agents": list(NAMES)}
    machine = container(
        system=system(
            {name: agent(stateDirectory=name) for name in NAMES},
            healer={"groups": {"pipeline": group}},
        )
    )
    pids(machine)
    machine.wait_until_succeeds("test -S /run/healer/control.sock")
    source = running_pid(machine, "source.service")
    machine.succeed("healer agent filter hold --for 1h")
    for name in ("filter", "sink"):
        assert machine.get_unit_property(f"{name}.service", "ActiveState") == "inactive"
    machine.succeed("healer agent filter release")
    pids(machine)
    assert running_pid(machine, "source.service") == source
    kill_and_wait(machine, "filter.service")
    assert {e["data"]["agent"] for e in entries(machine, "agent.crash")} <= {"filter"}
    assert_intact(machine)
