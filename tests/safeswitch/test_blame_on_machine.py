"""Who is not blamed, on a real systemd: a deployment in a bad environment, and a flaky agent's."""

import json
from typing import Any

from tests.conftest import Boot
from tests.machine.agents import (
    agent,
    assert_intact,
    entries,
    kill_and_wait,
    system,
    wait_for_entry,
    wait_until_told,
)
from tests.machine.local import LocalMachine
from tests.safeswitch.test_on_machine import promoted

# An agent of what it needs: it ends when that is gone.
NEEDY = "while test -e /run/upstream; do sleep 0.2; done; exit 3"
LEDGER = "/var/lib/healer/ledger"

# Writes down more than an hour of an earlier boot in which an agent crashed every three seconds,
# and recovered: five crashes within a second are not beyond that. The clock is the only thing in it
# that is not healer's own.
HISTORY = """\
import json, sys, time
from pathlib import Path
from healer.ledger.writer import Ledger

crash, recovered = json.load(sys.stdin)
uptime_ms = 0
time.clock_gettime_ns = lambda clock: uptime_ms * 1_000_000
boot = "0123456789abcdef" * 2
ledger = Ledger.open(Path(sys.argv[1]), origin="", boot=boot)
ledger.append("healer.started", {"agents": ["worker"]}).result()
for number in range(1500):
    run = f"{number:032x}"
    uptime_ms += 2_500
    times = {"start_uptime_ms": uptime_ms - 2_400, "stop_uptime_ms": uptime_ms}
    ledger.append("agent.crash", {**crash, **times, "boot": boot, "invocation": run}, incident=run)
    uptime_ms += 500
    last = ledger.append("agent.recovered", {**recovered, "invocation": run}, incident=run)
last.result()
ledger.close()
"""


def actions(machine: LocalMachine) -> list[str]:
    return [e["data"]["action"] for e in entries(machine, "action.intent")]


def needy(label: str, probation_sec: float, **options: Any) -> dict[str, Any]:
    """Three agents that need the same; the options are those of one of them."""
    restart = {"policy": "exponential", "delaySec": 0.2, "maxDelaySec": 2}
    each = {
        "command": ["/bin/sh", "-c", NEEDY],
        "stableSec": 2,
        "restart": restart,
        "escalation": {"enable": False},
    }
    agents = {"first": {**each, **options}, "second": each, "third": each}
    return system(agents, label=label, healer={"safeSwitch": {"probationSec": probation_sec}})


def test_a_bad_environment_is_not_blamed_on_the_deployment(container: Boot) -> None:
    machine = container()
    machine.succeed("touch /run/upstream")
    machine.deploy(needy("good", 4))
    good = promoted(machine)
    # It changes one of the three; what they all need is gone when that has run well for a while.
    early = {"crashLoop": {"earlyDeathSec": 1}}
    new = machine.deploy(needy("new", 30, environment={"LEVEL": "debug"}, **early))
    machine.wait_until_succeeds(
        "us=$(systemctl show -P ActiveEnterTimestampMonotonic first); read -r now _ </proc/uptime;"
        " test $((${now%.*} - us / 1000000)) -gt 3",
    )
    machine.succeed("rm /run/upstream")
    for name in ("first", "second", "third"):
        wait_for_entry(machine, "agent.crash-loop", agent=name, toplevel=new)
    for reason in (
        "neither its unit nor what all share was changed",
        "it ran well under this deployment before it began to end at once",
    ):
        wait_until_told(machine, "safeswitch.verdict", reason)
    machine.sleep(16)
    assert machine.current_system() == new
    assert actions(machine) == ["promote"]
    # A helper is ready, and the bus knows it: on whoever does not go on to connect it hangs up.
    machine.succeed("busctl --no-legend list | grep healer-helper@")

    machine.succeed("touch /run/upstream")
    assert promoted(machine) == new
    assert good != new
    assert entries(machine, "deployment.condemned") == []
    assert_intact(machine)


def test_a_flaky_agent_with_its_old_crash_rate_is_not_blamed(container: Boot) -> None:
    machine = container(system=system({"worker": agent()}, label="good"))
    promoted(machine)
    kill_and_wait(machine, "worker.service")
    recovered = wait_for_entry(machine, "agent.recovered", agent="worker")["data"]
    crash = wait_for_entry(machine, "agent.crash", agent="worker")["data"]
    machine.write_file("/run/history.py", HISTORY)
    machine.write_file("/run/pattern.json", json.dumps([crash, recovered]))
    machine.succeed(
        "systemctl stop healer",
        "PYTHONPATH=/srv/checkout setpriv --reuid=healer --regid=healer --clear-groups"
        f" python3 -B /run/history.py {LEDGER} </run/pattern.json",
        "systemctl start healer",
    )
    # Neither is the probation over, nor the agent well again, before it has crashed five times.
    flaky = agent(environment={"LEVEL": "debug"}, stableSec=10)
    patient = {"safeSwitch": {"probationSec": 20}}
    new = machine.deploy(system({"worker": flaky}, label="new", healer=patient))
    wait_for_entry(machine, "deployment.activated", toplevel=new)
    for _ in range(5):
        kill_and_wait(machine, "worker.service")
    wait_for_entry(machine, "agent.crash-loop", toplevel=new)
    verdict = wait_for_entry(machine, "safeswitch.verdict", verdict="inconclusive", toplevel=new)
    assert "its own baseline explains as many" in verdict["data"]["reason"]
    assert "its unit was changed since the known-good" in verdict["data"]["evidence"]
    assert promoted(machine) == new
    assert actions(machine) == ["promote", "promote"]
    assert_intact(machine)
