"""journald: an agent's last lines, stops that were asked for, and ends that left no stamp.

systemd-python's Reader belongs to one thread, and an open one pins rotated files. Opening one costs
as much as fifty questions, and more the more files there are: so each thread keeps those that it
opened for a few seconds. Any process may write any
field that does not begin with an underscore: a record counts as systemd's only if it is PID 1's.
"""

import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from systemd import journal

from healer.errors import HostUnavailableError
from healer.events import CoreDump, Ended
from healer.host import clock

# systemd's catalogue of messages (sd-messages.h).
UNIT_FAILED = "d9b373ed55a64feb8242e02dbe79a49c"
UNIT_PROCESS_EXIT = "98e322203f7a4ed290d09fe03c09fe15"
UNIT_STARTING = "7d4958e842da4a758f6c1cdc7b36dcc5"
UNIT_STARTED = "39f53479d3a045ac8e11786248231fbf"
UNIT_NOT_STARTED = "be02cf6855d2428ba40df7e922f03d0c"
UNIT_STOPPING = "de5b426a63be47a7b6ac3eaac82e2f6f"
UNIT_STOPPED = "9d1aaa27d60140bd96365438aad20286"
RESTART_SCHEDULED = "5eb03494b6584870a536b337290809b3"
CORE_DUMP = "fc2e22bc6ee647b6b90729ab34a250b1"

_MOST_FRAMES = 32
_FRAME = re.compile(r"\s*(#\d+\s.*)")


@dataclass(frozen=True, slots=True)
class LastWords:
    """What the journal knows of an end.

    ``exited`` says that PID 1's record of the main process's exit is there: whatever PID 1 had to
    say before, and nearly always what the process wrote, is there as well then.
    ``stop_requested`` says that systemd was asked for the end, by a stop or a restart job, and is
    None while that is still to be told.
    """

    exited: bool
    stop_requested: bool | None
    lines: tuple[str, ...]


def last_words(unit: str, invocation: str, count: int) -> LastWords:
    """Return what the journal knows of an invocation's end, with its last ``count`` lines."""
    with _systemd(UNIT_PROCESS_EXIT, UNIT=unit, INVOCATION_ID=invocation) as reader:
        exited = reader.get_next()
    cursor = _text(exited, "__CURSOR") if exited else None
    lines = _last_lines(unit, invocation, cursor, count) if count else ()
    return LastWords(bool(exited), _was_requested(unit, invocation), lines)


def _was_requested(unit: str, invocation: str) -> bool | None:
    """Return whether systemd was asked for an invocation's end; None while it has not said.

    It says that a unit is stopping before it stops it; but not where that is in the middle of its
    start: then only that it has stopped, once its ExecStopPost= is over.
    """

    def said(message_id: str) -> bool:
        with _systemd(message_id, UNIT=unit, INVOCATION_ID=invocation) as reader:
            return bool(reader.get_next())

    if said(UNIT_STOPPING):
        return True
    if said(UNIT_STARTED) or said(UNIT_NOT_STARTED) or said(RESTART_SCHEDULED):
        return False
    return True if said(UNIT_STOPPED) else None


def _last_lines(unit: str, invocation: str, exited: str | None, count: int) -> tuple[str, ...]:
    """Return an invocation's last lines, oldest first: those around its exit, else the newest.

    The dying process's last lines can come late, and without their invocation: they count too.
    """
    own = {invocation, ""}
    match = {"_SYSTEMD_UNIT": unit}
    if exited is None:
        match["_SYSTEMD_INVOCATION_ID"] = invocation
    late: list[str] = []
    with _reader(**match) as reader:
        if exited is None:
            reader.seek_tail()
        else:
            reader.seek_cursor(exited)
            while len(late) < count and (entry := reader.get_next()):
                if _text(entry, "_SYSTEMD_INVOCATION_ID") not in own:
                    break
                late.append(_line(entry))
            reader.seek_cursor(exited)
        early: list[str] = []
        while len(early) < count and (entry := reader.get_previous()):
            if _text(entry, "_SYSTEMD_INVOCATION_ID") not in own:
                break
            early.append(_line(entry))
    return (*reversed(early), *late)[-count:]


def newest_line(unit: str, begins: str) -> str | None:
    """Return a unit's newest line that begins so, if it is among its newest hundred."""
    with _reader(_SYSTEMD_UNIT=unit) as reader:
        reader.seek_tail()
        for _ in range(100):
            entry = reader.get_previous()
            if not entry:
                break
            if (line := _line(entry)).startswith(begins):
                return line
    return None


