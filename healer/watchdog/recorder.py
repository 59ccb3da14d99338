"""Records how each invocation ended: from its stop stamp within milliseconds, or from the journal.

A stamp is looked for in a task of its own as soon as one is written, so that a crash's entry waits
for no answer of systemd's, which is busy restarting just then. What the agent was doing is asked
of the journal even before that, when the kernel says that the main process is gone.
"""

import asyncio
import concurrent.futures
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace

from healer.decisions import Decisions
from healer.events import Ended, Systems
from healer.host import clock
from healer.host.inotify import WRITTEN, Watches
from healer.ledger.entry import Entry
from healer.ledger.writer import Ledger
from healer.records import Record
from healer.watchdog import itself
from healer.watchdog.ends import Ends
from healer.watchdog.units import Units

log = logging.getLogger(__name__)

_RECONCILE_SEC = 10.0
# After systemd said that a unit failed, its journal record and its stamp are there this soon.
_JOURNAL_LAG_SEC = 0.3

Written = list["concurrent.futures.Future[Entry]"]


class Recorder:
    """Finds ended invocations and records them.

    ``record`` hands decided records to the ledger; ``look_at_systems`` is called before stamps are
    read, for a system was active before anything was started under it; ``remove_stamps`` has
    recorded ones removed and calls back; ``recorded`` is called after an end was.
    """

    def __init__(
        self,
        decisions: Decisions,
        units: Units,
        ledger: Ledger,
        record: Callable[[Iterable[Record]], Written],
        look_at_systems: Callable[[], Awaitable[Systems]],
        remove_stamps: Callable[[list[str], Callable[[], None]], None],
        recorded: Callable[[], None],
    ) -> None:
        self._decisions = decisions
        self._units = units
        self._ledger = ledger
        self._record = record
        self._look_at_systems = look_at_systems
        self._remove_stamps = remove_stamps
        self._recorded = recorded
        self._ends = Ends(decisions.config)
        self._written = asyncio.Event()
        self._new: set[str] = set()
        self._one_at_a_time = asyncio.Lock()
        self._switching = False
        self._removing = False
        self._journal_due_ms = 0
        self._gap = False

    async def run(self) -> None:
        """Record ends as their stamps are written, until cancelled."""
        watches = Watches(self._stamp_written, WRITTEN)
        watches.open()
        watches.set({self._ends.stamps: None})
        try:
            while True:
                await self._written.wait()
                self._written.clear()
                # In a storm there are thousands of others beside each new one.
                names, self._new = self._new, set()
                await self._end_all(await self._ends.stamped_as(names, *self._about_stamps))
        finally:
            watches.close()
            self._ends.close()

    async def previous_end(self, last: Record | None) -> dict[str, str] | None:
        """Return how healer's own run before this one ended; None where it could say so itself.

        ``last`` is the last record of a run's begin or end.
        """
        if last is None or not itself.ended_unsaid(last, clock.boot_id()):
            return None
        return itself.previous_end(last, await self._ends.last_failure(itself.UNIT))

    def died(self, unit: str, invocation: str) -> None:
        """Ask what an agent was doing: its main process is gone, and its stamp follows."""
        name = self._decisions.agent_of(unit)
        if name is not None:
            self._ends.prefetch(unit, invocation, self._decisions.config.agents[name].journal_lines)

    def journal_soon(self) -> None:
        """Look at the journal as soon as systemd's record of a failure is in it."""
        soon = clock.uptime_ms() + int(_JOURNAL_LAG_SEC * 1000)
        self._journal_due_ms = min(self._journal_due_ms, soon)

    async def look_at_stamps(self, alive: Callable[[], None]) -> None:
        """Record the ends that any stamps tell of; ``alive`` is called after each."""
        await self._end_all(await self._ends.stamped(*self._about_stamps), alive)
        if not self._removing and (names := self._ends.to_remove()):
            self._removing = True
            self._remove_stamps(names, self._stamps_removed)

    @property
    def _about_stamps(self) -> tuple[frozenset[str], Callable[[], Awaitable[None]]]:
        return self._decisions.units, self._note_systems

    async def _end_all(
        self, found: Iterable[Ended], alive: Callable[[], None] = lambda: None
    ) -> None:
        for ended in found:
            await self._end(ended)
            alive()

    async def look_at_journal(self, alive: Callable[[], None]) -> bool:
        """Find the ends that left no stamp, and those from before a reboot, a page at a time.

        Returns whether there is more to look at now. Once there is none, systemd's counts of
        restarts are held against the recorded ends.
        """
        if clock.uptime_ms() < self._journal_due_ms:
            return False
        self._journal_due_ms = clock.uptime_ms() + int(_RECONCILE_SEC * 1000)
        replay = await self._ends.journalled(self._decisions.units)
        if replay is None:
            return False
        if replay.gap and not self._gap:
            reason = "the journal was rotated away behind healer's cursor"
            if replay.cursor is None:
                reason = "there is nothing in the journal that healer may read"
            data = {"what": "journal", "unit": None, "count": None, "reason": reason}
            self._record([Record(clock.now(), "loss", data)])
        # As long as there is no place to read on from, it is the same gap.
        self._gap = replay.gap
        # Where there is a stamp too, it knows more.
        await self.look_at_stamps(alive)
        if replay.ended:
            await self._note_systems()
        await self._end_all(replay.ended, alive)
        for dump in replay.dumped:
            is_main = self._units.is_main(dump)
            self._record(self._decisions.on_dump(dump, clock.now(), is_main=is_main))
        if replay.cursor is not None:
            self._ends.read_up_to(replay.cursor, durable=self._ledger.health().spooled == 0)
        if replay.more:
            self._journal_due_ms = 0
            return True
        await self._units.reconcile()
        alive()
        await self._units.refresh(alive)
        self._record(self._decisions.on_counts(self._units.fresh, clock.now()))
        return False

    async def _note_systems(self) -> None:
        self._switching = (await self._look_at_systems()).switching

    async def _end(self, ended: Ended) -> None:
        """Record one invocation's end, unless it is recorded, or of no declared agent any more."""
        async with self._one_at_a_time:
            name = self._decisions.agent_of(ended.unit)
            if name is None:
                return
            agent = self._decisions.config.agents[name]
            if self._decisions.knows(ended):
                self._ends.handled(ended)
                self._ends.durable(ended)
                return
            deployment = self._decisions.deployment
            if deployment.since is not None:
                since = deployment.since
                ended = await self._ends.with_toplevel(ended, deployment.current, since)
            context = replace(
                await self._ends.context(ended, agent),
                switching=self._switching,
                status_text=self._units.status_text(ended),
                n_restarts=self._units.n_restarts(ended.unit),
                death=self._units.death_of(ended),
            )
            written = self._record(self._decisions.on_ended(ended, context, clock.now()))
            if not written:
                return  # the configuration changed meanwhile
            self._ends.handled(ended)
            self._units.mark(ended.unit)
        written[0].add_done_callback(lambda done: self._durable(done, ended))
        self._recorded()

    def _durable(self, done: "concurrent.futures.Future[Entry]", ended: Ended) -> None:
        """Note, in the ledger's thread, that an end is durable."""
        if done.exception() is None:
            self._ends.durable(ended)

    def _stamp_written(self, name: str) -> None:
        # Where inotify(7) lost names, the daemon's next look finds them.
        if name.endswith(".stop"):
            self._new.add(name)
            self._written.set()

    def _stamps_removed(self) -> None:
        self._removing = False
