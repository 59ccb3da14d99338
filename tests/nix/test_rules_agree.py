"""Three say what follows an end: systemd by its settings, the stop stamp, and healer's record.

For every pair of rules in either order and every end they have to come to the same: one restart at
most, and that after the pause which the record names.
"""

import itertools
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from healer.config import Restart
from healer.events import Ended
from healer.watchdog.classify import crash_class
from healer.watchdog.policy import answer
from tests.nix.evaluation import CHECKOUT, evaluate, needs_nix

pytestmark = needs_nix

RULES: list[dict[str, Any]] = [
    {"exitCodes": [3], "action": "stop"},
    {"exitCodes": [3, 4], "action": "restart"},
    {"exitCodes": [4], "action": "restart", "delaySec": 30},
    {"exitCodes": [0], "action": "restart", "delaySec": 5},
    {"signals": ["SIGKILL", "SIGRTMAX-1"], "action": "backoff"},
    {"signals": ["SIGKILL"], "action": "stop"},
    {"exitCodes": [4], "signals": ["SIGABRT"], "action": "escalate"},
    {"classes": ["oom"], "action": "restart", "delaySec": 60},
    {"classes": ["oom", "watchdog"], "action": "stop"},
    {"classes": ["watchdog"], "action": "restart"},
    {"classes": ["oom"], "action": "rollback"},
]
# Result, code, status.
ENDS = [
    ("success", "exited", "0"),
    ("exit-code", "exited", "3"),
    ("exit-code", "exited", "4"),
    ("exit-code", "exited", "5"),
    ("signal", "killed", "KILL"),
    ("oom-kill", "killed", "KILL"),
    ("signal", "killed", "RTMIN+29"),
    ("core-dump", "dumped", "ABRT"),
    ("watchdog", "dumped", "ABRT"),
    ("exit-code", "", ""),
]
# The same, where healer's helper ended it because a check failed.
UNHEALTHY = [("success", "exited", "0"), ("core-dump", "dumped", "ABRT")]
DRIVER = """
while read -r SERVICE_RESULT EXIT_STATUS class in_a_row arguments; do
  [ "$EXIT_STATUS" != - ] || EXIT_STATUS=
  [ "$class" != - ] || class=
  (answer= delay_ms= forbid= asked=
   ask() { :; }  # no job waits
   set -- $arguments
   . "$rules"
   echo "$answer,$delay_ms,$forbid")
done
"""


@dataclass(frozen=True)
class Case:
    """One policy as it is rendered, and one end."""

    restart: Restart
    settings: dict[str, Any]
    told: list[str]
    ended: Ended
    crash_class: str


def policies() -> list[dict[str, Any]]:
    """All pairs of rules that do not contradict each other, with each of what is said otherwise."""

    def ends(rule: dict[str, Any]) -> set[object]:
        return {end for key in ("exitCodes", "signals", "classes") for end in rule.get(key, [])}

    return [
        {
            "policy": "conditional", "rules": [*pair], "otherwise": otherwise, "on": on,
            "delaySec": 0.2, "maxDelaySec": 0.8, "steps": 2,
        }
        for pair in itertools.permutations(RULES, 2)
        if not ends(pair[0]) & ends(pair[1])
        for otherwise, on in (("restart", "always"), ("restart", "failure"), ("stop", "always"),
                              ("backoff", "always"))
    ]  # fmt: skip


@pytest.fixture(scope="module")
def stamped() -> list[Case]:
    """Every case in which the stamp is told rules."""
    return [case for case in cases() if case.told]


def cases() -> Iterator[Case]:
    declared = policies()
    agents = {f"a{n}": {"command": "/a", "restart": each} for n, each in enumerate(declared)}
    text = json.dumps(json.dumps({"agents": agents}))
    rendered = evaluate(
        f"""let
          cfg = import @/nix/complete.nix (builtins.fromJSON {text});
          inherit (import @/nix/restart.nix) restartConfig rulesOf;
        in builtins.mapAttrs (_: agent: {{
          settings = restartConfig agent.restart; told = rulesOf agent.restart;
        }}) cfg.agents"""
    )
    for number, each in enumerate(declared):
        made = rendered[f"a{number}"]
        restart = msgspec.convert(each, Restart)
        for nth, (result, code, status) in enumerate([*ENDS, *UNHEALTHY]):
            ended = Ended(
                "a.service", "0" * 32, "b" * 32, result, code, status, 0, 1000, None, None, "stamp"
            )
            check = None if nth < len(ENDS) else "web"
            how = "" if result == "success" and check is None else crash_class(ended, check)
            yield Case(restart, made["settings"], made["told"], ended, how)


