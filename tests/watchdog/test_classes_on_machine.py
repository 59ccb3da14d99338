"""Each class of crash, with real processes that end in that way."""

from typing import Any

import pytest

from tests.conftest import Boot
from tests.machine.agents import (
    agent,
    assert_intact,
    entries,
    kill_and_wait,
    main_pid,
    system,
    wait_for_entry,
    wait_until_all_are_recorded,
)

# Says to systemd by sd_notify(3) what it is given, and waits for the word to do its worst.
TELLER = """\
import ctypes, os, pathlib, signal, socket, sys, time

notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
def tell(text):
    notify.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])
def wait():
    while not pathlib.Path("/run/go").exists():
        tell("WATCHDOG=1")
        time.sleep(0.1)
"""
SEGFAULT = f"{TELLER}tell('STATUS=reading 0')\nwait()\nctypes.string_at(0)\n"
HANG = f"{TELLER}tell('READY=1\\nSTATUS=thinking')\nwait()\nsignal.pause()\n"
NEVER_READY = f"{TELLER}signal.pause()\n"
QUITTER = "\n"
STORMER = """\
import os, signal, time

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    for _ in range(200):
        if os.fork() == 0:
            os._exit(0)
    time.sleep(0.01)
"""
NOTIFY = {"Type": "notify", "TimeoutStartSec": 1}


@pytest.mark.parametrize(
    ("program", "options", "expected"),
    [
        (SEGFAULT, {}, {"status": "SEGV", "status_text": "reading 0"}),
        (
            HANG,
            {"watchdogSec": 1, "serviceConfig": {"Type": "notify"}},
            {"class": "watchdog", "status": "ABRT", "status_text": "thinking"},
        ),
        (NEVER_READY, {"serviceConfig": NOTIFY}, {"class": "timeout", "code": "killed"}),
        (QUITTER, {"serviceConfig": NOTIFY}, {"class": "protocol", "status": "0"}),
        (
            "",
            {"command": ["/no/such/program"]},
            {"class": "exit", "status": "127", "code": "exited"},
        ),
    ],
    ids=["segfault", "hang", "start timeout", "protocol", "no program"],
)
def test_a_class_of_crash(
    container: Boot, program: str, options: dict[str, Any], expected: dict[str, str]
) -> None:
    # What matters here is the first run.
    slow = {"policy": "exponential", "delaySec": 300, "maxDelaySec": 600}
    machine = container()
    declared = {**agent("odd", restart=slow), **options}
    machine.deploy(system({"odd": declared}, etc={"agents/odd.py": program}), status={0, 4})
    # Until healer has seen what the agent said of itself; `healer status` itself may be unhappy.
    machine.wait_until_succeeds(
        "(healer status --json || true) | grep -E '\"(running|auto-restart)\"'"
    )
    machine.succeed("touch /run/go")
    crash = wait_for_entry(machine, "agent.crash", agent="odd")["data"]
    assert {key: crash[key] for key in expected} == expected, crash
    if program == SEGFAULT:  # whether there is a core is the kernel's setting, shared with the host
        assert crash["class"] == {"killed": "signal", "dumped": "core-dump"}[crash["code"]]
    assert crash["restart"] == "will-restart"
    assert crash["source"] == "stamp"
    # Where it died before it was up, there is no start stamp, and no guessing.
    assert (crash["unit_file"] or "none").startswith("/nix/store/" if crash["toplevel"] else "none")
    assert len(entries(machine, "agent.crash")) == 1
    assert_intact(machine)


def test_a_start_limit_that_somebody_set(container: Boot) -> None:
    machine = container(system=system({"worker": agent()}))
    machine.wait_for_unit("worker.service")
    machine.write_file(
        "/run/systemd/system/worker.service.d/limit.conf",
        "[Unit]\nStartLimitIntervalSec=1h\nStartLimitBurst=2\n",
    )
    machine.succeed("systemctl daemon-reload")
    kill_and_wait(machine, "worker.service")
    kill_and_wait(machine, "worker.service")
    machine.succeed(f"kill -KILL {main_pid(machine, 'worker.service')}")
    given_up = wait_for_entry(machine, "agent.not-restarted", agent="worker")
    assert "start limit" in given_up["data"]["reason"]
    assert [e["data"]["class"] for e in entries(machine, "agent.crash")] == ["signal"] * 3
    assert_intact(machine)


