"""The ladder, step by step."""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from healer.events import Instant
from healer.records import Record
from healer.watchdog import ladder
from healer.watchdog.ladder import Ladder
from tests.watchdog.climbing import MOST, QUARANTINE_SEC, STABLE_MS, UNIT, World, config, go_on


@pytest.fixture
def world() -> World:
    return World(config(reboot=False))


def test_from_the_first_crash_to_the_end(world: World) -> None:
    for done in range(MOST):
        world.crash_loop()
        (seq,) = world.open_intents()
        assert world.ledger[seq].data["action"] == "quarantine"
        assert f"quarantine {done + 1} of {MOST}" in world.ledger[seq].data["reason"]
        assert world.ledger[seq].data["ttl_sec"] == QUARANTINE_SEC
        world.obey()
        assert not world.unit.running
        assert world.incident is not None
        world.pass_time(QUARANTINE_SEC * 1000)
        world.look()
        assert world.unit.running
    world.crash_loop()
    assert world.actions() == ["quarantine"] * MOST + ["give-up"]
    world.obey()
    world.pass_time(2000)
    world.look()
    assert world.types()[-1] == "agent.gave-up"
    assert world.ledger[-1].data["stopped"] is True
    assert (world.incident, world.unit.running) == (None, False)
    assert len({r.incident for r in world.ledger if r.type == "agent.crash"}) == 1
    # Nothing but a person ends that, and then it begins anew.
    world.pass_time(1_000_000)
    world.reboot()
    world.is_killed()
    world.look()
    assert not world.unit.running
    world.ask("release")
    world.look()
    assert world.unit.running
    world.crash_loop()
    assert world.actions()[-2:] == ["release", "quarantine"]


def test_a_recovery_begins_the_ladder_anew(world: World) -> None:
    for _ in range(2 * MOST):
        world.crash_loop()
        world.obey()
        world.pass_time(QUARANTINE_SEC * 1000)
        world.look()
        world.pass_time(STABLE_MS)
        world.look()
        assert world.types()[-1] == "agent.recovered"
    assert world.actions() == ["quarantine"] * 2 * MOST
    assert world.state.quarantines == 0


def test_crashes_that_are_learnt_of_late_are_answered_already(world: World) -> None:
    world.crash_loop()
    for _ in range(20):
        world.crash(10)
    world.obey()
    assert world.actions() == ["quarantine"]
    assert world.types().count("agent.crash") == 23
    assert world.state.held is not None
    world.pass_time(QUARANTINE_SEC * 1000)
    world.crash_loop(2)
    assert world.actions() == ["quarantine"]
    world.crash_loop(1)
    assert world.actions() == ["quarantine"] * 2


def test_healer_lets_go_what_the_timer_did_not() -> None:
    world = World(config(), timer_works=False)
    world.crash_loop()
    world.obey()
    world.pass_time(QUARANTINE_SEC * 1000)
    world.look()
    assert not world.unit.running
    world.pass_time(10_000)
    world.look()
    (seq,) = world.open_intents()
    assert world.ledger[seq].data["action"] == "release"
    world.act(seq, works=False)
    world.pass_time(90_000)
    world.look()
    world.obey()
    assert world.unit.running


def test_a_reboot_where_it_is_allowed_and_once() -> None:
    world = World(config())
    for _ in range(MOST):
        world.crash_loop()
        world.obey()
        world.pass_time(QUARANTINE_SEC * 1000)
        world.look()
    world.crash_loop()
    (seq,) = world.open_intents()
    assert world.ledger[seq].data["action"] == "reboot"
    assert world.ledger[seq].data["target"] == "/nix/store/good-nixos"
    world.obey()
    assert world.boot == 2
    world.crash_loop()
    assert world.actions()[-1] == "give-up"
    assert "and asking for a reboot" in world.ledger[world.open_intents()[0]].data["reason"]