def lines_behind(
    unit: str, invocation: str, cursor: str | None, most: int
) -> tuple[list[str], str | None]:
    """Return at ``most`` so many lines of an invocation behind ``cursor``, and where they end.

    They begin with the first one where the cursor is None. Only what journald itself says of a
    line's origin counts.
    """
    lines: list[str] = []
    with _reader(_SYSTEMD_UNIT=unit, _SYSTEMD_INVOCATION_ID=invocation) as reader:
        if cursor is not None:
            reader.seek_cursor(cursor)
        while len(lines) < most and (entry := reader.get_next()):
            here = _text(entry, "__CURSOR")
            if here != cursor:
                lines.append(_line(entry))
                cursor = here
    return lines, cursor


def started_ms(unit: str, invocation: str) -> int | None:
    """Return when systemd began to start this invocation, in milliseconds since its boot."""
    with _began(unit, INVOCATION_ID=invocation) as reader:
        entry = reader.get_next()
    return _uptime_ms(entry) if entry else None


def last_failure(unit: str) -> Ended | None:
    """Return how a unit failed last, by PID 1's records; None where they tell of no failure."""
    with _systemd(UNIT_FAILED, UNIT=unit) as reader:
        reader.seek_tail()
        failed = reader.get_previous()
    return _ended(failed) if failed else None


@dataclass(frozen=True, slots=True)
class Replay:
    """A page of what the journal holds behind a cursor: ends, and core dumps.

    ``cursor`` is where the next page begins, ``more`` says that there is one already. ``gap`` says
    that the entry at the old cursor is gone, and that others may have gone with it.
    """

    ended: list[Ended]
    dumped: list[CoreDump]
    cursor: str | None
    more: bool
    gap: bool


def ended_since(cursor: str | None, units: frozenset[str], most: int) -> Replay:
    """Return at ``most`` so many failed invocations and core dumps of ``units`` behind ``cursor``.

    Nothing is replayed from before a cursor that is None.
    """
    end = _end()
    if cursor is None or not _is_there(cursor):
        return Replay([], [], end, more=False, gap=cursor is not None)
    ended: list[Ended] = []
    dumped: list[CoreDump] = []
    with _systemd(UNIT_FAILED) as reader:
        reader.add_disjunction()
        reader.add_match(MESSAGE_ID=CORE_DUMP)
        reader.seek_cursor(cursor)
        while entry := reader.get_next():
            here = _text(entry, "__CURSOR")
            if here == cursor:
                continue
            if _text(entry, "MESSAGE_ID") == UNIT_FAILED:
                if _text(entry, "UNIT") in units:
                    ended.append(_ended(entry))
            elif (dump := _core_dump(entry, units)) is not None:
                dumped.append(dump)
            if len(ended) + len(dumped) >= most:
                return Replay(ended, dumped, here, more=True, gap=False)
    return Replay(ended, dumped, end, more=False, gap=False)


def _end() -> str | None:
    with _reader() as reader:
        reader.seek_tail()
        newest = reader.get_previous()
    return _text(newest, "__CURSOR") if newest else None


def _is_there(cursor: str) -> bool:
    try:
        with _reader() as reader:
            reader.seek_cursor(cursor)
            return bool(reader.get_next()) and bool(reader.test_cursor(cursor))
    except (HostUnavailableError, ValueError):  # not a cursor at all
        return False


def _ended(failed: Mapping[str, Any]) -> Ended:
    """Join "Failed with result" with the main process's exit of the same invocation."""
    unit, invocation = _text(failed, "UNIT"), _text(failed, "INVOCATION_ID")
    code = status = ""
    with _systemd(UNIT_PROCESS_EXIT, UNIT=unit, INVOCATION_ID=invocation) as reader:
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
        stop_uptime_ms=_uptime_ms(failed),
        toplevel=None,
        memory=None,
        source="journal",
    )


def _core_dump(entry: Mapping[str, Any], units: frozenset[str]) -> CoreDump | None:
    """Read a record of systemd-coredump(8)'s; None if it is not of ``units``, or somebody else's.

    Whoever logs can write all but the fields of journald's own, which say in which unit it ran.
    """
    unit, origin = _text(entry, "COREDUMP_UNIT"), _text(entry, "_SYSTEMD_UNIT")
    if unit not in units or not origin.startswith("systemd-coredump@"):
        return None
    invocation = _dumped_invocation(entry, unit)
    if invocation is None:
        return None
    pid = _text(entry, "COREDUMP_PID")
    return CoreDump(
        unit=unit,
        invocation=invocation,
        pid=int(pid) if pid.isdigit() else None,
        executable=_text(entry, "COREDUMP_EXE"),
        signal=_text(entry, "COREDUMP_SIGNAL_NAME").removeprefix("SIG"),
        stack=stack_of(_text(entry, "MESSAGE")),
    )


