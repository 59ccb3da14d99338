"""What is told of the end of healer's own run before this one."""

from dataclasses import replace

from healer.events import Ended, Instant
from healer.incident import words
from healer.records import Record
from healer.watchdog import itself

STARTED = Record(Instant("a", 5000), "healer.started", {})
KILLED = Ended(
    unit=itself.UNIT,
    invocation="1" * 32,
    boot="a",
    result="watchdog",
    code="dumped",
    status="ABRT",
    start_uptime_ms=None,
    stop_uptime_ms=70_000,
    toplevel=None,
    memory=None,
    source="journal",
)


def test_a_run_that_says_so_itself_or_went_with_its_boot_leaves_nothing_to_tell() -> None:
    assert itself.ended_unsaid(STARTED, "a")
    assert not itself.ended_unsaid(STARTED, "b")
    assert not itself.ended_unsaid(replace(STARTED, type="healer.stopped"), "a")


def test_a_run_that_was_killed() -> None:
    by_watchdog = itself.previous_end(STARTED, KILLED)
    assert by_watchdog["class"] == "watchdog"
    out_of_memory = replace(KILLED, result="oom-kill", code="killed", status="KILL")
    assert itself.previous_end(STARTED, out_of_memory)["class"] == "oom"
    data = {"version": "1", "agents": ["web"], "previous_end": by_watchdog}
    assert "missed its watchdog deadline (SIGABRT)" in words.line("healer.started", data)


def test_what_systemd_recorded_before_that_run_is_of_another() -> None:
    for failure in (None, replace(KILLED, stop_uptime_ms=4999), replace(KILLED, boot="b")):
        unknown = itself.previous_end(STARTED, failure)
        assert set(unknown.values()) == {""}
        told = words.line("healer.started", {"agents": [], "previous_end": unknown})
        assert "not known how" in told
