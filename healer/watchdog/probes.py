"""Health checks: one look at an agent from outside.

An answer that is wrong or missing is a failure of the agent; a check that could not be made at
all (its command does not exist, no file descriptors left) is an error of the check.
"""

import asyncio
import http.client
import urllib.error
import urllib.request

from healer.config import CommandCheck, HealthCheck, HttpCheck, TcpCheck
from healer.watchdog.health import Outcome

_REFUSED = (ConnectionError, TimeoutError, http.client.HTTPException)


async def probe(check: HealthCheck) -> tuple[Outcome, str]:
    """Make one check, within its timeout; return what it found and a word on why."""
    try:
        async with asyncio.timeout(check.timeout_sec):
            match check:
                case HttpCheck():
                    return await asyncio.to_thread(_http, check)
                case TcpCheck():
                    return await _tcp(check)
                case CommandCheck():
                    return await _command(check)
    except _REFUSED as error:
        return Outcome.FAILED, _words(error, f"no answer within {check.timeout_sec:g} s")
    except (OSError, ValueError) as error:
        return Outcome.ERROR, _words(error, "the check could not be made")


def _http(check: HttpCheck) -> tuple[Outcome, str]:
    request = urllib.request.Request(check.url, headers={"User-Agent": "healer"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=check.timeout_sec) as answer:  # noqa: S310
            status = answer.status
    except urllib.error.HTTPError as error:
        status = error.code
    except urllib.error.URLError as error:
        if isinstance(error.reason, OSError):
            raise error.reason from error
        return Outcome.ERROR, str(error.reason)
    outcome = Outcome.OK if status == check.expect_status else Outcome.FAILED
    return outcome, f"{check.url} answered {status}"


async def _tcp(check: TcpCheck) -> tuple[Outcome, str]:
    _, writer = await asyncio.open_connection(check.host, check.port)
    writer.close()
    return Outcome.OK, f"{check.host}:{check.port} accepts connections"


async def _command(check: CommandCheck) -> tuple[Outcome, str]:
    process = await asyncio.create_subprocess_exec(
        *check.command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        code = await process.wait()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    return (Outcome.FAILED if code else Outcome.OK), f"{check.command[0]} exited with {code}"


def _words(error: Exception, otherwise: str) -> str:
    return str(error) or otherwise
