"""The watchdog on a real systemd: real signals, real exits, a real journal."""

import itertools
import json

from tests.conftest import Boot
from tests.machine.agents import (
    agent,
    assert_intact,
    entries,
    kill_and_wait,
    main_pid,
    running_pid,
    system,
    wait_for_entries,
    wait_for_entry,
    wait_for_new_pid,
    wait_until_all_are_recorded,
    wait_until_every_end_is_recorded,
)
from tests.machine.local import LocalMachine


def test_sigkill(container: Boot) -> None:
    machine = container(system=system({"worker": agent()}))
    machine.wait_until_succeeds("journalctl -u worker | grep 'job 5'")
    kill_and_wait(machine, "worker.service")
    restarted = wait_for_entry(machine, "agent.restarted", agent="worker")
    recovered = wait_for_entry(machine, "agent.recovered", agent="worker")

    (crash,) = entries(machine, "agent.crash")
    data = crash["data"]
    assert (data["class"], data["code"], data["status"]) == ("signal", "killed", "KILL")
    assert data["restart"] == "will-restart"
    assert data["source"] == "stamp"
    assert data["status_text"].startswith("working on job ")
    assert data["journal"][-1].startswith("job ")
    assert data["toplevel"] == machine.current_system()
    assert data["runtime_ms"] > 0
    # The kernel's own word beside the stamp's; the status from Linux 6.15 on.
    assert abs(data["died_uptime_ms"] - data["stop_uptime_ms"]) < 5_000
    assert data["wait_status"] in {9, None}
    incident = f"worker-{data['invocation'][:8]}"
    assert [e["incident"] for e in (crash, restarted, recovered)] == [incident] * 3

    assert (
        data["unit_file"]
        == machine.succeed("readlink -f /etc/systemd/system/worker.service").strip()
    )
    assert recovered["data"]["first_status"].startswith("working on job ")
    assert (recovered["data"]["restarts"], recovered["data"]["ready_ms"]) == (1, None)

    # The agent went on where it was.
    machine.succeed("journalctl -u worker | grep -E 'resuming at job [5-9]|resuming at job ..'")

    status = json.loads(machine.succeed("healer status --json"))
    assert status["agents"]["worker"]["crashes"] == 1
    assert status["agents"]["worker"]["active_state"] == "active"
    story = machine.succeed(f"healer incident {incident}")
    assert "SIGKILL" in story
    assert "recovered" in story
    assert_intact(machine)


def test_conditional_restart_by_exit_code(container: Boot) -> None:
    stop_on_3 = {"policy": "conditional", "rules": [{"exitCodes": [3], "action": "stop"}]}
    machine = container(system=system({"worker": agent(restart=stop_on_3)}))
    machine.wait_for_unit("worker.service")
    pid = main_pid(machine, "worker.service")
    machine.succeed("echo 4 > /var/lib/worker/orders")
    wait_for_new_pid(machine, "worker.service", pid)
    crash = wait_for_entry(machine, "agent.crash", status="4")
    assert crash["data"]["restart"] == "will-restart"

    machine.succeed("echo 3 > /var/lib/worker/orders")
    machine.wait_until_succeeds("systemctl is-failed worker")
    end = wait_for_entry(machine, "agent.not-restarted", agent="worker")
    crash = wait_for_entry(machine, "agent.crash", status="3")
    assert crash["data"]["restart"] == "will-not-restart"
    assert "policy" in end["data"]["reason"]
    assert_intact(machine)


def test_exponential_backoff_grows_to_its_cap(container: Boot) -> None:
    backoff = {"policy": "exponential", "delaySec": 0.1, "maxDelaySec": 0.8, "steps": 3}
    loop = agent("broken", restart=backoff, crashLoop={"maxCrashes": 4})
    machine = container()
    machine.deploy(system({"worker": loop}), status={0, 4})
    machine.wait_until_succeeds("test $(systemctl show -P NRestarts worker) -ge 6")
    spent = wait_for_entry(machine, "agent.crash-loop", agent="worker")
    assert spent["data"]["early_deaths"] == 4
    # systemd has no test of RestartSteps= itself: 100 ms, doubling, up to the cap. How much longer
    # a restart takes is the machine's load.
    ends = [e["data"]["stop_uptime_ms"] for e in entries(machine, "agent.crash")]
    gaps = [after - before for before, after in itertools.pairwise(ends)]
    for gap, least in zip(gaps, [100, 200, 400, 800, 800], strict=False):
        assert gap >= least - 20, gaps
    assert machine.get_unit_property("worker.service", "RestartMaxDelayUSec") == "800ms"
    # Nothing was known to be good, so nothing was rolled back; healer said so.
    verdict = wait_for_entry(machine, "safeswitch.verdict", verdict="inconclusive")
    assert "known to be good" in verdict["data"]["reason"]
    assert entries(machine, "action.intent") == []


