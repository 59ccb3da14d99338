"""What follows from health checks, over invented histories."""

from collections import Counter
from dataclasses import replace
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from healer.config import Agent, CommandCheck, Config, HealthCheck, SafeSwitch
from healer.decisions import Decisions
from healer.events import Context, Ended, Instant, Systems, UnitState
from healer.incident import words
from healer.records import Record
from healer.watchdog.health import Outcome

OK, FAILED, ERROR = Outcome.OK, Outcome.FAILED, Outcome.ERROR
UNIT = UnitState(
    active_state="active",
    sub_state="running",
    invocation="1" * 32,
    main_pid=1,
    n_restarts=0,
    status_text="",
    since_us=0,
    since_ms=0,
    active_enter_ms=0,
)


def check(name: str = "live", **options: Any) -> CommandCheck:
    return CommandCheck(name=name, command=("/bin/true",), **options)


class Host:
    """One agent, its checks, and a clock."""

    def __init__(self, *checks: HealthCheck) -> None:
        self.config = Config(
            version=1,
            agents={"web": Agent(unit="web.service", health=checks, stable_sec=1)},
            safe_switch=SafeSwitch(probation_sec=10),
        )
        self.checks = {check.name: check for check in checks}
        self.decisions = Decisions(self.config)
        self.unit = UNIT
        self.uptime_ms = 0
        self.records: list[Record] = []

    def now(self) -> Instant:
        return Instant("boot", self.uptime_ms)

    def look(self, name: str, outcome: Outcome, after_sec: float = 3) -> list[str]:
        """Let a check find this; return the types of the records that follow."""
        self.uptime_ms += int(after_sec * 1000)
        made = self.decisions.on_probe(
            name="web",
            check=self.checks[name],
            unit=self.unit,
            outcome=outcome,
            detail="because",
            now=self.now(),
        )
        self.records += made
        return [record.type for record in made]

    def restart_agent(self) -> None:
        number = int(self.unit.invocation[0]) + 1
        self.unit = replace(self.unit, invocation=str(number) * 32, active_enter_ms=self.uptime_ms)

    def restart_healer(self) -> None:
        self.decisions = Decisions(self.config)
        for record in self.records:
            self.decisions.replay(record)

    def reload(self, *checks: HealthCheck) -> None:
        self.checks = {check.name: check for check in checks}
        web = msgspec.structs.replace(self.config.agents["web"], health=checks)
        self.config = msgspec.structs.replace(self.config, agents={"web": web})
        self.decisions.configure(self.config)

    def kills(self) -> list[str]:
        return [r.data["invocation"] for r in self.records if r.type == "action.intent"]

    def why_not_good(self) -> str | None:
        """Let the probation pass; return what keeps the deployment from being known-good."""
        systems = Systems("/a", "/a", "/a", 1, False)
        self.records += self.decisions.on_systems(systems, self.now())
        self.uptime_ms += 20_000
        made = self.decisions.on_tick({"web.service": self.unit}, systems, self.now())
        self.records += made
        (verdict,) = (r.data for r in made if r.type == "safeswitch.verdict")
        return None if verdict["verdict"] == "healthy" else verdict["reason"]


KILL = ["health.failed", "action.intent"]


def test_a_liveness_check_kills_once_for_each_invocation() -> None:
    host = Host(check(start_grace_sec=0))
    assert [host.look("live", FAILED) for _ in range(5)] == [[], [], KILL, [], []]
    failed, intent = host.records
    assert failed.data["purpose"] == "liveness"
    assert failed.data["failures"] == 3
    assert intent.data["action"] == "kill"
    assert intent.incident == failed.incident == "web-11111111"
    host.restart_agent()
    assert [host.look("live", FAILED) for _ in range(3)] == [[], [], KILL]


def test_failures_in_the_grace_do_not_count() -> None:
    host = Host(check(start_grace_sec=10, failure_threshold=2))
    assert [host.look("live", FAILED) for _ in range(5)] == [[], [], [], [], KILL]


