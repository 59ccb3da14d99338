"""A simulated fleet: how often SafeSwitch rolls back what was good, and misses what was bad.

Invented hosts live a year each: agents crash by chance, deployments come, some of them bad, and the
world around them fails now and then. All decisions are the real ones (healer/decisions.py); the
simulation only plays the host. docs/fleet.md writes down what it assumes, and what it found.
"""

import argparse
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields

from bench.report import Report, Target
from bench.simulated import Host
from bench.world import DAY, YEAR, World
from healer.records import Record

# So many hosts live from one saving of the figures to the next.
_SAVED = 100
# So long before and after what is odd is told of.
_NEAR_MS = 30 * 60 * 1000


def live(job: tuple[int, World, int, int]) -> Counter[str]:
    """Let one host live: its number, its world, the seed and milliseconds."""
    number, world, seed, until_ms = job
    return Host(number, world, seed).live(until_ms)


def lives(
    hosts: range, world: World, seed: int, until_ms: int
) -> Iterator[tuple[int, Counter[str]]]:
    """Let these hosts live so long; after each, give how many have, and what was counted."""
    jobs = [(number, world, seed, until_ms) for number in hosts]
    total: Counter[str] = Counter()
    with multiprocessing.Pool(len(os.sched_getaffinity(0))) as pool:
        for lived, counts in enumerate(pool.imap(live, jobs, chunksize=4), start=1):
            total += counts
            if counts["false rollbacks"] or counts["bad: missed"]:
                total[f"host {hosts[lived - 1]}: false or missed"] += 1
            yield lived, total


def simulate(hosts: int, world: World, seed: int = 1, until_ms: int = YEAR) -> Counter[str]:
    """Let so many hosts live so long, and add up what was counted."""
    total: Counter[str] = Counter()
    for _, counts in lives(range(hosts), world, seed, until_ms):
        total = counts
    return total


def run(hosts: range = range(10_000), seed: int = 1, world: World | None = None) -> Report:
    """Simulate a year of these hosts; what there is so far is written after every 100."""
    report = Report("fleet")
    for lived, counts in lives(hosts, world or World(), seed, YEAR):
        if lived % _SAVED == 0 or lived == len(hosts):
            report = _report(lived, counts)
            report.write()
    return report


def _report(hosts: int, counts: Counter[str]) -> Report:
    report = Report("fleet")
    report.add("host-years", hosts, "years")
    for name in ("deployments", "bad", "slow", "crashes", "troubles", "rollbacks", "refuted"):
        report.add(name, counts[name], "")
    for name in sorted(counts):
        if ":" in name or name == "unlucky":
            report.add(name, counts[name], "")
    report.notes.append("docs/fleet.md says what is assumed, and what each line means")
    report.notes.append("python -m bench.fleet HOST tells how a host came to what is odd in it")
    false, missed = counts["false rollbacks"], counts["bad: missed"]
    report.targets += [
        Target("rollbacks of what was good", false, 0, "rollbacks"),
        Target("bad deployments missed", missed, 0, "deployments"),
    ]
    return report


def main() -> None:
    """Let some hosts live, or one live its year again and tell of what is odd in it."""
    parser = argparse.ArgumentParser(prog="python -m bench.fleet", description=main.__doc__)
    parser.add_argument("host", type=int, help="its number, as the report of the suite gives it")
    parser.add_argument("end", type=int, nargs="?", help="report of the hosts up to this one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--all", action="store_true", help="tell the whole year of one host")
    for each in fields(World):
        name = f"--{each.name.replace('_', '-')}"
        parser.add_argument(name, type=float, default=each.default, help="of the world, as assumed")
    chosen = parser.parse_args()
    world = World(*(getattr(chosen, each.name) for each in fields(World)))
    if chosen.end is not None:
        print(run(range(chosen.host, chosen.end), chosen.seed, world).text())
        return
    host = Host(chosen.host, world, chosen.seed)
    host.live(YEAR)
    for agent in host.agents.values():
        print(f"{agent.name}: a crash by chance in {agent.mean_ms / DAY:.2f} days")
    for at_ms, event in host.story:
        if chosen.all or any(abs(at_ms - odd_ms) < _NEAR_MS for odd_ms in host.odd):
            print(f"{at_ms / 1000:12.1f}  {_line(event)}")


def _line(event: object) -> str:
    if not isinstance(event, Record):
        return str(event)
    told = {name: value for name, value in event.data.items() if value not in (None, [])}
    return f"{event.type} {told}"


if __name__ == "__main__":
    main()
