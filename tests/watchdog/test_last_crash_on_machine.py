"""$HEALER_LAST_CRASH on a real systemd: the restarted agent knows how its last run ended."""

import json
from typing import Any

from tests.conftest import Boot
from tests.machine.agents import (
    agent,
    assert_intact,
    entries,
    kill_and_wait,
    running_pid,
    system,
    wait_for_entry,
    wait_for_new_pid,
)
from tests.machine.local import LocalMachine

# Says what it was told and what it was started with, leaves a breadcrumb, and works until it is
# told how to end by the file `end` in its state directory.
TOLD = """\
import contextlib, json, os, pathlib, signal, socket, sys, time

state = pathlib.Path(os.environ["STATE_DIRECTORY"].split(":")[0])
path = os.environ.get("HEALER_LAST_CRASH")
told = None
if path is not None and os.path.exists(path):
    file = pathlib.Path(path)
    told = {**json.loads(file.read_bytes()), "mode": oct(file.stat().st_mode & 0o777)}
umask = os.umask(0)
os.umask(umask)
given = {"environment": {**os.environ}, "umask": oct(umask)}
with (state / "told.new").open("w") as new:
    json.dump({"path": path, "told": told, "pid": os.getpid(), **given}, new)
(state / "told.new").rename(state / "told")
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.sendto(b"STATUS=chewing on \\xc3\\xa4 \\"page\\" 7", os.environ["NOTIFY_SOCKET"])
with contextlib.suppress(OSError):
    (state / "doing").write_bytes(b'page 7\\n\\tof "book" \\\\ \\xff' + b"x" * 9000)
while not (state / "end").exists():
    time.sleep(0.02)
end = (state / "end").read_text()
(state / "end").unlink()
if end.startswith("SIG"):
    os.kill(os.getpid(), signal.Signals[end])
sys.exit(int(end))
"""

CRUMB = 'page 7\n?of "book" \\ ?' + "x" * 9000