def restarts_by_itself(settings: dict[str, Any], ended: Ended) -> bool:
    """What systemd.service(5) says of Restart= and its two lists."""

    def listed(setting: str) -> set[str]:
        names = str(settings.get(setting, "")).split()
        return {name.removeprefix("SIG").replace("RTMAX-1", "RTMIN+29") for name in names}

    if ended.status in listed("RestartPreventExitStatus"):
        return False
    if ended.status in listed("RestartForceExitStatus"):
        return True
    always = settings["Restart"] == "always"
    return always or (settings["Restart"] == "on-failure" and ended.result != "success")


def stamps_say(ends: list[tuple[str, str, str, int, list[str]]]) -> list[str]:
    """Ask the stamp: for each result, status, class, number in a row and rules, what it does."""
    lines = [
        f"{result} {status or '-'} {crash_class or '-'} {in_a_row} later {' '.join(told)}"
        for result, status, crash_class, in_a_row, told in ends
    ]
    done = subprocess.run(
        ["sh", "-c", f"rules={CHECKOUT}/nix/stamp-rules.sh{DRIVER}"],
        input="\n".join(lines) + "\n", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    said = done.stdout.splitlines()
    assert len(said) == len(ends)
    return said


@pytest.mark.parametrize("in_a_row", [1, 2, 9])
def test_systemd_the_stamp_and_the_record_agree(stamped: list[Case], in_a_row: int) -> None:
    said = stamps_say(
        [
            (case.ended.result, case.ended.status, case.crash_class, in_a_row, case.told)
            for case in stamped
        ]
    )
    for case, line in zip(stamped, said, strict=True):
        stamp_answer, delay, forbids = line.split(",")
        expected = answer(case.restart, case.ended, case.crash_class)
        native = restarts_by_itself(case.settings, case.ended) and not forbids
        told = f"{case.restart} {case.ended.status} {case.crash_class}: {line} {expected}"
        assert not (native and delay), told
        assert (native or delay != "") == expected.restarts, told
        if stamp_answer and expected.restarts:
            assert stamp_answer == expected.kind, told
        if delay and expected.delay_ms is not None:
            assert int(delay) == expected.delay_ms, told
        if native and expected.kind in {"restart", "delay"}:
            assert case.settings["RestartSec"] == f"{expected.delay_ms}ms", told
        if expected.kind == "backoff" and delay:
            assert int(delay) == [200, 400, 800][min(in_a_row, 3) - 1], told


DELAYS = st.builds(
    lambda first, times, steps, factor: {
        "policy": "conditional",
        "rules": [{"signals": ["SIGKILL"], "action": "backoff"}],
        "delaySec": first / 1000,
        "maxDelaySec": first * times / 1000,
        "steps": steps,
        "factor": factor,
    },
    st.integers(1, 10_000),
    st.integers(2, 10_000),
    st.integers(1, 40),
    st.none() | st.floats(1.05, 100),
)


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(declared=st.lists(DELAYS, min_size=20, max_size=40), row=st.sets(st.integers(1, 10_000)))
def test_a_backoff_grows_and_never_exceeds_its_cap(
    declared: list[dict[str, Any]], row: set[int]
) -> None:
    text = json.dumps(
        json.dumps({"agents": {f"a{n:02}": {"command": "/a", "restart": each}
                               for n, each in enumerate(declared)}})
    )  # fmt: skip
    rules = evaluate(
        f"""let cfg = import @/nix/complete.nix (builtins.fromJSON {text});
        in map (agent: (import @/nix/restart.nix).rulesOf agent.restart)
          (builtins.attrValues cfg.agents)"""
    )
    nth = sorted({1, 2, 3, 10_000} | row)
    said = stamps_say([("signal", "KILL", "signal", n, told) for told in rules for n in nth])
    delays = [int(line.split(",")[1]) for line in said]
    for number, each in enumerate(declared):
        grown = delays[number * len(nth) : (number + 1) * len(nth)]
        assert grown == sorted(grown), each
        assert grown[0] == round(each["delaySec"] * 1000), each
        assert grown[-1] == round(each["maxDelaySec"] * 1000), each
