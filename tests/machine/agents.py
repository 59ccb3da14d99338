"""Agents that do real work, for tests and the demonstration, and questions to healer about them."""

import json
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.machine.local import LocalMachine
from tests.machine.outcome import DEFAULT_TIMEOUT, retry

_LEDGER = "/var/lib/healer/ledger/*.jsonl"

# Counts in its state directory, says where it is by STATUS= (sd_notify(3)) and in the journal, and
# goes on after a crash where it was. What it reads from `orders` it does: exit with that code.
WORKER = """\
import os, pathlib, socket, sys, time

state = pathlib.Path(os.environ["STATE_DIRECTORY"])
counter, orders = state / "counter", state / "orders"
done = int(counter.read_text()) if counter.exists() else 0
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
print(f"resuming at job {done}", flush=True)
while True:
    done += 1
    counter.with_suffix(".new").write_text(str(done))
    counter.with_suffix(".new").rename(counter)
    notify.sendto(f"STATUS=working on job {done}".encode(), os.environ["NOTIFY_SOCKET"])
    print(f"job {done}", flush=True)
    if orders.exists():
        code = int(orders.read_text())
        orders.unlink()
        print(f"leaving with {code}", flush=True)
        sys.exit(code)
    time.sleep(0.1)
"""

# What a bad deployment ships instead.
BROKEN = """\
import sys

print("schema version 7 is too new", flush=True)
sys.exit(3)
"""

PROGRAMS = {"agents/worker.py": WORKER, "agents/broken.py": BROKEN}


def agent(program: str = "worker", **options: Any) -> dict[str, Any]:
    """Declare an agent that runs one of the programs above, with a state directory of its own."""
    return {
        "command": ["/usr/bin/python3", f"/etc/agents/{program}.py"],
        "stateDirectory": options.pop("stateDirectory", "worker"),
        "stableSec": 2,
        # Most tests kill it more often than healer would bear.
        "escalation": {"enable": False},
        **options,
    }


