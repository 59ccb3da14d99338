"""The host's network as the kernel has it (rtnetlink(7)): links, addresses, default routes, and
whether a gateway answers.

pyroute2 costs 25 MB and a quarter of a second to import. It is imported in a process of its own,
which lives for as long as somebody looks; the daemon's memory stays what it was.
"""

import json
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Literal

import msgspec

from healer.events import Address, DefaultRoute, Network
from healer.host.child import Child

# linux/if.h
_IFF_UP, _IFF_LOWER_UP = 0x1, 0x10000
# linux/if_addr.h: an address that is another's, or not known yet not to be.
_IFA_F_UNUSABLE = 0x08 | 0x40
# linux/rtnetlink.h
_RT_TABLE_MAIN, _RTN_UNICAST = 254, 1
# linux/neighbour.h
_NUD_INCOMPLETE, _NUD_REACHABLE, _NUD_FAILED, _NUD_PERMANENT = 0x01, 0x02, 0x20, 0x80
_DISCARD_PORT = 9
_POLL_SEC = 0.05
# What the process needs beyond what a look may take: its start, on a machine that is busy.
_PATIENCE_SEC = 15.0

_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from healer.host.netlink import answer
answer(sys.stdin.buffer, sys.stdout.buffer)
"""


class Question(msgspec.Struct, frozen=True):
    """How long gateways may take to answer; None asks none of them."""

    gateways_sec: float | None


class Netlink:
    """The process, begun when it is first needed, that answers one question at a time."""

    def __init__(self) -> None:
        self._child = Child(_PROGRAM, json.dumps(sys.path))

    async def look(self, gateways_sec: float | None) -> Network:
        """Return the network now, its gateways asked if a time is given; OSError if that fails."""
        question = msgspec.json.encode(Question(gateways_sec))
        try:
            line = await self._child.ask(question, (gateways_sec or 0) + _PATIENCE_SEC)
            return msgspec.json.decode(line, type=Network)
        except TimeoutError:
            raise OSError("the kernel's network tables were not read in time") from None
        except (EOFError, msgspec.MsgspecError):
            raise OSError("the kernel's network tables cannot be read") from None

    async def close(self) -> None:
        """End the process."""
        await self._child.close()


def answer(questions: Any, answers: Any) -> None:
    """Answer questions, a line each, until there are no more. Runs in the process of its own."""
    from pyroute2 import IPRoute  # noqa: PLC0415 - see above

    with IPRoute() as kernel:
        for line in questions:
            network = _look(kernel, msgspec.json.decode(line, type=Question))
            answers.write(msgspec.json.encode(network) + b"\n")
            answers.flush()


def _look(kernel: Any, question: Question) -> Network:
    links = {link["index"]: link for link in kernel.get_links()}
    names = {index: link.get_attr("IFLA_IFNAME") for index, link in links.items()}
    wanted = _IFF_UP | _IFF_LOWER_UP
    routes = [
        DefaultRoute(names[index], gateway)
        for index, gateway in _default_routes(kernel)
        if index in names
    ]
    if question.gateways_sec is not None:
        routes = _asked(kernel, routes, question.gateways_sec)
    return Network(
        up=frozenset(names[i] for i, link in links.items() if link["flags"] & wanted == wanted),
        addresses=tuple(
            # IFA_LOCAL is the own end of a point-to-point link, where IFA_ADDRESS is the other.
            Address(names[a["index"]], a.get_attr("IFA_LOCAL") or a.get_attr("IFA_ADDRESS"))
            for a in kernel.get_addr()
            if a["index"] in names and not _flags(a) & _IFA_F_UNUSABLE
        ),
        default_routes=tuple(routes),
    )


def _flags(address: Any) -> int:
    return int(address.get_attr("IFA_FLAGS") or address["flags"])


def _default_routes(kernel: Any) -> Iterator[tuple[int, str | None]]:
    """Yield the interface and the gateway of each default route, and of each of its next hops."""
    for family in (socket.AF_INET, socket.AF_INET6):
        for route in kernel.get_routes(family=family, table=_RT_TABLE_MAIN):
            if route["dst_len"] or route["type"] != _RTN_UNICAST:
                continue
            hops = route.get_attr("RTA_MULTIPATH")
            for hop in hops or [route]:
                via = hop.get_attr("RTA_VIA") or {}
                index = hop["oif"] if hops else hop.get_attr("RTA_OIF")
                yield index, hop.get_attr("RTA_GATEWAY") or via.get("addr")


def _asked(kernel: Any, routes: list[DefaultRoute], timeout_sec: float) -> list[DefaultRoute]:
    """Ask every gateway, and wait until one has answered or each has shown that it does not."""
    for route in routes:
        if route.gateway is not None:
            _nudge(route.gateway, route.interface)
    deadline = time.monotonic() + timeout_sec
    while True:
        states = _neighbours(kernel)
        last = time.monotonic() >= deadline
        asked = [
            DefaultRoute(
                route.interface,
                route.gateway,
                _answers(states.get((route.interface, route.gateway or ""), 0), last=last),
            )
            for route in routes
        ]
        answers = {route.answers for route in asked if route.gateway is not None}
        if last or "yes" in answers or "unknown" not in answers:
            return asked
        time.sleep(_POLL_SEC)


def _nudge(gateway: str, interface: str) -> None:
    """Send an empty datagram, for which the kernel has to ask who has the gateway's address.

    Where the kernel knew it until lately, it waits for 5 s for a sign of life before it asks
    (arp(7), delay_first_probe_time).
    """
    family = socket.AF_INET6 if ":" in gateway else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as out:
        scope = socket.if_nametoindex(interface)
        address = (gateway, _DISCARD_PORT, 0, scope) if ":" in gateway else (gateway, _DISCARD_PORT)
        out.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        out.setblocking(False)
        out.sendto(b"", address)


def _neighbours(kernel: Any) -> dict[tuple[str, str], int]:
    """Return the state of each entry of the neighbour table, by interface and address."""
    states: dict[tuple[str, str], int] = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        for neighbour in kernel.get_neighbours(family=family):
            with suppress(OSError):  # an interface that is gone by now
                name = socket.if_indextoname(neighbour["ifindex"])
                states[name, neighbour.get_attr("NDA_DST")] = neighbour["state"]
    return states


def _answers(state: int, *, last: bool) -> Literal["yes", "no", "unknown"]:
    """Judge an entry's state; one that is old is no answer either way until it was asked again."""
    if state & (_NUD_REACHABLE | _NUD_PERMANENT):
        return "yes"
    if state & _NUD_FAILED or (last and state & _NUD_INCOMPLETE):
        return "no"
    return "unknown"
