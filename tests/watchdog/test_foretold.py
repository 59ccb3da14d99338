"""Stories that begin before a crash and come to none: each ends, and so does its incident."""

from collections.abc import Iterable

import pytest

from healer.config import Agent, CommandCheck, Config
from healer.decisions import Decisions
from healer.events import Context, CoreDump, Ended, Instant, Systems, UnitState
from healer.incident.fold import Incident, State, fold
from healer.records import Record
from healer.watchdog.health import Outcome
from tests.incident.story import Story

UNIT = "web.service"
SYSTEMS = Systems(None, None, None, None, switching=False)
FIRST, SECOND = (digit * 32 for digit in "12")
CHECK = CommandCheck(name="alive", command=("/bin/true",), start_grace_sec=0)
STABLE_SEC = 10


def running(invocation: str, since_ms: int) -> UnitState:
    return UnitState("active", "running", invocation, 1, 0, "", 0, since_ms, since_ms)


class Host:
    """One agent with one check of liveness, and what is recorded of it."""

    def __init__(self) -> None:
        web = Agent(unit=UNIT, health=(CHECK,), stable_sec=STABLE_SEC)
        self.decisions = Decisions(Config(version=1, agents={"web": web}))
        self.records: list[Record] = []

    def note(self, records: Iterable[Record]) -> None:
        self.records += records

    def probe(self, outcome: Outcome, *at_sec: int) -> None:
        for sec in at_sec:
            now = Instant("boot", sec * 1000)
            seen = running(FIRST, 0)
            self.note(self.decisions.on_probe("web", CHECK, seen, outcome, "no", now))

    def kill_fails(self, at_sec: int) -> None:
        intent = [record for record in self.records if record.type == "action.intent"][-1]
        data = {"intent": 1, "action": "kill", "agent": "web", "asked_by": None, "ok": False}
        data |= {"detail": "no answer", "running": None, "steps": {}}
        outcome = Record(Instant("boot", at_sec * 1000), "action.outcome", data, intent.incident)
        self.note(self.decisions.on_outcome(outcome, intent))

    def dump(self, at_sec: int, invocation: str = FIRST) -> None:
        dump = CoreDump(UNIT, invocation, 7, "/bin/web", "ABRT", ("#0 run",))
        self.note(self.decisions.on_dump(dump, Instant("boot", at_sec * 1000), is_main=True))

    def stop(self, at_sec: int, how: tuple[str, str, str] = ("success", "killed", "TERM")) -> None:
        """Somebody asks for the end, and that is what comes of it."""
        ended = Ended(UNIT, FIRST, "boot", *how, 0, at_sec * 1000, None, None, "stamp")
        asked = Context(stop_requested=True)
        self.note(self.decisions.on_ended(ended, asked, Instant("boot", at_sec * 1000)))

    def look(self, unit: UnitState, *at_sec: int) -> None:
        for sec in at_sec:
            now = Instant("boot", sec * 1000)
            self.note(self.decisions.on_unit(UNIT, unit, SYSTEMS, now))

    def incidents(self) -> tuple[Incident, ...]:
        story = Story()
        for record in self.records:
            at_us = record.at.uptime_ms * 1000
            story.add(at_us, record.type, record.data, incident=record.incident)
        return fold(story.entries)

    def ends(self) -> State:
        """Return how the only incident ended, for the ledger and for healer itself."""
        (incident,) = self.incidents()
        assert incident.closed is not None
        assert self.decisions.agent("web").story is None
        return incident.state


def test_a_check_that_failed_of_an_agent_that_somebody_stops_before_the_kill() -> None:
    host = Host()
    host.probe(Outcome.FAILED, 3, 6, 9)
    assert host.decisions.in_incidents() == [UNIT]
    host.stop(10)
    assert host.ends() is State.STOPPED


def test_a_check_that_passes_again_where_the_kill_has_failed() -> None:
    host = Host()
    host.probe(Outcome.FAILED, 3, 6, 9)
    host.kill_fails(10)
    host.probe(Outcome.OK, 12, 15, 18)
    host.look(running(FIRST, 0), 11, 19)
    assert [incident.closed for incident in host.incidents()] == [None]
    host.look(running(FIRST, 0), 20)
    assert host.ends() is State.RECOVERED


def test_a_check_that_goes_on_failing_where_the_kill_has_failed() -> None:
    host = Host()
    host.probe(Outcome.FAILED, 3, 6, 9)
    host.kill_fails(10)
    host.probe(Outcome.FAILED, 12, 15, 18)
    host.look(running(FIRST, 0), 25)
    failed = [record for record in host.records if record.type == "health.failed"]
    assert len(failed) == 2
    (incident,) = host.incidents()
    assert incident.closed is None


@pytest.mark.parametrize(("since_ms", "ended"), [(20_000, False), (19_000, True)])
def test_a_run_whose_end_nobody_learnt_of(since_ms: int, ended: bool) -> None:
    host = Host()
    host.probe(Outcome.FAILED, 3, 6, 9)
    host.look(running(SECOND, since_ms), 20, 29)
    assert [incident.closed is not None for incident in host.incidents()] == [ended]


def test_a_unit_that_stays_down_and_nobody_learnt_why() -> None:
    host = Host()
    host.probe(Outcome.FAILED, 3, 6, 9)
    down = UnitState("inactive", "dead", FIRST, 0, 0, "", 0, 12_000, 0)
    host.look(down, 12, 13)
    assert host.ends() is State.NOT_RESTARTED


@pytest.mark.parametrize("dumped_first", [True, False])
def test_a_core_dump_of_a_stop_that_somebody_asked_for(dumped_first: bool) -> None:
    host = Host()
    if dumped_first:
        host.dump(1)
    host.stop(2, ("core-dump", "dumped", "ABRT"))
    if dumped_first:
        assert host.ends() is State.STOPPED
    else:
        host.dump(3)
        assert host.incidents() == ()
        assert host.decisions.agent("web").story is None


def test_no_deployment_is_good_while_a_check_of_its_agent_has_failed() -> None:
    host = Host()
    assert host.decisions.agent("web").foretold is None
    host.probe(Outcome.FAILED, 3, 6, 9)
    host.kill_fails(10)
    units, now = {UNIT: running(FIRST, 0)}, Instant("boot", 15_000)
    system = Systems("/nix/store/a", "/nix/store/a", "/nix/store/a", 1, switching=False)
    host.note(host.decisions.on_systems(system, now))
    records = host.decisions.on_boot(units, system, now)
    assert "host.up" not in [record.type for record in records]
    host.look(running(FIRST, 0), 20)
    (up,) = host.decisions.on_boot(units, system, Instant("boot", 21_000))
    assert up.type == "host.up"
