"""`log` checks: whether the agent's own lines in the journal tell of a failure."""

import asyncio
import concurrent.futures
from dataclasses import dataclass

from healer.config import LogCheck
from healer.host import journal
from healer.watchdog.health import Outcome
from healer.watchdog.probes.patterns import Patterns

_PAGE = 1000
# What is behind this many characters of a line is not looked at.
_LINE_MAX = 4096


@dataclass(frozen=True, slots=True)
class _Place:
    """How far an invocation's lines were read, and the first one that matched."""

    invocation: str
    cursor: str | None = None
    found: str | None = None


class Logs:
    """Reads what agents write, each line once for each check.

    One matching line is enough for as long as the invocation lasts: a restart is what ends it.
    """

    def __init__(self, patterns: Patterns) -> None:
        self._patterns = patterns
        # Not the thread that the ends of agents are found in: those come first.
        self._journal = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="log-checks")
        self._places: dict[tuple[str, LogCheck], _Place] = {}

    def close(self) -> None:
        """Read no more."""
        self._journal.shutdown(wait=False, cancel_futures=True)

    async def look(self, check: LogCheck, unit: str, invocation: str) -> tuple[Outcome, str]:
        """Make one check; what was read counts even if the time does not suffice for the rest."""
        key = (unit, check)
        if key not in self._places or self._places[key].invocation != invocation:
            self._places[key] = _Place(invocation)
        loop = asyncio.get_running_loop()
        while self._places[key].found is None:
            cursor = self._places[key].cursor
            lines, cursor = await loop.run_in_executor(
                self._journal, journal.lines_behind, unit, invocation, cursor, _PAGE
            )
            first = None
            if lines:
                cut = [line[:_LINE_MAX] for line in lines]
                first = await self._patterns.first(check.pattern, cut)
            found = None if first is None else lines[first]
            self._places[key] = _Place(invocation, cursor, found)
            if len(lines) < _PAGE:
                break
        found = self._places[key].found
        if found is None:
            return Outcome.OK, "no line tells of a failure"
        return Outcome.FAILED, f"it logged {found[:200]!r}"
