"""All decisions together, in histories that are told step by step."""

from dataclasses import replace

import pytest

from healer.config import CommandCheck
from healer.decisions import Decisions
from healer.events import Context, Ended, Instant
from healer.watchdog.health import Outcome
from tests.test_decision_histories import CONFIG, TOPLEVELS, Histories


def test_no_rollback_without_a_known_good() -> None:
    history = Histories()
    history.crash("web", times=4, runtime=10)
    verdicts = [r.data["verdict"] for r in history.ledger if r.type == "safeswitch.verdict"]
    assert verdicts == ["inconclusive"]
    assert not history.open_intents()


def promoted() -> Histories:
    history = Histories()
    history.time_passes(121)
    history.an_action_ends(ok=True)
    assert history.decisions.deployment.known_good == TOPLEVELS[0]
    return history


def test_a_bad_deployment_is_rolled_back_once_and_condemned() -> None:
    history = promoted()
    history.deploy(TOPLEVELS[1], restarted=True)
    history.crash("web", times=3, runtime=10)
    (intent,) = history.open_intents()
    assert (intent.data["action"], intent.data["target"]) == ("rollback", TOPLEVELS[0])
    history.an_action_ends(ok=True)
    state = history.decisions.deployment
    assert state.current == state.known_good == TOPLEVELS[0]
    assert state.condemned == {TOPLEVELS[1]}
    history.crash("web", times=4, runtime=10)
    assert not history.open_intents()


def test_a_failed_rollback_is_not_tried_again_by_itself() -> None:
    history = promoted()
    history.deploy(TOPLEVELS[1], restarted=True)
    history.crash("web", times=3, runtime=10)
    history.an_action_ends(ok=False)
    history.crash("web", times=4, runtime=10)
    assert not history.open_intents()
    # What has recovered all the same, and held from then on, may be known-good.
    history.time_passes(31)
    history.time_passes(4000)
    assert [i.data["action"] for i in history.open_intents()] == ["promote"]


def test_crashes_of_runs_from_before_the_deployment_do_not_count() -> None:
    history = promoted()
    history.crash("web", times=2, runtime=6_000)
    history.deploy(TOPLEVELS[1], restarted=False)
    # This one was started under the old system; the two after it are too few.
    history.crash("web", times=3, runtime=6_000)
    assert not history.open_intents()


def test_a_switch_under_way_is_waited_for() -> None:
    history = promoted()
    history.host.switching = True
    history.host.current = TOPLEVELS[1]
    history.host.start("web")
    history.crash("web", times=3, runtime=10)
    assert not history.open_intents()
    history.host.switching = False
    history.look()
    assert len(history.open_intents()) == 1


def test_an_incident_lasts_until_the_agent_is_stable() -> None:
    history = promoted()
    history.crash("web", times=1, runtime=6_000)
    history.crash("web", times=1, runtime=6_000)
    crashes = [r for r in history.ledger if r.type == "agent.crash"]
    assert crashes[0].incident == crashes[1].incident == f"web-{crashes[0].data['invocation'][:8]}"
    history.time_passes(31)
    assert history.ledger[-1].type == "agent.recovered"
    assert history.decisions.agent("web").incident is None


def test_a_crash_in_probation_delays_the_promotion_until_stable() -> None:
    history = Histories()
    history.time_passes(1)
    history.host.uptime_ms = 119_000
    history.crash("web", times=1, runtime=500)
    history.time_passes(1)
    assert not history.open_intents()
    history.time_passes(31)
    assert [i.data["action"] for i in history.open_intents()] == ["promote"]


def test_a_reboot_takes_nothing_from_the_probation_that_was_served() -> None:
    history = Histories()
    for _ in range(3):
        history.time_passes(31)
    history.reboot(None)
    history.time_passes(31)
    assert not history.open_intents()
    history.time_passes(31)
    assert [i.data["action"] for i in history.open_intents()] == ["promote"]
    kinds = [r.data["kind"] for r in history.ledger if r.type == "deployment.activated"]
    assert kinds == ["first", "boot"]


def test_a_reboot_in_an_open_incident_ends_it_once_the_agent_is_stable() -> None:
    history = promoted()
    history.crash("web", times=1, runtime=500)
    assert history.decisions.agent("web").incident is not None
    history.reboot(None)
    history.time_passes(31)
    assert history.decisions.agent("web").incident is None


def test_the_same_bad_system_deployed_again_is_rolled_back_again() -> None:
    history = promoted()
    for _ in range(2):
        history.deploy(TOPLEVELS[1], restarted=True)
        history.crash("web", times=3, runtime=10)
        assert [i.data["action"] for i in history.open_intents()] == ["rollback"]
        history.an_action_ends(ok=True)


def test_a_failed_promotion_is_not_tried_again_at_once() -> None:
    history = Histories()
    history.time_passes(121)
    history.an_action_ends(ok=False)
    history.time_passes(121)
    assert not history.open_intents()
    history.time_passes(600)
    assert [i.data["action"] for i in history.open_intents()] == ["promote"]


