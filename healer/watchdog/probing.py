"""The loop that makes the declared health checks, each at its own beat."""

import asyncio
import logging
from collections.abc import Callable, Iterable

from healer.config import Config, HealthCheck
from healer.decisions import Decisions
from healer.host import clock
from healer.records import Record
from healer.watchdog import health
from healer.watchdog.health import Outcome
from healer.watchdog.probes import Probes
from healer.watchdog.units import Units

log = logging.getLogger(__name__)

_TICK_SEC = 1.0
# Each holds a file descriptor or a process; of either, 1,024 is a common limit.
_AT_ONCE = 200


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

    async def run(self) -> None:
        """Make each declared check, until cancelled; a new configuration begins anew."""
        probes = Probes()
        try:
            while True:
                await self._run(self._decisions.config, probes)
        finally:
            await probes.close()

    async def _run(self, config: Config, probes: Probes) -> None:
        at_once = asyncio.Semaphore(_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            checks = [
                group.create_task(self._keep_looking(config, name, check, probes, at_once))
                for name, agent in config.agents.items()
                for check in agent.health
            ]
            while self._decisions.config is config:
                await asyncio.sleep(_TICK_SEC)
            for task in checks:
                task.cancel()

    async def _keep_looking(
        self,
        config: Config,
        name: str,
        check: HealthCheck,
        probes: Probes,
        at_once: asyncio.Semaphore,
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            now = loop.time()
            await asyncio.sleep(health.next_look(now, name, check) - now)
            async with at_once:
                await self._look(config, name, check, probes)

    async def _look(self, config: Config, name: str, check: HealthCheck, probes: Probes) -> None:
        unit = config.agents[name].unit
        state = self._units.states.get(unit)
        if state is None or not state.running:
            return
        if not health.is_due(check, self._decisions.agent(name), state):
            return
        outcome, detail = await probes.look(check, unit, state)
        before = self._decisions.streaks.get((name, check.name))
        self._record(self._decisions.on_probe(name, check, state, outcome, detail, clock.now()))
        if before is None or before.outcome != outcome:
            self._changed()
            if outcome is Outcome.ERROR:
                log.warning("health check %s of %s cannot be made: %s", check.name, name, detail)
