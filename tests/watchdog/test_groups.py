"""With whom an invocation ended, in words of the ledger; systemd does the restarting."""

from dataclasses import replace
from typing import Literal

import pytest

from healer.config import Agent, Config, Restart
from healer.config.schema import Group
from healer.decisions import Decisions
from healer.events import Context, Ended, Instant
from healer.records import Record
from tests.watchdog.test_classify import ended

NAMES = ("a", "b", "c")
Strategy = Literal["one-for-one", "rest-for-one", "one-for-all"]


def decisions(strategy: Strategy) -> Decisions:
    agents = {name: Agent(unit=f"{name}.service") for name in NAMES}
    return Decisions(
        Config(version=1, agents=agents, groups={"g": Group(strategy=strategy, agents=NAMES)})
    )


def end(name: str, started: int, stopped: int, result: str = "success") -> Ended:
    return replace(
        ended(result, "killed", "TERM" if result == "success" else "KILL"),
        unit=f"{name}.service",
        invocation=f"{started:032x}",
        start_uptime_ms=started,
        stop_uptime_ms=stopped,
    )


def stopped(host: Decisions, name: str, started: int, ended_ms: int) -> Record:
    context = Context(stop_requested=True)
    now = Instant("b" * 32, ended_ms)
    (record,) = host.on_ended(end(name, started, ended_ms), context, now)
    return record


@pytest.mark.parametrize(
    ("strategy", "crashed", "taken_along"),
    [
        ("one-for-one", "a", set()),
        ("rest-for-one", "a", {"b", "c"}),
        ("rest-for-one", "b", {"c"}),
        ("rest-for-one", "c", set()),
        ("one-for-all", "b", {"a", "c"}),
    ],
)
def test_whose_restart_takes_whom_along(
    strategy: Strategy, crashed: str, taken_along: set[str]
) -> None:
    host = decisions(strategy)
    crash = host.on_ended(end(crashed, 100, 500, "signal"), Context(), Instant("b" * 32, 501))[0]
    for mate in {*NAMES} - {crashed}:
        record = stopped(host, mate, 100, 510)
        if mate in taken_along:
            assert (record.data["by"], record.data["mate"]) == ("group", crashed)
            assert record.incident == crash.incident
        else:
            assert (record.data["by"], record.data["mate"]) == ("request", None)


def test_a_run_from_after_the_crash_was_not_taken_along() -> None:
    host = decisions("one-for-all")
    host.on_ended(end("a", 100, 500, "signal"), Context(), Instant("b" * 32, 501))
    assert stopped(host, "b", 520, 900).data["by"] == "request"


def test_a_mate_that_stays_down_takes_nobody_along() -> None:
    host = decisions("one-for-all")
    host.config.agents["a"] = Agent(unit="a.service", restart=Restart(policy="never"))
    host.on_ended(end("a", 100, 500, "signal"), Context(), Instant("b" * 32, 501))
    assert stopped(host, "b", 100, 900).data["by"] == "request"