def test_a_success_forgives_earlier_failures() -> None:
    host = Host(check(start_grace_sec=0))
    for outcome in (FAILED, FAILED, OK, FAILED, FAILED):
        assert host.look("live", outcome) == []
    assert host.look("live", FAILED) == KILL


def test_with_a_success_threshold_flapping_is_not_health() -> None:
    host = Host(check(start_grace_sec=0, success_threshold=2))
    for outcome in (FAILED, OK, FAILED, OK):
        assert host.look("live", outcome) == []
    assert host.look("live", FAILED) == KILL
    host.restart_agent()
    for outcome in (FAILED, FAILED, OK, OK, FAILED, FAILED):
        assert host.look("live", outcome) == []


def test_the_checks_own_error_changes_nothing() -> None:
    host = Host(check(start_grace_sec=0))
    for outcome in (FAILED, ERROR, FAILED, ERROR, ERROR):
        assert host.look("live", outcome) == []
    assert host.look("live", FAILED) == KILL


def test_liveness_waits_for_every_startup() -> None:
    startups = [check(name, purpose="startup", start_grace_sec=1000) for name in ("a", "b")]
    host = Host(check(start_grace_sec=0, failure_threshold=1), *startups)
    assert host.look("live", FAILED) == []
    assert host.look("a", OK) == ["health.passed"]
    assert host.records[-1].data["after_ms"] == 6000
    assert host.look("live", FAILED) == []
    assert host.look("b", OK) == ["health.passed"]
    assert host.look("live", FAILED) == KILL
    # The next invocation has to start up as well.
    host.restart_agent()
    assert host.look("live", FAILED) == []


def test_a_startup_that_does_not_succeed_in_its_grace_kills() -> None:
    host = Host(check("start", purpose="startup", start_grace_sec=10, failure_threshold=2))
    assert [host.look("start", FAILED) for _ in range(5)] == [[], [], [], KILL, []]
    host.restart_agent()
    assert [host.look("start", FAILED, 20), host.look("start", FAILED)] == [[], KILL]


def test_a_startup_that_succeeded_is_over_even_for_the_next_healer() -> None:
    start = check("start", purpose="startup", start_grace_sec=0, failure_threshold=1)
    host = Host(start, check(start_grace_sec=0, failure_threshold=1))
    host.look("start", OK)
    host.restart_healer()
    assert [host.look("start", FAILED) for _ in range(3)] == [[], [], []]
    assert host.look("live", FAILED) == KILL


def test_readiness_is_told_when_it_changes() -> None:
    ready = check("ready", purpose="readiness", start_grace_sec=0, success_threshold=2)
    host = Host(ready)
    outcomes = [OK, OK, OK, FAILED, FAILED, FAILED, FAILED, OK, OK]
    told = [host.look("ready", outcome) for outcome in outcomes]
    passed, unready = ["health.passed"], ["health.unready"]
    assert told == [[], passed, [], [], [], unready, [], [], passed]
    assert host.kills() == []


def test_an_agent_is_ready_when_its_checks_say_so_of_this_invocation() -> None:
    ready = check("db-answers", purpose="readiness", start_grace_sec=0, failure_threshold=1)
    host = Host(ready, check())
    reason = host.why_not_good()
    assert reason is not None
    assert "readiness check db-answers" in reason
    host.look("db-answers", OK)
    host.restart_healer()
    assert host.why_not_good() is None

    host = Host(ready)
    host.look("db-answers", OK)
    host.look("db-answers", FAILED)
    assert "db-answers" in (host.why_not_good() or "")
    host = Host(ready)
    host.look("db-answers", OK)
    host.restart_agent()
    assert "db-answers" in (host.why_not_good() or "")


def test_an_agent_that_never_started_up_is_not_known_to_be_good() -> None:
    host = Host(check("start", purpose="startup", start_grace_sec=1000))
    assert "startup check start" in (host.why_not_good() or "")
    host.look("start", OK)
    assert host.why_not_good() is None


LOOKS = st.lists(
    st.tuples(
        st.sampled_from(["live", "ready", "start"]),
        st.sampled_from(list(Outcome)),
        st.sampled_from([0.1, 3, 30]),
        st.sampled_from(["", "", "", "", "agent", "healer"]),
    ),
    max_size=40,
)
THRESHOLD = st.integers(1, 4)