def _dumped_invocation(entry: Mapping[str, Any], unit: str) -> str | None:
    """Return the invocation that a process belonged to which dumped core.

    Its environment says so. That is the agent's own, but PID 1 has to have begun that invocation of
    that unit: an agent can pass one of its own dumps off for another of its own. Else it is the one
    that was begun last; systemd-coredump(8) may need longer than the next takes to start.
    """
    environment = _text(entry, "COREDUMP_ENVIRON").splitlines()
    said = [line.removeprefix("INVOCATION_ID=") for line in environment if "INVOCATION_ID=" in line]
    if said and started_ms(unit, said[0]) is not None:
        return said[0]
    with _began(unit) as reader:
        reader.seek_cursor(_text(entry, "__CURSOR"))
        started = reader.get_previous()
    return _text(started, "INVOCATION_ID") if started else None


def stack_of(message: str) -> tuple[str, ...]:
    """Return the frames of the first thread in a message of systemd-coredump(8): the one that died.

    There are none where it was built without, or finds no, libdw.
    """
    frames: list[str] = []
    for line in message.splitlines():
        match = _FRAME.fullmatch(line)
        if match is not None and len(frames) < _MOST_FRAMES:
            frames.append(match[1])
        elif frames:
            break
    return tuple(frames)


# How long a reader is used again: what it pins is for the next question after that to let go.
_KEPT_SEC = 5.0


class _Idle(threading.local):
    """The readers of one thread that nobody reads with, each with when it was opened."""

    def __init__(self) -> None:
        self.readers: list[tuple[float, journal.Reader]] = []


_idle = _Idle()


class _Unconverted(dict[str, Any]):
    """Leave every field as it is: systemd-python lets errors out when it converts what a process
    wrote, and a process may write any field.
    """

    def get(self, _field: str, _default: object = None) -> Any:
        return lambda value: value


@contextmanager
def _reader(**match: str) -> Iterator[journal.Reader]:
    try:
        opened, reader = _take()
        try:
            for field, value in match.items():
                reader.add_match(**{field: value})
            yield reader
        except BaseException:
            reader.close()
            raise
        _idle.readers.append((opened, reader))
    except OSError as error:
        raise HostUnavailableError(f"journald cannot be read: {error.strerror}") from error


def _take() -> tuple[float, journal.Reader]:
    """Return a reader at the journal's beginning, and when it was opened."""
    now = time.monotonic()
    while _idle.readers:
        opened, reader = _idle.readers.pop()
        if now - opened > _KEPT_SEC:
            reader.close()
            continue
        # Of the files that came and went since, the kernel tells by inotify(7).
        reader.process()
        reader.flush_matches()
        reader.seek_head()
        return opened, reader
    # Users' journals too: what an agent that runs as a person's user writes is there.
    reader = journal.Reader(flags=journal.LOCAL_ONLY)
    reader.converters = _Unconverted()
    reader.fileno()  # from now on it is told of new files
    return now, reader


def _systemd(message_id: str, **match: str) -> AbstractContextManager[journal.Reader]:
    """Read PID 1's own records: journald sets _PID, whoever logs cannot."""
    return _reader(_PID="1", MESSAGE_ID=message_id, **match)


@contextmanager
def _began(unit: str, **match: str) -> Iterator[journal.Reader]:
    """Read PID 1's records of a unit's starts, the first of each being that it begins.

    Where a start is done in one step, as with Type=simple alone, PID 1 says only that it is done.
    """
    with _systemd(UNIT_STARTING, UNIT=unit, **match) as reader:
        reader.add_match(MESSAGE_ID=UNIT_STARTED)  # the one or the other, sd_journal_add_match(3)
        yield reader


def _text(entry: Mapping[str, Any], field: str, longest: int = 65_536) -> str:
    """Return a field as text, whatever systemd-python made of it (UUID, bytes, int, list).

    journald takes fields of hundreds of megabytes: of more than ``longest`` bytes the rest is cut.
    """
    value = entry.get(field, "")
    if isinstance(value, list):
        value = value[-1]
    if isinstance(value, bytes):
        return value[:longest].decode(errors="replace")
    return str(getattr(value, "hex", value))[:longest]


def _line(entry: Mapping[str, Any]) -> str:
    """Return what an agent logged, as far as an entry of the ledger could hold it."""
    return _text(entry, "MESSAGE", 16_384)


def _uptime_ms(entry: Mapping[str, Any]) -> int:
    """Return when an entry was written, in milliseconds since its boot."""
    stamp, _ = entry["__MONOTONIC_TIMESTAMP"]
    return clock.from_monotonic_us(stamp)


def _signal_name(number: str) -> str:
    try:
        return signal.Signals(int(number)).name.removeprefix("SIG")
    except ValueError:
        return number
