"""journald: an agent's last lines, stops that were asked for, and ends that left no stamp.

systemd-python's Reader belongs to one thread, and an open one pins rotated files: so each
question opens its own, and the daemon asks them all from one thread.
"""

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from systemd import journal

from healer.errors import HostUnavailableError
from healer.events import Ended

# systemd's catalogue of messages (sd-messages.h).
UNIT_FAILED = "d9b373ed55a64feb8242e02dbe79a49c"
UNIT_PROCESS_EXIT = "98e322203f7a4ed290d09fe03c09fe15"
UNIT_STARTING = "7d4958e842da4a758f6c1cdc7b36dcc5"
UNIT_STOPPING = "de5b426a63be47a7b6ac3eaac82e2f6f"


def last_lines(unit: str, invocation: str, count: int) -> tuple[str, ...]:
    """Return the last ``count`` lines that an invocation wrote, oldest first."""
    lines: list[str] = []
    with _reader(_SYSTEMD_UNIT=unit) as reader:
        reader.seek_tail()
        while len(lines) < count:
            entry = reader.get_previous()
            # The dying process's last lines can come without their invocation: they count too.
            if not entry or _text(entry, "_SYSTEMD_INVOCATION_ID") not in {invocation, ""}:
                break
            lines.append(_text(entry, "MESSAGE"))
    return tuple(reversed(lines))


def stop_requested(unit: str, invocation: str) -> bool:
    """Whether systemd logged that it was asked to stop this invocation (a stop or restart job)."""
    with _reader(MESSAGE_ID=UNIT_STOPPING, UNIT=unit, INVOCATION_ID=invocation) as reader:
        return bool(reader.get_next())


def started_ms(unit: str, invocation: str) -> int | None:
    """Return when systemd began to start this invocation, in milliseconds since its boot."""
    with _reader(MESSAGE_ID=UNIT_STARTING, UNIT=unit, INVOCATION_ID=invocation) as reader:
        entry = reader.get_next()
    return _monotonic_ms(entry) if entry else None


@dataclass(frozen=True, slots=True)
class Replay:
    """What the journal holds behind a cursor.

    ``cursor`` is the journal's end now; ``gap`` says that the entry at the old cursor was rotated
    away, and that others may have gone with it.
    """

    ended: list[Ended]
    cursor: str | None
    gap: bool


def ended_since(cursor: str | None, units: frozenset[str]) -> Replay:
    """Return the failed invocations of ``units`` behind ``cursor``; none where that is None."""
    found: list[Ended] = []
    gap = False
    with _reader() as reader:
        reader.seek_tail()
        newest = reader.get_previous()
        end = str(newest["__CURSOR"]) if newest else None
    if cursor is not None:
        with _reader() as reader:
            reader.seek_cursor(cursor)
            gap = not (reader.get_next() and reader.test_cursor(cursor))
        with _reader(MESSAGE_ID=UNIT_FAILED) as reader:
            reader.seek_cursor(cursor)
            while entry := reader.get_next():
                if _text(entry, "UNIT") in units and entry["__CURSOR"] != cursor:
                    found.append(_ended(entry))
    return Replay(found, end, gap)


def _ended(failed: Mapping[str, Any]) -> Ended:
    """Join "Failed with result" with the main process's exit of the same invocation."""
    unit, invocation = _text(failed, "UNIT"), _text(failed, "INVOCATION_ID")
    code = status = ""
    with _reader(MESSAGE_ID=UNIT_PROCESS_EXIT, UNIT=unit, INVOCATION_ID=invocation) as reader:
        # The main process ends before the control processes that follow it.
        if exit_entry := reader.get_next():
            code, status = _text(exit_entry, "EXIT_CODE"), _text(exit_entry, "EXIT_STATUS")
    return Ended(
        unit=unit,
        invocation=invocation,
        boot=_text(failed, "_BOOT_ID"),
        result=_text(failed, "UNIT_RESULT"),
        code=code,
        status=status if code == "exited" else _signal_name(status),
        start_uptime_ms=None,
        stop_uptime_ms=_monotonic_ms(failed),
        toplevel=None,
        memory=None,
        source="journal",
    )


@contextmanager
def _reader(**match: str) -> Iterator[journal.Reader]:
    try:
        with journal.Reader(flags=journal.LOCAL_ONLY | journal.SYSTEM) as reader:
            for field, value in match.items():
                reader.add_match(**{field: value})
            yield reader
    except OSError as error:
        raise HostUnavailableError(f"journald cannot be read: {error.strerror}") from error


def _text(entry: Mapping[str, Any], field: str) -> str:
    """Return a field as text, whatever systemd-python made of it (UUID, bytes, int, list)."""
    value = entry.get(field, "")
    if isinstance(value, list):
        value = value[-1]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(getattr(value, "hex", value))


def _monotonic_ms(entry: Mapping[str, Any]) -> int:
    stamp = entry["__MONOTONIC_TIMESTAMP"]
    return int(stamp.timestamp.total_seconds() * 1000)


def _signal_name(number: str) -> str:
    try:
        return signal.Signals(int(number)).name.removeprefix("SIG")
    except ValueError:
        return number
