"""From SIGKILL of an agent's main process to the durable entry of its crash in the ledger."""

from bench.machine import agent, machine, system
from bench.report import Report, Target

_TARGET_MS = 25


def run(kills: int = 60, others: int = 100) -> Report:
    """Measure with one agent, and with OTHERS that only sleep beside it."""
    report = Report("evidence")
    with machine("evidence") as box:
        agents = {"worker": agent("worker")}
        for title, names in (
            ("", ["worker"]),
            (f" ({others + 1} agents)", ["worker", *(f"agent-{n:04}" for n in range(others))]),
        ):
            agents = {name: agent(name) for name in names}
            box.deploy(system(agents))
            box.wait_for_healer()
            new = [name for name in names if name != "worker" or not title]
            times: dict[str, list[int]] = box.measure(
                "evidence", name="worker", names=new, kills=kills, seed=kills, settle_sec=3
            )
            report.add_times(f"to the stop stamp{title}", times["stamp"])
            report.add_times(f"to the decided entry{title}", times["decided"])
            report.add_times(f"to the entry in the file{title}", times["visible"])
            report.add_times(f"to the durable entry{title}", times["durable"])
            report.add_times(f"one append and fdatasync alone{title}", times["append"])
    report.notes.append(
        "durable: fdatasync of the ledger file has returned to the reader that saw the entry"
    )
    steps = [
        f"stamp {report.value('to the stop stamp'):.1f} ms",
        f"entry decided {report.value('to the decided entry'):.1f} ms",
        f"in the file {report.value('to the entry in the file'):.1f} ms",
        f"durable {report.value('to the durable entry'):.1f} ms",
    ]
    report.notes.append("medians since the death: " + ", ".join(steps))
    why = ", ".join(steps)
    for title in ("", f" ({others + 1} agents)"):
        value = report.value(f"to the durable entry{title}")
        report.targets.append(Target(f"durable entry, median{title}", value, _TARGET_MS, "ms", why))
    return report