def told_system(agents: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A system with agents that run the program above."""
    return system(agents, etc={"agents/told.py": TOLD}, **more)


def told(machine: LocalMachine, name: str = "worker") -> Any:
    """Wait until the run that is up has said what it was told."""
    pid = running_pid(machine, f"{name}.service")
    at = f"/var/lib/{name}/told"
    return json.loads(machine.wait_until_succeeds(f"grep '\"pid\": {pid},' {at}"))


def end(machine: LocalMachine, how: str, name: str = "worker") -> Any:
    """Have the agent end so, and return what its next run was told."""
    pid = running_pid(machine, f"{name}.service")
    at = f"/var/lib/{name}/end"
    machine.succeed(f"printf {how} >{at}.new && mv {at}.new {at}")
    wait_for_new_pid(machine, f"{name}.service", pid)
    return told(machine, name)


def test_a_restarted_agent_knows_how_its_last_run_ended(container: Boot) -> None:
    # The names are those that the script in front of the agent uses itself.
    own = {
        name: f"the agent's {name}" for name in ("class", "code", "json", "mask", "start", "time")
    }
    worker = agent(
        "told",
        breadcrumb="doing",
        stableSec=60,
        environment=own,
        serviceConfig={"UMask": "0037"},
    )
    machine = container(system=told_system({"worker": worker}))
    first = told(machine)
    assert first["path"] is None
    assert not {"PWD", "OLDPWD", "SHLVL", "_"} & {*first["environment"]}
    machine.wait_until_succeeds("test -s /run/healer/status-texts/worker.service")
    invocation = machine.succeed("systemctl show -P InvocationID worker").strip()

    second = end(machine, "3")
    assert second["path"] == "/tmp/last-crash.json"
    crash = second["told"]
    assert (crash["class"], crash["code"], crash["status"]) == ("exit", "exited", "3")
    assert crash["invocation"] == invocation
    assert (crash["in_a_row"], crash["mode"]) == (1, "0o600")
    assert crash["status_text"] == 'chewing on ?? "page" 7'
    assert crash["breadcrumb"] == CRUMB[:4096]
    assert crash["runtime_ms"] > 0
    now = float(machine.succeed("date +%s.%N"))
    assert now - 60 < crash["time"] <= now

    third = end(machine, "SIGSEGV")["told"]
    assert (third["status"], third["in_a_row"]) == ("SEGV", 2)
    for run in (first, second):
        assert {name: run["environment"].get(name) for name in own} == own
        assert run["umask"] == "0o37"
    assert second["environment"].keys() - first["environment"].keys() == {"HEALER_LAST_CRASH"}

    # A clean end, and a stop that was asked for, leave nothing to be told.
    assert end(machine, "0")["path"] is None
    assert end(machine, "SIGKILL")["told"]["in_a_row"] == 1
    machine.succeed("systemctl restart worker")
    assert told(machine)["path"] is None

    # healer's record has the same, and the journal of the agent is the agent's own.
    record = wait_for_entry(machine, "agent.crash", status="3")["data"]
    assert record["breadcrumb"] == CRUMB[:4096]
    assert not any("breadcrumb" in line for line in record["journal"])
    assert record["status_text"] == 'chewing on ä "page" 7'
    assert (record["in_a_row"], record["source"]) == (1, "stamp")
    assert_intact(machine)


def test_a_breadcrumb_that_journald_takes_late_is_in_the_ledger(container: Boot) -> None:
    worker = agent("told", breadcrumb="doing", stableSec=60)
    machine = container(system=told_system({"worker": worker}))
    told(machine)
    machine.wait_until_succeeds("healer status")
    # The shell that writes it is gone when journald asks whose line this is, and the next run up.
    journald = machine.succeed("systemctl show -P MainPID systemd-journald").strip()
    machine.succeed(f"kill -STOP {journald}")
    end(machine, "3")
    machine.succeed(f"kill -CONT {journald}")
    record = wait_for_entry(machine, "agent.crash", status="3")["data"]
    assert record["breadcrumb"] == CRUMB[:4096]
    assert not any("breadcrumb" in line for line in record["journal"])


def test_a_stable_run_ends_the_row_and_healer_is_not_needed(container: Boot) -> None:
    worker = agent("told", stableSec=8)
    machine = container(system=told_system({"worker": worker}))
    told(machine)
    machine.wait_until_succeeds("healer status")
    machine.succeed("systemctl stop healer")
    assert end(machine, "3")["told"]["in_a_row"] == 1
    crash = end(machine, "3")["told"]
    assert (crash["in_a_row"], crash["breadcrumb"]) == (2, None)
    # What healer saw of an earlier run is not told of this one.
    assert crash["status_text"] is None
    pid = running_pid(machine, "worker.service")
    machine.wait_until_succeeds(
        "test $(systemctl show -P ExecMainStartTimestampMonotonic worker) -lt "
        "$(( $(cut -d. -f1 /proc/uptime) * 1000000 - 8500000 ))",
    )
    assert running_pid(machine, "worker.service") == pid
    assert end(machine, "3")["told"]["in_a_row"] == 1


def test_every_kind_of_agent_is_told(container: Boot) -> None:
    def program(name: str) -> dict[str, Any]:
        return agent("told", stateDirectory=name)

    agents = {
        "asroot": {**program("asroot"), "user": "root"},
        "text": {**program("text"), "command": ":/usr/bin/python3 /etc/agents/told.py"},
        "own": {**program("own"), "serviceConfig": {"RuntimeDirectory": "mine other"}},
        "silent": {**program("silent"), "lastCrash": False},
        "queue": {"adopt": True, "lastCrash": True, "breadcrumb": "doing", "stableSec": 2},
    }
    queue = {
        "wantedBy": ["multi-user.target"],
        "serviceConfig": {
            "ExecStart": "/usr/bin/python3 /etc/agents/told.py",
            "StateDirectory": "queue",
            "RuntimeDirectory": "queue",
            "NotifyAccess": "all",
            "User": "nobody",
        },
    }
    machine = container(system=told_system(agents, services={"queue": queue}))
    for name in agents:
        assert told(machine, name)["told"] is None
    for name, directory in (
        ("asroot", "/run/healer-agents/asroot"),
        ("text", "/tmp"),
        ("own", "/run/mine"),
        ("queue", "/run/healer-agents/queue"),
    ):
        found = end(machine, "4", name)
        assert found["path"] == f"{directory}/last-crash.json"
        assert (found["told"]["status"], found["told"]["mode"]) == ("4", "0o600")
    assert end(machine, "4", "silent")["path"] is None
    assert end(machine, "4", "queue")["told"]["breadcrumb"] == CRUMB[:4096]
    # The journal names the program, not the shell in front of it.
    machine.succeed("journalctl -t python3 -u asroot --grep . -q || test $? = 1")
    assert machine.get_unit_property("asroot.service", "SyslogIdentifier") == "python3"


def test_what_an_agent_leaves_behind_hurts_nobody(container: Boot) -> None:
    """Its breadcrumb is a link to a secret, a pipe, a directory: root never opens any of them."""
    machine = container(system=told_system({"worker": agent("told", breadcrumb="doing")}))
    told(machine)
    machine.succeed("install -m 600 /dev/null /root/secret", "echo top secret >/root/secret")
    state = "/var/lib/private/worker"
    for trap in (
        f"ln -sfn /root/secret {state}/doing",
        f"rm {state}/doing && mkfifo {state}/doing",
        f"rm {state}/doing && mkdir {state}/doing",
    ):
        old = running_pid(machine, "worker.service")
        # As soon as the agent has written its own: then it is taken by surprise.
        told(machine)
        machine.wait_until_succeeds(f"test -s {state}/doing || test -p {state}/doing")
        machine.succeed(f"kill -STOP {old}", trap, f"kill -KILL {old}")
        wait_for_new_pid(machine, "worker.service", old)
        machine.succeed(f"rm -rf {state}/doing")
        kill_and_wait(machine, "worker.service")
    for entry in entries(machine, "agent.crash"):
        assert "secret" not in json.dumps(entry)
    machine.fail("journalctl -u worker | grep 'top secret'")
