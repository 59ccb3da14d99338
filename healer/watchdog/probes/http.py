"""`http` checks (RFC 9110), with TLS or without."""

import asyncio
import functools
import ssl
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import h11

from healer.config import HttpCheck
from healer.watchdog.health import Outcome
from healer.watchdog.probes.patterns import Patterns
from healer.watchdog.probes.tcp import connect, resolve

# Nothing is looked for behind this many bytes of a body.
_BODY_MAX = 1024 * 1024
_CHUNK = 65_536


class Http:
    """GETs the URL; its status decides, and its body if asked for. Redirects are not followed."""

    def __init__(self, patterns: Patterns) -> None:
        self._patterns = patterns

    async def look(self, check: HttpCheck) -> tuple[Outcome, str]:
        """Make one check."""
        url = urlsplit(check.url)
        host, tls = url.hostname or "", _tls(check) if url.scheme == "https" else None
        port = url.port or (443 if tls else 80)
        addresses = await resolve(host, port, check.timeout_sec)
        async with asyncio.timeout(check.timeout_sec):
            stream, writer = await connect(addresses, port, tls, host if tls else None)
            try:
                status, body = await _get(check, stream, writer)
            finally:
                writer.close()
        if status != check.expect_status:
            return Outcome.FAILED, f"{check.url} answered {status}"
        return await self._judge(check, status, body.decode(errors="replace"))

    async def _judge(self, check: HttpCheck, status: int, body: str) -> tuple[Outcome, str]:
        if check.body_contains is not None and check.body_contains not in body:
            return Outcome.FAILED, f"{check.url} answered without {check.body_contains!r}"
        if check.body_matches is not None:
            found = await self._patterns.first(check.body_matches, [body])
            if found is None:
                wrong = f"{check.url} answered with nothing that matches {check.body_matches!r}"
                return Outcome.FAILED, wrong
        return Outcome.OK, f"{check.url} answered {status}"


async def _get(
    check: HttpCheck, stream: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> tuple[int, bytes]:
    """Return the status, and the body as far as the check wants it.

    Raises ConnectionError or h11.RemoteProtocolError where there is no whole answer.
    """
    url = urlsplit(check.url)
    connection = h11.Connection(h11.CLIENT)
    target = urlunsplit(("", "", url.path or "/", url.query, ""))
    # RFC 9110, 7.2: without the user information that a URL may carry.
    authority = url.netloc.rpartition("@")[2]
    headers = [("Host", authority), ("User-Agent", "healer"), ("Connection", "close")]
    writer.write(connection.send(h11.Request(method="GET", target=target, headers=headers)) or b"")
    writer.write(connection.send(h11.EndOfMessage()) or b"")
    await writer.drain()
    wants_body = check.body_contains is not None or check.body_matches is not None
    status, body = 0, bytearray()
    while len(body) < _BODY_MAX:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.read(_CHUNK))
        elif isinstance(event, h11.Response):
            status = event.status_code
            if not wants_body or status != check.expect_status:
                break
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            break
        elif not isinstance(event, h11.InformationalResponse):
            raise ConnectionResetError(f"{check.url} closed the connection without an answer")
    return status, bytes(body[:_BODY_MAX])


def _tls(check: HttpCheck) -> ssl.SSLContext:
    """Return what a connection is verified by; ValueError where the CA file is of no use."""
    if check.insecure:
        return _unverified()
    if check.ca_file is None:
        return _system()
    # As a new file, when it was written anew.
    return _of(check.ca_file, Path(check.ca_file).stat().st_mtime_ns)


@functools.cache
def _system() -> ssl.SSLContext:
    return ssl.create_default_context()


@functools.cache
def _unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@functools.lru_cache(64)
def _of(ca_file: str, _mtime_ns: int) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError as error:
        raise ValueError(f"{ca_file} holds no certificates (PEM): {error.reason}") from error
