"""Reading a ledger: the chain is followed, signatures are not checked (``verify`` does that).

A ledger can be read while it is written: an incomplete last line is a write under way, not an
error. An entry may be seen a moment before it is durable.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from healer.ledger.chain import Chain
from healer.ledger.entry import Entry
from healer.ledger.segments import Walk, find


def read(directory: Path) -> Iterator[Entry]:
    """Yield all entries in order.

    BadEntryError (a LedgerError) names the file, the line and why, at the first entry that does
    not hold; LedgerIOError: the directory cannot be read.
    """
    yield from Walk(directory, Chain(None))


def tail(
    directory: Path,
    *,
    after: int = -1,
    stop: Callable[[], bool] = lambda: False,
    poll_sec: float = 0.2,
) -> Iterator[Entry]:
    """Yield the entries behind seq ``after``, then each new one as it comes, until ``stop()``.

    ``poll_sec`` is the pause in seconds between looks at the files. Errors as in ``read``.
    """
    seen = after
    entries = read(directory)
    while True:
        state = _state(directory)  # before reading: what comes during it is seen next time
        for entry in entries:
            if entry.seq > seen:
                seen = entry.seq
                yield entry
        while state == _state(directory):
            if stop():
                return
            time.sleep(poll_sec)
        # Segments are small: looking through the current one again is simpler than keeping place.
        start = max((s.first for s in find(directory) if s.first <= seen), default=0)
        entries = iter(Walk(directory, Chain(None, start=start)))


def _state(directory: Path) -> list[tuple[str, int]]:
    return [(s.path.name, s.path.stat().st_size) for s in find(directory)[-2:]]
