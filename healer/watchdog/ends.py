"""How healer learns that an invocation ended: PID 1's stamps first, and the journal behind them."""

import asyncio
import concurrent.futures
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from healer.config import Agent, Config
from healer.errors import HostUnavailableError
from healer.events import Context, Ended, Instant
from healer.files import write_atomically
from healer.host import journal, stamps
from healer.host.journal import LastWords, Replay

log = logging.getLogger(__name__)

# How many ends are taken from the journal before anything else is looked at again.
_PAGE = 100
# Pauses between questions to a journald that is busy.
_JOURNAL_LAG_SEC = (0.002, 0.004, 0.008, 0.016, 0.03, 0.04, 0.0)
# Removing stamps costs a process: this many recorded ones may stay, and so many go at once.
_STAMPS_KEPT = 32
_STAMPS_AT_ONCE = 1000
# Its process starts behind the stamp.
_BREADCRUMB_LAG_SEC = (*_JOURNAL_LAG_SEC[:-1], 0.1, 0.2, 0.4, 0.8, 0.0)
# How nix/last-crash.sh begins the line with an agent's breadcrumb; the invocation comes next.
_BREADCRUMB = "healer-breadcrumb: "


class Ends:
    """Finds ended invocations and what the agents were doing, and forgets what is recorded.

    A stop stamp is *handled* once its end was handed to the ledger, and *removable* once it is
    durable there.
    """

    def __init__(self, config: Config) -> None:
        self.stamps = Path(config.runtime_dir) / "stamps"
        self._cursor_path = Path(config.state_dir) / "journal.cursor"
        self._cursor: str | None = None
        # systemd-python's reader is not for more than one thread.
        self._journal = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="journal")
        # By unit: the invocation whose main process is gone, and what is asked about it.
        self._asked: dict[str, tuple[str, asyncio.Task[LastWords] | None]] = {}
        self._handled: set[str] = set()
        self._removable: set[str] = set()

    def close(self) -> None:
        """Ask the journal nothing more."""
        self._journal.shutdown(wait=False, cancel_futures=True)

    async def stamped(
        self, units: frozenset[str], before_reading: Callable[[], Awaitable[None]]
    ) -> list[Ended]:
        """Return the ends of ``units`` that new stop stamps tell of, oldest first.

        ``before_reading`` is called when it is known that there are such, and which.
        """
        there = stamps.stop_stamps(self.stamps)
        self._handled &= there.keys()
        return await self._read(there, units, before_reading)

    async def stamped_as(
        self,
        names: Iterable[str],
        units: frozenset[str],
        before_reading: Callable[[], Awaitable[None]],
    ) -> list[Ended]:
        """Return what ``stamped`` does, of the stop stamps of these names."""
        return await self._read(stamps.among(names), units, before_reading)

    async def _read(
        self,
        there: Mapping[str, tuple[str, str]],
        units: frozenset[str],
        before_reading: Callable[[], Awaitable[None]],
    ) -> list[Ended]:
        new = {name for name, (unit, _) in there.items() if unit in units} - self._handled
        if not new:
            return []
        await before_reading()
        return stamps.read(self.stamps, new)

    async def journalled(self, units: frozenset[str]) -> Replay | None:
        """Return the next page of failed invocations in the journal; None if it cannot be read."""
        replay: Replay
        if self._cursor is None:
            self._cursor = self._stored_cursor()
        try:
            replay = await self._ask(journal.ended_since, self._cursor, units, _PAGE)
        except HostUnavailableError as error:
            log.warning("%s; trying again", error)
            return None
        found = [stamps.with_start(self.stamps, ended) for ended in replay.ended]
        return replace(replay, ended=found)

    async def last_failure(self, unit: str) -> Ended | None:
        """Return how a unit failed last, by the journal; None if it did not, or nobody can tell."""
        found: Ended | None
        try:
            found = await self._ask(journal.last_failure, unit)
        except HostUnavailableError as error:
            log.warning("%s; it is not known how %s ended", error, unit)
            return None
        return found

    def read_up_to(self, cursor: str, *, durable: bool) -> None:
        """Remember how far the journal was read; what is read twice is recorded once.

        Over healer's own end only where all that was found up to there is ``durable``.
        """
        self._cursor = cursor
        if not durable:
            return
        try:
            write_atomically(self._cursor_path, cursor.encode(), 0o600)
        except OSError as error:
            log.warning("cannot write %s: %s", self._cursor_path, error.strerror)

    def handled(self, ended: Ended) -> None:
        """Do not tell of this end again."""
        self._handled.add(ended.stamp)

    def durable(self, ended: Ended) -> None:
        """Note that this end's stamp has served; may be called from any thread."""
        self._removable.add(ended.stamp)

    def to_remove(self) -> list[str]:
        """Return the stop stamps to remove, if it is worth the effort."""
        durable = frozenset(self._removable)  # the ledger's thread may add to it
        if len(durable) < _STAMPS_KEPT:
            return []
        there = stamps.still_there(self.stamps, durable)
        self._removable -= durable.difference(there)
        return there[:_STAMPS_AT_ONCE] if len(there) >= _STAMPS_KEPT else []

    async def with_toplevel(self, ended: Ended, current: str | None, since: Instant) -> Ended:
        """Add the toplevel to an end without a start stamp, where that is beyond doubt.

        The start stamp is missing when an agent died before it was up. Only what was started
        after ``current`` was seen to be active ran under it for sure.
        """
        if ended.toplevel is not None or since.boot != ended.boot:
            return ended
        try:
            started = await self._ask(journal.started_ms, ended.unit, ended.invocation)
        except HostUnavailableError:
            return ended
        if started is None:
            return ended
        ended = replace(ended, start_uptime_ms=started)
        if current is None or started <= since.uptime_ms:
            return ended
        units = f"{current}/etc/systemd/system"
        return replace(ended, toplevel=current, unit_file=stamps.unit_file(units, ended.unit))

    def prefetch(self, unit: str, invocation: str, lines: int) -> None:
        """Begin to ask what ``context`` will ask, before the end's stamp is there."""
        asked = asyncio.get_running_loop().create_task(self._last_words(unit, invocation, lines))
        self._asked[unit] = (invocation, asked)

    async def context(self, ended: Ended, agent: Agent) -> Context:
        """Return what the journal knows of an end: whether it was asked for, the last lines."""
        lines = agent.journal_lines
        invocation, asked = self._asked.pop(ended.unit, ("", None))
        # PID 1 does not log a clean exit, and where there was no process, there was none.
        exits = ended.result != "success" and bool(ended.code)
        # The stamp has asked PID 1 already where the journal may not know yet.
        knows = ended.asked is not None
        words = None
        if exits and asked is not None and invocation == ended.invocation:
            words = await asked
        if words is None or (words.stop_requested is None and not knows):
            words = await self._last_words(
                ended.unit, ended.invocation, lines, exits=exits, knows=knows
            )
        requested = bool(words.stop_requested)
        if agent.breadcrumb is None or ended.result == "success" or ended.source != "stamp":
            return Context(stop_requested=requested, journal=words.lines)
        return Context(
            stop_requested=requested,
            journal=tuple(line for line in words.lines if not line.startswith(_BREADCRUMB)),
            breadcrumb=await self._breadcrumb(ended.unit, ended.invocation),
        )

    async def _breadcrumb(self, unit: str, invocation: str) -> str | None:
        """Return what nix/last-crash.sh wrote behind the stamp; None if the agent left nothing.

        Where journald is late, that shell is gone: then the line has no invocation of journald's,
        or that of the run after it.
        """
        begins = f"{_BREADCRUMB}{invocation} "
        for pause in _BREADCRUMB_LAG_SEC:
            try:
                line = await self._ask(journal.newest_line, unit, begins)
            except HostUnavailableError:
                return None
            if line is not None:
                try:
                    return msgspec.json.decode(line.removeprefix(begins), type=str | None)
                except msgspec.MsgspecError:  # the agent's own doing, or cut off by journald
                    return None
            await asyncio.sleep(pause)
        return None

    async def _last_words(
        self, unit: str, invocation: str, lines: int, *, exits: bool = True, knows: bool = False
    ) -> LastWords:
        """Ask the journal, again until it has all that PID 1 records of the end, for a short while.

        Its record of the exit is among that where ``exits``, and whether somebody asked for the end
        unless that is known (``knows``). journald can be busy; the crash itself waits no longer
        than this.
        """
        words = LastWords(exited=False, stop_requested=None, lines=())
        for pause in _JOURNAL_LAG_SEC:
            try:
                words = await self._ask(journal.last_words, unit, invocation, lines)
            except HostUnavailableError as error:
                log.warning("%s; the end of %s is recorded without its last lines", error, unit)
                break
            if (knows or words.stop_requested is not None) and (words.exited or not exits):
                break
            await asyncio.sleep(pause)
        return words

    def _stored_cursor(self) -> str | None:
        try:
            return self._cursor_path.read_text(encoding="ascii", errors="replace")
        except OSError:
            return None

    async def _ask(self, question: Any, *arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._journal, question, *arguments)
