"""systemd over sd-bus: which units run, and word of it when that changes.

One match rule covers every unit, so that 1,000 agents cost the bus no more than one. A signal is
only a hint: whoever is told of a unit asks for its state. The connection is watched by a ping,
because sd-bus does not say when the bus daemon was killed.
"""

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sdbus import SdBusBaseError, sd_bus_open_system
from sdbus.sd_bus_internals import SdBus, SdBusMessage

from healer.errors import HostUnavailableError
from healer.events import UnitState
from healer.host import clock

_SYSTEMD = "org.freedesktop.systemd1"
_MANAGER_PATH = "/org/freedesktop/systemd1"
_MANAGER = "org.freedesktop.systemd1.Manager"
_PROPERTIES = "org.freedesktop.DBus.Properties"
_UNIT_PREFIX = "/org/freedesktop/systemd1/unit/"
_BUS = "org.freedesktop.DBus"
_BUS_PATH = "/org/freedesktop/DBus"
_TIMEOUT_SEC = 5.0
_PATIENCE_SEC = 10.0


class SystemBus:
    """One subscribed connection to the system bus.

    ``on_unit(unit, changed)`` is called with the properties that a signal carried, for the declared
    units only; ``on_reload()`` after systemd re-read its unit files.
    """

    def __init__(
        self,
        on_unit: Callable[[str, Mapping[str, Any]], None],
        on_reload: Callable[[], None],
    ) -> None:
        self._on_unit = on_unit
        self._on_reload = on_reload
        self._bus: SdBus | None = None
        self._slots: list[object] = []  # a match lives as long as its slot
        self._units: dict[str, str] = {}

    async def connect(self, units: frozenset[str]) -> None:
        """Connect, subscribe and watch ``units``.

        Raises HostUnavailableError when the bus or systemd does not answer.
        """
        self.close()
        self._units = {unit_path(unit): unit for unit in units}
        try:
            bus = sd_bus_open_system()
            self._bus = bus
            # Without Subscribe() PID 1 sends no signals (org.freedesktop.systemd1(5)).
            await self._call(_MANAGER_PATH, _MANAGER, "Subscribe")
            self._slots = [
                await bus.match_signal_async(
                    _SYSTEMD, None, _PROPERTIES, "PropertiesChanged", self._properties_changed
                ),
                await bus.match_signal_async(
                    _SYSTEMD, _MANAGER_PATH, _MANAGER, "Reloading", self._reloading
                ),
            ]
        except (SdBusBaseError, OSError) as error:
            self.close()
            raise HostUnavailableError(f"the system bus does not answer: {error}") from error

    def close(self) -> None:
        """Drop the connection; its subscription goes with it."""
        if self._bus is not None:
            self._slots.clear()
            bus, self._bus = self._bus, None
            # Where the bus went away, sd-bus has closed its descriptor already. By now the number
            # can be that of another connection, which asyncio does not let anybody stop watching.
            with contextlib.suppress(RuntimeError):
                bus.close()

    def watch(self, units: frozenset[str]) -> None:
        """Watch these units from now on instead."""
        self._units = {unit_path(unit): unit for unit in units}

    async def ping(self) -> None:
        """Make a round trip to the bus; raises HostUnavailableError when it is not answered.

        Not to systemd: that one can be busy for a minute, with a thousand restarts say, and to
        connect and ask for everything anew is the last that helps it.
        """
        await self._call(_BUS_PATH, _BUS, "GetId", peer=_BUS)

    async def is_answering(self) -> bool:
        """Wait for systemd to answer, for a while; whether it did."""
        try:
            peer = "org.freedesktop.DBus.Peer"
            await self._call("/", peer, "Ping", timeout_sec=_PATIENCE_SEC)
        except HostUnavailableError:
            return False
        return True

    async def sub_states(self, units: Iterable[str]) -> dict[str, str]:
        """Return the SubState of each of these units, in one call however many they are."""
        listed = await self._call(_MANAGER_PATH, _MANAGER, "ListUnitsByNames", "as", sorted(units))
        return {name: sub for name, _, _, _, sub, *_ in listed}

    async def active_state(self, unit: str) -> str | None:
        """Return the ActiveState of a unit of any type; None when systemd knows no such unit."""
        listed = await self._call(_MANAGER_PATH, _MANAGER, "ListUnitsByNames", "as", [unit])
        ((_, _, load_state, active_state, *_),) = listed
        return None if load_state == "not-found" else str(active_state)

    async def unit_state(self, unit: str) -> UnitState | None:
        """Return a unit's state now; None when systemd knows no such unit."""
        path = unit_path(unit)
        of_unit = await self._call(path, _PROPERTIES, "GetAll", "s", f"{_SYSTEMD}.Unit")
        if of_unit["LoadState"][1] == "not-found":
            return None
        of_service = await self._call(path, _PROPERTIES, "GetAll", "s", f"{_SYSTEMD}.Service")
        started_us = of_service["ExecMainStartTimestampMonotonic"][1]
        limit = {of_unit[f"StartLimit{part}"][1] for part in ("IntervalUSec", "Burst")}
        return UnitState(
            active_state=of_unit["ActiveState"][1],
            sub_state=of_unit["SubState"][1],
            invocation=bytes(of_unit["InvocationID"][1]).hex(),
            main_pid=of_service["MainPID"][1],
            n_restarts=of_service["NRestarts"][1],
            status_text=of_service["StatusText"][1],
            since_us=of_unit["StateChangeTimestamp"][1],
            since_ms=clock.from_monotonic_us(of_unit["StateChangeTimestampMonotonic"][1]),
            active_enter_ms=clock.from_monotonic_us(of_unit["ActiveEnterTimestampMonotonic"][1]),
            start_ms=clock.from_monotonic_us(started_us) if started_us else None,
            notifies=of_service["Type"][1] in {"notify", "notify-reload"},
            start_limit=0 not in limit,
        )

    async def _call(
        self,
        path: str,
        interface: str,
        method: str,
        signature: str = "",
        *arguments: Any,
        peer: str = _SYSTEMD,
        timeout_sec: float = _TIMEOUT_SEC,
    ) -> Any:
        if self._bus is None:
            raise HostUnavailableError("the system bus is not connected")
        try:
            message = self._bus.new_method_call_message(peer, path, interface, method)
            if signature:
                message.append_data(signature, *arguments)
            reply = await asyncio.wait_for(self._bus.call_async(message), timeout_sec)
            return reply.get_contents()
        except (SdBusBaseError, OSError, TimeoutError) as error:
            text = str(error) or type(error).__name__
            who = "systemd" if peer == _SYSTEMD else "the system bus"
            raise HostUnavailableError(f"{who} does not answer {method}: {text}") from error

    def _properties_changed(self, message: SdBusMessage) -> None:
        unit = self._units.get(message.path or "")
        if unit is not None:
            contents: Any = message.get_contents()
            _, changed, _ = contents
            self._on_unit(unit, {name: value for name, (_, value) in changed.items()})

    def _reloading(self, message: SdBusMessage) -> None:
        if not message.get_contents():
            self._on_reload()


def unit_path(unit: str) -> str:
    """Return a unit's object path: what is not [A-Za-z0-9] is escaped as _xx (sd_bus_path_encode).

    A leading digit is escaped too.
    """
    escaped = re.sub(
        r"^[0-9]|[^A-Za-z0-9]",
        lambda found: "".join(f"_{byte:02x}" for byte in found[0].encode()),
        unit,
    )
    return _UNIT_PREFIX + escaped
