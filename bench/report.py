"""Rows of measured figures: their statistics, the printed table and the JSON file."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

OUT = Path(__file__).resolve().parents[1] / "build" / "bench"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. ``samples`` counts the measurements behind ``value``.

    ``peer`` names the row that this one is compared with, ``ratio`` is this value by the peer's;
    both are null where there is nothing to compare with.
    """

    name: str
    value: float
    unit: str
    peer: str | None
    ratio: float | None
    samples: int


@dataclass(frozen=True, slots=True)
class Target:
    """A promise, and what was measured; ``why`` tells of a miss what this run saw of its cause."""

    name: str
    value: float
    limit: float
    unit: str
    why: str = ""

    @property
    def met(self) -> bool:
        return self.value <= self.limit


@dataclass(slots=True)
class Report:
    """What one suite measured."""

    suite: str
    rows: list[Row] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, value: float, unit: str, peer: str | None = None, n: int = 1) -> None:
        """Add one figure; PEER names an earlier row of the same unit."""
        ratio = None
        if peer is not None and (base := self.value(peer)):
            ratio = value / base
        self.rows.append(Row(name, value, unit, peer, ratio, n))

    def add_times(self, name: str, nanoseconds: Sequence[int], peer: str | None = None) -> None:
        """Add the median and the 95th percentile of durations, in milliseconds."""
        times = [value / 1e6 for value in nanoseconds]
        self.add(name, statistics.median(times), "ms", peer, len(times))
        tail = f"{peer} p95" if peer else None
        self.add(f"{name} p95", percentile(times, 95), "ms", tail, len(times))

    def value(self, name: str) -> float:
        """Return a row's value; KeyError where there is none."""
        for row in self.rows:
            if row.name == name:
                return row.value
        raise KeyError(name)

    def write(self) -> Path:
        """Write build/bench/SUITE.json and return its path."""
        OUT.mkdir(parents=True, exist_ok=True)
        path = OUT / f"{self.suite}.json"
        targets = [{**asdict(target), "met": target.met} for target in self.targets]
        rows = [asdict(row) for row in self.rows]
        whole = {"suite": self.suite, "rows": rows, "targets": targets, "notes": self.notes}
        path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        return path

    def text(self) -> str:
        """Return the table, the notes and the targets for people."""
        width = max(len(row.name) for row in self.rows)
        lines = [f"{self.suite}", f"  {'':{width}}  {'value':>10}  {'':6} {'ratio':>7}  n"]
        for row in self.rows:
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
            peer = f"  (of {row.peer})" if row.peer else ""
            number = f"{row.value:10.2f}"
            lines.append(
                f"  {row.name:{width}}  {number}  {row.unit:6} {ratio:>7}  {row.samples}{peer}"
            )
        lines += [f"  note: {note}" for note in self.notes]
        for target in self.targets:
            word = "met" if target.met else "MISSED"
            figure = f"{target.value:.2f} of at most {target.limit:g} {target.unit}"
            why = f": {target.why}" if target.why and not target.met else ""
            lines.append(f"  target {word}: {target.name}, {figure}{why}")
        return "\n".join(lines)


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the smallest value that PERCENT of the values do not exceed (nearest rank)."""
    ranked = sorted(values)
    return ranked[max(0, -(-len(ranked) * percent // 100) - 1)]
