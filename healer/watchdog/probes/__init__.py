"""Health checks: one look at an agent from outside, one module for each kind.

An answer that is wrong or missing is a failure of the agent; a check that could not be made at
all (its command does not exist, no file descriptors left, nobody resolves names) is an error of
the check.
"""

import asyncio
import ssl

import h11

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
from healer.errors import HealerError
from healer.events import UnitState
from healer.watchdog.health import Outcome
from healer.watchdog.probes.command import look_by_command
from healer.watchdog.probes.file import Files
from healer.watchdog.probes.http import Http
from healer.watchdog.probes.listen import look_for_listener
from healer.watchdog.probes.log import Logs
from healer.watchdog.probes.memory import look_at_memory
from healer.watchdog.probes.patterns import Patterns
from healer.watchdog.probes.tcp import look_at_port

# The agent's own doing, where it was the agent that was asked.
_REFUSED = (ConnectionError, TimeoutError, ssl.SSLError, h11.RemoteProtocolError)
_OWN_ERRORS = (OSError, ValueError, HealerError, h11.LocalProtocolError)


class Probes:
    """Makes checks, and keeps what they share: a process for patterns, places in the journal."""

    def __init__(self) -> None:
        self._patterns = Patterns()
        self._http = Http(self._patterns)
        self._logs = Logs(self._patterns)
        self._files = Files()

    async def close(self) -> None:
        """Make no more checks."""
        self._logs.close()
        self._files.close()
        await self._patterns.close()

    async def look(self, check: HealthCheck, unit: str, state: UnitState) -> tuple[Outcome, str]:
        """Make one check of a running unit, within its timeout; return the outcome and why."""
        try:
            return await self._ask(check, unit, state)
        except _REFUSED as error:
            return Outcome.FAILED, str(error) or f"no answer within {check.timeout_sec:g} s"
        except _OWN_ERRORS as error:
            return Outcome.ERROR, str(error) or "the check could not be made"

    async def _ask(self, check: HealthCheck, unit: str, state: UnitState) -> tuple[Outcome, str]:
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
                    case ListenCheck():
                        return look_for_listener(check)
                    case LogCheck():
                        return await self._logs.look(check, unit, state.invocation)
                    case MemoryCheck():
                        return look_at_memory(check, unit, state.main_pid)
                    case FileCheck():
                        return await self._files.look(check)
        except TimeoutError:
            return Outcome.ERROR, f"the host did not answer within {check.timeout_sec:g} s"
