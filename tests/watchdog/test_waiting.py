"""An agent that waits for the timer of a restart rule, told apart from one that stays down."""

from dataclasses import replace
from typing import Any

import pytest

from healer.events import Instant, UnitState
from healer.records import Record
from healer.watchdog import waiting

FAILED = UnitState(
    active_state="failed",
    sub_state="failed",
    invocation="1" * 32,
    main_pid=0,
    n_restarts=0,
    status_text="",
    since_us=0,
    since_ms=5_000,
    active_enter_ms=1_000,
)
NOW = Instant("boot", 6_000)


def crash(**data: Any) -> Record:
    usual = {
        "boot": "boot",
        "invocation": FAILED.invocation,
        "restart": "will-restart",
        "restart_delay_ms": 30_000,
        "stop_uptime_ms": 5_000,
    }
    return Record(Instant("boot", 5_100), "agent.crash", {**usual, **data})


def test_it_waits_from_the_crash_on() -> None:
    assert waiting.until_ms(crash(), FAILED, NOW) == 35_000
    assert waiting.settled_ms(crash()) == 90_000


@pytest.mark.parametrize(
    ("last", "unit"),
    [
        (None, FAILED),
        (crash(restart="will-not-restart"), FAILED),
        (crash(restart_delay_ms=0), FAILED),
        (crash(restart_delay_ms=None), FAILED),
        (crash(stop_uptime_ms=None), FAILED),
        (crash(boot="before"), FAILED),
        (crash(invocation="0" * 32), FAILED),
        (crash(), replace(FAILED, active_state="active")),
        # systemd itself counts that delay.
        (crash(), replace(FAILED, active_state="activating")),
    ],
)
def test_it_does_not_wait(last: Record | None, unit: UnitState) -> None:
    assert waiting.until_ms(last, unit, NOW) is None


@pytest.mark.parametrize("delay_ms", [0, None])
def test_without_a_timer_it_is_down_for_good_soon(delay_ms: int | None) -> None:
    assert waiting.settled_ms(crash(restart_delay_ms=delay_ms)) == 1_000
    assert waiting.settled_ms(crash(restart="will-not-restart")) == 1_000
