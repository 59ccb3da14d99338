"""The post-mortem as a person reads it."""

import json
from typing import Any

import pytest

from healer.incident import words
from healer.incident.fold import fold
from healer.incident.postmortem import as_json, render
from tests.incident.story import BAD, Story

WHOLE = """\
# Incident worker-1a2b3c4d

worker crashed 2 times, last: killed because memory ran out (SIGKILL); rolled back to \
nixos-system-host-26.05 (gggggggg)

State     rolled-back
Opened    2026-09-21 14:13:30.000 UTC
Closed    2026-09-21 14:14:40.000 UTC, after 1 min 10 s
Running   nixos-system-host-26.05 (xxxxxxxx), active for 10.0 s [0]
Evidence  ledger entries 1 to 8, numbered in [brackets]

## What it was doing

Its last status: job 12 of 40
Its last lines in the journal [1]:
    starting job 12
    half-way\\x1b[2J

## How it ended

[1] killed by SIGKILL (Killed) after 1 min 30 s
    memory: peak 5.0 MiB, current 4.0 KiB, 0 OOM kills
    invocation 1a2b3c4d1a2b3c4d1a2b3c4d1a2b3c4d
[3] killed because memory ran out (SIGKILL) after 1.5 s
    memory: not known
    invocation 22222222222222222222222222222222
    its last status: job 13 of 40

## What happened

       +0 ms  14:13:30.000      [1] worker.service crashed: killed by SIGKILL (Killed) \
after 1 min 30 s; systemd restarts it
      +12 ms  14:13:30.012      [2] worker.service runs again as process 4711, 12 ms after the crash
       +2.0 s  14:13:32.000      [3] worker.service crashed: killed because memory ran out \
(SIGKILL) after 1.5 s; systemd restarts it
"""


def rolled_back() -> Story:
    story = Story()
    story.add(0, "deployment.activated", {"toplevel": BAD}, incident=None)
    story.crash(10_000_000)
    story.restarted(10_300_000)
    oom: dict[str, Any] = {"class": "oom", "memory": None, "runtime_ms": 1_500}
    story.crash(12_000_000, 1, status_text="job 13 of 40", **oom)
    story.add(12_100_000, "agent.crash-loop", {"agent": "worker", "toplevel": BAD, "reason": "2"})
    story.rollback(12_200_000)
    story.restarted(13_600_000, 2, delay_ms=1_500)
    story.recovered(80_000_000, 2)
    return story


def test_the_whole_story() -> None:
    (incident,) = fold(rolled_back().entries)
    text = render(incident)
    for line in WHOLE.splitlines():
        assert " ".join(line.split()) in [" ".join(found.split()) for found in text.splitlines()]
    head, _, story = text.partition("## What happened")
    assert head == WHOLE.partition("## What happened")[0]
    numbers = [line.split("[")[1].split("]")[0] for line in story.splitlines() if "]" in line]
    assert numbers == ["1", "2", "3", "4", "5", "6", "7", "8"]
    assert "switch: 1.2 s" in story
    assert "no outcome is recorded" not in story


def test_json_has_the_same_story_with_the_evidence() -> None:
    (incident,) = fold(rolled_back().entries)
    told = json.loads(json.dumps(as_json(incident)))
    assert (told["state"], told["crashes"], told["agent"]) == ("rolled-back", 2, "worker")
    assert [entry["offset_us"] for entry in told["entries"]][:3] == [0, 12_000, 2_000_000]
    assert told["entries"][0]["leaf"] == incident.entries[0].leaf


def test_an_intent_without_an_outcome_says_so() -> None:
    story = Story()
    story.crash(1_000_000)
    story.add(2_000_000, "action.intent", {"action": "rollback", "target": BAD, "reason": "r"})
    (incident,) = fold(story.entries)
    assert "no outcome is recorded: under way, or healer was interrupted" in render(incident)


def test_a_crash_recorded_late_is_told_when_it_happened() -> None:
    story = Story()
    story.crash(1_000_000, stop_uptime_ms=400)
    story.entries[0] = story.add(9_400_000, "agent.crash", story.entries[0].data)
    (incident,) = fold(story.entries[:1])
    text = render(incident)
    assert "recorded 9.0 s later, from its stamp" in text
    assert "Opened    2026-09-21 14:13:20.400 UTC" in text


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"class": "exit", "code": "exited", "status": "3"}, "exited with code 3"),
        (
            {"class": "exit", "code": "exited", "status": 78},
            "exited with code 78 (EX_CONFIG, configuration error)",
        ),
        ({"code": "exited", "status": "203"}, "exited with code 203 (systemd could not execute"),
        (
            {"class": "signal", "code": "killed", "status": "SEGV"},
            "killed by SIGSEGV (Segmentation",
        ),
        ({"class": "signal", "code": "killed", "status": "RTMIN+1"}, "killed by SIGRTMIN+1"),
        (
            {"class": "core-dump", "code": "dumped", "status": "ABRT"},
            "killed by SIGABRT (Aborted), core dumped",
        ),
        ({"class": "oom", "code": "killed", "status": "KILL"}, "killed because memory ran out"),
        ({"class": "watchdog", "code": "dumped", "status": "ABRT"}, "missed its watchdog deadline"),
        ({"class": "start-failed", "code": "", "status": ""}, "could not be started"),
        (
            {"class": "health", "health_check": "web"},
            "killed by healer: its health check web failed",
        ),
        ({}, "ended, it is not known how"),
        ({"class": "from-the-future"}, "ended (from-the-future)"),
    ],
)
def test_endings_in_words(data: dict[str, Any], said: str) -> None:
    assert said in words.ending(data)


@pytest.mark.parametrize(
    ("microseconds", "said"),
    [
        (0, "0 ms"),
        (850, "850 µs"),
        (12_345, "12 ms"),
        (999_999, "999 ms"),
        (3_449_999, "3.4 s"),
        (60_000_000, "1 min"),
        (303_000_000, "5 min 3 s"),
        (7_500_000_000, "2 h 5 min"),
        (90_000_000_000, "1 d 1 h"),
        (-12_000, "-12 ms"),
    ],
)
def test_durations(microseconds: int, said: str) -> None:
    assert words.duration(microseconds) == said


@pytest.mark.parametrize("text", ["\x1b[31m", "\u202eevil", "a\rb", "\x00", "\u2028", "\x9b2J"])
def test_nothing_that_moves_the_cursor_or_hides_text_is_printed(text: str) -> None:
    assert words.printable(text).isprintable()
