"""On a machine: agents that a deployment takes away, and agents whose unit does not exist."""

from tests.conftest import Boot
from tests.machine.agents import agent, assert_intact, entries, system, wait_for_entry


def test_no_story_is_left_without_an_end(container: Boot) -> None:
    slow = agent(stableSec=600)
    lost = {"adopt": True, "unit": "lost.service", "stableSec": 600}
    machine = container()
    machine.write_file("/run/systemd/system/lost.service", "[Service]\nExecStart=sleep inf\n")
    machine.succeed("systemctl daemon-reload")
    machine.deploy(
        system({"worker": slow, "lost": lost, "typo": {"adopt": True, "unit": "x.service"}})
    )
    machine.wait_for_unit("healer.service")

    # A unit that never was is told once, and in `healer status`.
    told = wait_for_entry(machine, "agent.missing", agent="typo")
    assert told["incident"] is None
    words = "agent typo has no unit x.service"
    machine.wait_until_succeeds(f"(healer status || true) | grep '{words}'")

    # One that goes away in an incident ends it.
    machine.succeed("systemctl start lost && systemctl kill -s KILL lost")
    crash = wait_for_entry(machine, "agent.crash", agent="lost")
    machine.succeed("systemctl stop lost; rm -r /run/systemd/system/lost.service*")
    machine.succeed("systemctl daemon-reload")

    # So does a deployment that declares an agent no more.
    machine.succeed("systemctl kill -s KILL worker")
    second = wait_for_entry(machine, "agent.crash", agent="worker")
    machine.deploy(system({"lost": lost}))
    end = wait_for_entry(machine, "agent.undeclared", agent="worker")
    assert end["incident"] == second["incident"]
    assert "declared no more" in machine.succeed(f"healer incident {end['incident']}")
    missing = [e for e in entries(machine, "agent.missing") if e["incident"] == crash["incident"]]
    stopped = [e for e in entries(machine, "agent.not-restarted") if e["data"]["agent"] == "lost"]
    assert missing or stopped
    assert "Closed    still open" not in machine.succeed(f"healer incident {crash['incident']}")
    assert_intact(machine)
