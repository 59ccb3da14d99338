"""The ledger's throughput beside what one could keep crashes in instead."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.guest import common
from healer.ledger import keys
from healer.ledger.verify import verify
from healer.ledger.writer import Ledger

# On the disk of the machine, as the ledger itself is; /run and /tmp are memory.
_HOME = Path("/var/lib")
# The ledger keeps 10,000 entries in memory at most, and counts those above as lost.
_IN_FLIGHT = 4096
_DATA: dict[str, object] = {
    "agent": "worker",
    "unit": "worker.service",
    "invocation": "0123456789abcdef0123456789abcdef",
    "boot": "0123456789abcdef0123456789abcdef",
    "class": "signal",
    "result": "signal",
    "code": "killed",
    "status": "KILL",
    "runtime_ms": 4321,
    "stop_uptime_ms": 123456,
    "journal": [f"job {n}: something that the agent said of its work" for n in range(8)],
}


def main() -> None:
    given = common.options()
    single, batched = given["single"], given["batched"]
    with tempfile.TemporaryDirectory(dir=_HOME) as directory:
        home = Path(directory)
        answer: dict[str, Any] = {
            "ledger_single": _timed(single, _ledger(home / "one", wait_each=True)),
            "ledger_batched": _timed(batched, _ledger(home / "many", wait_each=False)),
            "append_single": _timed(single, lambda count: _append(home / "append", count)),
            "sqlite_single": _timed(single, lambda count: _sqlite(home / "one.db", count, 1)),
            "sqlite_batched": _timed(
                batched, lambda count: _sqlite(home / "many.db", count, given["batch"])
            ),
            "verify": _verify(home / "many"),
            "journal": _journal(given["batched"]),
        }
    common.answer(answer)


def _timed(count: int, action: Callable[[int], None]) -> float:
    """Return how many entries a second ACTION handles."""
    began = time.monotonic()
    action(count)
    return count / (time.monotonic() - began)


def _ledger(directory: Path, *, wait_each: bool) -> Callable[[int], None]:
    directory.mkdir(mode=0o700)
    ledger = Ledger.open(directory, origin="healer/bench", boot="0" * 32)

    def append(count: int) -> None:
        in_flight = 1 if wait_each else _IN_FLIGHT
        for begin in range(0, count, in_flight):
            futures = [
                ledger.append("agent.crash", _DATA, incident="worker-01234567")
                for _ in range(min(in_flight, count - begin))
            ]
            for future in futures:
                future.result()
        ledger.close()

    return append


def _append(path: Path, count: int) -> None:
    line = json.dumps(_DATA).encode() + b"\n"
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for _ in range(count):
        os.write(file, line)
        os.fdatasync(file)
    os.close(file)


def _sqlite(path: Path, count: int, batch: int) -> None:
    """Insert rows; synchronous=FULL makes each commit durable in WAL mode (sqlite.org/wal)."""
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE entry (seq INTEGER PRIMARY KEY, type TEXT, data TEXT)")
    insert = "INSERT INTO entry (type, data) VALUES (?, ?)"
    for begin in range(0, count, batch):
        database.execute("BEGIN")
        for _ in range(min(batch, count - begin)):
            database.execute(insert, ("agent.crash", json.dumps(_DATA)))
        database.execute("COMMIT")
    database.close()


def _verify(directory: Path) -> dict[str, float]:
    key = keys.load_public(directory / keys.PUBLIC_KEY_FILE)
    size = sum(path.stat().st_size for path in directory.glob("*.jsonl"))
    began = time.monotonic()
    report = verify(directory, key)
    took = time.monotonic() - began
    return {"entries": report.entries / took, "mib": size / took / 2**20}


def _journal(count: int) -> dict[str, Any]:
    """Write as many entries into the journal and verify its file, sealed where systemd can.

    ``unsealed`` is what journalctl said where it cannot, or null.
    """
    setup = subprocess.run(
        ["journalctl", "--setup-keys", "--interval=10s", "--force"],
        check=False,
        capture_output=True,
        text=True,
    )
    found = re.search(r"[0-9a-f]{6}(?:-[0-9a-f]{6}){3}/[0-9a-f]+-[0-9a-f]+", setup.stdout)
    _run("systemctl", "restart", "systemd-journald")
    _run("journalctl", "--rotate")
    line = json.dumps(_DATA) + "\n"
    began = time.monotonic()
    subprocess.run(["systemd-cat"], input=line * count, check=True, text=True)
    _run("journalctl", "--sync")
    written = count / (time.monotonic() - began)
    machine_id = Path("/etc/machine-id").read_text().strip()
    source = Path("/var/log/journal") / machine_id / "system.journal"
    # Alone in a directory, so that nothing else is verified.
    with tempfile.TemporaryDirectory(dir=_HOME) as copy:
        shutil.copy(source, copy)
        shown = ["journalctl", "--directory", copy, "--output=cat", "--output-fields=MESSAGE"]
        entries = subprocess.run(shown, check=True, capture_output=True).stdout.count(b"\n")
        command = ["journalctl", "--directory", copy, "--verify"]
        began = time.monotonic()
        _run(*command, *([f"--verify-key={found[0]}"] if found else []))
        took = time.monotonic() - began
        mib = source.stat().st_size / 2**20
    return {
        "entries": entries / took,
        "mib": mib / took,
        "written": written,
        "unsealed": None if found else setup.stderr.strip() or f"status {setup.returncode}",
    }


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    main()
