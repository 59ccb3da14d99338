"""Reading a ledger: the chain is followed, signatures are not checked (``verify`` does that).

A ledger can be read while it is written: an incomplete last line is a write under way, not an
error. An entry may be seen a moment before it is durable.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from healer.ledger.chain import Chain
from healer.ledger.entry import BadRecordError, Entry, parse
from healer.ledger.segments import BadEntryError, Walk, find, lines


def read(directory: Path) -> Iterator[Entry]:
    """Yield all entries in order.

    BadEntryError (a LedgerError) names the file, the line and why, at the first entry that does
    not hold; LedgerIOError: the directory cannot be read.
    """
    yield from Walk(directory, Chain(None))


def mentioning(directory: Path, seq: int) -> Iterator[Entry]:
    """Yield the entry at ``seq`` and those after it whose data name it as their ``intent``.

    Fast, for a ledger may be long: only lines that look so are parsed, and the chain between them
    is not followed. Whoever acts on an entry checks its signature. Errors as in ``read``.
    """
    own, outcome = b',"seq":%d,"time_us":' % seq, b'"intent":%d,' % seq
    segments = find(directory)
    start = max((segment.first for segment in segments if segment.first <= seq), default=0)
    for segment in segments:
        if segment.first < start:
            continue
        for number, (_, line) in enumerate(lines(segment.path), 1):
            if line.endswith(b"\n") and (own in line or outcome in line):
                try:
                    yield parse(line[:-1])
                except BadRecordError as error:
                    raise BadEntryError(segment.path.name, number, seq, str(error)) from error


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
