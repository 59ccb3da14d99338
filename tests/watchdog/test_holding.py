"""A hold that somebody asked for has its end in the ledger."""

from typing import Any

import pytest

from healer.config import Agent, Config
from healer.decisions import Decisions
from healer.events import Instant
from healer.incident import words
from healer.records import Record
from tests.watchdog.climbing import UNIT

CONFIG = Config(version=1, agents={"web": Agent(unit=UNIT)})


def at(uptime_ms: int, boot: str = "boot") -> Instant:
    return Instant(boot, uptime_ms)


class Host:
    def __init__(self) -> None:
        self.decisions = Decisions(CONFIG)

    def ask(self, verb: str, at_ms: int, *, asked_by: str | None = "alice", **more: Any) -> None:
        data = {"action": verb, "target": UNIT, "agent": "web", "reason": "x", **more}
        if asked_by is not None:
            data["asked_by"] = asked_by
        self.decisions.replay(Record(at(at_ms), "action.intent", data))

    def answer(self, verb: str, at_ms: int, *, ok: bool = True, by: str | None = "alice") -> None:
        data = {"intent": 1, "action": verb, "agent": "web", "asked_by": by, "ok": ok, "detail": ""}
        self.decisions.replay(Record(at(at_ms), "action.outcome", data))


@pytest.fixture
def host() -> Host:
    """One whose agent somebody holds back for 60 s."""
    host = Host()
    host.ask("hold", 1_000, ttl_sec=60)
    assert host.decisions.on_holds([], at(1_500)) == []
    host.answer("hold", 2_000)
    return host


def test_its_expiry_is_told_once(host: Host) -> None:
    assert host.decisions.on_holds([UNIT], at(60_000)) == []
    # PID 1's timer may be late.
    assert host.decisions.on_holds([UNIT], at(62_000)) == []
    (end,) = host.decisions.on_holds([], at(62_000))
    assert (end.type, end.incident) == ("agent.released", None)
    assert end.data == {"agent": "web", "unit": UNIT, "by": "timer", "asked_by": "alice"}
    assert words.line(end.type, end.data) == (
        "web.service is held back no more: the hold that alice asked for is over"
    )
    assert host.decisions.on_holds([], at(63_000)) == []


def test_it_ends_with_its_boot(host: Host) -> None:
    (end,) = host.decisions.on_holds([], at(1_000, "next"))
    assert (end.data["by"], end.data["asked_by"]) == ("boot", "alice")
    assert words.line(end.type, end.data).endswith("the host was rebooted")


def test_it_is_told_of_an_agent_that_is_declared_no_more(host: Host) -> None:
    host.decisions.configure(Config(version=1, agents={}))
    assert len(host.decisions.on_holds([], at(62_000))) == 1


@pytest.mark.parametrize("verb", ["release", "quarantine", "give-up"])
def test_another_action_ends_it(host: Host, verb: str) -> None:
    by = "alice" if verb == "release" else None
    host.answer(verb, 3_000, ok=False, by=by)
    assert host.decisions.holds.placed
    host.answer(verb, 3_000, by=by)
    assert host.decisions.on_holds([], at(62_000)) == []


def test_a_release_of_healers_own_does_not(host: Host) -> None:
    host.answer("release", 3_000, by=None)
    assert len(host.decisions.on_holds([], at(62_000))) == 1


def test_one_that_replaces_it_counts(host: Host) -> None:
    host.ask("hold", 3_000, asked_by="bob", ttl_sec=600)
    host.answer("hold", 4_000, by="bob")
    assert host.decisions.on_holds([], at(62_000)) == []
    (end,) = host.decisions.on_holds([], at(603_000))
    assert end.data["asked_by"] == "bob"


def test_one_that_did_not_come_off_does_not(host: Host) -> None:
    host.ask("hold", 3_000, asked_by="bob", ttl_sec=600)
    host.answer("hold", 4_000, ok=False, by="bob")
    (end,) = host.decisions.on_holds([], at(62_000))
    assert end.data["asked_by"] == "alice"