def test_the_backoff_begins_anew_after_a_stable_run(container: Boot) -> None:
    backoff = {"policy": "exponential", "delaySec": 0.05, "maxDelaySec": 3, "steps": 3}
    machine = container(system=system({"worker": agent(restart=backoff, stableSec=8)}))
    machine.wait_for_unit("worker.service")
    for _ in range(4):
        kill_and_wait(machine, "worker.service")
    wait_for_entry(machine, "action.outcome", action="reset", ok=True)
    assert machine.get_unit_property("worker.service", "NRestarts") == "0"
    assert machine.get_unit_property("worker.service", "ActiveState") == "active"
    kill_and_wait(machine, "worker.service")
    wait_for_entries(machine, 2, "agent.recovered")
    delays = [e["data"]["delay_ms"] for e in entries(machine, "agent.restarted")]
    assert delays[-1] < delays[-2]
    assert_intact(machine)


def test_a_person_holds_releases_restarts_and_resets(container: Boot) -> None:
    machine = container(system=system({"worker": agent(), "other": agent(stateDirectory="other")}))
    machine.wait_for_unit("worker.service")
    machine.wait_for_unit("healer.service")
    assert "held back" in machine.succeed("SUDO_USER=alice healer agent worker hold --for 30m")
    assert machine.get_unit_property("worker.service", "ActiveState") == "inactive"
    # Nothing starts it meanwhile: neither a person, nor systemd, nor a switch.
    machine.succeed("systemctl start worker")
    assert machine.get_unit_property("worker.service", "ActiveState") == "inactive"
    asked = wait_for_entry(machine, "action.intent", action="hold")
    assert asked["data"]["asked_by"] == "alice (by sudo)"
    assert "alice" in machine.execute("healer status")[1]
    machine.succeed("healer agent worker release")
    machine.wait_for_unit("worker.service")

    # A hold ends by itself, also without healer.
    machine.succeed("healer agent worker hold --for 10s", "systemctl stop healer")
    machine.wait_until_succeeds("systemctl is-active worker")
    machine.succeed("systemctl start healer")
    machine.wait_until_succeeds("test -S /run/healer/control.sock")

    pid = main_pid(machine, "worker.service")
    machine.succeed("SUDO_USER=bob healer agent worker restart", "healer agent worker reset")
    assert main_pid(machine, "worker.service") != pid
    intents = [e["data"] for e in entries(machine, "action.intent") if "asked_by" in e["data"]]
    assert [(data["action"], data["asked_by"]) for data in intents] == [
        ("hold", "alice (by sudo)"),
        ("release", "root"),
        ("hold", "root"),
        ("restart", "bob (by sudo)"),
        ("reset", "root"),
    ]
    assert entries(machine, "agent.crash") == []
    code, out = machine.execute("healer agent nobody hold 2>&1")
    assert (code, "other, worker" in out) == (1, True)
    code, out = machine.execute(
        "setpriv --reuid 65534 --clear-groups healer agent worker hold 2>&1"
    )
    assert code != 0
    assert "only root" in out
    assert_intact(machine)


def wait_until_it_says_up(machine: LocalMachine) -> None:
    said = "journalctl _SYSTEMD_INVOCATION_ID=$(systemctl show -P InvocationID worker)"
    machine.wait_until_succeeds(f"{said} | grep -w up")


