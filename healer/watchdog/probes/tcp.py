"""Connections to an agent: `tcp` checks, and the way to an agent's web server."""

import asyncio
import functools
import ipaddress
import socket
import ssl

from healer.config import TcpCheck
from healer.watchdog.health import Outcome
from healer.watchdog.probes.connections import Exchange
from healer.watchdog.probes.found import Found

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def plain_connection(check: TcpCheck) -> Exchange | None:
    """Return what makes this check; None where a name has to be resolved before."""
    family = family_of(check.host)
    if family is None:
        return None

    def accepted(_answer: bytes, _ended: bool) -> Found:
        return _accepts(check)

    return Exchange(family, (check.host, check.port), check.timeout_sec, b"", accepted)


async def look_at_port(check: TcpCheck) -> Found:
    """Connect, and hang up again."""
    addresses = await resolve(check.host, check.port, check.timeout_sec)
    async with asyncio.timeout(check.timeout_sec):
        _, writer = await connect(addresses, check.port)
    writer.close()
    return _accepts(check)


def _accepts(check: TcpCheck) -> Found:
    return Outcome.OK, f"{check.host}:{check.port} accepts connections"


@functools.lru_cache(4096)
def family_of(host: str) -> socket.AddressFamily | None:
    """Return the family of an IP address; None for a name."""
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return None
    return socket.AF_INET if version == 4 else socket.AF_INET6


async def resolve(host: str, port: int, timeout_sec: float) -> list[str]:
    """Return the addresses of a host.

    Raises OSError, but no TimeoutError: that nobody resolves a name is not the agent's fault.
    """
    if family_of(host) is not None:
        return [host]
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
