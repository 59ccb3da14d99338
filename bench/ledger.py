"""The ledger's throughput, writing and verifying, beside SQLite, a plain file and journald."""

import statistics
from typing import Any

from bench.machine import machine, system
from bench.report import Report

_BATCH = 256


def run(single: int = 300, batched: int = 20_000, times: int = 3) -> Report:
    report = Report("ledger")
    with machine("ledger") as box:
        box.deploy(system())
        runs: list[dict[str, Any]] = [
            box.measure("ledger", single=single, batched=batched, batch=_BATCH)
            for _ in range(times)
        ]

    def add(name: str, key: str, peer: str | None = None, part: str | None = None) -> None:
        values = [run[key] if part is None else run[key][part] for run in runs]
        unit = "MiB/s" if part == "mib" else "1/s"
        report.add(name, statistics.median(values), unit, peer, len(values))

    add("append and fdatasync, one by one", "append_single")
    add("SQLite WAL FULL, one by one", "sqlite_single")
    add("healer, one by one", "ledger_single", "SQLite WAL FULL, one by one")
    add(f"SQLite WAL FULL, {_BATCH} a commit", "sqlite_batched")
    add("healer, in its batches", "ledger_batched", f"SQLite WAL FULL, {_BATCH} a commit")
    add("journald, one sync at the end", "journal", part="written")
    add("journalctl --verify", "journal", part="entries")
    add("journalctl --verify, bytes", "journal", part="mib")
    if (why := runs[0]["journal"]["unsealed"]) is not None:
        report.notes.append(f"the journal is not sealed, for journalctl --setup-keys says: {why}")
    add("healer ledger verify", "verify", "journalctl --verify", "entries")
    add("healer ledger verify, bytes", "verify", "journalctl --verify, bytes", "mib")
    report.notes.append("here a greater ratio is better; an entry is a crash with eight log lines")
    report.notes.append("healer's are chained and signed each; SQLite's and the plain file's not")
    return report
