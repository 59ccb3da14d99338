"""Restart rules on a real systemd, most of them with healer stopped: PID 1 carries them out."""

from typing import Any

from tests.conftest import Boot
from tests.machine.agents import (
    agent,
    assert_intact,
    entries,
    kill_and_wait,
    main_pid,
    running_pid,
    system,
    wait_for_entry,
    wait_for_new_pid,
)
from tests.machine.local import LocalMachine

# Leaves with the code that it finds in the file `code` of its state directory; on SIGTERM with 7,
# once it has named itself in the file `pid`.
PLAYER = """\
import os, pathlib, signal, sys, time

signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
code = pathlib.Path(os.environ["STATE_DIRECTORY"]) / "code"
code.with_name("pid").write_text(str(os.getpid()))
while not code.exists():
    time.sleep(0.02)
leave_with = int(code.read_text())
code.unlink()
sys.exit(leave_with)
"""


def ruled(*rules: dict[str, Any], **options: Any) -> dict[str, Any]:
    """An agent that leaves as it is told, with these rules."""
    restart = {"policy": "conditional", "rules": list(rules), **options.pop("restart", {})}
    return agent("player", restart=restart, **options)


def players(agents: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A system with such agents."""
    return system(agents, etc={"agents/player.py": PLAYER}, **more)


def leave(machine: LocalMachine, how: int | str, unit: str = "worker") -> int:
    """Have the agent leave with a code, or by a signal; return its last PID."""
    pid = running_pid(machine, f"{unit}.service")
    if isinstance(how, str):
        # systemd's own program, which becomes the agent, takes signals in its own way.
        machine.wait_until_succeeds(f"grep -q player /proc/{pid}/cmdline")
        machine.succeed(f"kill -{how} {pid}")
    else:
        at = f"/var/lib/{unit}/code"
        machine.succeed(f"echo {how} >{at}.new && mv {at}.new {at}")
    machine.wait_until_succeeds(f"test $(systemctl show -P MainPID {unit}) != {pid}")
    return pid


def pause_ms(machine: LocalMachine, how: int | str, unit: str = "worker") -> int:
    """Have the agent leave so; return how long it was down, by systemd's own clock."""
    before = main_pid(machine, f"{unit}.service")
    begins = "systemctl show -P ExecMainExitTimestampMonotonic"
    leave(machine, how, unit)
    ended = int(machine.succeed(f"{begins} {unit}"))
    wait_for_new_pid(machine, f"{unit}.service", before)
    started = int(machine.succeed(f"systemctl show -P ExecMainStartTimestampMonotonic {unit}"))
    return (started - ended) // 1000


def stays_down(machine: LocalMachine, state: str, unit: str = "worker") -> None:
    """The unit is down, and neither systemd nor a timer will start it."""
    machine.wait_until_succeeds(f"test $(systemctl show -P ActiveState {unit}) = {state}")
    machine.fail("systemctl is-active --quiet 'healer-restart-*.timer'")
    machine.sleep(2)
    assert machine.get_unit_property(f"{unit}.service", "ActiveState") == state


def test_rules_by_exit_code_hold_without_healer(container: Boot) -> None:
    worker = ruled(
        {"exitCodes": [78], "action": "stop"},
        {"exitCodes": [7], "action": "restart", "delaySec": 5},
        {"exitCodes": [8], "action": "backoff"},
        {"signals": ["SIGKILL"], "action": "restart", "delaySec": 2.5},
        {"signals": ["SIGUSR1"], "action": "stop"},
        stableSec=60,
        restart={"delaySec": 0.3, "maxDelaySec": 1.2, "steps": 2},
    )
    machine = container(system=players({"worker": worker}))
    machine.wait_for_unit("worker.service")
    machine.wait_until_succeeds("healer status")
    machine.succeed("systemctl stop healer")

    assert pause_ms(machine, 7) >= 5000
    # The second crash in a row already, and so on up to the cap.
    assert pause_ms(machine, 8) >= 600
    assert pause_ms(machine, 8) >= 1200
    assert pause_ms(machine, 8) >= 1200
    # The policy's own delay for all else, by systemd itself.
    assert pause_ms(machine, 1) >= 300
    assert pause_ms(machine, "KILL") >= 2500

    # What somebody asked for goes before: nobody's rule starts an agent that was stopped, neither
    # while it waits for its timer nor because it leaves with such a code.
    leave(machine, 7)
    machine.wait_until_succeeds("systemctl is-failed worker")
    machine.succeed("systemctl stop worker")
    stays_down(machine, "failed")
    machine.succeed("systemctl start worker")
    pid = running_pid(machine, "worker.service")
    machine.wait_until_succeeds(f"grep -qx {pid} /var/lib/worker/pid")
    machine.succeed("systemctl stop worker")
    stays_down(machine, "failed")

    machine.succeed("systemctl start worker")
    leave(machine, 78)
    stays_down(machine, "failed")
    machine.succeed("systemctl start worker")
    leave(machine, "USR1")
    stays_down(machine, "failed")

    machine.succeed("systemctl start healer")
    wait_for_entry(machine, "agent.crash", status="USR1")
    crashes = [entry["data"] for entry in entries(machine, "agent.crash")]
    assert [(c["status"], c["answer"], c["restart_delay_ms"]) for c in crashes] == [
        ("7", "delay", 5000),
        ("8", "backoff", 600),
        ("8", "backoff", 1200),
        ("8", "backoff", 1200),
        ("1", "restart", 300),
        ("KILL", "delay", 2500),
        ("7", "delay", 5000),
        ("78", "stop", None),
        ("USR1", "stop", None),
    ]
    assert [c["in_a_row"] for c in crashes] == [1, 2, 3, 4, 5, 6, 7, 1, 2]
    wait_for_entry(machine, "agent.stopped", status="7")
    end = wait_for_entry(machine, "agent.not-restarted", agent="worker")
    assert "policy" in end["data"]["reason"]
    assert_intact(machine)


def test_a_delay_is_one_incident_to_healer(container: Boot) -> None:
    """An agent that waits for its timer has not been given up."""
    worker = ruled(
        {"exitCodes": [7], "action": "restart", "delaySec": 3},
        {"exitCodes": [8], "action": "restart", "delaySec": 3600},
    )
    machine = container(system=players({"worker": worker}))
    machine.wait_for_unit("worker.service")
    machine.wait_until_succeeds("healer status")
    assert pause_ms(machine, 7) >= 3000
    restarted = wait_for_entry(machine, "agent.restarted", agent="worker")
    recovered = wait_for_entry(machine, "agent.recovered", agent="worker")
    (crash,) = entries(machine, "agent.crash")
    assert restarted["data"]["delay_ms"] >= 2900
    assert {restarted["incident"], recovered["incident"]} == {crash["incident"]}
    assert entries(machine, "agent.not-restarted") == []
    assert "after 3.0 s, by a rule" in machine.succeed(f"healer incident {crash['incident']}")
    # And it says so, for as long as it does.
    leave(machine, 8)
    status = "(healer status || true) | grep"
    machine.wait_until_succeeds(
        f"{status} 'waits for its restart in 59 min .* healer-restart-worker.timer'"
    )
    machine.succeed("systemctl stop worker")
    machine.wait_until_succeeds(f"{status} 'worker is failed'")


def test_rules_by_class_hold_without_healer(container: Boot) -> None:
    # Neither of them ever sends a heartbeat, and both end by the same signal.
    hang = {"watchdogSec": 0.5, "serviceConfig": {"LimitCORE": 0}}
    later = ruled(
        {"classes": ["watchdog"], "action": "restart", "delaySec": 1},
        {"signals": ["SIGABRT"], "action": "stop"},
        stateDirectory="later",
        **hang,
    )
    never = ruled({"classes": ["watchdog"], "action": "stop"}, stateDirectory="never", **hang)
    # A start that takes too long, and another signal by which systemd would not restart.
    slow = ruled(
        {"classes": ["timeout"], "action": "restart", "delaySec": 1},
        stateDirectory="slow",
        restart={"otherwise": "stop"},
        serviceConfig={"Type": "notify", "TimeoutStartSec": "500ms", "NotifyAccess": "all"},
    )
    agents = {"later": later, "never": never, "slow": slow}
    machine = container()
    machine.deploy(players(agents), status={0, 4})
    machine.succeed("systemctl stop healer")
    machine.wait_until_succeeds("test $(journalctl -u later -o cat | grep -c ^Started) -ge 3")
    machine.wait_until_succeeds("test $(journalctl -u slow -o cat | grep -c ^Starting) -ge 3")
    stays_down_alone = "systemctl show -P ActiveState never | grep -x failed"
    machine.wait_until_succeeds(stays_down_alone)
    assert machine.succeed("journalctl -u never -o cat | grep -c ^Started").strip() == "1"

    machine.succeed("systemctl start healer")
    for name, kind, answer in (
        ("later", "watchdog", "delay"),
        ("never", "watchdog", "stop"),
        ("slow", "timeout", "delay"),
    ):
        crash = wait_for_entry(machine, "agent.crash", agent=name)
        assert (crash["data"]["class"], crash["data"]["answer"]) == (kind, answer), crash
    assert machine.succeed(stays_down_alone)
    assert_intact(machine)


def test_a_rule_for_failed_health_checks(container: Boot) -> None:
    check = {"name": "fresh", "type": "file", "path": "/run/beat", "maxAgeSec": 1}
    health = [{**check, "intervalSec": 0.2, "startGraceSec": 0, "failureThreshold": 2}]
    worker = ruled({"classes": ["health"], "action": "restart", "delaySec": 1.5}, health=health)
    machine = container(system=players({"worker": worker}))
    crash = wait_for_entry(machine, "agent.crash", agent="worker")
    assert (crash["data"]["class"], crash["data"]["answer"]) == ("health", "delay")
    restarted = wait_for_entry(machine, "agent.restarted", agent="worker")
    assert restarted["data"]["delay_ms"] >= 1400


def test_a_unit_with_escapes_in_its_name(container: Boot) -> None:
    unit = r"a\x2db@c\x3ad"
    rules = [{"exitCodes": [7], "action": "restart", "delaySec": 6}]
    restart = {"policy": "conditional", "rules": rules}
    odd = {"adopt": True, "unit": f"{unit}.service", "restart": restart, "stableSec": 2}
    exits = "/bin/sh -c 'while ! test -e /run/go; do sleep 0.05; done; rm /run/go; exit 7'"
    service = {"wantedBy": ["multi-user.target"], "serviceConfig": {"ExecStart": exits}}
    machine = container(system=system({"odd": odd}, services={unit: service}))
    machine.succeed("systemctl stop healer")
    machine.wait_until_succeeds(f"systemctl is-active '{unit}'")
    machine.succeed("touch /run/go")
    machine.wait_until_succeeds(f"systemctl is-failed '{unit}'")
    machine.wait_until_succeeds(f"systemctl is-active '{unit}'")
    machine.succeed("touch /run/go")
    machine.wait_until_succeeds(f"systemctl is-failed '{unit}'")
    # The timer knows the unit by its whole name.
    machine.succeed("systemctl is-active --quiet 'healer-restart-*.timer'")
    machine.succeed(f"systemctl stop '{unit}'")
    machine.fail("systemctl is-active --quiet 'healer-restart-*.timer'")


def test_an_environment_file_of_the_agents_own_does_not_reach_root(container: Boot) -> None:
    """What the agent can write is read by PID 1 and given to root's stamp as well."""
    hostile = (
        'SERVICE_RESULT="exit-code\nunit=victim.service\ninvocation=' + "0" * 32 + '"\n'
        'EXIT_CODE="exited\nanswer=rollback"\nEPOCHREALTIME="1\nin_a_row=99"\n'
        "LD_PRELOAD=/var/lib/worker/evil.so\nDBUS_SYSTEM_BUS_ADDRESS=unix:path=/var/lib/worker/bus\n"
        'TRAP="x\nexport unit=\nexport PATH="\nunit=x\nanswer=stop\ndelay_ms=1\nin_a_row=a[0]\n'
        "IFS=7\nPATH=/var/lib/worker\nstamps=/var/lib/worker\nlast=/var/lib/worker/last\n"
    )
    loop = "while ! read -r code </var/lib/worker/code; do :; done 2>/dev/null; exit $code"
    worker = {
        "command": ["/usr/bin/busybox", "sh", "-c", loop],
        "stateDirectory": "worker",
        "restart": {
            "policy": "conditional",
            "rules": [{"exitCodes": [7], "action": "restart", "delaySec": 6}],
        },
        "serviceConfig": {"EnvironmentFile": "-/etc/hostile"},
    }
    machine = container()
    machine.deploy(system({"worker": worker}, etc={"hostile": hostile}))
    machine.wait_for_unit("worker.service")
    machine.succeed("systemctl stop healer", "echo 7 >/var/lib/worker/code")
    machine.wait_until_succeeds("systemctl is-failed worker")
    machine.succeed("rm /var/lib/worker/code")
    machine.wait_until_succeeds("systemctl is-active worker")
    stamp = machine.succeed("cat /run/healer/stamps/worker.service.*.stop")
    fields = [line.split("=", 1) for line in stamp.splitlines()]
    assert len({key for key, _ in fields}) == len(fields)
    assert dict(fields)["unit"] == "worker.service"
    assert dict(fields)["answer"] == "delay"
    machine.fail("journalctl -u worker -o cat | grep ld.so")
    assert machine.succeed("ls /var/lib/worker").strip() == ""


def test_what_a_rule_leaves_to_healer_restarts_meanwhile(container: Boot) -> None:
    worker = ruled(
        {"exitCodes": [5], "action": "escalate"},
        {"exitCodes": [6], "action": "rollback"},
        {"exitCodes": [78], "action": "stop"},
        escalation={},  # a rule may not escalate without a ladder
    )
    machine = container(system=players({"worker": worker}))
    machine.wait_for_unit("worker.service")
    machine.wait_until_succeeds("healer status")
    machine.succeed("systemctl stop healer")
    for code in (5, 6):
        pid = leave(machine, code)
        wait_for_new_pid(machine, "worker.service", pid)
    kill_and_wait(machine, "worker.service")
    machine.succeed("systemctl start healer")
    wait_for_entry(machine, "agent.crash", status="KILL")
    answers = [entry["data"]["answer"] for entry in entries(machine, "agent.crash")]
    assert answers == ["escalate", "rollback", "restart"]


def test_a_rule_asks_for_the_next_step(container: Boot) -> None:
    """One crash with such a code, far from any crash loop, and the agent is quarantined."""
    worker = ruled({"exitCodes": [5], "action": "escalate"}, escalation={"quarantineSec": 10})
    machine = container(system=players({"worker": worker}))
    machine.wait_for_unit("worker.service")
    wait_for_entry(machine, "deployment.known-good")
    leave(machine, 5)
    quarantine = wait_for_entry(machine, "action.outcome", action="quarantine")
    assert quarantine["data"]["ok"]
    recovered = wait_for_entry(machine, "agent.recovered", agent="worker")
    (crash,) = entries(machine, "agent.crash")
    assert recovered["incident"] == quarantine["incident"] == crash["incident"]
    assert_intact(machine)


def test_a_rule_asks_for_a_rollback(container: Boot) -> None:
    """The agent knows that it cannot live with this deployment: it crashes only once or twice."""
    rule = {"exitCodes": [65], "action": "rollback"}
    machine = container(system=players({"worker": ruled(rule)}, label="good"))
    wait_for_entry(machine, "deployment.known-good")
    good = machine.current_system()
    slow = {"policy": "conditional", "rules": [rule], "delaySec": 20}
    bad = {**ruled(rule), "command": ["/bin/sh", "-c", "sleep 1; exit 65"], "restart": slow}
    patient = {"safeSwitch": {"probationSec": 120}}
    toplevel = machine.deploy(players({"worker": bad}, label="bad", healer=patient), status={0, 4})
    wait_for_entry(machine, "deployment.condemned", toplevel=toplevel)
    assert machine.current_system() == good
    machine.wait_until_succeeds("systemctl is-active worker")
    assert len(entries(machine, "agent.crash")) <= 2
    loop = wait_for_entry(machine, "agent.crash-loop", agent="worker")
    assert "rule" in loop["data"]["reason"]
    assert_intact(machine)