def down(history: Histories, name: str) -> None:
    """Let an agent's unit be inactive, as after a failed dependency or a stop."""
    unit = f"{name}.service"
    state = history.host.units[unit]
    history.host.units[unit] = replace(state, active_state="inactive", sub_state="dead")


def test_a_system_under_which_an_agent_does_not_run_is_not_promoted() -> None:
    history = Histories()
    down(history, "web")
    history.time_passes(4000)
    assert not history.open_intents()
    reasons = [r.data["reason"] for r in history.ledger if r.type == "safeswitch.verdict"]
    assert any("web is not running" in reason for reason in reasons)


def test_an_agent_that_somebody_stopped_does_not_keep_a_system_from_being_good() -> None:
    history = Histories()
    state = history.host.units["web.service"]
    end = Ended(
        "web.service",
        state.invocation,
        history.host.now().boot,
        "success",
        "killed",
        "TERM",
        0,
        1000,
        TOPLEVELS[0],
        None,
        "stamp",
    )
    context = Context(stop_requested=True)
    history.record(history.decisions.on_ended(end, context, history.host.now()))
    down(history, "web")
    history.time_passes(4000)
    assert [i.data["action"] for i in history.open_intents()] == ["promote"]


def test_crashes_mended_by_hand_leave_nobody_to_blame() -> None:
    history = Histories()
    history.crash("web", times=4, runtime=10)
    verdicts = [r.data["verdict"] for r in history.ledger if r.type == "safeswitch.verdict"]
    assert verdicts == ["inconclusive"]
    history.time_passes(31)
    assert history.open_intents() == []
    history.time_passes(4000)
    assert [i.data["action"] for i in history.open_intents()] == ["promote"]


def test_a_check_in_flight_while_its_agent_is_removed() -> None:
    decisions = Decisions(CONFIG)
    unit = promoted().host.units["web.service"]
    check = CommandCheck(name="x", command=("/bin/true",))
    now = Instant("boot1", 0)
    assert decisions.on_probe("gone", check, unit, Outcome.FAILED, "", now) == []


def test_nobody_is_blamed_before_it_is_known_how_the_agent_is_now() -> None:
    history = promoted()
    history.deploy(TOPLEVELS[1], restarted=True)
    look, history.look = history.look, lambda: None  # type: ignore[method-assign]
    history.crash("web", times=3, runtime=10)
    history.look = look  # type: ignore[method-assign]
    decisions, host = history.decisions, history.host

    def decide(fresh: list[str]) -> list[str]:
        units = {unit: state for unit, state in host.units.items() if unit in fresh}
        made = decisions.on_tick(host.units, history.systems(), host.now(), fresh=fresh)
        made += decisions.escalate(units, history.systems(), host.now())
        return [record.data["action"] for record in made if record.type == "action.intent"]

    # Healer was away for as long as it takes to be stable again.
    host.uptime_ms += 30_000
    assert decide(["db.service"]) == []
    assert decide(["db.service", "web.service"]) == ["rollback"]


def test_who_crashed_a_moment_ago_cannot_be_well_again() -> None:
    history = promoted()
    history.deploy(TOPLEVELS[1], restarted=True)
    look, history.look = history.look, lambda: None  # type: ignore[method-assign]
    history.crash("web", times=3, runtime=10)
    history.look = look  # type: ignore[method-assign]
    made = history.decisions.on_tick(
        history.host.units, history.systems(), history.host.now(), fresh=["db.service"]
    )
    assert [r.data["action"] for r in made if r.type == "action.intent"] == ["rollback"]


def test_an_agent_that_was_given_up_is_no_sign_of_a_bad_boot() -> None:
    history = Histories()
    for _ in range(4):
        history.crash("web", times=3, runtime=10)
        history.a_step_ends(ok=True)
        history.time_passes(400)
    assert history.decisions.agent("web").ladder.gave_up is not None
    assert not any(r.data.get("action") == "promote" for r in history.ledger)
    history.reboot(None)
    history.time_passes(11)
    up = history.decisions.on_boot(history.host.units, history.systems(), history.host.now())
    assert [record.type for record in up] == ["host.up"]


@pytest.mark.parametrize("known", [True, False])
def test_crashes_of_an_unknown_system_wait_for_those_that_blame_one(known: bool) -> None:
    """healer was dead in the switch, and learns of the first crashes from the journal."""
    history = promoted()
    history.deploy(TOPLEVELS[1], restarted=True)
    for _ in range(3):
        history.host.started_under["web"] = None
        history.crash("web", times=1, runtime=10)
    assert history.decisions.agent("web").ladder.spent is not None
    assert history.open_steps() == []
    for _ in range(8):
        if not known:
            history.host.started_under["web"] = None
        history.crash("web", times=1, runtime=8_000)
    # But not for ever.
    actions = [r.data["action"] for r in history.open_steps() + history.open_intents()]
    assert actions == (["rollback"] if known else ["quarantine"])
