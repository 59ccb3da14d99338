"""What systemd says of the agents' units, kept current over sd-bus.

Signals only mark a unit as changed; ``refresh`` then asks for its state. Whoever lost the bus asks
for every unit anew once it is back.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from healer.errors import HostUnavailableError
from healer.events import CoreDump, Death, Ended, UnitState
from healer.host import clock
from healer.host.pidfd import Deaths
from healer.host.systemd import SystemBus
from healer.watchdog.status_texts import StatusTexts

log = logging.getLogger(__name__)

_PING_SEC = 3.0
_RETRY_SEC = 1.0
# How many units are asked for before anything else is looked at: PID 1 is slow in a storm.
_AT_ONCE = 100
# How many answers are waited for at a time: not one more than PID 1 gives in a moment.
_TOGETHER = 10
# How many units are asked for in each reconciliation though nothing is known to have changed.
_IN_TURN = 10
_FAILED_STATES = frozenset({"failed", "auto-restart", "auto-restart-queued", "dead"})


class Units:
    """The declared units' states.

    ``on_change(failed)`` is called when a signal came; ``failed`` says that an invocation ended,
    or that nothing is known any more (the bus was away), so that other evidence is due.
    ``on_death(unit, invocation)`` is called when the kernel says that a main process is gone.
    """

    def __init__(
        self,
        declared: frozenset[str],
        texts: StatusTexts,
        on_change: Callable[[bool], None],
        on_death: Callable[[str, str], None],
    ) -> None:
        self.states: dict[str, UnitState] = {}
        self._missing: set[str] = set()
        self._declared = declared
        self._on_change = on_change
        self._bus = SystemBus(self._unit_changed, self.all_changed)
        self._deaths = Deaths(on_death)
        self._connected = False
        # systemd left a question unanswered. The bus keeps count of these, and takes only so many
        # (max_replies_per_connection, dbus-daemon(1)): nothing is asked before one is answered.
        self._busy = False
        # In the order of their turn: in a storm those at the end are asked for too.
        self._dirty: dict[str, None] = {}
        # What was asked for last before an end was recorded, or before the bus was away.
        self._stale = set(declared)
        self._checked = 0
        self._texts = texts

    def declare(self, units: frozenset[str]) -> None:
        """Watch these units from now on."""
        self._declared = units
        self._bus.watch(units)
        self._deaths.keep(units)
        self.states = {unit: state for unit, state in self.states.items() if unit in units}
        self._missing &= units
        self.all_changed()

    @property
    def fresh(self) -> Mapping[str, UnitState]:
        """The states that were asked for after the last recorded end of their units."""
        if not self._stale:
            return self.states
        return {unit: state for unit, state in self.states.items() if unit not in self._stale}

    @property
    def gone(self) -> list[str]:
        """The units that systemd knew nothing of, when it was asked after their last change."""
        return sorted(self._missing - self._stale)

    def up(self, unit: str) -> UnitState | None:
        """Return the state of a unit that runs; None where it does not, as far as anybody knows.

        systemd can be busy for a while with an end that the kernel, or its stamp, told of already.
        """
        state = self.states.get(unit)
        if state is None or not state.running or unit in self._stale:
            return None
        return None if self._deaths.is_gone(unit, state.main_pid) else state

    async def keep_connected(self) -> None:
        """Stay connected to the bus, until cancelled."""
        told = False
        while True:
            try:
                await self._bus.connect(self._declared)
                self._connected, self._busy, told = True, False, False
                self.all_changed()
                while True:
                    await asyncio.sleep(_PING_SEC)
                    await self._bus.ping()
                    if self._busy and await self._bus.is_answering():
                        self._busy = False
                        self._on_change(False)
            except HostUnavailableError as error:
                self._connected = False
                # At once: its descriptor may be closed, and is soon another's.
                self._bus.close()
                self._stale = set(self._declared)
                if not told:
                    log.warning("%s; trying again every %g s", error, _RETRY_SEC)
                    told = True
                await asyncio.sleep(_RETRY_SEC)

    async def refresh(self, alive: Callable[[], None]) -> None:
        """Ask for the state of units that changed; of the rest of many in the next call.

        ``alive`` is called after each few: PID 1 may be slow to answer.
        """
        self._texts.flush()
        if not self._connected or self._busy:
            return
        due = [unit for unit in self._dirty if unit in self._declared][:_AT_ONCE]
        for first in range(0, len(due), _TOGETHER):
            units = due[first : first + _TOGETHER]
            # Before asking: what happens meanwhile marks them again.
            for unit in units:
                self._dirty.pop(unit, None)
            self._stale.difference_update(units)
            if not all(await asyncio.gather(*map(self._ask, units))):
                return
            alive()
        if self._dirty.keys() & self._declared:
            self._on_change(False)

    async def reconcile(self) -> None:
        """Find the units whose change no signal told, and those that were missing.

        A lost signal can hide in an unchanged state: some units in turn are asked for anew.
        """
        if not self._connected or self._busy:
            return
        try:
            listed = await self._bus.sub_states(self._declared)
        except HostUnavailableError as error:
            self._unanswered(error)
            return
        known = {unit: state.sub_state for unit, state in self.states.items()}
        ordered = sorted(self._declared)
        in_turn = ordered[self._checked : self._checked + _IN_TURN]
        changed = [unit for unit in ordered if listed.get(unit) != known.get(unit)]
        self._dirty |= dict.fromkeys([*changed, *in_turn])
        self._checked += _IN_TURN
        if self._checked >= len(ordered):
            self._checked = 0

    async def state_of(self, unit: str) -> UnitState | None:
        """Ask for the state of any unit now; raises HostUnavailableError."""
        return await self._bus.unit_state(unit)

    async def active_state_of(self, unit: str) -> str | None:
        """Ask for the ActiveState of a unit of any type now; raises HostUnavailableError."""
        return await self._bus.active_state(unit)

    def mark(self, unit: str) -> None:
        """Have the next ``refresh`` ask for this unit, one of whose ends was recorded."""
        self._dirty.setdefault(unit)
        self._stale.add(unit)

    def all_changed(self) -> None:
        """Have the next ``refresh`` ask for every unit."""
        self._dirty |= dict.fromkeys(sorted(self._declared))
        self._stale = set(self._declared)
        self._on_change(True)

    def status_text(self, ended: Ended) -> str | None:
        """Return the last STATUS= that was seen before this end."""
        stop = ended.stop_uptime_ms if ended.stop_uptime_ms is not None else clock.uptime_ms()
        return self._texts.before(ended.unit, stop)

    def death_of(self, ended: Ended) -> Death | None:
        """Return what the kernel said of the main process that ended, if it was watched."""
        if ended.boot != clock.boot_id():
            return None
        return self._deaths.of(ended.unit, ended.invocation)

    def is_main(self, dump: CoreDump) -> bool:
        """Whether it was the main process of its invocation that dumped core, as far as known."""
        return self._deaths.is_watched(dump.unit, dump.invocation, dump.pid)

    def n_restarts(self, unit: str) -> int | None:
        """Return systemd's count of a unit's automatic restarts, when it was last asked."""
        state = self.states.get(unit)
        return state.n_restarts if state else None

    async def _ask(self, unit: str) -> bool:
        """Ask for a unit's state; whether there was an answer."""
        try:
            self._take(unit, await self._bus.unit_state(unit))
        except HostUnavailableError as error:
            self.mark(unit)
            self._unanswered(error)
            return False
        return True

    def _unanswered(self, error: HostUnavailableError) -> None:
        if not self._busy:
            log.warning("%s; asking again once it does", error)
        self._busy = True

    def _take(self, unit: str, state: UnitState | None) -> None:
        if state is not None:
            self._texts.begin(unit, state.invocation)
            self._texts.note(unit, state.status_text)
            state = replace(state, first_status=self._texts.first(unit, state.invocation))
            self.states[unit] = state
            self._missing.discard(unit)
            self._deaths.watch(unit, state.invocation, state.main_pid)
            return
        self.states.pop(unit, None)
        self._missing.add(unit)

    def _unit_changed(self, unit: str, changed: Mapping[str, Any]) -> None:
        self._dirty.setdefault(unit)
        if "InvocationID" in changed:
            self._texts.begin(unit, bytes(changed["InvocationID"]).hex())
        self._texts.note(unit, changed.get("StatusText", ""))
        self._on_change(changed.get("SubState") in _FAILED_STATES)
