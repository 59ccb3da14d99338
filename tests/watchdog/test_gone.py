"""Agents that are declared no more, and agents whose unit does not exist: each story has an end."""

from dataclasses import replace

import pytest

from healer.config import Agent, Config
from healer.decisions import Decisions
from healer.events import Instant, Systems
from healer.incident import words
from healer.records import Record
from tests.watchdog.climbing import UNIT, World
from tests.watchdog.climbing import config as climbing_config
from tests.watchdog.test_agent import crash

SYSTEMS = Systems("/a", "/a", "/a", 1, switching=False)
WEB = Config(version=1, agents={"web": Agent(unit=UNIT)})
NOBODY = Config(version=1, agents={})


def at(uptime_ms: int) -> Instant:
    return Instant("boot", uptime_ms)


def test_an_agent_that_is_declared_no_more_ends_its_incident() -> None:
    decisions = Decisions(WEB)
    incident = crash(decisions).incident
    assert decisions.on_gone([], SYSTEMS, at(1_500)) == []
    decisions.configure(NOBODY)
    (end,) = decisions.on_gone([], SYSTEMS, at(2_000))
    assert (end.type, end.incident) == ("agent.undeclared", incident)
    assert decisions.agent("web").incident is None
    assert words.line(end.type, end.data) == (
        "web is no agent any more: the configuration declares it no more; "
        "nobody watches web.service"
    )
    assert decisions.on_gone([], SYSTEMS, at(3_000)) == []


def test_so_does_one_that_has_another_name_now() -> None:
    decisions = Decisions(WEB)
    crash(decisions)
    decisions.configure(Config(version=1, agents={"site": Agent(unit=UNIT)}))
    (end,) = decisions.on_gone([], SYSTEMS, at(2_000))
    assert words.line(end.type, end.data) == (
        "web is no agent any more: the configuration declares it no more; "
        "web.service is the agent site now"
    )


def test_an_agent_without_an_incident_leaves_without_a_word() -> None:
    decisions = Decisions(NOBODY)
    assert decisions.on_gone([], SYSTEMS, at(2_000)) == []


def test_an_agent_that_is_declared_again_has_no_old_story() -> None:
    world = World(climbing_config())
    world.crash_loop()
    assert world.actions() == ["quarantine"]
    world.configure(NOBODY)
    world.obey()
    assert world.incident is None
    world.pass_time(100_000)
    world.configure(climbing_config())
    world.look()
    world.crash(10)
    assert world.unit.running
    world.look()
    assert world.state.held is None
    assert world.incident is not None


def test_a_unit_that_is_gone_ends_the_incident() -> None:
    decisions = Decisions(WEB)
    incident = crash(decisions).incident
    assert decisions.on_gone([UNIT], replace(SYSTEMS, switching=True), at(2_000)) == []
    (end,) = decisions.on_gone([UNIT], SYSTEMS, at(2_000))
    assert (end.type, end.incident) == ("agent.missing", incident)
    assert decisions.agent("web").incident is None
    assert words.line(end.type, end.data) == (
        "web has no unit: systemd knows no web.service, and nothing starts it; is the agent's "
        "option `unit` right?"
    )
    assert decisions.on_gone([UNIT], SYSTEMS, at(3_000)) == []


def test_a_unit_that_was_never_there_is_told_once() -> None:
    decisions = Decisions(WEB)
    (told,) = decisions.on_gone([UNIT], SYSTEMS, at(2_000))
    assert (told.type, told.incident) == ("agent.missing", None)
    assert decisions.on_gone([UNIT], SYSTEMS, at(3_000)) == []
    # A restart of healer does not have it said again, a deployment does.
    again = Decisions(WEB)
    again.replay(told)
    assert again.on_gone([UNIT], SYSTEMS, at(4_000)) == []
    data = {"toplevel": "/b", "previous": "/a", "generation": 2, "kind": "switch"}
    again.replay(Record(at(5_000), "deployment.activated", data))
    assert len(again.on_gone([UNIT], SYSTEMS, at(6_000))) == 1
    # Another unit of the same agent's is another matter.
    again.configure(Config(version=1, agents={"web": Agent(unit="other.service")}))
    assert len(again.on_gone(["other.service"], SYSTEMS, at(7_000))) == 1


def test_nothing_is_told_of_a_unit_that_is_no_agents() -> None:
    assert Decisions(NOBODY).on_gone([UNIT], SYSTEMS, at(2_000)) == []


def test_a_crash_that_is_learnt_of_late_ends_as_well() -> None:
    decisions = Decisions(WEB)
    decisions.on_gone([UNIT], SYSTEMS, at(500))
    incident = crash(decisions).incident
    (end,) = decisions.on_gone([UNIT], SYSTEMS, at(2_000))
    assert end.incident == incident


def test_a_step_that_was_due_is_not_taken_when_the_unit_is_back() -> None:
    world = World(climbing_config())
    for _ in range(3):
        world.crash(10)
    world.read()
    world.note(world.decisions.on_gone([UNIT], world.systems(), world.now()))
    assert world.incident is None
    world.look()
    assert world.actions() == []


@pytest.mark.parametrize("how", ["agent.undeclared", "agent.missing"])
def test_a_story_that_a_failed_check_began_ends_as_well(how: str) -> None:
    decisions = Decisions(WEB)
    data = {"agent": "web", "unit": UNIT, "invocation": "1" * 32, "check": "alive"}
    decisions.replay(Record(at(1_000), "health.failed", data, "web-11111111"))
    if how == "agent.undeclared":
        decisions.configure(NOBODY)
    (end,) = decisions.on_gone([UNIT], SYSTEMS, at(2_000))
    assert (end.type, end.incident, end.data["unit"]) == (how, "web-11111111", UNIT)
    assert decisions.agent("web").story is None
    assert decisions.on_gone([UNIT], SYSTEMS, at(3_000)) == []
