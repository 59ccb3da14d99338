"""The loop that looks at the gates, for as long as a deployment is judged."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from healer.config import Gate, NetworkGate, UnitGate, as_check
from healer.decisions import Decisions
from healer.errors import HealerError
from healer.events import Instant, UnitState
from healer.host import clock
from healer.host.netlink import Netlink
from healer.records import Record
from healer.safeswitch import gates
from healer.safeswitch.gates import Looked
from healer.watchdog.health import Outcome
from healer.watchdog.probes import Probes
from healer.watchdog.probes.listen import listeners

log = logging.getLogger(__name__)

_TICK_SEC = 0.5
# The probes that a gate shares with health checks look at no unit.
_NO_UNIT = UnitState("active", "running", "", 0, 0, "", 0, 0, 0)

ActiveState = Callable[[str], Awaitable[str | None]]


class Looks:
    """Looks at gates, and keeps what they share; ``active_state`` asks systemd for a unit's."""

    def __init__(self, active_state: ActiveState) -> None:
        self._active_state = active_state
        self._probes = Probes()
        self._netlink = Netlink()

    async def close(self) -> None:
        """Look no more."""
        await self._probes.close()
        await self._netlink.close()

    async def look(self, gate: Gate) -> tuple[Outcome, str]:
        """Look at one gate; return the outcome and what was seen."""
        try:
            match gate:
                case UnitGate():
                    async with asyncio.timeout(gate.timeout_sec):
                        return gates.judge_unit(gate, await self._active_state(gate.unit))
                case NetworkGate():
                    network = await self._netlink.look(gate.timeout_sec if gate.gateway else None)
                    listens = gate.sshd is not None and any(True for _ in listeners(gate.sshd))
                    return gates.judge_network(gate, network, sshd_listens=listens)
                case _:
                    return await self._probes.look(as_check(gate), "", _NO_UNIT)
        except TimeoutError:
            return Outcome.ERROR, f"the host did not answer within {gate.timeout_sec:g} s"
        except (OSError, HealerError) as error:
            return Outcome.ERROR, str(error)


class GateProber:
    """Looks at the declared gates in probations, and hands on what is decided."""

    def __init__(
        self,
        decisions: Decisions,
        active_state: ActiveState,
        record: Callable[[Iterable[Record]], object],
    ) -> None:
        self._decisions = decisions
        self._active_state = active_state
        self._record = record

    async def run(self) -> None:
        """Look in each probation, until cancelled; a new configuration begins anew."""
        while True:
            declared = self._judged()
            if declared:
                await self._run(declared)
            await asyncio.sleep(_TICK_SEC)

    def _judged(self) -> tuple[Gate, ...]:
        """Return the gates that are to be looked at now."""
        config = self._decisions.config.safe_switch
        judging = config.enable and self._decisions.deployment.under_observation
        return config.gates if judging else ()

    async def _run(self, declared: tuple[Gate, ...]) -> None:
        looks = Looks(self._active_state)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._keep_looking(gate, looks)) for gate in declared]
                while self._judged() is declared:
                    await asyncio.sleep(_TICK_SEC)
                for task in tasks:
                    task.cancel()
        finally:
            await looks.close()

    async def _keep_looking(self, gate: Gate, looks: Looks) -> None:
        looked, judged, told = Looked(), self._deployment(), ""
        while True:
            outcome, detail = await looks.look(gate)
            if self._deployment() != judged:
                # What was seen while one deployment followed another says nothing about either.
                looked, judged = Looked(), self._deployment()
            else:
                looked = looked.then(outcome)
                ok = looked.holds(gate)
                if ok is not None and outcome is not Outcome.ERROR:
                    self._record(self._decisions.on_gate(gate.name, ok, detail, clock.now()))
            if outcome is Outcome.ERROR and detail != told:
                log.warning("gate %s cannot be looked at: %s", gate.name, detail)
            told = detail if outcome is Outcome.ERROR else ""
            await asyncio.sleep(gate.interval_sec)

    def _deployment(self) -> tuple[str | None, Instant | None]:
        state = self._decisions.deployment
        return state.current, state.since
