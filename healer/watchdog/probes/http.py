"""`http` checks (RFC 9110), with TLS or without."""

import asyncio
import functools
import re
import socket
import ssl
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import h11

from healer.config import HttpCheck
from healer.watchdog.health import Outcome
from healer.watchdog.probes.connections import Exchange
from healer.watchdog.probes.found import Found
from healer.watchdog.probes.patterns import Patterns
from healer.watchdog.probes.tcp import connect, family_of, resolve

# Nothing is looked for behind this many bytes of a body.
_BODY_MAX = 1024 * 1024
_CHUNK = 65_536
# RFC 9112, 4; the reason may be missing.
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})(?: [^\r\n]*)?\r?\n")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_HEAD_MAX = 65_536


def plain_request(check: HttpCheck) -> Exchange | None:
    """Return what makes this check, where it asks an IP address without TLS for its status only."""
    plain = None if _wants_body(check) else _plain(check.url)
    if plain is None:
        return None
    family, address, request = plain

    def judge(answer: bytes, ended: bool) -> Found | None:
        status = _status_of(answer)
        if status is not None:
            return _judge_status(check, status)
        if ended or len(answer) > _HEAD_MAX:
            raise _no_answer(check)
        return None

    return Exchange(family, address, check.timeout_sec, request, judge)


@functools.lru_cache(4096)
def _plain(asked: str) -> tuple[socket.AddressFamily, tuple[str, int], bytes] | None:
    url = urlsplit(asked)
    family = family_of(url.hostname or "")
    if url.scheme != "http" or family is None:
        return None
    request = h11.Connection(h11.CLIENT).send(_request(asked)) or b""
    return family, (url.hostname or "", url.port or 80), request


def _status_of(answer: bytes) -> int | None:
    """Return the status of an answer whose head is whole; None while it is not.

    Raises ConnectionError where it is no answer of HTTP/1.
    """
    at = 0
    while len(answer) > at:
        line = _STATUS_LINE.match(answer, at)
        if line is None:
            if b"\n" in answer[at:] or not b"HTTP/1.".startswith(answer[at : at + 7]):
                raise ConnectionError(f"that is no answer of HTTP/1: {answer[at : at + 40]!r}")
            return None
        end = _HEAD_END.search(answer, line.end(1))
        if end is None:
            return None
        if (status := int(line[1])) >= 200:
            return status
        at = end.end()  # RFC 9110, 15.2: the answer itself is still to come
    return None


class Http:
    """GETs the URL; its status decides, and its body if asked for. Redirects are not followed."""

    def __init__(self, patterns: Patterns) -> None:
        self._patterns = patterns

    async def look(self, check: HttpCheck) -> Found:
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
            return _judge_status(check, status)
        return await self._judge(check, status, body.decode(errors="replace"))

    async def _judge(self, check: HttpCheck, status: int, body: str) -> Found:
        if check.body_contains is not None and check.body_contains not in body:
            return Outcome.FAILED, f"{check.url} answered without {check.body_contains!r}"
        if check.body_matches is not None:
            found = await self._patterns.first(check.body_matches, [body])
            if found is None:
                wrong = f"{check.url} answered with nothing that matches {check.body_matches!r}"
                return Outcome.FAILED, wrong
        return _judge_status(check, status)


def _judge_status(check: HttpCheck, status: int) -> Found:
    outcome = Outcome.OK if status == check.expect_status else Outcome.FAILED
    return outcome, f"{check.url} answered {status}"


def _no_answer(check: HttpCheck) -> ConnectionError:
    return ConnectionResetError(f"{check.url} closed the connection without an answer")


def _wants_body(check: HttpCheck) -> bool:
    return check.body_contains is not None or check.body_matches is not None


def _request(asked: str) -> h11.Request:
    url = urlsplit(asked)
    target = urlunsplit(("", "", url.path or "/", url.query, ""))
    # RFC 9110, 7.2: without the user information that a URL may carry.
    authority = url.netloc.rpartition("@")[2]
    headers = [("Host", authority), ("User-Agent", "healer"), ("Connection", "close")]
    return h11.Request(method="GET", target=target, headers=headers)


async def _get(
    check: HttpCheck, stream: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> tuple[int, bytes]:
    """Return the status, and the body as far as the check wants it.

    Raises ConnectionError or h11.RemoteProtocolError where there is no whole answer.
    """
    connection = h11.Connection(h11.CLIENT)
    writer.write(connection.send(_request(check.url)) or b"")
    writer.write(connection.send(h11.EndOfMessage()) or b"")
    await writer.drain()
    status, body = 0, bytearray()
    while len(body) < _BODY_MAX:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.read(_CHUNK))
        elif isinstance(event, h11.Response):
            status = event.status_code
            if not _wants_body(check) or status != check.expect_status:
                break
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            break
        elif not isinstance(event, h11.InformationalResponse):
            raise _no_answer(check)
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
