"""nix/restart.nix: restart policies as systemd's settings, and what the stop stamp is told."""

from typing import Any

import pytest

from tests.nix.conftest import EVERYTHING
from tests.nix.evaluation import needs_nix, render

pytestmark = needs_nix


def restart_settings(service: Any) -> dict[str, Any]:
    return {
        key: value for key, value in service["serviceConfig"].items() if key.startswith("Restart")
    }


@pytest.mark.parametrize(
    ("agent", "settings"),
    [
        ("now", {"Restart": "always", "RestartSec": 0}),
        (
            "later",
            {
                "Restart": "on-failure",
                "RestartSec": "250ms",
                "RestartSteps": 5,
                "RestartMaxDelaySec": "30s",
            },
        ),
        (
            "choosy",
            {
                "Restart": "always",
                "RestartSec": "2s",
                "RestartPreventExitStatus": "3 4 SIGABRT",
                "RestartForceExitStatus": "0",
            },
        ),
        (
            "ruled",
            {
                "Restart": "always",
                "RestartSec": "200ms",
                "RestartPreventExitStatus": "78 7 SIGRTMAX-2",
                "RestartForceExitStatus": "SIGKILL",
            },
        ),
        (
            "gentle",
            {
                "Restart": "always",
                "RestartSec": "100ms",
                "RestartSteps": 8,
                "RestartMaxDelaySec": "60s",
                "RestartPreventExitStatus": "78",
            },
        ),
        ("strict", {"Restart": "no", "RestartSec": "0", "RestartForceExitStatus": "75"}),
        ("once", {"Restart": "no"}),
    ],
)
def test_policies_are_systemds_own_settings(
    everything: Any, agent: str, settings: dict[str, Any]
) -> None:
    service = everything["services"][agent]
    assert restart_settings(service) == settings
    assert service["unitConfig"]["StartLimitIntervalSec"] == 0


def test_an_adopted_unit_loses_its_own_restart_settings(everything: Any) -> None:
    service = everything["services"]["nginx"]
    assert service["adopted"] is True
    assert restart_settings(service) == {
        "Restart": "always",
        "RestartSec": 0,
        "RestartSteps": 0,
        "RestartMaxDelaySec": "infinity",
        "RestartMode": "normal",
        "RestartPreventExitStatus": [""],
        "RestartForceExitStatus": [""],
    }
    assert "ExecStart" not in service["serviceConfig"]
    assert "NotifyAccess" not in service["serviceConfig"]


def test_the_stamp_is_told_the_rules_that_systemd_has_no_setting_for() -> None:
    rendered = render(
        EVERYTHING,
        'shell = "/dash"; stopStamp = "/stop"; stampRules = "/rules"; restartLater = "/later";',
    )
    (stop,) = rendered["services"]["ruled"]["serviceConfig"]["ExecStopPost"]
    program, *rules = stop.split(' "')
    assert program == "+/dash /stop %n 30000"
    assert [rule.removesuffix('"') for rule in rules] == [
        "/usr/bin",
        "/rules",
        "/dash /later",
        "200",
        "restart",
        "78=stop",
        "7=delay:30000",
        "KILL=restart",
        # As systemd's RestartSteps= would grow it: 200 ms, by 4 each time.
        "RTMIN+28=backoff:200,800,3200",
        "oom=backoff:200,800,3200",
        "watchdog=escalate",
        "health=escalate",
        "9=rollback",
    ]


@pytest.mark.parametrize(
    ("restart", "told"),
    [
        ("", None),
        ('policy = "never"; on = "failure";', None),
        ('on = "failure";', ["0", "failures"]),
        (
            'on = "failure"; policy = "exponential"; delaySec = 1; maxDelaySec = 4; steps = 2;',
            ["1000,2000,4000", "failures"],
        ),
    ],
)
def test_the_stamp_is_told_that_systemd_restarts_failures_only(
    restart: str, told: list[str] | None
) -> None:
    """A failed check is one, however cleanly the agent leaves for it."""
    rendered = render(f'{{ agents.a = {{ command = "/a"; restart = {{ {restart} }}; }}; }}')
    (stop,) = rendered["services"]["a"]["serviceConfig"]["ExecStopPost"]
    rules = [argument.removesuffix('"') for argument in stop.split(' "')][2:]
    assert rules[2:] == (told or [])


@pytest.mark.parametrize(
    ("seconds", "rendered"),
    [
        ("0", "0"),
        ("5", "5s"),
        ("0.1", "100ms"),
        ("1.5", "1500ms"),
        ("0.0001", "100us"),
        ("90", "90s"),
    ],
)
def test_durations(seconds: str, rendered: str) -> None:
    settings = render(
        f"""{{ agents.a = {{ command = "/a"; restart = {{
          policy = "conditional"; delaySec = {seconds}; rules = [ {{ exitCodes = [ 1 ]; }} ];
        }}; }}; }}"""
    )["services"]["a"]["serviceConfig"]
    assert settings["RestartSec"] == rendered


def test_exponential_begins_with_a_delay_that_can_grow() -> None:
    rendered = render('{ agents.a = { command = "/a"; restart.policy = "exponential"; }; }')
    assert rendered["services"]["a"]["serviceConfig"]["RestartSec"] == "100ms"
    assert rendered["config"]["agents"]["a"]["restart"]["delaySec"] == 0.1


@pytest.mark.parametrize(
    ("factor", "steps"), [("2", 10), ("1000", 1), ("600", 1), ("599", 2), ("1.5", 16)]
)
def test_a_factor_is_as_many_steps_as_it_takes(factor: str, steps: int) -> None:
    restart = f'restart = {{ policy = "exponential"; factor = {factor}; }};'
    rendered = render(f'{{ agents.a = {{ command = "/a"; {restart} }}; }}')
    settings = rendered["services"]["a"]["serviceConfig"]
    assert (settings["RestartSteps"], settings["RestartMaxDelaySec"]) == (steps, "60s")
    assert rendered["config"]["agents"]["a"]["restart"]["steps"] == steps
