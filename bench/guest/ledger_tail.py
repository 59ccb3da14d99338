"""Reading the ledger as it grows, with the time at which each entry was seen and was durable."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.guest.common import Watch, boottime_ns

DIRECTORY = Path("/var/lib/healer/ledger")


@dataclass(frozen=True, slots=True)
class Seen:
    """An entry, when it was in the file, and when fdatasync(2) had returned for it."""

    entry: dict[str, Any]
    visible_ns: int
    durable_ns: int


class LedgerTail:
    """The entries appended after its making. ``fd`` is readable when there may be more.

    Whether healer's own fdatasync has returned cannot be seen from outside without tracing it,
    which slows it. So the reader calls fdatasync on the same file as soon as it sees the entry:
    what it returns for is durable, whoever else is still waiting for that.
    """

    def __init__(self) -> None:
        self._watch = Watch()
        self._watch.add(DIRECTORY, Watch.MODIFY | Watch.CREATE)
        self.fd = self._watch.fd
        self._path = _newest()
        self._file = os.open(self._path, os.O_RDONLY)
        os.lseek(self._file, 0, os.SEEK_END)
        self._rest = b""

    def read(self) -> list[Seen]:
        """Return the entries that came since the last call."""
        self._watch.drain()
        data = self._more()
        if (newest := _newest()) != self._path:
            data += self._more()
            os.close(self._file)
            self._path, self._file = newest, os.open(newest, os.O_RDONLY)
            data += self._more()
        visible = boottime_ns()
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not lines:
            return []
        os.fdatasync(self._file)
        durable = boottime_ns()
        # A signed line of the ledger is the entry's JSON.
        return [Seen(json.loads(line), visible, durable) for line in lines if line]

    def close(self) -> None:
        """Stop reading."""
        self._watch.close()
        os.close(self._file)

    def _more(self) -> bytes:
        data = b""
        while part := os.read(self._file, 1 << 20):
            data += part
        return data


def _newest() -> Path:
    return max(DIRECTORY.glob("*.jsonl"))
