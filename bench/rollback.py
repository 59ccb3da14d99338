"""From the crash that spends the budget to the old generation, step by step, and its bare cost."""

import statistics
from collections import defaultdict
from typing import Any

from bench.machine import BenchMachine, machine
from bench.report import Report, Target
from tests.machine import agents
from tests.machine.local import PROFILE

_BARE = "bare nix-env --set and switch"
_TOTAL = "crash to the old generation verified"
_ADDED = "decision and bookkeeping"
_LIMIT_MS = 150


def run(times: int = 4) -> Report:
    report = Report("rollback")
    with machine("rollback") as box:
        bare = [_bare(box) for _ in range(times)]
        box.deploy(_system("good", "worker"))
        steps: dict[str, list[float]] = defaultdict(list)
        for number in range(times):
            for name, took in _rollback(box, number).items():
                steps[name].append(took)
    for name in ("bare: profile", "bare: switch"):
        report.add(name, statistics.median(run[name] for run in bare), "ms", n=times)
    report.add(_BARE, statistics.median(sum(run.values()) for run in bare), "ms", n=times)
    for name, values in steps.items():
        peer = {_TOTAL: _BARE, "profile": "bare: profile", "activation": "bare: switch"}
        report.add(name, statistics.median(values), "ms", peer.get(name), len(values))
    report.notes.append("the steps follow each other; their sum is the total, up to medians")
    added = report.value(_ADDED)
    report.targets.append(Target("added to the bare profile and switch", added, _LIMIT_MS, "ms"))
    return report


def _system(label: str, program: str, **healer: Any) -> dict[str, Any]:
    system = agents.system({"worker": agents.agent(program)}, label=label)
    # More rollbacks than a host may have in a day.
    often = {"probationSec": 2, "maxRollbacksPerDay": 100}
    system["healer"] |= {"safeSwitch": often, **healer}
    return system


def _bare(box: BenchMachine) -> dict[str, float]:
    """Do by hand what a rollback does, with a healer that leaves deployments alone."""
    off = {"safeSwitch": {"enable": False}}
    good = box.deploy(_system("good", "worker", **off))
    box.deploy(_system("bad", "broken", **off), status={0, 4})
    box.sleep(1)
    profile = _timed(box, f"nix-env --profile {PROFILE} --set {good}")
    return {
        "bare: profile": profile,
        "bare: switch": _timed(box, f"{good}/bin/switch-to-configuration switch >&2"),
    }


def _timed(box: BenchMachine, command: str) -> float:
    """Run a command in the machine and return its milliseconds, by the machine's clock."""
    code = (
        "import subprocess, sys, time; began = time.monotonic();"
        " subprocess.run(sys.argv[1], shell=True, check=True, stdout=sys.stderr);"
        " print((time.monotonic() - began) * 1000)"
    )
    return float(box.succeed(f"python3 -c '{code}' '{command}'"))


def _rollback(box: BenchMachine, number: int) -> dict[str, float]:
    """Deploy a generation whose agent crashes, and take apart what healer did about it."""
    good = box.current_system()
    agents.wait_for_entry(box, "deployment.known-good", toplevel=good, timeout=60)
    bad = box.deploy(_system(f"bad {number}", "broken"), status={0, 4})
    agents.wait_for_entry(box, "deployment.condemned", toplevel=bad, timeout=120)
    done = agents.wait_for_entry(box, "action.outcome", action="rollback", timeout=60)
    entries = [e for e in agents.entries(box) if e["seq"] <= done["seq"]]
    intent = next(e for e in entries if e["seq"] == done["data"]["intent"])
    spent = [e for e in entries if e["type"] == "agent.crash-loop" and e["seq"] < intent["seq"]][-1]
    crash = [e for e in entries if e["type"] == "agent.crash" and e["seq"] < spent["seq"]][-1]
    if not done["data"]["ok"]:
        raise RuntimeError(f"the rollback failed: {done['data']['detail']}")
    death, decided, told = crash["data"]["stop_uptime_ms"], _ms(intent), _ms(done)
    took = {name: float(value) for name, value in done["data"]["steps"].items()}
    work = took["profile"] + took["switch"]
    return {
        _TOTAL: told - death,
        "decision": decided - death,
        "start": took["start"],
        "profile": took["profile"],
        "activation": took["switch"],
        "verification and the rest": told - decided - took["start"] - work,
        _ADDED: told - death - work,
    }


def _ms(entry: dict[str, Any]) -> float:
    return float(entry["boottime_us"]) / 1000
