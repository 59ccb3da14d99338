"""Gates on a real systemd and a real network, looked at by a healer without privileges."""

import json
from typing import Any

from tests.conftest import Boot
from tests.machine.agents import (
    agent,
    entries,
    system,
    wait_for_entries,
    wait_for_entry,
    wait_until_told,
)
from tests.machine.local import LocalMachine
from tests.machine.outcome import retry

# eth0, with a gateway at its other end: in a network namespace of its own, so that packets travel.
NETWORK = """\
ip netns add gateway
ip link add eth0 type veth peer name inside netns gateway
ip address add 192.0.2.10/24 dev eth0
ip link set eth0 up
ip -n gateway address add 192.0.2.1/24 dev inside
ip -n gateway link set inside up
ip route add default via 192.0.2.1
"""
QUICK = {"intervalSec": 0.3, "failureThreshold": 2}
REACHABLE = {
    "name": "reachable",
    "type": "network",
    "interface": "eth0",
    "defaultRoute": True,
    "gateway": True,
    "addresses": ["192.0.2.10"],
    "sshd": 22,
    **QUICK,
}
LISTENER = {
    "wantedBy": ["multi-user.target"],
    "serviceConfig": {"ExecStart": "/usr/bin/nc -lk 22"},
}


def gated(
    label: str, *gates: dict[str, Any], probation_sec: float = 2, **more: Any
) -> dict[str, Any]:
    safe_switch = {"probationSec": probation_sec, "gates": [{**QUICK, **gate} for gate in gates]}
    return system(
        {"worker": agent()},
        label=label,
        services={"sshd": LISTENER},
        healer={"safeSwitch": safe_switch},
        **more,
    )


def gates_of(machine: LocalMachine) -> Any:
    gates = json.loads(machine.execute("healer status --json")[1])["deployment"]["gates"]
    return {name: gate["state"] for name, gate in gates.items()}


def test_a_deployment_waits_for_its_gates(container: Boot) -> None:
    command = ["/usr/bin/test", "-e", "/run/ready"]
    machine = container(
        system=gated(
            "gated",
            {"name": "smoke", "type": "command", "command": command},
            {"name": "ssh", "type": "unit", "unit": "sshd.service"},
            {"name": "mounted", "type": "unit", "unit": "-.mount"},
        )
    )
    toplevel = machine.current_system()
    failed = wait_for_entry(machine, "gate.failed", gate="smoke", toplevel=toplevel)
    assert failed["data"]["detail"] == "/usr/bin/test exited with 1"
    told = "the probation is over, but .*the gate smoke fails: /usr/bin/test exited with 1"
    wait_until_told(machine, "safeswitch.verdict", told)
    assert gates_of(machine) == {"smoke": "failed", "ssh": "passed", "mounted": "passed"}
    status, out = machine.execute("healer status")
    assert status == 1
    assert "fails its gate smoke" in out

    machine.succeed("touch /run/ready")
    wait_for_entry(machine, "deployment.known-good", toplevel=toplevel)
    assert [e["data"]["gate"] for e in entries(machine, "gate.failed")] == ["smoke"]
    # The next deployment has to pass them anew.
    machine.succeed("rm /run/ready")
    smoke = {"name": "smoke", "type": "command", "command": command}
    again = machine.deploy(gated("again", smoke, probation_sec=30))
    wait_for_entry(machine, "gate.failed", gate="smoke", toplevel=again)
    # And so it has under the next healer, which does not know how they were meanwhile.
    machine.succeed("touch /run/ready")
    wait_for_entry(machine, "gate.passed", gate="smoke", toplevel=again)
    machine.succeed("systemctl restart healer")
    # Before, it may have passed twice: the gates of the system before are looked at under this one
    # until healer has its own.
    started = wait_for_entries(machine, 2, "healer.started")[-1]["seq"]

    def has_passed(_last: bool) -> bool:
        last = wait_for_entry(machine, "gate.passed", gate="smoke", toplevel=again)
        return bool(last["seq"] > started)

    retry(has_passed)


def test_a_deployment_that_loses_the_network(container: Boot) -> None:
    machine = container()
    machine.succeed(NETWORK)
    toplevel = machine.deploy(gated("reachable", REACHABLE))
    wait_for_entry(machine, "gate.passed", gate="reachable", toplevel=toplevel)
    wait_for_entry(machine, "deployment.known-good", toplevel=toplevel)
    # What it was read by has gone with the probation.
    machine.wait_until_succeeds("! pgrep -f [h]ealer.host.netlink")
    assert "pyroute2" not in machine.succeed("cat /proc/$(systemctl show -P MainPID healer)/maps")

    for number, (breaks, mends, said) in enumerate(
        [
            ("ip link set eth0 down", "ip link set eth0 up", "eth0 is not up"),
            ("ip route del default", "true", "there is no default route on eth0"),
            ("ip address del 192.0.2.10/24 dev eth0", "true", "192.0.2.10 is not assigned"),
            ("systemctl stop sshd", "systemctl start sshd", "nothing listens on port 22"),
            (
                "ip -n gateway address flush dev inside; ip neigh flush all",
                "ip -n gateway address add 192.0.2.1/24 dev inside",
                "the gateway 192.0.2.1 on eth0 does not answer",
            ),
        ]
    ):
        toplevel = machine.deploy(gated(f"number {number}", REACHABLE, probation_sec=8))
        machine.succeed(breaks)
        failed = wait_for_entry(machine, "gate.failed", gate="reachable", toplevel=toplevel)
        assert said in failed["data"]["detail"]
        machine.succeed(
            f"{mends}; ip address replace 192.0.2.10/24 dev eth0;"
            " ip route replace default via 192.0.2.1"
        )
        wait_for_entry(machine, "deployment.known-good", toplevel=toplevel)


def test_a_deployment_that_takes_the_network_away_is_rolled_back(container: Boot) -> None:
    machine = container()
    machine.succeed(NETWORK)
    up = "ip link set eth0 up; ip route replace default via 192.0.2.1"
    good = machine.deploy(gated("good", REACHABLE, activationScript=up))
    wait_for_entry(machine, "deployment.known-good", toplevel=good)
    bad = machine.deploy(gated("bad", REACHABLE, activationScript="ip link set eth0 down"))
    intent = wait_for_entry(machine, "action.intent", action="rollback")
    assert intent["data"]["gate"] == "reachable"
    wait_for_entry(machine, "deployment.condemned", toplevel=bad)
    assert machine.current_system() == good
    wait_for_entry(machine, "deployment.recovered", gate="reachable")
