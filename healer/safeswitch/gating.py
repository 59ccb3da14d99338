"""The loop that looks at the gates, for as long as a deployment is judged or on trial."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial

from healer.config import Gate, NetworkGate, UnitGate, as_check
from healer.decisions import Decisions
from healer.errors import HealerError, HostUnavailableError
from healer.events import Instant, UnitState
from healer.host import clock
from healer.host.netlink import Netlink
from healer.host.systemd import SystemBus
from healer.records import Record
from healer.safeswitch import gates
from healer.safeswitch.gates import Looked
from healer.watchdog.health import Outcome
from healer.watchdog.probes import Probes
from healer.watchdog.probes.listen import listeners

log = logging.getLogger(__name__)

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


async def watch(gate: Gate, looks: Looks, tell: Callable[[bool, str], None]) -> None:
    """Look at a gate again and again, until cancelled; tell whenever it can be said if it holds."""
    looked, told = Looked(), ""
    while True:
        outcome, detail = await looks.look(gate)
        looked = looked.then(outcome)
        holds = looked.holds(gate)
        if outcome is Outcome.ERROR:
            if detail != told:
                log.warning("gate %s cannot be looked at: %s", gate.name, detail)
            told = detail
        elif holds is not None:
            tell(holds, detail)
        await asyncio.sleep(gate.interval_sec)


async def watch_alone(declared: Iterable[Gate], tell: Callable[[str, bool, str], None]) -> None:
    """Watch gates without a daemon, until cancelled; tell only what changes."""
    bus = SystemBus(lambda *_: None, lambda: None)
    standing: dict[str, bool] = {}

    async def active_state(unit: str) -> str | None:
        try:
            return await bus.active_state(unit)
        except HostUnavailableError:
            await bus.connect(frozenset())
            return await bus.active_state(unit)

    def changed(gate: str, holds: bool, detail: str) -> None:
        if standing.get(gate) != holds:
            standing[gate] = holds
            tell(gate, holds, detail)

    looks = Looks(active_state)
    try:
        async with asyncio.TaskGroup() as group:
            for gate in declared:
                group.create_task(watch(gate, looks, partial(changed, gate.name)))
    finally:
        await looks.close()


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
        self._judging = self._judged()
        self._changed = asyncio.Event()

    def look_again(self) -> None:
        """Notice that there is another deployment to judge, or none, or other gates."""
        if self._judged() != self._judging:
            self._changed.set()

    async def run(self) -> None:
        """Look in each probation, until cancelled; another deployment or configuration is anew."""
        while True:
            self._changed.clear()
            self._judging = judged = self._judged()
            if judged.gates:
                looks = Looks(self._active_state)
                try:
                    await self._run(judged, looks)
                finally:
                    await looks.close()
            await self._changed.wait()

    async def _run(self, judged: "_Judged", looks: Looks) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(watch(gate, looks, partial(self._tell, judged, gate.name)))
                for gate in judged.gates
            ]
            await self._changed.wait()
            for task in tasks:
                task.cancel()

    def _tell(self, judged: "_Judged", gate: str, holds: bool, detail: str) -> None:
        # What was seen while one deployment followed another says nothing about either.
        if self._judged() == judged:
            self._record(self._decisions.on_gate(gate, holds, detail, clock.now()))

    def _judged(self) -> "_Judged":
        config, state = self._decisions.config.safe_switch, self._decisions.deployment
        judging = config.enable and state.under_observation
        return _Judged(config.gates if judging else (), state.current, state.since)


@dataclass(frozen=True, slots=True)
class _Judged:
    """What is looked at now, and the deployment, in its boot, that is judged by it."""

    gates: tuple[Gate, ...]
    toplevel: str | None
    since: Instant | None
