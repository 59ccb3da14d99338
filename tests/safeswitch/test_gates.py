"""Gates: what a look changes, over invented histories, and what is seen on this very host."""

import asyncio
import ipaddress
import socket
import sys
from typing import Any

import pytest

from healer.config import CommandGate, Gate, NetworkGate, TcpGate, UnitGate
from healer.events import Address, DefaultRoute, Network
from healer.host.netlink import Netlink
from healer.safeswitch.gates import Looked, judge_network, judge_unit
from healer.safeswitch.gating import Looks
from healer.watchdog.health import Outcome

OK, FAILED, ERROR = Outcome.OK, Outcome.FAILED, Outcome.ERROR


@pytest.mark.parametrize(
    ("outcomes", "holds"),
    [
        ([], None),
        ([OK], True),
        ([FAILED, FAILED], None),
        ([FAILED, FAILED, FAILED], False),
        ([FAILED, FAILED, OK], True),
        ([OK, FAILED, FAILED], None),
        ([FAILED, FAILED, OK, FAILED, FAILED], None),
        ([OK, FAILED, FAILED, ERROR, FAILED], False),
        ([ERROR] * 9, None),
        ([OK, ERROR, ERROR, ERROR], True),
    ],
)
def test_what_looks_say(outcomes: list[Outcome], holds: bool | None) -> None:
    gate = CommandGate(name="smoke", command=("/bin/true",), failure_threshold=3)
    looked = Looked()
    for outcome in outcomes:
        looked = looked.then(outcome)
    assert looked.holds(gate) is holds


# Judging


NETWORK = Network(
    up=frozenset({"lo", "eth0"}),
    addresses=(Address("eth0", "192.0.2.10"), Address("eth0", "2001:db8:0::1")),
    default_routes=(
        DefaultRoute("eth0", "192.0.2.1", "no"),
        DefaultRoute("eth0", "fe80::1", "yes"),
        DefaultRoute("wlan0", "198.51.100.1", "yes"),
    ),
)
SILENT = Network(up=NETWORK.up, default_routes=NETWORK.default_routes[:1])
UNSETTLED = Network(up=NETWORK.up, default_routes=(DefaultRoute("eth0", "192.0.2.1"),))
TUNNEL = Network(up=frozenset({"wg0"}), default_routes=(DefaultRoute("wg0", None),))


@pytest.mark.parametrize(
    ("network", "options", "outcome", "said"),
    [
        (NETWORK, {"interface": "eth0"}, OK, "as asked"),
        (NETWORK, {"interface": "wlan0"}, FAILED, "wlan0 is not up"),
        (NETWORK, {"default_route": True}, OK, "as asked"),
        (NETWORK, {"default_route": True, "interface": "lo"}, FAILED, "no default route on lo"),
        (Network(), {"default_route": True}, FAILED, "no default route"),
        (TUNNEL, {"default_route": True}, OK, "as asked"),
        (NETWORK, {"gateway": True}, OK, "as asked"),
        (SILENT, {"gateway": True}, FAILED, "192.0.2.1 on eth0 does not answer"),
        (UNSETTLED, {"gateway": True}, ERROR, "not known yet"),
        (TUNNEL, {"gateway": True}, FAILED, "no default route has a gateway"),
        (Network(), {"gateway": True}, FAILED, "no default route"),
        (NETWORK, {"addresses": ("192.0.2.10", "2001:db8::1")}, OK, "as asked"),
        (NETWORK, {"addresses": ("192.0.2.11",)}, FAILED, "192.0.2.11 is not assigned"),
        (
            NETWORK,
            {"addresses": ("192.0.2.10",), "interface": "lo"},
            FAILED,
            "192.0.2.10 is not assigned on lo",
        ),
        (NETWORK, {"sshd": 22}, FAILED, "nothing listens on port 22"),
    ],
)
def test_networks(network: Network, options: dict[str, Any], outcome: Outcome, said: str) -> None:
    gate = NetworkGate(name="net", **options)
    judged, why = judge_network(gate, network, sshd_listens=False)
    assert judged is outcome
    assert said in why


def test_all_that_is_wrong_with_a_network_is_said_at_once() -> None:
    gate = NetworkGate(name="net", default_route=True, addresses=("192.0.2.9",), sshd=22)
    _, why = judge_network(gate, Network(), sshd_listens=False)
    assert [part.split()[0] for part in why.split("; ")] == ["there", "192.0.2.9", "nothing"]


@pytest.mark.parametrize(
    ("state", "outcome"),
    [("active", OK), ("reloading", OK), ("activating", FAILED), ("failed", FAILED), (None, FAILED)],
)
def test_units(state: str | None, outcome: Outcome) -> None:
    assert judge_unit(UnitGate(name="u", unit="a.mount"), state)[0] is outcome


# On this host


def look(*gates: Gate) -> list[tuple[Outcome, str]]:
    async def active_state(unit: str) -> str | None:
        return {"up.service": "active"}.get(unit)

    async def run() -> list[tuple[Outcome, str]]:
        looks = Looks(active_state)
        try:
            return [await looks.look(gate) for gate in gates]
        finally:
            await looks.close()

    return asyncio.run(run())


def test_each_type_is_looked_at() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = look(
            TcpGate(name="port", port=port),
            CommandGate(name="own", command=(sys.executable, "-c", "exit(3)")),
            CommandGate(name="none", command=("/does/not/exist",)),
            UnitGate(name="up", unit="up.service"),
            UnitGate(name="gone", unit="gone.service"),
            NetworkGate(name="lo", interface="lo", addresses=("127.0.0.1",), sshd=port),
            NetworkGate(name="lost", interface="nosuch0"),
        )
    assert [outcome for outcome, _ in found] == [OK, FAILED, ERROR, OK, FAILED, OK, FAILED]


def test_the_kernel_tells_of_the_loopback_device() -> None:
    async def run() -> Network:
        netlink = Netlink()
        try:
            await netlink.look(None)
            return await netlink.look(0.1)
        finally:
            await netlink.close()

    network = asyncio.run(run())
    assert "lo" in network.up
    assert Address("lo", "127.0.0.1") in network.addresses
    for route in network.default_routes:
        assert route.gateway is None or ipaddress.ip_address(route.gateway)


def test_looking_leaves_the_library_out_of_the_daemon() -> None:
    look(NetworkGate(name="lo", interface="lo"))
    assert "pyroute2" not in sys.modules
