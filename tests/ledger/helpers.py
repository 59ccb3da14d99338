"""What the ledger's tests share."""

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from healer.ledger.entry import Entry
from healer.ledger.keys import load_public
from healer.ledger.verify import Report, verify
from healer.ledger.writer import Ledger

BOOT = "0123456789abcdef0123456789abcdef"
ORIGIN = "healer/test"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")


def vectors(name: str) -> Path:
    """Return a directory of third-party vectors, or skip the test naming what is missing."""
    root = os.environ.get("HEALER_VECTORS")
    base = Path(root) if root else Path(__file__).parents[3] / "shared" / "vectors"
    if not (base / name).is_dir():
        pytest.skip(f"no {name} vectors at {base} (HEALER_VECTORS names another place)")
    return base / name


def environment() -> dict[str, str]:
    """Return an environment in which a child process imports this healer."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def open_ledger(directory: Path) -> Ledger:
    return Ledger.open(directory, origin=ORIGIN, boot=BOOT)


def write(directory: Path, batches: Iterable[int]) -> list[Entry]:
    """Append batches of so many entries each, and return what was acknowledged."""
    ledger = open_ledger(directory)
    done = list(ledger.history())
    for size in batches:
        with ledger._changed:  # the writer cannot take a part of them
            futures = [ledger.append("test.entry", {"n": n, "text": "é\n"}) for n in range(size)]
        done += [future.result(10) for future in futures]
    ledger.close()
    return done


def check(directory: Path) -> Report:
    return verify(directory, load_public(directory / "ledger.pub"))


def segment_lines(directory: Path) -> list[tuple[Path, list[bytes]]]:
    return [
        (path, path.read_bytes().splitlines(keepends=True))
        for path in sorted(directory.glob("*.jsonl"))
    ]