def test_a_fork_storm(container: Boot) -> None:
    storm = agent("stormer", stateDirectory="stormer", serviceConfig={"TasksMax": "infinity"})
    machine = container(
        system=system({"stormer": storm, "worker": agent()}, etc={"agents/stormer.py": STORMER})
    )
    machine.wait_for_unit("worker.service")
    machine.wait_for_unit("healer.service")
    healer = main_pid(machine, "healer.service")
    for _ in range(2):
        kill_and_wait(machine, "worker.service")
        kill_and_wait(machine, "stormer.service")
    assert wait_until_all_are_recorded(machine, "worker") == 2
    assert wait_until_all_are_recorded(machine, "stormer") == 2
    wait_for_entry(machine, "agent.recovered", agent="stormer")
    assert main_pid(machine, "healer.service") == healer


def test_an_agent_that_runs_as_a_person(container: Boot) -> None:
    """journald keeps what persons' processes write in journals of their own."""
    machine = container()
    machine.succeed("useradd --uid 1500 alice")
    machine.deploy(system({"worker": agent(user="alice")}))
    machine.wait_until_succeeds("journalctl --unit worker | grep 'job 5'")
    kill_and_wait(machine, "worker.service")
    crash = wait_for_entry(machine, "agent.crash", agent="worker")
    assert crash["data"]["journal"][-1].startswith("job ")


def test_the_word_of_systemd_coredump_and_of_others(container: Boot) -> None:
    """In a container the kernel's core_pattern is the host's: what the kernel does is done here."""
    machine = container(system=system({"worker": agent(), "other": agent(stateDirectory="other")}))
    machine.wait_for_unit("worker.service")
    wait_for_entry(machine, "restarts.counted")
    machine.wait_until_succeeds("cp -a /var/lib/healer/journal.cursor /tmp/cursor")
    pid = main_pid(machine, "worker.service")
    # The kernel has the core dumped before the process is gone. healer must not look in between.
    machine.succeed(
        "systemctl stop healer",
        "systemctl start systemd-coredump.socket",
        f"head -c 4096 /dev/zero | /usr/lib/systemd/systemd-coredump {pid} 0 0 11 $(date +%s)"
        " 18446744073709551615 machine",
    )
    machine.wait_until_succeeds("journalctl | grep 'dumped core'")
    machine.succeed(f"kill -SEGV {pid}")
    # Somebody else's word that an agent dumped core counts for nothing.
    machine.write_file(
        "/tmp/forged",
        "MESSAGE=Process 1 dumped core.\nMESSAGE_ID=fc2e22bc6ee647b6b90729ab34a250b1\n"
        "COREDUMP_UNIT=other.service\nCOREDUMP_EXE=/forged\nCOREDUMP_SIGNAL_NAME=SIGSEGV\n",
    )
    machine.succeed(
        "setpriv --reuid 65534 --clear-groups logger --journald=/tmp/forged",
        "systemctl start healer",
    )
    crash = wait_for_entry(machine, "agent.crash", agent="worker")
    dump = wait_for_entry(machine, "agent.coredump", agent="worker")
    assert dump["incident"] == crash["incident"]
    assert dump["data"]["invocation"] == crash["data"]["invocation"]
    assert dump["data"]["executable"].startswith("/usr/bin/python3")
    assert (dump["data"]["pid"], dump["data"]["signal"]) == (pid, "SEGV")
    # Once, also when healer has forgotten how far it had read.
    machine.succeed(
        "systemctl stop healer",
        "cp -a /tmp/cursor /var/lib/healer/journal.cursor",
        "systemctl start healer",
    )
    machine.wait_until_fails("cmp -s /tmp/cursor /var/lib/healer/journal.cursor")
    assert len(entries(machine, "agent.coredump")) == 1
    assert_intact(machine)
