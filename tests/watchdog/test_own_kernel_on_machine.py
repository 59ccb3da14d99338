"""What takes a kernel of the machine's own: memory that runs out, also healer's, and core dumps.

One virtual machine for all of it: an emulated one boots for a minute.
"""

from typing import Any

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
from tests.watchdog.test_healer_itself_on_machine import it_runs_out_of_memory
from tests.watchdog.test_health_on_machine import PROGRAM, a_memory_ceiling_heals, greedy

# Wait for the word, which the next run does not find any more.
WAITER = """\
import os, pathlib, time

go = pathlib.Path(os.environ["STATE_DIRECTORY"]) / "go"
while not go.exists():
    time.sleep(0.1)
go.unlink()
"""
HOG = f"{WAITER}blocks = []\nwhile True:\n    blocks.append(bytearray(b'x' * 4_000_000))\n"
ABORT = f"{WAITER}print('giving up', flush=True)\nos.abort()\n"
LIMITS = {"MemoryMax": "60M", "MemorySwapMax": "0"}
DELAY_SEC = 5


def test_memory_that_runs_out_and_a_core_dump(vm: Boot) -> None:
    def later(crash_class: str) -> dict[str, Any]:
        rule = {"classes": [crash_class], "action": "restart", "delaySec": DELAY_SEC}
        return {"policy": "conditional", "rules": [rule]}

    machine = vm()
    agents = {
        "dumper": agent("dumper", stateDirectory="dumper", restart=later("core-dump")),
        "hog": agent("hog", stateDirectory="hog", serviceConfig=LIMITS),
        "later": agent(
            "hog",
            stateDirectory="later",
            serviceConfig=LIMITS,
            restart=later("oom"),
        ),
        "greedy": greedy(),
        "worker": agent(),
    }
    programs = {"agents/dumper.py": ABORT, "agents/hog.py": HOG, "agents/program.py": PROGRAM}
    machine.deploy(system(agents, etc=programs))
    # healer tells nothing of what was in the journal before it first read it.
    wait_for_entry(machine, "restarts.counted")
    it_runs_out_of_memory(machine)
    a_core_is_dumped(machine)
    a_memory_ceiling_heals(machine)
    memory_runs_out(machine)
    a_rule_for_it_holds_without_healer(machine)
    the_clock_is_set_back(machine)
    assert_intact(machine)


def a_core_is_dumped(machine: LocalMachine) -> None:
    machine.succeed("touch /var/lib/dumper/go")
    crash = wait_for_entry(machine, "agent.crash", agent="dumper")
    assert (crash["data"]["class"], crash["data"]["status"]) == ("core-dump", "ABRT")
    assert (crash["data"]["answer"], crash["data"]["journal"]) == ("delay", ["giving up"])
    dump = wait_for_entry(machine, "agent.coredump", agent="dumper")
    assert dump["incident"] == crash["incident"]
    assert dump["data"]["invocation"] == crash["data"]["invocation"]
    assert dump["data"]["executable"].startswith("/usr/bin/python3")
    assert dump["data"]["signal"] == "ABRT"
    assert any(" abort (libc.so.6" in frame for frame in dump["data"]["stack"]), dump
    restarted = wait_for_entry(machine, "agent.restarted", agent="dumper")
    assert restarted["data"]["delay_ms"] >= DELAY_SEC * 1000


def memory_runs_out(machine: LocalMachine) -> None:
    pid = running_pid(machine, "hog.service")
    machine.succeed("touch /var/lib/hog/go")
    crash = wait_for_entry(machine, "agent.crash", agent="hog")["data"]
    assert (crash["class"], crash["status"]) == ("oom", "KILL")
    assert crash["memory"]["oom_kill"] >= 1
    assert crash["memory"]["peak"] >= 50_000_000
    assert crash["memory"]["current"] >= 0
    assert crash["memory"]["pressure"].startswith("some avg10=")
    # The next run begins with counters of its own, and a kill is told apart by them.
    wait_for_new_pid(machine, "hog.service", pid)
    assert_killed_by_hand(machine, "hog")


def a_rule_for_it_holds_without_healer(machine: LocalMachine) -> None:
    pid = running_pid(machine, "later.service")
    machine.succeed("systemctl stop healer", "touch /var/lib/later/go")
    wait_for_new_pid(machine, "later.service", pid)
    machine.succeed("systemctl start healer")
    crash = wait_for_entry(machine, "agent.crash", agent="later")["data"]
    assert (crash["class"], crash["answer"]) == ("oom", "delay")
    assert crash["restart_delay_ms"] == DELAY_SEC * 1000
    restarted = wait_for_entry(machine, "agent.restarted", agent="later")
    assert restarted["data"]["delay_ms"] >= DELAY_SEC * 1000
    crash = assert_killed_by_hand(machine, "later")
    assert crash["answer"] == "restart"


def assert_killed_by_hand(machine: LocalMachine, name: str) -> dict[str, Any]:
    """Kill an agent whose memory ran out before; return that crash's data."""
    kill_and_wait(machine, f"{name}.service")
    by_signal: dict[str, Any] = {"class": "signal"}
    crash: dict[str, Any] = wait_for_entry(machine, "agent.crash", agent=name, **by_signal)["data"]
    assert (crash["status"], crash["memory"]["oom_kill"]) == ("KILL", 0)
    return crash


def the_clock_is_set_back(machine: LocalMachine) -> None:
    crashes = len(entries(machine, "agent.crash"))
    machine.succeed("date --set='2 days ago'")
    step = wait_for_entry(machine, "host.clock-step")
    assert step["data"]["step_us"] < -86_000_000_000
    kill_and_wait(machine, "hog.service")
    wait_for_entries(machine, crashes + 1, "agent.crash")
