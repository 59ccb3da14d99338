"""`listen` checks: whether a TCP socket listens, asked of the kernel (sock_diag(7)).

Nothing connects, so that the agent has nothing to accept. It needs no privilege, and it sees the
sockets of healer's own network namespace. The few bytes of the protocol are put together here:
pyroute2's DiagSocket takes the kernel's refusal for an empty answer, which would pass for a
failure of the agent, and it costs 23 MB and ten times the time.
"""

import errno
import functools
import ipaddress
import os
import socket
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from healer.config import ListenCheck
from healer.watchdog.health import Outcome
from healer.watchdog.probes.found import Found

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_DONE = 3
_NLM_F_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_ROOT | NLM_F_MATCH
_HEADER = struct.Struct("=IHHII")
_LENGTH_AND_KIND = struct.Struct("=IH")
_ATTRIBUTE = struct.Struct("=HH")
_MESSAGE_SIZE = 72  # struct inet_diag_msg
_PORT = struct.Struct(">H")
_PORT_AT = 4
_ANY_PORT = 0
_SKV6ONLY = 11
_LISTEN = 1 << 10  # TCP_LISTEN


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket: its address, and whether a wildcard of IPv6 leaves IPv4 out."""

    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    v6_only: bool

    def serves(self, host: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        """Whether a connection to ``host`` would reach this socket."""
        if self.address == host:
            return True
        if not self.address.is_unspecified:
            # ::ffff:127.0.0.1 is IPv4 on a socket of IPv6.
            return getattr(self.address, "ipv4_mapped", None) == host
        return self.address.version == host.version or (host.version == 4 and not self.v6_only)


class Listeners:
    """Looks for listening sockets; what the kernel says of one moment serves many checks.

    It mostly says, byte for byte, what it said before: then each check found that too.
    """

    def __init__(self) -> None:
        self._asked = False
        self._answer: list[bytes] = []
        self._by_port: dict[int, list[bytes]] = {}
        self._served: dict[tuple[str | None, int], Found] = {}

    def forget(self) -> None:
        """Ask the kernel anew for what is looked for from now on."""
        self._asked = False

    def look(self, check: ListenCheck) -> Found:
        """Make one check; OSError where the kernel cannot say."""
        if not self._asked:
            self._ask()
        key = (check.host, check.port)
        if (found := self._served.get(key)) is not None:
            return found
        where = f"port {check.port}" if check.host is None else f"{check.host} port {check.port}"
        known = map(_listener, self._by_port.get(check.port, ()))
        # Many sockets are told of in parts, and one that closes in between can hide another: that
        # one is missing counts only if the kernel says so when it is asked for this port alone.
        if _serves(known, check.host):
            found = self._served[key] = Outcome.OK, f"{where} is listened on"
            return found
        if _serves(listeners(check.port), check.host):
            return Outcome.OK, f"{where} is listened on"
        return Outcome.FAILED, f"nothing listens on {where}"

    def _ask(self) -> None:
        answer = _ask(_ANY_PORT)
        if answer != self._answer:
            by_port = defaultdict[int, list[bytes]](list)
            for port, message in _sockets(answer):
                by_port[port].append(message)
            self._answer, self._by_port, self._served = answer, by_port, {}
        self._asked = True


def listeners(port: int) -> Iterator[Listener]:
    """Yield the TCP sockets that listen on a port; OSError where the kernel cannot say."""
    for its_port, message in _sockets(_ask(port)):
        # A kernel that does not filter by port tells of all of them.
        if its_port == port:
            yield _listener(message)


def _serves(found: Iterable[Listener], host: str | None) -> bool:
    address = None if host is None else _address(host)
    return any(address is None or listener.serves(address) for listener in found)


@functools.lru_cache(4096)
def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(host)


def _ask(port: int) -> list[bytes]:
    """Return the parts of the kernel's answer: which sockets listen on a port, or on any."""
    parts = _dump(socket.AF_INET, port)
    # A kernel without IPv6 knows nothing of its sockets.
    if Path("/proc/net/tcp6").exists():
        parts += _dump(socket.AF_INET6, port)
    return parts


def _dump(family: int, port: int) -> list[bytes]:
    parts: list[bytes] = []
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
    ) as kernel:
        # The kernel has its answer ready when the request was sent; there is nothing to wait for.
        kernel.setblocking(False)
        kernel.send(_request(family, port))
        with suppress(BlockingIOError):
            while True:
                parts.append(kernel.recv(65_536))
    for kind, message in _messages(parts[-1:]):
        if kind != _SOCK_DIAG_BY_FAMILY:
            _check(message)
        if kind == _NLMSG_DONE:
            return parts
    raise OSError(errno.EAGAIN, "sock_diag does not answer to the end")


def _messages(parts: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield the messages in these parts, each with its kind and without its header."""
    for part in parts:
        at = 0
        while at < len(part):
            length, kind = _LENGTH_AND_KIND.unpack_from(part, at)
            yield kind, part[at + _HEADER.size : at + length]
            at += (length + 3) & ~3


def _sockets(parts: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield, with its port, a struct inet_diag_msg and its attributes for each socket."""
    for kind, message in _messages(parts):
        if kind == _SOCK_DIAG_BY_FAMILY:
            yield _PORT.unpack_from(message, _PORT_AT)[0], message


def _request(family: int, port: int) -> bytes:
    """Return a struct inet_diag_req_v2 that asks for a family's listening sockets.

    Those on one port, or on ``_ANY_PORT``.
    """
    cookie = b"\xff" * 8  # INET_DIAG_NOCOOKIE
    body = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, _LISTEN)
    body += struct.pack(">HH", port, 0) + bytes(16 + 16 + 4) + cookie
    return _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_DUMP, 1, 0) + body


def _check(message: bytes) -> None:
    """Raise what an NLMSG_ERROR, or the NLMSG_DONE of a dump that failed, reports."""
    (code,) = struct.unpack_from("=i", message)
    if code < 0:
        reason = os.strerror(-code)
        if -code == errno.ENOENT:
            reason = "the kernel has no inet_diag"
        raise OSError(-code, f"sock_diag does not answer: {reason}")


def _listener(message: bytes) -> Listener:
    if message[0] == socket.AF_INET:
        return Listener(ipaddress.IPv4Address(message[8:12]), v6_only=False)
    v6_only, at = False, _MESSAGE_SIZE
    while at + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, at)
        if kind == _SKV6ONLY:
            v6_only = bool(message[at + _ATTRIBUTE.size])
        at += max((length + 3) & ~3, _ATTRIBUTE.size)
    return Listener(ipaddress.IPv6Address(message[8:24]), v6_only)