def test_what_is_asked_for_is_no_crash(container: Boot) -> None:
    rude = "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(1))\n"
    programs = {"agents/rude.py": f"{rude}print('up', flush=True)\nwhile True: signal.pause()\n"}
    machine = container(system=system({"worker": agent("rude")}, etc=programs))
    wait_until_it_says_up(machine)
    machine.succeed("systemctl restart worker")
    stopped = wait_for_entry(machine, "agent.stopped", agent="worker")
    assert (stopped["data"]["status"], stopped["data"]["by"]) == ("1", "request")
    wait_until_it_says_up(machine)
    # So does a switch to a system that has another worker, and healer knows who it was.
    other = agent("rude", environment={"OTHER": "1"})
    machine.deploy(system({"worker": other}, etc=programs))
    stopped = wait_for_entry(machine, "agent.stopped", agent="worker", by="switch")
    assert stopped["data"]["status"] == "1"
    wait_until_it_says_up(machine)
    machine.succeed("systemctl stop worker")
    wait_for_entries(machine, 3, "agent.stopped")
    assert entries(machine, "agent.crash") == []


def test_a_stop_in_the_middle_of_a_start_is_no_crash(container: Boot) -> None:
    """The stop also ends the start stamp, which is a control process of the unit's.

    Who asked PID 1 says in the journal when all ExecStopPost= is over, and that takes a while.
    """
    # Is never up, and takes a stop ill.
    rude = "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(1))\n"
    rude += "print('waiting', flush=True)\nwhile True: signal.pause()\n"
    service = {"Type": "notify", "ExecStart": "/usr/bin/python3 /etc/agents/rude.py"}
    slow = {"ExecStopPost": "/bin/sleep 1"}
    adopted = {"adopt": True, "unit": "rude.service", "serviceConfig": slow}
    agents = {"worker": agent(), "rude": adopted}
    services = {"rude": {"description": "rude", "serviceConfig": service}}
    machine = container(
        system=system(agents, etc={"agents/rude.py": rude}, services=services),
    )
    machine.wait_for_unit("worker.service")
    machine.succeed("systemctl start --no-block rude")
    said = "journalctl _SYSTEMD_INVOCATION_ID=$(systemctl show -P InvocationID rude)"
    for verb in ("restart", "stop"):
        machine.wait_until_succeeds(f"{said} | grep waiting")
        invocation = machine.get_unit_property("rude.service", "InvocationID")
        machine.succeed(f"systemctl {verb} --no-block rude")
        stopped = wait_for_entry(machine, "agent.stopped", invocation=invocation)
        assert (stopped["data"]["status"], stopped["data"]["by"]) == ("1", "request")
    machine.succeed(
        "for n in $(seq 0 39); do"
        "  systemctl stop worker; systemctl start --no-block worker; sleep 0.0$((n / 4)); done",
        "systemctl stop worker",
    )
    assert machine.get_unit_property("worker.service", "Result") == "success"
    machine.succeed("systemctl start worker")
    kill_and_wait(machine, "worker.service")
    crash = wait_for_entry(machine, "agent.crash", agent="worker")
    assert crash["data"]["status"] == "KILL"
    assert [e["seq"] for e in entries(machine, "agent.crash")] == [crash["seq"]]
    assert entries(machine, "agent.exit") == []
    assert len(entries(machine, "agent.stopped")) > 40


def test_a_kill_of_the_whole_cgroup_leaves_no_stamp_and_is_recorded(container: Boot) -> None:
    machine = container(system=system({"worker": agent()}))
    machine.wait_for_unit("worker.service")

    def kill_all() -> None:
        # Not the start stamp as well: it alone knows the toplevel then.
        stamp = "/run/healer/stamps/worker.service.$(systemctl show -P InvocationID worker).start"
        machine.wait_until_succeeds(f"test -s {stamp}")
        pid = main_pid(machine, "worker.service")
        machine.succeed("systemctl kill --signal=KILL worker")
        wait_for_new_pid(machine, "worker.service", pid)

    for _ in range(3):
        kill_all()
    wait_for_entries(machine, 3, "agent.crash")
    # Nor is one lost while healer is down: the journal is read on from where it was.
    machine.succeed("systemctl stop healer")
    for _ in range(2):
        kill_all()
    machine.succeed("systemctl start healer")
    wait_for_entries(machine, 5, "agent.crash")
    assert entries(machine, "loss") == []
    for crash in entries(machine, "agent.crash"):
        assert (crash["data"]["class"], crash["data"]["status"]) == ("signal", "KILL")
        assert crash["data"]["toplevel"] == machine.current_system()
    assert_intact(machine)


