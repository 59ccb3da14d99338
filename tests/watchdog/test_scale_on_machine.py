"""A thousand agents on one host: start-up, steady state, and a storm in which all crash at once."""

import json
from typing import Any

from tests.conftest import Boot
from tests.machine.agents import assert_intact, entries, system, wait_for_entries
from tests.machine.local import LocalMachine

COUNT = 1000
FIRST_PORT = 20_000
MEMORY_MAX_KIB = 80_000_000 // 1024

# Kills all of them within a fraction of a second, and says who they were.
STORM = """\
import json, os, pathlib, signal

agents = json.loads(pathlib.Path("/run/healer/status.json").read_text())["agents"]
for agent in agents.values():
    os.kill(agent["pid"], signal.SIGKILL)
print(json.dumps({agent["unit"]: agent["invocation"] for agent in agents.values()}))
"""
# Fails until every agent runs in another invocation than in STORM's answer, and every check is ok.
WELL = """\
import json, pathlib, sys

before = json.loads(pathlib.Path("/run/before.json").read_text())
agents = json.loads(pathlib.Path("/run/healer/status.json").read_text())["agents"]
sys.exit(not all(
    agent["sub_state"] == "running"
    and agent["invocation"] != before.get(agent["unit"])
    and agent["health"] == {"port": "ok"}
    for agent in agents.values()
))
"""


def agent(number: int) -> dict[str, Any]:
    """Declare an agent that listens, which nobody does any more while it is dead."""
    port = FIRST_PORT + number
    return {
        "command": ["/usr/bin/nc", "-lk", "127.0.0.1", str(port)],
        "user": "root",
        "health": [{"name": "port", "type": "listen", "port": port}],
    }


def wait_until_well(machine: LocalMachine) -> None:
    machine.wait_until_succeeds("python3 /etc/well.py")


def of_healer(machine: LocalMachine, field: str) -> int:
    """Return a field of the daemon's /proc/PID/status that is a number, such as its peak memory."""
    pid = machine.succeed("systemctl show -P MainPID healer").strip()
    return int(machine.succeed(f"awk '$1 == \"{field}:\" {{ print $2 }}' /proc/{pid}/status"))


def test_a_thousand_agents(container: Boot) -> None:
    agents = {f"agent-{number:04}": agent(number) for number in range(COUNT)}
    programs = {"storm.py": STORM, "well.py": WELL}
    machine = container()
    machine.write_file("/run/before.json", "{}")
    declared = system(agents, etc=programs)
    declared["healer"]["safeSwitch"]["probationSec"] = 3600
    # 4: PID 1 can be too busy with a thousand starts to answer the switch in time.
    machine.deploy(declared, status={0, 4})

    wait_until_well(machine)
    daemon = of_healer(machine, "Pid")
    assert entries(machine, "agent.crash") == entries(machine, "health.failed") == []
    assert of_healer(machine, "VmHWM") < MEMORY_MAX_KIB

    machine.succeed("date +%s > /run/began")
    killed = json.loads(machine.succeed("python3 /etc/storm.py"))
    assert len(killed) == COUNT
    machine.write_file("/run/before.json", json.dumps(killed))
    wait_until_well(machine)

    wait_for_entries(machine, COUNT, "agent.restarted")
    crashes = [entry["data"] for entry in entries(machine, "agent.crash")]
    assert {crash["unit"]: crash["invocation"] for crash in crashes} == killed
    assert len(crashes) == COUNT
    assert {(crash["class"], crash["status"]) for crash in crashes} == {("signal", "KILL")}
    assert entries(machine, "loss") == entries(machine, "health.failed") == []
    # It was there all the time, on the bus, within its memory.
    assert of_healer(machine, "Pid") == daemon
    machine.fail("journalctl -u healer --since @$(cat /run/began) | grep 'system bus'")
    assert of_healer(machine, "VmHWM") < MEMORY_MAX_KIB
    assert_intact(machine)