@settings(deadline=None)
@given(LOOKS, THRESHOLD, THRESHOLD, st.sampled_from([0, 5, 40]))
def test_whatever_is_found(
    looks: list[tuple[str, Outcome, float, str]], failures: int, successes: int, grace: float
) -> None:
    common = {
        "failure_threshold": failures,
        "success_threshold": successes,
        "start_grace_sec": grace,
    }
    host = Host(
        check("live", **common),
        check("ready", purpose="readiness", **common),
        check("start", purpose="startup", **common),
    )
    found: dict[str, list[Outcome]] = {"live": [], "ready": [], "start": []}
    for name, outcome, after_sec, restarted in looks:
        if restarted == "agent":
            host.restart_agent()
            found = {name: [] for name in found}
        elif restarted == "healer":
            agents = host.decisions.agents
            host.restart_healer()
            assert host.decisions.agents == agents
            found = {name: [] for name in found}
        invocation = host.unit.invocation
        started = host.decisions.agent("web").has_passed("start", invocation)
        told = host.look(name, outcome, after_sec)
        if outcome is not ERROR:
            found[name].append(outcome)
        if told == KILL:
            # Only what failed is killed for: behind the grace, often enough, and not when ready.
            assert name != "ready"
            assert outcome is not OK or successes > 1
            assert found[name].count(FAILED) >= failures
            assert host.uptime_ms - host.unit.active_enter_ms >= grace * 1000
            assert started is (name == "live")
        elif told == ["health.passed"]:
            assert name != "live"
            assert found[name][-successes:] == [OK] * successes
        elif told == ["health.unready"]:
            assert name == "ready"
            assert found[name].count(FAILED) >= failures
        else:
            assert told == []
    kills = Counter(host.kills())
    assert all(count == 1 for count in kills.values())


@settings(deadline=None)
@given(st.lists(st.sampled_from(["live", "ready", "start"]), max_size=30))
def test_errors_alone_lead_to_nothing(names: list[str]) -> None:
    purposes = {"live": "liveness", "ready": "readiness", "start": "startup"}
    host = Host(
        *(
            check(name, purpose=purpose, start_grace_sec=0, failure_threshold=1)
            for name, purpose in purposes.items()
        )
    )
    for name in names:
        host.look(name, ERROR)
    assert host.records == []


def test_a_check_that_serves_another_purpose_from_now_on_begins_anew() -> None:
    """The agent runs on: its checks are no part of its unit."""
    host = Host(check())
    host.look("live", OK)
    host.reload(check(purpose="startup"))
    assert host.look("live", OK) == ["health.passed"]
    host.reload(check(failure_threshold=2, start_grace_sec=0))
    assert host.look("live", FAILED) == []
    assert host.look("live", FAILED) == ["health.failed", "action.intent"]


def test_a_startup_check_that_cannot_be_made_keeps_no_incident_open() -> None:
    """It tells nothing, neither good nor bad; what has run for stableSec by the end of its grace is
    recovered, as far as anybody knows.
    """
    host = Host(check("start", purpose="startup", start_grace_sec=10))
    how = ("signal", "killed", "KILL", 0, 0, "/a", None, "stamp")
    ended = Ended("web.service", "0" * 32, "boot", *how)
    host.decisions.on_ended(ended, Context(), host.now())
    systems = Systems("/a", "/a", "/a", 1, False)

    def state() -> list[Record]:
        return host.decisions.on_unit("web.service", host.unit, systems, host.now())

    assert [record.type for record in state()] == ["agent.restarted"]
    host.look("start", ERROR, 6)
    assert state() == []
    host.look("start", FAILED, 6)
    assert state() == []
    host.look("start", ERROR)
    (end,) = state()
    assert (end.type, end.incident) == ("agent.recovered", "web-00000000")
    assert end.data["unchecked"] == ["start"]
    assert "its startup check start could not be made" in words.line(end.type, end.data)
    assert "startup check start" in (host.why_not_good() or "")
