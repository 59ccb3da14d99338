"""All agents of a host killed at once: how long until all run, and are all crashes recorded?"""

import statistics
import time
from typing import Any

from bench.machine import agent, bare, machine, system
from bench.report import Report, Target


def run(count: int = 1000, storms: int = 2) -> Report:
    report = Report("storm")
    names = [f"agent-{n:04}" for n in range(count)]
    with machine("storm-bare") as box:
        began = time.monotonic()
        box.deploy(system(services={name: bare(name) for name in names}))
        alone_deployed = time.monotonic() - began
        alone = box.measure("storm", names=names, storms=storms, watched=False)
    with machine("storm") as box:
        began = time.monotonic()
        # 4: PID 1 can be too busy with a thousand starts to answer the switch in time.
        box.deploy(system({name: agent(name) for name in names}), status={0, 4})
        deployed = time.monotonic() - began
        box.wait_for_healer()
        ours = box.measure("storm", names=names, storms=storms, watched=True)
        verified = box.execute("healer ledger verify")[0] == 0
    report.add(f"deployment of {count}, bare units", alone_deployed * 1e3, "ms")
    peer = f"deployment of {count}, bare units"
    report.add(f"deployment of {count}, healer", deployed * 1e3, "ms", peer)
    base, mine = f"all {count} run again, bare units", f"all {count} run again, healer"
    report.add(base, _median(alone, "restart_ns") / 1e6, "ms", n=storms)
    report.add(mine, _median(ours, "restart_ns") / 1e6, "ms", base, n=storms)
    report.add(f"all {count} durable", _median(ours, "durable_ns") / 1e6, "ms", n=storms)
    lost = sum(count - storm["crashes"] for storm in ours)
    doubled = sum(storm["doubled"] for storm in ours)
    report.add("crashes lost", lost, "", n=storms * count)
    report.add("crashes recorded twice", doubled, "", n=storms * count)
    deaths = sum(not storm["same_daemon"] for storm in ours)
    report.add("deaths of healer in a storm", deaths, "", n=storms)
    report.add("healer's CPU in a storm", _median(ours, "cpu_us") / 1e3, "ms", n=storms)
    report.add("healer's peak RSS", max(storm["peak_kib"] for storm in ours) / 1024, "MiB")
    report.targets.append(Target("crashes lost", lost, 0, "crashes"))
    report.targets.append(Target("crashes recorded twice", doubled, 0, "crashes"))
    report.targets.append(Target("deaths of healer", deaths, 0, "deaths"))
    report.targets.append(Target("ledgers that do not verify", float(not verified), 0, ""))
    killing = _median(ours, "kill_ns") / 1e6
    report.notes.append(f"times count from the first kill; killing took {killing:.1f} ms")
    return report


def _median(storms: list[dict[str, Any]], key: str) -> float:
    return float(statistics.median(storm[key] for storm in storms))
