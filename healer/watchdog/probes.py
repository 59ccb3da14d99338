"""Health checks: one look at an agent from outside.

An answer that is wrong or missing is a failure of the agent; a check that could not be made at
all (its command does not exist, no file descriptors left) is an error of the check.
"""

import asyncio
import ssl
from urllib.parse import urlsplit, urlunsplit

import h11

from healer.config import CommandCheck, HealthCheck, HttpCheck, TcpCheck
from healer.watchdog.health import Outcome

_REFUSED = (ConnectionError, TimeoutError, ssl.SSLError, h11.RemoteProtocolError)


async def probe(check: HealthCheck) -> tuple[Outcome, str]:
    """Make one check, within its timeout; return what it found and a word on why."""
    try:
        async with asyncio.timeout(check.timeout_sec):
            match check:
                case HttpCheck():
                    return await _http(check)
                case TcpCheck():
                    return await _tcp(check)
                case CommandCheck():
                    return await _command(check)
    except _REFUSED as error:
        return Outcome.FAILED, _words(error, f"no answer within {check.timeout_sec:g} s")
    except (OSError, ValueError) as error:
        return Outcome.ERROR, _words(error, "the check could not be made")


async def _http(check: HttpCheck) -> tuple[Outcome, str]:
    """GET the URL; its status decides (RFC 9110), redirects are not followed."""
    url = urlsplit(check.url)
    tls = url.scheme == "https"
    port = url.port or (443 if tls else 80)
    stream, writer = await asyncio.open_connection(url.hostname, port, ssl=tls or None)
    try:
        connection = h11.Connection(h11.CLIENT)
        target = urlunsplit(("", "", url.path or "/", url.query, ""))
        headers = [("Host", url.netloc), ("User-Agent", "healer"), ("Connection", "close")]
        request = h11.Request(method="GET", target=target, headers=headers)
        writer.write(connection.send(request) or b"")
        writer.write(connection.send(h11.EndOfMessage()) or b"")
        await writer.drain()
        while not isinstance(event := connection.next_event(), h11.Response):
            if event is not h11.NEED_DATA and not isinstance(event, h11.InformationalResponse):
                return Outcome.FAILED, f"{check.url} closed the connection without an answer"
            connection.receive_data(await stream.read(65_536))
    finally:
        writer.close()
    outcome = Outcome.OK if event.status_code == check.expect_status else Outcome.FAILED
    return outcome, f"{check.url} answered {event.status_code}"


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