def system(agents: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Declare a system with these agents and a short probation."""
    healer = {
        "agents": agents,
        "safeSwitch": {"probationSec": 2},
        "drift": {"intervalSec": 30},
        **more.pop("healer", {}),
    }
    return {"etc": {**PROGRAMS, **more.pop("etc", {})}, "healer": healer, **more}


def entries(machine: LocalMachine, kind: str | None = None) -> list[dict[str, Any]]:
    """Return the ledger's entries, all or of one type.

    As they are on the disk: to start Python in an emulated machine takes ten seconds.
    """
    return _entries_in(machine.read(_LEDGER), kind)


def _entries_in(text: bytes, kind: str | None) -> list[dict[str, Any]]:
    # An incomplete last line is a write under way.
    complete = map(json.loads, text[: text.rfind(b"\n") + 1].splitlines())
    return [entry for entry in complete if kind in (None, entry["type"])]


def wait_for_entry(
    machine: LocalMachine, kind: str, timeout: float = DEFAULT_TIMEOUT, **data: Any
) -> dict[str, Any]:
    """Wait for an entry of this type with these data, and return the last one."""
    fits = partial(_has, data)
    return _wait_for_found(machine, lambda number: number > 0, kind, fits, timeout)[-1]


def wait_for_entries(
    machine: LocalMachine, number: int, kind: str, timeout: float = DEFAULT_TIMEOUT, **data: Any
) -> list[dict[str, Any]]:
    """Wait until just so many entries are of this type with these data, and return them."""
    fits = partial(_has, data)
    return _wait_for_found(machine, lambda found: found == number, kind, fits, timeout)


def wait_until_told(
    machine: LocalMachine, kind: str, pattern: str, number: int | None = None
) -> None:
    """Wait until just so many entries of this type, or any, match a pattern in their JSON."""

    def fits(entry: dict[str, Any]) -> bool:
        return re.search(pattern, json.dumps(entry)) is not None

    def enough(found: int) -> bool:
        return found > 0 if number is None else found == number

    _wait_for_found(machine, enough, kind, fits, DEFAULT_TIMEOUT)


def _wait_for_found(
    machine: LocalMachine,
    enough: Callable[[int], bool],
    kind: str,
    fits: Callable[[dict[str, Any]], bool],
    timeout: float,
) -> list[dict[str, Any]]:
    seen = -1
    found: list[dict[str, Any]] = []

    def check(_last: bool) -> bool:
        nonlocal seen, found
        text = machine.read(_LEDGER)
        if len(text) != seen:
            seen = len(text)
            found = list(filter(fits, _entries_in(text, kind)))
        return enough(len(found))

    with machine.nested(f"waiting for {kind} in the ledger"):
        retry(check, timeout, interval=machine.interval)
    return found


def _has(data: dict[str, Any], entry: dict[str, Any]) -> bool:
    return all(entry["data"].get(key) == value for key, value in data.items())


def wait_for_new_pid(machine: LocalMachine, unit: str, old: int) -> int:
    """Wait until a unit runs under another main PID than before."""
    return int(
        machine.wait_until_succeeds(
            f"p=$(systemctl show -P MainPID {unit}); test $p != 0 && test $p != {old} && echo $p",
        )
    )


def main_pid(machine: LocalMachine, unit: str) -> int:
    """Return a unit's main PID."""
    return int(machine.succeed(f"systemctl show -P MainPID {unit}"))


def running_pid(machine: LocalMachine, unit: str) -> int:
    """Wait until a unit has a main process, and return its PID: 0 is a process group to kill(1)."""
    return wait_for_new_pid(machine, unit, 0)


def kill_and_wait(machine: LocalMachine, unit: str) -> int:
    """Kill a unit's main process and wait for the next one; return its PID."""
    old = running_pid(machine, unit)
    machine.succeed(f"kill -KILL {old}")
    return wait_for_new_pid(machine, unit, old)


def assert_intact(machine: LocalMachine) -> None:
    """The ledger verifies, and no crash is in it twice."""
    machine.succeed("healer ledger verify")
    crashes = [
        (e["data"]["boot"], e["data"]["unit"], e["data"]["invocation"])
        for e in entries(machine, "agent.crash")
    ]
    assert len(crashes) == len(set(crashes)), crashes


def losses(machine: LocalMachine, what: str) -> list[dict[str, Any]]:
    """Return the data of the entries that say what healer could not know."""
    return [e["data"] for e in entries(machine, "loss") if e["data"]["what"] == what]


def wait_until_all_are_recorded(machine: LocalMachine, name: str = "worker") -> int:
    """Wait until the ledger has as many crashes as systemd counted restarts; return how many."""
    deadline = time.monotonic() + 300
    while (counts := _crash_counts(machine, name))[0] != counts[1]:
        assert time.monotonic() < deadline, counts
        time.sleep(0.5)
    assert_intact(machine)
    return counts[0]


def wait_until_every_end_is_recorded(machine: LocalMachine, name: str) -> int:
    """Wait until each run of a stopped agent has its entry; return how often it was restarted."""
    restarts = int(machine.succeed(f"systemctl show -P NRestarts {name}"))
    # Each run but the first was a restart. The last is counted also where the stop came before it
    # was carried out.
    machine.succeed("journalctl --sync")
    told = f"journalctl _PID=1 -u {name} -n 2 -o cat | head -1 | grep 'Scheduled restart'"
    forestalled = machine.execute(told)[0] == 0
    ends = {"agent.crash", "agent.stopped", "agent.exit"}

    def all_are_told(_last: bool) -> bool:
        told = [e for e in entries(machine) if e["type"] in ends and e["data"]["agent"] == name]
        return len(told) == restarts + 1 - forestalled

    retry(all_are_told, interval=machine.interval)
    return restarts


def _crash_counts(machine: LocalMachine, name: str) -> tuple[int, int]:
    restarts = int(machine.succeed(f"systemctl show -P NRestarts {name}"))
    crashes = [e for e in entries(machine, "agent.crash") if e["data"]["agent"] == name]
    return restarts, len(crashes)
