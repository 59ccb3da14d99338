"""Health checks by a healer without privileges, on a real systemd."""

import json
from typing import Any

from tests.conftest import Boot
from tests.machine.agents import (
    assert_intact,
    entries,
    main_pid,
    system,
    wait_for_entry,
    wait_for_new_pid,
)
from tests.machine.local import LocalMachine

# Well until SIGUSR1: then it does what its name says.
PROGRAM = """\
import os, pathlib, signal, socket, sys, time

name, broken = sys.argv[1], False

def break_down(*_):
    global broken
    broken = True

signal.signal(signal.SIGUSR1, break_down)
if name == "stale":
    signal.signal(signal.SIGABRT, lambda *_: sys.exit(0))
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
server = socket.create_server(("127.0.0.1", 8080)) if name == "deaf" else None
beat, ballast = pathlib.Path("/run/beat"), b""
while True:
    if name == "deaf" and broken and server:
        server.close()
        server = None
    if name == "chatty":
        print("FATAL: stuck" if broken else "no FATAL: yet", flush=True)
    if name == "hog" and broken and not ballast:
        ballast = bytearray(b"x" * 150_000_000)
    if name == "stale" and not broken:
        beat.touch()
    if name == "hung" and not broken:
        notify.sendto(b"WATCHDOG=1", os.environ["NOTIFY_SOCKET"])
    time.sleep(0.1)
"""
QUICK = {"intervalSec": 0.3, "startGraceSec": 1}


