"""What is told of an agent after a crash: its core dump, and how it recovered."""

from dataclasses import replace

import pytest

from healer.config import Agent, CommandCheck, Config, Restart
from healer.decisions import Decisions
from healer.events import Context, CoreDump, Ended, Instant, Systems, UnitState
from healer.records import Record
from healer.watchdog.health import Outcome
from healer.watchdog.remembered import Remembered

UNIT = "web.service"
SYSTEMS = Systems(None, None, None, None, switching=False)
FIRST, SECOND, THIRD = (digit * 32 for digit in "123")
RUNNING = UnitState(
    active_state="active",
    sub_state="running",
    invocation=SECOND,
    main_pid=2,
    n_restarts=1,
    status_text="busy",
    since_us=0,
    since_ms=1_500,
    active_enter_ms=1_500,
    start_ms=1_200,
    first_status="waking up",
)


def crash(decisions: Decisions, invocation: str = FIRST, stop_ms: int = 1_000) -> Record:
    dumped = ("core-dump", "dumped", "SEGV")
    end = Ended(UNIT, invocation, "boot", *dumped, 0, stop_ms, None, None, "stamp")
    return decisions.on_ended(end, Context(), Instant("boot", stop_ms))[0]


def recovered(agent: Agent, unit: UnitState) -> Record:
    decisions = Decisions(Config(version=1, agents={"web": agent}))
    crash(decisions)
    for check in agent.health:
        now = Instant("boot", 2_000)
        decisions.on_probe("web", check, unit, Outcome.OK, "", now)
    *_, last = decisions.on_unit(UNIT, unit, SYSTEMS, Instant("boot", 62_000))
    assert last.type == "agent.recovered"
    return last


def test_what_it_did_after_its_recovery() -> None:
    data = recovered(Agent(unit=UNIT), RUNNING).data
    assert (data["first_status"], data["restarts"], data["n_restarts"]) == ("waking up", 1, 1)
    assert data["ready_ms"] is None  # nothing tells when a plain process is ready


def test_ready_is_what_systemd_was_told() -> None:
    unit = replace(RUNNING, notifies=True)
    assert recovered(Agent(unit=UNIT), unit).data["ready_ms"] == 300


def test_ready_is_what_its_checks_found() -> None:
    check = CommandCheck(name="x", command=("/bin/true",), purpose="readiness")
    assert recovered(Agent(unit=UNIT, health=(check,)), RUNNING).data["ready_ms"] == 800


def dump(invocation: str) -> CoreDump:
    return CoreDump(UNIT, invocation, 7, "/bin/web", "SEGV", ("#0 run",))


def test_a_core_dump_is_recorded_once_in_the_incident_of_its_crash() -> None:
    decisions = Decisions(Config(version=1, agents={"web": Agent(unit=UNIT)}))
    first = crash(decisions)
    (record,) = decisions.on_dump(dump(FIRST), Instant("boot", 1_100), is_main=True)
    assert (record.incident, record.data["signal"]) == (first.incident, "SEGV")
    assert decisions.on_dump(dump(FIRST), Instant("boot", 1_200), is_main=True) == []
    # The incident may be over when systemd-coredump is done.
    crash(decisions, SECOND, 3_000)
    decisions.on_unit(UNIT, replace(RUNNING, invocation=THIRD), SYSTEMS, Instant("boot", 100_000))
    assert decisions.agent("web").incident is None
    (record,) = decisions.on_dump(dump(SECOND), Instant("boot", 100_100), is_main=True)
    assert record.incident == first.incident
    # And it stays over.
    assert decisions.agent("web").story is None


def test_a_core_dump_of_a_child_belongs_to_no_incident() -> None:
    decisions = Decisions(Config(version=1, agents={"web": Agent(unit=UNIT)}))
    (record,) = decisions.on_dump(dump(FIRST), Instant("boot", 1_100), is_main=False)
    assert record.incident is None


def test_a_core_dump_that_is_known_before_its_crash_is_in_its_incident() -> None:
    decisions = Decisions(Config(version=1, agents={"web": Agent(unit=UNIT)}))
    (record,) = decisions.on_dump(dump(FIRST), Instant("boot", 900), is_main=True)
    assert record.incident is not None
    assert crash(decisions).incident == record.incident


def test_a_start_limit_is_named() -> None:
    decisions = Decisions(Config(version=1, agents={"web": Agent(unit=UNIT)}))
    crash(decisions)
    failed = replace(
        RUNNING, active_state="failed", invocation=FIRST, since_ms=1_000, start_limit=True
    )
    (record,) = decisions.on_unit(UNIT, failed, SYSTEMS, Instant("boot", 9_000))
    assert record.type == "agent.not-restarted"
    assert "start limit" in record.data["reason"]


