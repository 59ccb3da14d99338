"""`command` checks: a program of the operator's that says by its exit code how the agent is."""

import asyncio
import os
import signal
from contextlib import suppress

from healer.config import CommandCheck
from healer.watchdog.health import Outcome


async def look_by_command(check: CommandCheck) -> tuple[Outcome, str]:
    """Run the command; 0 is well. What it leaves behind in its session is killed with it."""
    process = await asyncio.create_subprocess_exec(
        *check.command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        # healer's own environment (its notify socket, its credentials) is not the command's.
        env={"PATH": os.environ.get("PATH", os.defpath)},
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(check.timeout_sec):
            code = await process.wait()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    return (Outcome.FAILED if code else Outcome.OK), f"{check.command[0]} exited with {code}"