def agent(name: str, *checks: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {
        "command": ["/usr/bin/python3", "/etc/agents/program.py", name],
        "health": [{"name": "check", **QUICK, **check} for check in checks],
        "stableSec": 2,
        **options,
    }


def machine_with(boot: Boot, **agents: dict[str, Any]) -> LocalMachine:
    return boot(system=system(agents, etc={"agents/program.py": PROGRAM}))


def wait_for_health(machine: LocalMachine, name: str, check: str, health: str) -> None:
    # The command `healer status` fails where anything is not well.
    script = (
        "import json; status = json.load(open('/run/healer/status.json')); "
        f"exit(status['agents'][{name!r}]['health'][{check!r}] != {health!r})"
    )
    machine.wait_until_succeeds(f'python3 -c "{script}"')


def break_and_see_it_healed(machine: LocalMachine, name: str, crash_class: str = "health") -> str:
    """Break an agent; return what its failed check said."""
    if crash_class == "health":
        wait_for_health(machine, name, "check", "ok")
    pid = main_pid(machine, f"{name}.service")
    machine.succeed(f"kill -USR1 {pid}")
    wait_for_new_pid(machine, f"{name}.service", pid)
    crash = wait_for_entry(machine, "agent.crash", agent=name)
    assert crash["data"]["class"] == crash_class
    wait_for_entry(machine, "agent.recovered", agent=name)
    found = [e for e in entries(machine, "health.failed") if e["data"]["agent"] == name]
    return str(found[-1]["data"]["detail"]) if found else ""


def test_each_kind_of_check_heals(container: Boot) -> None:
    log = {"type": "log", "pattern": "^FATAL:"}
    machine = machine_with(
        container,
        deaf=agent("deaf", {"type": "listen", "port": 8080, "host": "127.0.0.1"}),
        chatty=agent("chatty", log),
        stale=agent("stale", {"type": "file", "path": "/run/beat", "maxAgeSec": 1}, user="root"),
        hung=agent("hung", watchdogSec=2),
    )
    # What others log does not count, whatever they say they are.
    machine.write_file("/tmp/forged", "MESSAGE=FATAL: lies\nUNIT=chatty.service\n")
    machine.succeed("logger --journald=/tmp/forged")
    machine.succeed("systemd-cat -t chatty echo 'FATAL: lies'")
    assert "8080" in break_and_see_it_healed(machine, "deaf")
    assert "FATAL: stuck" in break_and_see_it_healed(machine, "chatty")
    assert "/run/beat" in break_and_see_it_healed(machine, "stale")
    break_and_see_it_healed(machine, "hung", "watchdog")
    assert len(entries(machine, "agent.crash")) == 4
    assert machine.succeed("systemctl show -P Type hung").strip() == "simple"
    assert_intact(machine)


def test_who_leaves_cleanly_for_a_failed_check_runs_again(container: Boot) -> None:
    """systemd restarts after failures only, and knows of none; also while healer is dead."""
    check = {"type": "file", "path": "/run/beat", "maxAgeSec": 1, "failureThreshold": 2}
    restart = {"policy": "exponential", "on": "failure", "delaySec": 0.5}
    polite = agent("stale", check, user="root", restart=restart)
    machine = machine_with(container, polite=polite)
    assert "/run/beat" in break_and_see_it_healed(machine, "polite")
    (crash,) = entries(machine, "agent.crash")
    data = crash["data"]
    assert (data["result"], data["code"], data["status"]) == ("success", "exited", "0")
    assert (data["restart"], data["restart_delay_ms"]) == ("will-restart", 500)

    machine.succeed("systemctl stop healer")
    pid = main_pid(machine, "polite.service")
    name = "polite.service.$(systemctl show -P InvocationID polite)"
    machine.succeed(f"touch /run/healer/stamps/{name}.health", f"kill -ABRT {pid}")
    wait_for_new_pid(machine, "polite.service", pid)
    # Who leaves by itself is done.
    machine.succeed("systemctl start healer", "systemctl kill --kill-whom=main -s ABRT polite")
    wait_for_entry(machine, "agent.exit", agent="polite")
    machine.sleep(2)
    assert machine.get_unit_property("polite.service", "ActiveState") == "inactive"
    assert entries(machine, "agent.crash") == [crash]
    assert_intact(machine)


def test_an_agent_whose_first_process_left_is_killed_all_the_same(container: Boot) -> None:
    """Its unit has no main process, and is up as long as there is any."""
    run = "/usr/bin/python3 /etc/agents/program.py stale & sleep 0.2"
    check = {"type": "file", "path": "/run/beat", "maxAgeSec": 1}
    machine = machine_with(
        container,
        orphan=agent("", check, command=["/bin/sh", "-c", run], user="root")
        | {"serviceConfig": {"ExitType": "cgroup"}},
    )
    wait_for_health(machine, "orphan", "check", "ok")
    machine.wait_until_succeeds("test $(systemctl show -P MainPID orphan) = 0")
    machine.succeed("systemctl kill -s USR1 orphan")
    crash = wait_for_entry(machine, "agent.crash", agent="orphan")
    assert crash["data"]["class"] == "health"
    end = wait_for_entry(machine, "agent.recovered", agent="orphan")
    assert end["incident"] == crash["incident"]
    assert_intact(machine)


def test_a_memory_ceiling(container: Boot) -> None:
    a_memory_ceiling_heals(machine_with(container, greedy=greedy()))


def greedy() -> dict[str, Any]:
    """Declare an agent for a_memory_ceiling_heals(), by this name."""
    return agent("hog", {"type": "memory", "maxBytes": 100_000_000})


def a_memory_ceiling_heals(machine: LocalMachine) -> None:
    said = break_and_see_it_healed(machine, "greedy")
    group = "/sys/fs/cgroup/system.slice/greedy.service"
    controller = machine.execute(f"test -e {group}/memory.current")
    assert ("cgroup" if controller[0] == 0 else "main process") in said


def test_a_dependency_that_is_down_delays_and_never_kills(container: Boot) -> None:
    ready = {"name": "db", "type": "tcp", "port": 5432, "purpose": "readiness"}
    machine = machine_with(container, worker=agent("worker", {**ready, "failureThreshold": 1}))
    wait_for_health(machine, "worker", "db", "failing")
    pid = main_pid(machine, "worker.service")
    verdict = wait_for_entry(machine, "safeswitch.verdict", verdict="inconclusive")
    assert "readiness check db" in verdict["data"]["reason"]

    listener = "import socket, time; s = socket.create_server(('127.0.0.1', 5432)); time.sleep(1e6)"
    machine.succeed(f'systemd-run --unit=db python3 -c "{listener}"')
    wait_for_entry(machine, "health.passed", agent="worker", check="db")
    wait_for_entry(machine, "deployment.known-good")
    machine.succeed("systemctl stop db")
    unready = wait_for_entry(machine, "health.unready", agent="worker", check="db")
    assert unready["data"]["purpose"] == "readiness"
    assert unready["incident"] is None
    wait_for_health(machine, "worker", "db", "failing")
    assert main_pid(machine, "worker.service") == pid
    assert entries(machine, "agent.crash") == entries(machine, "health.failed") == []
    assert_intact(machine)


def test_startup_comes_first(container: Boot) -> None:
    startup = {
        "name": "started",
        "type": "command",
        "command": ["/usr/bin/test", "-e", "/run/started"],
        "purpose": "startup",
    }
    dead = {"name": "live", "type": "command", "command": ["/usr/bin/test", "-e", "/run/live"]}
    machine = machine_with(
        container,
        patient=agent("worker", {**startup, "startGraceSec": 10_000}, {**dead, "startGraceSec": 0}),
        late=agent("worker", {**startup, "startGraceSec": 2}),
    )
    # It never starts up, and is given up on when its grace is over.
    failed = wait_for_entry(machine, "health.failed", agent="late")
    assert failed["data"]["purpose"] == "startup"
    crash = wait_for_entry(machine, "agent.crash", agent="late")
    assert crash["data"]["class"] == "health"
    assert crash["data"]["runtime_ms"] >= 1900
    # Its neighbour is dead by its liveness check, which does not count yet.
    wait_for_health(machine, "patient", "live", "failing")
    status = json.loads(machine.succeed("cat /run/healer/status.json"))
    assert status["agents"]["patient"]["crashes"] == 0
    machine.succeed("touch /run/started")
    wait_for_entry(machine, "health.failed", agent="patient", check="live")
    # The first of each: it starts up and is killed again and again.
    passed, killed = (
        next(e["data"] for e in entries(machine, kind) if e["data"]["agent"] == "patient")
        for kind in ("health.passed", "health.failed")
    )
    assert (passed["check"], killed["check"]) == ("started", "live")
    assert killed["invocation"] == passed["invocation"]
    machine.succeed("touch /run/live")
    wait_for_entry(machine, "agent.recovered", agent="patient")
    assert_intact(machine)
