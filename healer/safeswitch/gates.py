"""Gates: what a look at one of them found, judged by what systemd and the kernel say. Pure.

A gate passes at the first look that finds it so, and fails once as many looks in a row as its
threshold have not. A look that could not be made counts for nothing.
"""

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

from healer.config import Gate, NetworkGate, UnitGate
from healer.events import DefaultRoute, Network
from healer.watchdog.health import Outcome


@dataclass(frozen=True, slots=True)
class Looked:
    """Looks at a gate under one deployment: failures in a row, and what the last real one saw."""

    failures: int = 0
    outcome: Outcome | None = None

    def then(self, outcome: Outcome) -> "Looked":
        """Return what is known after one more look."""
        if outcome is Outcome.ERROR:
            return self
        return Looked(self.failures + 1 if outcome is Outcome.FAILED else 0, outcome)

    def holds(self, gate: Gate) -> bool | None:
        """Say whether the gate holds; None where that cannot be said."""
        if self.outcome is Outcome.OK:
            return True
        return False if self.failures >= gate.failure_threshold else None


def judge_unit(gate: UnitGate, active_state: str | None) -> tuple[Outcome, str]:
    """Judge a unit gate by systemd's ActiveState; None says that there is no such unit."""
    if active_state is None:
        return Outcome.FAILED, f"there is no {gate.unit}"
    well = active_state in {"active", "reloading", "refreshing"}
    return Outcome.OK if well else Outcome.FAILED, f"{gate.unit} is {active_state}"


def judge_network(
    gate: NetworkGate, network: Network, *, sshd_listens: bool
) -> tuple[Outcome, str]:
    """Judge a network gate by what the kernel says."""
    failed = list(_wrong_with(gate, network))
    if gate.sshd is not None and not sshd_listens:
        failed.append(f"nothing listens on port {gate.sshd}")
    if failed:
        return Outcome.FAILED, "; ".join(failed)
    asked = _routes(gate, network)
    if gate.gateway and not any(route.answers == "yes" for route in asked):
        silent = [f"{route.gateway} on {route.interface}" for route in asked if route.gateway]
        if all(route.answers == "no" for route in asked if route.gateway):
            return Outcome.FAILED, f"the gateway {', '.join(silent)} does not answer"
        return Outcome.ERROR, f"it is not known yet whether {', '.join(silent)} answers"
    return Outcome.OK, "the network is as asked for"


def _wrong_with(gate: NetworkGate, network: Network) -> Iterator[str]:
    if gate.interface is not None and gate.interface not in network.up:
        yield f"{gate.interface} is not up"
    where = "" if gate.interface is None else f" on {gate.interface}"
    routes = _routes(gate, network)
    if (gate.default_route or gate.gateway) and not routes:
        yield f"there is no default route{where}"
    elif gate.gateway and not any(route.gateway for route in routes):
        yield f"no default route{where} has a gateway"
    assigned = {
        ipaddress.ip_address(each.address)
        for each in network.addresses
        if gate.interface in {None, each.interface}
    }
    for address in gate.addresses:
        if ipaddress.ip_address(address) not in assigned:
            yield f"{address} is not assigned{where}"


def _routes(gate: NetworkGate, network: Network) -> list[DefaultRoute]:
    return [
        route
        for route in network.default_routes
        if route.interface in network.up and gate.interface in {None, route.interface}
    ]
