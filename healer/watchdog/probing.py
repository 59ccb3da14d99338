"""The loop that makes the declared health checks, each at its own beat."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from healer.config import Config, HealthCheck
from healer.decisions import Decisions
from healer.events import Instant, UnitState
from healer.host import clock
from healer.records import Record
from healer.watchdog import health
from healer.watchdog.beats import Beats, beat
from healer.watchdog.health import Outcome
from healer.watchdog.probes import AT_ONCE, Found, Probes
from healer.watchdog.units import Units

log = logging.getLogger(__name__)

# Each holds a file descriptor or a process; of either, 1,024 is a common limit.
_MOST_UNDER_WAY = 200


@dataclass(slots=True, eq=False)
class _Declared:
    """One agent's check, and what it found last.

    It is ``busy`` while it is under way, or waits until others are not.
    """

    name: str
    unit: str
    check: HealthCheck
    busy: bool = False
    outcome: Outcome | None = None


class Prober:
    """Makes checks and hands on what is decided; ``changed`` is told when an outcome differs."""

    def __init__(
        self,
        decisions: Decisions,
        units: Units,
        record: Callable[[Iterable[Record]], object],
        changed: Callable[[], None],
    ) -> None:
        self._decisions = decisions
        self._units = units
        self._record = record
        self._changed = changed
        self._probes = Probes()
        self._under_way: dict[asyncio.Future[Found], tuple[_Declared, UnitState]] = {}
        self._waiting: deque[_Declared] = deque()
        self._wake = asyncio.Event()

    def reload(self) -> None:
        """Notice the decisions' new configuration."""
        self._wake.set()

    async def run(self) -> None:
        """Make each declared check, until cancelled; a new configuration begins anew."""
        try:
            while True:
                await self._run(self._decisions.config)
        finally:
            await self._probes.close()

    async def _run(self, config: Config) -> None:
        loop = asyncio.get_running_loop()
        checks = [
            _Declared(name, agent.unit, check)
            for name, agent in config.agents.items()
            for check in agent.health
        ]
        beats = Beats(loop.time(), [beat(each.name, each.check) for each in checks])
        try:
            while self._decisions.config is config:
                self._wake.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(beats.next_sec):
                        await self._wake.wait()
                now = clock.now()
                self._take_answers(now)
                self._probes.forget()
                for number in beats.due(loop.time()):
                    self._begin(checks[number], now)
        finally:
            await self._give_up()

    def _begin(self, each: _Declared, now: Instant) -> None:
        """Begin a check, unless it is under way still: a slow one leaves out beats."""
        if each.busy or (state := self._units.up(each.unit)) is None:
            return
        if not health.is_due(each.check, self._decisions.agent(each.name), state):
            return
        if len(self._under_way) >= _MOST_UNDER_WAY and not isinstance(each.check, AT_ONCE):
            each.busy = True
            self._waiting.append(each)
            return
        found = self._probes.begin(each.check, each.unit, state)
        if isinstance(found, asyncio.Future):
            each.busy = True
            self._under_way[found] = (each, state)
            found.add_done_callback(lambda _: self._wake.set())
        else:
            self._tell(each, state, found, now)

    def _take_answers(self, now: Instant) -> None:
        for future in [future for future in self._under_way if future.done()]:
            self._take(*self._under_way.pop(future), future.result(), now)
        while self._waiting and len(self._under_way) < _MOST_UNDER_WAY:
            each = self._waiting.popleft()
            each.busy = False
            self._begin(each, now)

    def _take(self, each: _Declared, state: UnitState, found: Found, now: Instant) -> None:
        """Take the answer that was waited for, unless what it is about has ended since."""
        each.busy = False
        up = self._units.up(each.unit)
        if up is not None and up.invocation == state.invocation:
            self._tell(each, state, found, now)

    def _tell(self, each: _Declared, state: UnitState, found: Found, now: Instant) -> None:
        """Hand a check's outcome on to the decisions."""
        outcome, detail = found
        self._record(self._decisions.on_probe(each.name, each.check, state, outcome, detail, now))
        if each.outcome is not outcome:
            each.outcome = outcome
            self._changed()
            if outcome is Outcome.ERROR:
                why = (each.check.name, each.name, detail)
                log.warning("health check %s of %s cannot be made: %s", *why)

    async def _give_up(self) -> None:
        """End what is under way; nobody asks any more."""
        under_way = [*self._under_way]
        self._under_way.clear()
        self._waiting.clear()
        for future in under_way:
            future.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
