"""Health checks: one look at an agent from outside, one module for each kind.

An answer that is wrong or missing is a failure of the agent; a check that could not be made at
all (its command does not exist, no file descriptors left, nobody resolves names) is an error of
the check.
"""

import asyncio

from healer.config import (
    CommandCheck,
    FileCheck,
    HealthCheck,
    HttpCheck,
    ListenCheck,
    LogCheck,
    MemoryCheck,
    TcpCheck,
)
from healer.events import UnitState
from healer.watchdog.health import Outcome
from healer.watchdog.probes.command import look_by_command
from healer.watchdog.probes.connections import Connections
from healer.watchdog.probes.file import Files
from healer.watchdog.probes.found import OWN_ERRORS, REFUSED, Found, explain
from healer.watchdog.probes.http import Http, plain_request
from healer.watchdog.probes.listen import Listeners
from healer.watchdog.probes.log import Logs
from healer.watchdog.probes.memory import look_at_memory
from healer.watchdog.probes.patterns import Patterns
from healer.watchdog.probes.tcp import look_at_port, plain_connection

__all__ = ["AT_ONCE", "Found", "Probes"]

AT_ONCE = (ListenCheck, MemoryCheck)
"""Kinds of checks that never have to be waited for."""


class Probes:
    """Makes checks, and keeps what they share: a process for patterns, places in the journal."""

    def __init__(self) -> None:
        self._patterns = Patterns()
        self._http = Http(self._patterns)
        self._logs = Logs(self._patterns)
        self._files = Files()
        self._listeners = Listeners()
        self._connections = Connections()

    async def close(self) -> None:
        """Make no more checks."""
        self._logs.close()
        self._files.close()
        self._connections.close()
        await self._patterns.close()

    def forget(self) -> None:
        """Look anew at what checks share from now on; what was seen since is one moment to them."""
        self._listeners.forget()

    async def look(self, check: HealthCheck, unit: str, state: UnitState) -> Found:
        """Make one check of a running unit, within its timeout; return the outcome and why."""
        self.forget()
        found = self.begin(check, unit, state)
        return await found if isinstance(found, asyncio.Future) else found

    def begin(
        self, check: HealthCheck, unit: str, state: UnitState
    ) -> "Found | asyncio.Future[Found]":
        """Begin a check; return what it found, or a future where that has to be waited for."""
        try:
            match check:
                case ListenCheck():
                    return self._listeners.look(check)
                case MemoryCheck():
                    return look_at_memory(check, unit, state.main_pid)
                case TcpCheck() if (plain := plain_connection(check)) is not None:
                    return self._connections.begin(plain)
                case HttpCheck() if (plain := plain_request(check)) is not None:
                    return self._connections.begin(plain)
        except OWN_ERRORS as error:
            return explain(error, check.timeout_sec)
        return asyncio.ensure_future(self._look(check, unit, state))

    async def _look(self, check: HealthCheck, unit: str, state: UnitState) -> Found:
        try:
            return await self._ask(check, unit, state)
        except (*REFUSED, *OWN_ERRORS) as error:
            return explain(error, check.timeout_sec)

    async def _ask(self, check: HealthCheck, unit: str, state: UnitState) -> Found:
        match check:
            case HttpCheck():
                return await self._http.look(check)
            case TcpCheck():
                return await look_at_port(check)
            case CommandCheck():
                return await look_by_command(check)
        # It is not the agent that these ask: if they take too long, that is not its failure.
        try:
            async with asyncio.timeout(check.timeout_sec):
                match check:
                    case LogCheck():
                        return await self._logs.look(check, unit, state.invocation)
                    case FileCheck():
                        return await self._files.look(check)
        except TimeoutError:
            pass
        return Outcome.ERROR, f"the host did not answer within {check.timeout_sec:g} s"
