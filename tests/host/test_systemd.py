"""The connection to the system bus."""

import asyncio
import os
from pathlib import Path

import pytest

from healer.errors import HostUnavailableError
from healer.host.systemd import SystemBus


async def lose_the_descriptor(address: Path) -> bool:
    """Drop a connection whose descriptor is another's by now; return whether one is left."""

    async def say_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with await asyncio.start_unix_server(say_nothing, address):
        bus = SystemBus(lambda _unit, _changed: None, lambda: None)
        connecting = asyncio.ensure_future(bus.connect(frozenset()))
        while bus._bus is None:
            await asyncio.sleep(0)
        descriptor = bus._bus.get_fd()
        os.close(descriptor)
        _, other = await asyncio.open_unix_connection(address)
        assert other.get_extra_info("socket").fileno() == descriptor
        bus.close()
        connecting.cancel()
        return bus._bus is not None


def test_a_descriptor_that_is_anothers_by_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path / 'bus'}")
    assert not asyncio.run(lose_the_descriptor(tmp_path / "bus"))


def test_a_bus_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path / 'none'}")
    bus = SystemBus(lambda _unit, _changed: None, lambda: None)
    with pytest.raises(HostUnavailableError, match="does not answer"):
        asyncio.run(bus.connect(frozenset()))
