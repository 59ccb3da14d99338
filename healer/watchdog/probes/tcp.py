"""Connections to an agent: `tcp` checks, and the way to an agent's web server."""

import asyncio
import ipaddress
import socket
import ssl

from healer.config import TcpCheck
from healer.watchdog.health import Outcome

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def look_at_port(check: TcpCheck) -> tuple[Outcome, str]:
    """Connect, and hang up again."""
    addresses = await resolve(check.host, check.port, check.timeout_sec)
    async with asyncio.timeout(check.timeout_sec):
        _, writer = await connect(addresses, check.port)
    writer.close()
    return Outcome.OK, f"{check.host}:{check.port} accepts connections"


async def resolve(host: str, port: int, timeout_sec: float) -> list[str]:
    """Return the addresses of a host.

    Raises OSError, but no TimeoutError: that nobody resolves a name is not the agent's fault.
    """
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_sec):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise OSError(f"{host} was not resolved within {timeout_sec:g} s") from None
    return [str(address[0]) for *_, address in found]


async def connect(
    addresses: list[str], port: int, tls: ssl.SSLContext | None = None, name: str | None = None
) -> Streams:
    """Connect to the first of the addresses that accepts.

    Raises ConnectionError if none does and one of them refused, else what the host said.
    """
    errors: list[OSError] = []
    for address in addresses:
        try:
            if tls is None:
                return await asyncio.open_connection(address, port)
            return await asyncio.open_connection(
                address, port, ssl=tls, server_hostname=name, ssl_shutdown_timeout=1
            )
        except ssl.SSLError:
            raise
        except OSError as error:
            errors.append(error)
    refusals = [error for error in errors if isinstance(error, ConnectionError)]
    raise (refusals or errors)[0]