@pytest.mark.parametrize(
    "restart",
    [Restart(policy="exponential"), Restart(policy="conditional", otherwise="backoff")],
    ids=lambda restart: restart.policy,
)
def test_a_stable_run_begins_systemds_backoff_anew(restart: Restart) -> None:
    decisions = Decisions(Config(version=1, agents={"web": Agent(unit=UNIT, restart=restart)}))
    crash(decisions)
    *_, recovered, reset = decisions.on_unit(UNIT, RUNNING, SYSTEMS, Instant("boot", 62_000))
    assert (recovered.type, reset.data["action"]) == ("agent.recovered", "reset")


def test_restarts_after_clean_exits_are_forgotten_as_well() -> None:
    agents = {"web": Agent(unit=UNIT, restart=Restart(policy="exponential"))}
    decisions = Decisions(Config(version=1, agents=agents))
    assert decisions.on_restarts({UNIT: RUNNING}, Instant("boot", 61_000)) == []
    (reset,) = decisions.on_restarts({UNIT: RUNNING}, Instant("boot", 62_000))
    assert (reset.data["action"], reset.incident) == ("reset", None)
    # systemd may be asked for its count anew much later.
    assert decisions.on_restarts({UNIT: RUNNING}, Instant("boot", 63_000)) == []
    following = replace(RUNNING, invocation=THIRD)
    assert len(decisions.on_restarts({UNIT: following}, Instant("boot", 70_000))) == 1
    assert (
        decisions.on_restarts({UNIT: replace(RUNNING, n_restarts=0)}, Instant("boot", 80_000)) == []
    )


def test_an_immediate_restart_has_no_backoff_to_begin_anew() -> None:
    decisions = Decisions(Config(version=1, agents={"web": Agent(unit=UNIT)}))
    crash(decisions)
    *_, last = decisions.on_unit(UNIT, RUNNING, SYSTEMS, Instant("boot", 62_000))
    assert last.type == "agent.recovered"
    assert decisions.on_restarts({UNIT: RUNNING}, Instant("boot", 62_000)) == []


def test_an_end_is_recorded_once_though_its_agent_has_another_name_since() -> None:
    """Its stamp is there for a while, and healer reads it again at its next start."""
    decisions = Decisions(Config(version=1, agents={"web": Agent(unit=UNIT)}))
    end = Ended(UNIT, FIRST, "boot", "signal", "killed", "KILL", 0, 1_000, None, None, "stamp")
    first = decisions.on_ended(end, Context(), Instant("boot", 1_000))
    assert [record.type for record in first] == ["agent.crash"]
    decisions = Decisions(Config(version=1, agents={"www": Agent(unit=UNIT)}))
    for record in first:
        decisions.replay(record)
    assert decisions.on_ended(end, Context(), Instant("boot", 2_000)) == []


def test_an_incident_ends_though_a_run_in_it_ended_without_a_trace() -> None:
    """Where /run is full no stamp can be written, and the journal tells of failures only."""
    decisions = Decisions(Config(version=1, agents={"web": Agent(unit=UNIT)}))
    crash(decisions)
    (second,) = decisions.on_unit(UNIT, RUNNING, SYSTEMS, Instant("boot", 2_000))
    assert second.type == "agent.restarted"
    third = replace(RUNNING, invocation=THIRD, since_ms=5_000, active_enter_ms=5_000)
    assert decisions.on_unit(UNIT, third, SYSTEMS, Instant("boot", 64_999)) == []
    (last,) = decisions.on_unit(UNIT, third, SYSTEMS, Instant("boot", 65_000))
    assert (last.type, last.data["invocation"]) == ("agent.recovered", THIRD)
    assert decisions.agent("web").incident is None


def test_an_agent_that_says_it_is_another_invocation_silences_nobody() -> None:
    """Its EnvironmentFile= decides what its stop stamp calls it (nix/stamp-stop.sh)."""
    agents = {"web": Agent(unit=UNIT), "liar": Agent(unit="liar.service")}
    decisions = Decisions(Config(version=1, agents=agents))
    for unit in ("liar.service", UNIT):
        end = Ended(unit, FIRST, "boot", "signal", "killed", "KILL", 0, 1_000, None, None, "stamp")
        told = decisions.on_ended(end, Context(), Instant("boot", 1_100))
        assert [record.data["unit"] for record in told if record.type == "agent.crash"] == [unit]


def test_what_is_remembered_of_ends_is_bounded_for_the_whole_host() -> None:
    remembered = Remembered()
    for number in range(100_000):
        remembered.add((UNIT, str(number)))
    known = [number for number in range(100_000) if (UNIT, str(number)) in remembered]
    assert known == [*range(100_000 - 32_768, 100_000)]