@pytest.mark.parametrize(
    ("declared", "undone", "step"),
    [
        ({"rollback_safe": False}, "all", "give-up"),
        ({"rollback_safe": False}, "all but it", "reboot"),
        ({"rollback_safe": False}, "nothing", "reboot"),
        ({"before_rollback": ("/bin/true",)}, "all", "give-up"),
        ({"snapshot": ("/bin/true",)}, "all", "give-up"),
        ({"snapshot": ("/bin/true",)}, "nothing", "reboot"),
        ({}, "all", "reboot"),
    ],
)
def test_the_reboot_undoes_no_deployment_under_an_agent_that_minds(
    declared: dict[str, Any], undone: str, step: str
) -> None:
    """It is not the one who crashes that has to say so: all agents come under the other system."""
    allowed = config()
    other = msgspec.structs.replace(allowed.agents["web"], unit="db.service", **declared)
    world = World(msgspec.structs.replace(allowed, agents={**allowed.agents, "db": other}))
    good, new = "/nix/store/good-nixos", "/nix/store/new-nixos"
    how = {"web": "changed", "db": "same" if undone == "all but it" else "changed"}
    data = {"toplevel": good, "previous": "", "kind": "switch", "generation": 1, "changes": None}
    records = [
        Record(world.now(), "deployment.activated", data),
        Record(world.now(), "deployment.known-good", {"toplevel": good}),
    ]
    if undone != "nothing":
        changes = {"agents": how, "shared": []}
        data = {**data, "toplevel": new, "previous": good, "changes": changes}
        records.append(Record(world.now(), "deployment.activated", data))
    for record in records:
        world.decisions.replay(record)
    world.note(records)
    world.toplevel = records[-1].data["toplevel"]
    for _ in range(MOST):
        world.crash_loop()
        world.obey()
        world.pass_time(QUARANTINE_SEC * 1000)
        world.look()
    world.crash_loop()
    (seq,) = world.open_intents()
    assert world.ledger[seq].data["action"] == step
    if step == "give-up":
        assert "would undo the deployment under db" in world.ledger[seq].data["reason"]


def test_no_second_reboot_within_a_day_by_whatever_clock() -> None:
    day_us = 86_400_000_000
    reboots = (Instant("a", 0, 10 * day_us), Instant("b", 0, 11 * day_us))
    assert ladder.reboots_in_a_day(reboots, Instant("c", 0, 11 * day_us + 1)) == 1
    assert ladder.reboots_in_a_day(reboots, Instant("c", 0, 12 * day_us)) == 0
    assert ladder.reboots_in_a_day(reboots, Instant("c", 0, 0)) == 2, "a clock that was set back"


def test_without_escalation_systemd_restarts_for_ever() -> None:
    world = World(config(enable=False))
    go_on(world, broken=True)
    assert world.actions() == []
    assert world.unit.running


def test_an_agent_that_never_gets_stable_is_in_a_crash_loop_however_slow_it_crashes(
    world: World,
) -> None:
    for _ in range(4 * 3):
        assert world.actions() == []
        world.crash(STABLE_MS - 5000)
        world.look()
    loop = next(r for r in world.ledger if r.type == "agent.crash-loop")
    assert loop.data["reason"] == "12 crashes without 30 s up in between"
    assert world.actions() == ["quarantine"]


def test_a_quarantine_that_a_reboot_came_before_holds_nobody(world: World) -> None:
    """Its end would be counted from the boot before, which may have lasted for months."""
    world.pass_time(10**9)
    world.crash_loop()
    world.reboot()
    world.down("failed")
    world.is_killed()
    world.obey()
    world.pass_time(2000)
    world.look()
    assert (world.types()[-1], world.incident) == ("agent.not-restarted", None)
    assert world.actions() == ["quarantine"]


def test_a_persons_hold_outlasts_a_quarantine(world: World) -> None:
    for _ in range(3):
        world.crash(10)
    world.ask("hold", ttl_sec=7200)
    world.look()
    world.obey()
    world.pass_time(QUARANTINE_SEC * 1000 + 60_000)
    world.look()
    world.obey()
    assert world.hold is not None
    assert world.hold.by_person
    assert not world.unit.running


