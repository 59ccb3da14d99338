"""Health checks made once, against whatever is there."""

import asyncio
from dataclasses import replace

from healer.config import HealthCheck
from healer.watchdog.health import Outcome
from healer.watchdog.probes import Probes
from tests.watchdog.test_health import UNIT

OK, FAILED, ERROR = Outcome.OK, Outcome.FAILED, Outcome.ERROR


def look(*checks: HealthCheck, main_pid: int = 0) -> list[tuple[Outcome, str]]:
    """Make these checks, one after the other."""

    async def run() -> list[tuple[Outcome, str]]:
        probes = Probes()
        state = replace(UNIT, main_pid=main_pid)
        try:
            return [await probes.look(check, "web.service", state) for check in checks]
        finally:
            await probes.close()

    return asyncio.run(run())


def outcome(check: HealthCheck, main_pid: int = 0) -> Outcome:
    """Make one check."""
    ((found, why),) = look(check, main_pid=main_pid)
    assert why
    return found