def test_hostile_records_in_the_journal(container: Boot) -> None:
    """What agents and other users log neither stops healer nor passes for systemd's word."""
    liar = (
        "import socket, sys, time\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "record = b'MESSAGE=gone\\nCOREDUMP_TIMESTAMP=' + b'9' * 30 + b'\\nPRIORITY=x\\n'\n"
        "s.sendto(record, '/run/systemd/journal/socket')\n"
        "time.sleep(0.5)\n"  # until journald knows whose word it is
        "sys.exit(1)\n"
    )
    slow = {"policy": "exponential", "delaySec": 5}
    agents = {"liar": agent("liar", restart=slow, stateDirectory="liar"), "worker": agent()}
    machine = container()
    machine.deploy(system(agents, etc={"agents/liar.py": liar}), status={0, 4})
    crash = wait_for_entry(machine, "agent.crash", agent="liar")
    assert crash["data"]["journal"][-1] == "gone"
    healer = main_pid(machine, "healer.service")
    invocation = machine.succeed("systemctl show -P InvocationID worker").strip()
    for message_id in ("de5b426a63be47a7b6ac3eaac82e2f6f", "d9b373ed55a64feb8242e02dbe79a49c"):
        machine.write_file(
            "/tmp/forged",
            f"MESSAGE=forged\nMESSAGE_ID={message_id}\nUNIT=worker.service\n"
            f"INVOCATION_ID={invocation}\nUNIT_RESULT=signal\n",
        )
        machine.succeed("setpriv --reuid 65534 --clear-groups logger --journald=/tmp/forged")
    machine.sleep(12)
    assert wait_for_entry(machine, "healer.started")["data"]["agents"] == ["liar", "worker"]
    assert main_pid(machine, "healer.service") == healer
    kill_and_wait(machine, "worker.service")
    crash = wait_for_entry(machine, "agent.crash", agent="worker")
    assert crash["data"]["invocation"] == invocation
    assert crash["data"]["source"] == "stamp"
    assert_intact(machine)


def test_agents_restart_and_nothing_is_lost_while_healer_is_dead(container: Boot) -> None:
    machine = container(system=system({"worker": agent()}))
    machine.wait_until_succeeds("journalctl -u worker | grep 'job 1'")
    kill_and_wait(machine, "worker.service")
    wait_for_entry(machine, "agent.crash", agent="worker")
    machine.succeed("systemctl stop healer")
    said = "journalctl -q _SYSTEMD_INVOCATION_ID=$(systemctl show -P InvocationID worker)"
    for _ in range(4):
        machine.wait_until_succeeds(f"{said} | grep 'job ' >/dev/null")
        kill_and_wait(machine, "worker.service")
    machine.succeed("systemctl start healer")
    assert wait_until_all_are_recorded(machine) == 5
    # Each with its own last lines, however long ago that was.
    lines = [e["data"]["journal"] for e in entries(machine, "agent.crash")]
    assert all(some and some[-1].startswith(("job ", "resuming ")) for some in lines), lines
    assert len({some[-1] for some in lines}) == 5, lines

    # healer killed while it records: systemd brings it back, and each crash is there once.
    for _ in range(4):
        machine.succeed(f"kill -KILL {running_pid(machine, 'worker.service')}")
        kill_and_wait(machine, "healer.service")
        machine.wait_until_succeeds("systemctl is-active healer")
    assert wait_until_all_are_recorded(machine) == 9
    # The ledger tells how its own runs ended.
    ends = [e["data"]["previous_end"] for e in entries(machine, "healer.started")]
    assert ends[:2] == [None, None]
    assert {(end["class"], end["status"]) for end in ends[2:]} == {("signal", "KILL")}