@pytest.mark.parametrize("verb", ["restart", "reset", "hold"])
def test_a_budget_that_was_spent_before_a_person_stepped_in_can_be_spent_again(
    world: World, verb: str
) -> None:
    """The agent crashes while what was asked for is on its way."""
    data = {"action": verb, "target": UNIT, "agent": "web", "asked_by": "alice", "reason": "x"}
    intent = Record(world.now(), "action.intent", {**data, "ttl_sec": 60})
    world.decisions.replay(intent)
    world.note([intent])
    for _ in range(3):
        world.crash(10)
    world.read()
    assert world.types()[-1] == "agent.crash-loop"
    world.act(world.open_intents()[0])
    world.pass_time(60_000 if verb == "hold" else 0)
    world.look()
    assert world.actions() == [verb]
    world.crash_loop()
    assert world.actions() == [verb, "quarantine"]


def test_a_changed_unit_is_tried_again_and_an_unchanged_one_is_not(world: World) -> None:
    def deploy(toplevel: str, changed: str) -> None:
        data = {
            "toplevel": toplevel,
            "previous": "/nix/store/a-nixos",
            "changes": {"agents": {"web": changed}, "shared": []},
        }
        activated = Record(world.now(), "deployment.activated", data)
        world.decisions.replay(activated)
        world.note([activated])
        world.look()

    for _ in range(MOST + 1):
        world.crash_loop()
        world.obey()
        world.pass_time(QUARANTINE_SEC * 1000)
        world.look()
    assert world.state.gave_up is not None
    deploy("/nix/store/b-nixos", "same")
    assert not world.open_intents()
    deploy("/nix/store/c-nixos", "changed")
    (seq,) = world.open_intents()
    assert world.ledger[seq].data["action"] == "release"
    # Where root could not, it is asked again, not at once and not in vain.
    world.act(seq, works=False)
    world.look()
    assert not world.open_intents()
    world.pass_time(61_000)
    world.look()
    assert world.actions()[-2:] == ["release", "release"]
    world.obey()
    assert world.unit.running
    assert world.state == Ladder()


def crash(answer: str | None, at: Instant, stop_ms: int) -> Record:
    data: Mapping[str, Any] = {
        "agent": "web",
        "boot": at.boot,
        "stop_uptime_ms": stop_ms,
        "answer": answer,
    }
    return Record(at, "agent.crash", data, "web-1")


def test_a_rule_that_says_escalate_takes_the_next_step_at_once() -> None:
    at = Instant("boot1", 5000)
    assert ladder.apply(Ladder(), crash("restart", at, 4000), "web").spent is None
    spent = ladder.apply(Ladder(), crash("escalate", at, 4000), "web").spent
    assert spent is not None
    assert "escalate" in spent.reason
    answered = Ladder(answered=Instant("boot1", 4500))
    assert ladder.apply(answered, crash("escalate", at, 4000), "web").spent is None


def test_an_agent_that_could_not_be_stopped_is_given_up_again() -> None:
    world = World(config(reboot=False), timer_works=False)
    for _ in range(MOST + 1):
        world.crash_loop()
        world.act(world.open_intents()[0], works=False)
        world.look()
    assert world.ledger[-1].type == "agent.gave-up"
    assert world.ledger[-1].data["stopped"] is False
    world.pass_time(1000)
    world.crash_loop()
    assert world.actions()[-2:] == ["give-up", "give-up"]
    world.obey()
    assert not world.unit.running


def test_crashes_between_the_last_step_and_its_end_take_no_step_away() -> None:
    """Root could not stop it, and it spends its budget again before that is told."""
    world = World(config(reboot=False))
    for _ in range(MOST + 1):
        world.crash_loop()
        world.act(world.open_intents()[0], works=False)
        for _ in range(3):
            world.crash(10)
        world.read()
        world.look()
    assert world.types()[-1] == "agent.gave-up"
    world.crash_loop()
    assert world.actions()[-2:] == ["give-up", "give-up"]
    world.obey()
    assert not world.unit.running
