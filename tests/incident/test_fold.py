"""Incidents out of invented histories."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from healer.incident.fold import State, fold, timeline
from healer.incident.postmortem import as_json, render
from healer.ledger.entry import Entry
from tests.incident.story import BAD, GOOD, INCIDENT, INVOCATIONS, LATER_BOOT, WALL_US, Story


def test_a_crash_and_its_recovery() -> None:
    story = Story()
    activated = story.add(0, "deployment.activated", {"toplevel": BAD}, incident=None)
    story.crash(10_000_000)
    story.restarted(10_300_000)
    story.recovered(70_400_000)
    (incident,) = fold(story.entries)
    assert (incident.id, incident.agent, incident.state) == (INCIDENT, "worker", State.RECOVERED)
    assert (incident.opened, incident.closed) == (WALL_US + 10_000_000, WALL_US + 70_400_000)
    assert incident.deployment == activated
    assert incident.summary == "worker crashed: killed by SIGKILL (Killed); recovered"


def test_things_are_told_in_the_order_in_which_they_happened() -> None:
    story = Story()
    crash = story.crash(10_000_000)
    verdict = story.add(10_100_000, "safeswitch.verdict", {"verdict": "unhealthy"})
    restarted = story.restarted(10_300_000)
    (incident,) = fold(story.entries)
    assert [(entry.seq, offset) for entry, _, offset in timeline(incident)] == [
        (crash.seq, 0),
        (restarted.seq, 12_000),
        (verdict.seq, 100_000),
    ]


def test_a_clock_that_was_set_back_does_not_change_the_offsets() -> None:
    story = Story()
    story.crash(10_000_000)
    story.add(12_000_000, "agent.recovered", {}, step_us=-3_600_000_000)
    (incident,) = fold(story.entries)
    assert [offset for _, _, offset in timeline(incident)] == [0, 2_000_000]


def test_a_reboot_in_the_middle_is_counted_by_the_wall_clock() -> None:
    story = Story()
    story.crash(10_000_000)
    story.add(5_000_000, "agent.recovered", {}, boot=LATER_BOOT, step_us=55_000_000)
    (incident,) = fold(story.entries)
    assert [offset for _, _, offset in timeline(incident)] == [0, 50_000_000]


def after_rollback(story: Story, then: str) -> None:
    story.crash(1_000_000, 0)
    story.crash(2_000_000, 1)
    if then == "given up":
        story.add(2_500_000, "agent.not-restarted", {"reason": "x"})
    if then.startswith("undeclared"):
        story.add(2_500_000, "agent.undeclared", {"unit": "worker.service"})
    story.rollback(3_000_000, ok="failed" not in then)
    if then == "gone with it":
        story.add(4_000_000, "agent.undeclared", {"unit": "worker.service"})
    if then == "refuted":
        story.crash(5_000_000, 2, toplevel=GOOD)
        story.add(5_100_000, "agent.crash-loop", {"toplevel": GOOD})
    if then.startswith("no help"):
        story.crash(5_000_000, 2, toplevel=GOOD)
        if then.endswith("given up"):
            story.add(6_000_000, "agent.gave-up", {"reason": "x"})
        story.add(7_000_000, "deployment.refuted", {"toplevel": BAD, "running": GOOD})
    if then == "late loop":
        story.add(5_100_000, "agent.crash-loop", {"toplevel": BAD})
    if then in {"recovered", "refuted"}:
        story.recovered(66_000_000, 2)


@pytest.mark.parametrize(
    ("then", "state", "closed"),
    [
        ("nothing", State.ROLLED_BACK, False),
        ("recovered", State.ROLLED_BACK, True),
        ("given up", State.ROLLED_BACK, True),
        ("undeclared", State.ROLLED_BACK, True),
        ("undeclared, then failed", State.ROLLBACK_FAILED, True),
        ("gone with it", State.ROLLED_BACK, True),
        ("late loop", State.ROLLED_BACK, False),
        ("refuted", State.REFUTED, True),
        ("no help", State.REFUTED, False),
        ("no help, given up", State.REFUTED, True),
        ("failed", State.ROLLBACK_FAILED, False),
    ],
)
def test_what_a_rollback_comes_to(then: str, state: State, closed: bool) -> None:
    story = Story()
    after_rollback(story, then)
    (incident,) = fold(story.entries)
    assert (incident.state, incident.closed is not None) == (state, closed)


def test_an_agent_that_stays_down() -> None:
    story = Story()
    end: dict[str, Any] = {"class": "exit", "code": "exited", "status": "3"}
    story.crash(1_000_000, restart="will-not-restart", **end)
    story.add(1_100_000, "agent.not-restarted", {"agent": "worker", "reason": "its policy"})
    (incident,) = fold(story.entries)
    assert (incident.state, incident.closed) == (State.NOT_RESTARTED, WALL_US + 1_100_000)
    assert incident.summary == "worker crashed: exited with code 3; stays down"


def test_an_agent_that_is_no_agent_any_more() -> None:
    story = Story()
    story.crash(1_000_000)
    story.add(2_000_000, "agent.undeclared", {"agent": "worker", "unit": "worker.service"})
    (incident,) = fold(story.entries)
    assert (incident.state, incident.closed) == (State.UNDECLARED, WALL_US + 2_000_000)
    assert incident.summary.endswith("; it is declared no more")
    # What was under way is told later, and opens nothing.
    data = {"agent": "worker", "action": "quarantine", "ok": True}
    story.add(3_000_000, "action.outcome", data)
    (incident,) = fold(story.entries)
    assert (incident.state, incident.closed) == (State.UNDECLARED, WALL_US + 2_000_000)


def test_an_agent_without_a_unit() -> None:
    story = Story()
    story.crash(1_000_000)
    story.add(2_000_000, "agent.missing", {"agent": "worker", "unit": "worker.service"})
    (incident,) = fold(story.entries)
    assert (incident.state, incident.closed) == (State.NOT_RESTARTED, WALL_US + 2_000_000)


def test_stopping_an_agent_is_not_giving_it_up() -> None:
    story = Story()
    story.crash(1_000_000)
    story.add(2_000_000, "agent.stopped", {"agent": "worker"})
    story.add(2_100_000, "agent.not-restarted", {"agent": "worker"})
    (incident,) = fold(story.entries)
    assert incident.state is State.STOPPED


def test_drift_is_found_resolved_and_found_again() -> None:
    story = Story()
    data = {"class": "etc", "subject": "/etc/motd", "expected": "link", "observed": "file"}
    story.add(1, "drift.found", data, incident="drift-00000001")
    story.add(2, "drift.resolved", data, incident="drift-00000001")
    (incident,) = fold(story.entries)
    assert (incident.state, incident.closed) == (State.RESOLVED, WALL_US + 2)
    assert incident.summary == "/etc/motd drifted: file; declared: link"
    story.add(3, "drift.found", data, incident="drift-00000001")
    (incident,) = fold(story.entries)
    assert (incident.state, incident.closed) == (State.OPEN, None)


def test_incidents_are_in_the_order_in_which_they_began() -> None:
    story = Story()
    for number, name in enumerate(["b", "a", "b", "c", "a"]):
        story.add(number, "agent.crash", {}, incident=name)
    assert [incident.id for incident in fold(story.entries)] == ["b", "a", "c"]


TYPES = [
    "agent.crash",
    "agent.exit",
    "agent.stopped",
    "agent.restarted",
    "agent.recovered",
    "agent.not-restarted",
    "agent.undeclared",
    "agent.missing",
    "agent.crash-loop",
    "health.failed",
    "deployment.activated",
    "deployment.known-good",
    "deployment.condemned",
    "safeswitch.verdict",
    "action.intent",
    "action.outcome",
    "drift.found",
    "drift.resolved",
    "loss",
    "from.the-future",
]
FIELDS = [
    "agent",
    "unit",
    "invocation",
    "previous",
    "boot",
    "class",
    "result",
    "code",
    "status",
    "runtime_ms",
    "stop_uptime_ms",
    "toplevel",
    "restart",
    "memory",
    "status_text",
    "journal",
    "source",
    "pid",
    "delay_ms",
    "stable_ms",
    "reason",
    "action",
    "target",
    "ok",
    "detail",
    "running",
    "steps",
    "intent",
    "subject",
    "expected",
    "observed",
    "verdict",
    "check",
    "other",
]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.text(max_size=8)
    | st.sampled_from([*INVOCATIONS, "KILL", "exited", "killed", "rollback", GOOD, "b" * 32]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(TYPES),
            st.dictionaries(st.sampled_from(FIELDS), VALUES),
            st.sampled_from([None, "a-1", "b-2"]),
            st.integers(0, 10**15),
            st.sampled_from(["b" * 32, "c" * 32]),
        ),
        max_size=12,
    )
)
@settings(deadline=None)
def test_no_ledger_breaks_the_telling(
    entries: list[tuple[str, dict[str, Any], str | None, int, str]],
) -> None:
    story = Story()
    for kind, data, incident, at_us, boot in entries:
        story.add(at_us, kind, data, incident=incident, boot=boot)
    incidents = fold(story.entries)
    told: list[Entry] = []
    for one in incidents:
        assert len(timeline(one)) == len(one.entries)
        told += one.entries
        text = render(one)
        assert all(f"[{entry.seq}]" in text for entry in one.entries)
        assert all(letter == "\n" or letter.isprintable() for letter in text)
        assert len(as_json(one)["entries"]) == len(one.entries)
    assert {e.seq for e in told} == {e.seq for e in story.entries if e.incident is not None}