def test_dbus_journald_and_systemd_itself_restart(container: Boot) -> None:
    machine = container(system=system({"worker": agent()}))
    machine.wait_for_unit("worker.service")
    healer = main_pid(machine, "healer.service")
    for disturbance in (
        "systemctl daemon-reload",
        "systemctl daemon-reexec",
        "pkill -KILL dbus-daemon",
        "systemctl restart systemd-journald",
    ):
        machine.succeed(f"kill -KILL {running_pid(machine, 'worker.service')}; {disturbance}")
        machine.wait_until_succeeds("systemctl show -P MainPID worker | grep -v '^0'")
        machine.sleep(1)
        kill_and_wait(machine, "worker.service")
        machine.sleep(1)
    assert wait_until_all_are_recorded(machine) == 8
    assert main_pid(machine, "healer.service") == healer
    wait_for_entry(machine, "agent.recovered", agent="worker")


def test_an_adopted_unit_and_a_name_with_escapes(container: Boot) -> None:
    def service(text: str) -> dict[str, object]:
        return {
            "description": text,
            "wantedBy": ["multi-user.target"],
            "serviceConfig": {"ExecStart": "/bin/sleep infinity", "Restart": "no"},
        }

    agents = {
        "plain": {"adopt": True, "unit": "queue.service", "stableSec": 2},
        "odd": {"adopt": True, "unit": "a\\x2db@c\\x3ad.service", "stableSec": 2},
    }
    services = {"queue": service("somebody else's"), "a\\x2db@c\\x3ad": service("odd")}
    machine = container(system=system(agents, services=services))
    for name, unit in (("plain", "queue.service"), ("odd", r"'a\x2db@c\x3ad.service'")):
        machine.wait_until_succeeds(f"systemctl is-active {unit}")
        kill_and_wait(machine, unit)
        crash = wait_for_entry(machine, "agent.crash", agent=name)
        assert crash["data"]["source"] == "stamp"
        wait_for_entry(machine, "agent.recovered", agent=name)


def test_recorded_stamps_are_removed(container: Boot) -> None:
    machine = container()
    machine.deploy(system({"worker": agent("broken")}), status={0, 4})
    machine.wait_until_succeeds("test $(systemctl show -P NRestarts worker) -ge 50")
    machine.succeed("systemctl stop worker")
    wait_until_every_end_is_recorded(machine, "worker")
    machine.wait_until_succeeds("test $(ls /run/healer/stamps | grep -c stop$) -lt 32")
    crashes = len(entries(machine, "agent.crash"))
    assert crashes >= 50
    machine.succeed("systemctl restart healer")
    machine.sleep(3)
    assert len(entries(machine, "agent.crash")) == crashes
    assert_intact(machine)


def test_a_failing_health_check_restarts_the_agent(container: Boot) -> None:
    # Answers until it is told to hang; a new process answers again.
    server = (
        "import http.server, signal\n"
        "signal.signal(signal.SIGUSR1, lambda *_: signal.pause())\n"
        "class Handler(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.end_headers()\n"
        "http.server.HTTPServer(('127.0.0.1', 8080), Handler).serve_forever()\n"
    )
    check = {"name": "web", "type": "http", "url": "http://127.0.0.1:8080/", "intervalSec": 0.3}
    web = agent("web", health=[{**check, "startGraceSec": 10, "timeoutSec": 1}])
    machine = container(system=system({"web": web}, etc={"agents/web.py": server}))
    machine.wait_until_succeeds('healer status --json | grep -E \'"web": *"ok"\'')
    pid = main_pid(machine, "web.service")
    machine.succeed(f"kill -USR1 {pid}")
    wait_for_new_pid(machine, "web.service", pid)
    failed = wait_for_entry(machine, "health.failed", check="web")
    crash = wait_for_entry(machine, "agent.crash", agent="web")
    assert crash["data"]["class"] == "health"
    assert crash["incident"] == failed["incident"]
    wait_for_entry(machine, "action.outcome", action="kill", ok=True)
    wait_for_entry(machine, "agent.recovered", agent="web")
    assert len(entries(machine, "agent.crash")) == 1


def test_a_dependency_that_cannot_be_checked_is_no_failure(container: Boot) -> None:
    check = {"name": "gone", "type": "command", "command": ["/no/such/program"]}
    quick = {"intervalSec": 0.2, "startGraceSec": 0, "failureThreshold": 1}
    machine = container(system=system({"worker": agent(health=[{**check, **quick}])}))
    machine.wait_for_unit("worker.service")
    machine.sleep(3)
    assert entries(machine, "health.failed") == []
