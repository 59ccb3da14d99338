"""The loop that makes the checks, with real sockets and more checks than go at once."""

import asyncio
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace

import pytest

from healer.config import Agent, Config, HealthCheck, HttpCheck, ListenCheck, TcpCheck
from healer.decisions import Decisions
from healer.records import Record
from healer.watchdog.health import Outcome
from healer.watchdog.probing import Prober
from healer.watchdog.status_texts import StatusTexts
from healer.watchdog.units import Units
from tests.watchdog.test_health import UNIT


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as server:
        yield server.getsockname()[1]


class Host:
    """Agents that all run, each with one check, and what is found of them."""

    def __init__(self, **checks: HealthCheck) -> None:
        self.records: list[Record] = []
        self.told = asyncio.Event()
        texts = StatusTexts(Config(version=1))
        self.units = Units(frozenset(), texts, lambda _: None, lambda _unit, _invocation: None)
        self.decisions = Decisions(self.config(checks))
        self.prober = Prober(self.decisions, self.units, self.records.extend, self.told.set)

    def config(self, checks: Mapping[str, HealthCheck]) -> Config:
        names = {name: f"{name}.service" for name in checks}
        self.units.states = {unit: replace(UNIT, invocation=unit) for unit in names.values()}
        agents = {n: Agent(unit=names[n], health=(check,)) for n, check in checks.items()}
        return Config(version=1, agents=agents)

    def outcome(self, name: str) -> Outcome | None:
        streak = self.decisions.streaks.get((name, "c"))
        return streak.outcome if streak else None

    async def run_until(self, condition: Callable[[], bool]) -> None:
        """Make checks until this holds."""
        running = asyncio.ensure_future(self.prober.run())
        try:
            async with asyncio.timeout(60):
                while not condition():
                    assert not running.done()
                    self.told.clear()
                    await self.told.wait()
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running


def test_silent_servers_hold_up_nobody_else(silent_port: int) -> None:
    """There are more of them than are asked at once, and each takes longer than its interval."""
    url = f"http://127.0.0.1:{silent_port}/"
    slow = {
        f"slow-{number}": HttpCheck(name="c", url=url, interval_sec=0.1, timeout_sec=0.5)
        for number in range(450)
    }
    quick = ListenCheck(name="c", port=silent_port, interval_sec=0.1, success_threshold=20)

    async def run() -> Host:
        host = Host(quick=quick, **slow)
        await host.run_until(lambda: all(host.outcome(name) is Outcome.FAILED for name in slow))
        return host

    host = asyncio.run(run())
    assert host.outcome("quick") is Outcome.OK
    # In the time of the two rounds and a half of slow ones it was looked at again and again.
    assert host.decisions.streaks["quick", "c"].successes > 5


def test_a_new_configuration_begins_anew(silent_port: int) -> None:
    url = f"http://127.0.0.1:{silent_port}/"
    hanging = HttpCheck(name="c", url=url, interval_sec=0.1, timeout_sec=3600)
    accepted = TcpCheck(name="c", port=silent_port, interval_sec=0.1)

    async def run() -> Host:
        host = Host(hanging=hanging, web=accepted)
        await host.run_until(lambda: host.outcome("web") is Outcome.OK)
        return host

    async def reload() -> Host:
        host = Host(hanging=hanging)
        loop = asyncio.get_running_loop()
        new = {"hanging": accepted}
        loop.call_later(0.3, lambda: host.decisions.configure(host.config(new)))
        await host.run_until(lambda: host.outcome("hanging") is Outcome.OK)
        return host

    # What hangs is found neither well nor failing when healer ends,
    assert asyncio.run(run()).outcome("hanging") is None
    # and a check that is made in its stead does not wait for it.
    assert asyncio.run(reload()).records == []


def test_an_agent_that_does_not_run_is_not_asked(silent_port: int) -> None:
    check = TcpCheck(name="c", port=silent_port, interval_sec=0.1)

    async def run() -> Host:
        host = Host(down=check, ended=check, up=check)
        host.units.states["down.service"] = replace(UNIT, active_state="activating")
        # Its end is recorded, and systemd has not been asked since.
        host.units.mark("ended.service")
        await host.run_until(lambda: host.outcome("up") is Outcome.OK)
        return host

    host = asyncio.run(run())
    assert host.outcome("down") is host.outcome("ended") is None
