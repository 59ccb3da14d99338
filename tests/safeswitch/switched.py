"""Systems to switch to, and what came of a rollback."""

from typing import Any

from tests.machine.agents import (
    agent,
    assert_intact,
    entries,
    system,
    wait_for_entry,
)
from tests.machine.local import LocalMachine


def good(safe_switch: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    healer = {"safeSwitch": {"probationSec": 2, **(safe_switch or {})}}
    label = more.pop("label", "good")
    return system({"worker": agent(**more.pop("options", {}))}, label=label, healer=healer, **more)


def bad(
    safe_switch: dict[str, Any] | None = None, label: str = "bad", **more: Any
) -> dict[str, Any]:
    """A system whose agent crashes; its options are those in force when it is rolled back."""
    healer = {"safeSwitch": {"probationSec": 120, **(safe_switch or {})}, **more.pop("healer", {})}
    options = more.pop("options", {})
    # It does not crash so fast that a ledger of it takes long to read.
    restart = {"policy": "exponential", "delaySec": 0.2, "maxDelaySec": 5}
    broken = agent("broken", restart=restart, **options)
    return system({"worker": broken}, label=label, healer=healer, **more)


def by_itself(program: str, **service: Any) -> dict[str, Any]:
    """Declare the worker's unit as somebody else's, which healer only adopts."""
    return {
        "wantedBy": ["multi-user.target"],
        "unitConfig": {"StartLimitIntervalSec": 0},
        "serviceConfig": {
            "Type": "simple",
            "ExecStart": f"/usr/bin/python3 /etc/agents/{program}.py",
            "StateDirectory": "worker",
            "NotifyAccess": "all",
            **service,
        },
    }


def outcome_of_rollback(machine: LocalMachine) -> dict[str, Any]:
    data: dict[str, Any] = wait_for_entry(machine, "action.outcome", action="rollback")["data"]
    return data


def assert_not_rolled_back(machine: LocalMachine, toplevel: str, why: str) -> None:
    """The one rollback failed, in these words, and what it says is what runs."""
    outcome = outcome_of_rollback(machine)
    assert not outcome["ok"]
    assert why in outcome["detail"], outcome
    assert outcome["running"] == machine.current_system() == toplevel
    assert entries(machine, "deployment.condemned") == []
    assert_intact(machine)
