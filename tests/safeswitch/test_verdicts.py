"""What follows from a verdict: one rollback, within bounds, observed, and remembered."""

import logging
from dataclasses import replace

import msgspec
import pytest

from healer import report
from healer.decisions import Decisions
from healer.events import Context
from healer.incident import words
from healer.records import Record
from healer.safeswitch import verdicts
from healer.safeswitch.verdicts import Facts
from tests.safeswitch.judged import BAD, GOOD, HOUR, OTHER, Judged, lived


def bad(host: Judged, toplevel: str = BAD) -> Judged:
    """Deploy a system under which web crashes, and let it crash until something is decided."""
    host.deploy(toplevel, "web")
    host.crash("web", times=3)
    return host


def test_a_rollback_that_helps_is_told_as_such() -> None:
    host = bad(lived())
    host.comes_of_it()
    assert host.current == GOOD
    assert host.decisions.deployment.condemned == {BAD}
    assert host.of("deployment.recovered") == []
    host.after(61)
    (recovered,) = host.of("deployment.recovered")
    assert recovered.data["agent"] == "web"
    assert (recovered.data["toplevel"], recovered.data["from"]) == (GOOD, BAD)
    assert recovered.incident == host.of("agent.crash")[0].incident
    assert not host.decisions.deployment.under_observation


def test_a_rollback_that_does_not_help_acquits_the_deployment_and_goes_no_further() -> None:
    host = lived()
    host.deploy(OTHER, "mail")
    host.after(400)
    host.comes_of_it()
    bad(host)
    host.comes_of_it()
    assert host.current == OTHER
    host.crash("web", times=8)
    (refuted,) = host.of("deployment.refuted")
    assert refuted.data["toplevel"] == BAD
    assert "under the known-good as well" in refuted.data["reason"]
    assert host.decisions.deployment.condemned == frozenset()
    host.crash("web", times=8)
    host.after(2000)
    assert host.open_intent() is None
    assert host.current == OTHER


def test_an_agent_that_never_comes_back_ends_the_observation_too() -> None:
    host = bad(lived())
    host.comes_of_it()
    for _ in range(30):
        host.crash("web", after=50)
        if host.of("deployment.refuted"):
            break
    assert host.of("deployment.refuted")


def test_an_agent_that_the_known_good_does_not_have_needs_no_recovery() -> None:
    host = bad(lived())
    host.config = Judged(agents=("db", "mail")).config
    host.comes_of_it()
    host.decisions.configure(host.config)
    host.look()
    assert host.of("deployment.recovered")


def test_a_rollback_that_was_superseded_before_its_outcome_is_told_so() -> None:
    host = bad(lived())
    host.while_healer_is_down(OTHER)
    host.comes_of_it()
    outcome = host.of("action.outcome")[-1].data
    assert (outcome["ok"], outcome["running"]) == (True, OTHER)
    assert outcome["detail"].endswith(f"superseded since: {OTHER} runs now")
    assert host.of("deployment.condemned")[-1].data["toplevel"] == BAD
    # And that other one is judged like any other.
    host.after(400)
    assert host.open_intent() is not None
    host.comes_of_it()
    assert host.of("deployment.known-good")[-1].data["toplevel"] == OTHER


def test_a_rollback_that_a_boot_undoes_is_told_until_that_or_another_deployment() -> None:
    host = bad(lived())
    host.comes_of_it(lasts=False)
    assert report.level(host.of("action.outcome")[-1]) == logging.CRITICAL
    assert not host.decisions.deployment.lasts
    host.crash("db")
    assert not host.decisions.deployment.lasts
    host.deploy(OTHER)
    assert host.decisions.deployment.lasts


def test_a_rollback_that_was_superseded_has_nothing_that_a_boot_could_undo() -> None:
    host = bad(lived())
    host.while_healer_is_down(OTHER)
    host.comes_of_it(lasts=False)
    assert host.decisions.deployment.lasts
    assert report.level(host.of("action.outcome")[-1]) == logging.INFO


def test_a_rollback_that_failed_is_told_loudly_unless_a_person_hears_of_it() -> None:
    host = bad(lived())
    host.comes_of_it(ok=False)
    failed = host.of("action.outcome")[-1]
    assert report.level(failed) == logging.CRITICAL
    asked_for = replace(failed, data={**failed.data, "asked_by": "alice"})
    assert report.level(asked_for) == logging.INFO
    promoted = next(each for each in host.of("action.outcome") if each.data["ok"])
    assert report.level(promoted) == logging.INFO


def test_one_rollback_for_a_deployment_and_then_it_is_told() -> None:
    host = bad(lived())
    host.comes_of_it(ok=False)
    host.crash("web", times=5)
    assert host.open_intent() is None
    assert "gets no second one by itself" in host.verdict()[1]


def assert_no_more_today(host: Judged) -> None:
    bad(host)
    assert host.open_intent() is None
    assert "as many as safeSwitch.maxRollbacksPerDay allows" in host.verdict()[1]
    host.sec += 24 * HOUR
    host.crash("web", times=9)
    assert host.rolls_back()


def test_so_many_rollbacks_a_day_and_then_a_person_has_to_look() -> None:
    host = lived(options={"max_rollbacks_per_day": 2})
    for number in range(2):
        bad(host, f"/nix/store/{number}-nixos")
        assert host.rolls_back()
        host.comes_of_it()
        host.after(120)
    assert_no_more_today(host)


def test_a_rollback_in_a_boot_counts_among_those_of_the_day() -> None:
    host = lived(options={"max_rollbacks_per_day": 2})
    for number in range(2):
        host.deploy(f"/nix/store/{number}-nixos", "web")
        host.boot_goes_back()
        host.after(120)
    assert_no_more_today(host)


def gone_back_from_in_a_boot() -> Judged:
    """Return a host that has a gate, and whose root went back from BAD early in a boot."""
    host = Judged(gates=("port",))
    host.gate("port", True)
    host.promoted()
    host.deploy(BAD, "web")
    host.boot_goes_back()
    return host


def test_a_rollback_in_a_boot_that_helps_is_told_as_such() -> None:
    host = gone_back_from_in_a_boot()
    host.after(61)
    assert host.of("deployment.recovered") == []
    host.gate("port", True)
    (recovered,) = host.of("deployment.recovered")
    assert (recovered.data["toplevel"], recovered.data["from"]) == (GOOD, BAD)
    assert (
        words.line(recovered.type, recovered.data)
        == f"the rollback helped: the host is well under {GOOD}"
    )
    assert host.decisions.deployment.condemned == {BAD}


def test_a_rollback_in_a_boot_that_does_not_help_acquits_the_deployment() -> None:
    for crashes in (True, False):
        host = gone_back_from_in_a_boot()
        if crashes:
            host.crash("mail", times=8)
        else:
            host.gate("port", False)
            host.after(590)
            assert host.decisions.deployment.condemned == {BAD}
            host.after(30)
        (refuted,) = host.of("deployment.refuted")
        assert (refuted.data["toplevel"], refuted.data["running"]) == (BAD, GOOD)
        what = "mail crashes again and again" if crashes else "the gate port fails: as seen"
        assert what in refuted.data["reason"]
        assert host.decisions.deployment.condemned == frozenset()
        assert host.of("deployment.recovered") == []
        assert host.open_intent() is None


@pytest.mark.parametrize(("unsafe", "forbidden"), [("db", True), ("mail", False)])
def test_an_agent_that_cannot_go_back_keeps_the_system_where_it_is(
    unsafe: str, forbidden: bool
) -> None:
    host = lived()
    host.deploy(BAD, "web", "db")
    host.crash("web", times=3)
    # The same moment, for a host on which this agent cannot be rolled back.
    replayed = Decisions(host.config)
    for record in host.ledger[: host.ledger.index(host.of("safeswitch.verdict")[-1])]:
        replayed.replay(record)
    state, agents = replayed.deployment, host.config.agents
    facts = Facts(host.systems(), {"web": "has crashed"}, unsafe=[unsafe])
    made = list(verdicts.decide(state, host.config.safe_switch, agents, facts, host.now()))
    assert len(made) == (1 if forbidden else 2)
    assert ("rollbackSafe is false for db" in made[0].data["reason"]) is forbidden


def condemned(policy: str) -> Judged:
    """Return a host that rolled BAD back, and is well again."""
    host = bad(lived(options={"condemned": policy}))
    host.comes_of_it()
    host.after(120)
    return host


def test_a_condemned_system_that_is_deployed_again_is_told_and_warned_of() -> None:
    host = condemned("warn")
    host.deploy(BAD, "web")
    activated = host.of("deployment.activated")[-1]
    assert activated.data["condemned"] is True
    assert host.verdict() == (
        "inconclusive",
        "it was condemned before: it is judged like any other (safeSwitch.condemned)",
    )
    host.crash("web")
    assert not host.rolls_back()
    host.after(400)
    host.comes_of_it()
    assert host.decisions.deployment.known_good == BAD
    assert host.decisions.deployment.condemned == frozenset()


def test_with_zero_tolerance_one_crash_is_enough() -> None:
    host = condemned("zero-tolerance")
    host.deploy(BAD, "web")
    host.after(60)
    assert not host.rolls_back()
    host.crash("web")
    assert host.rolls_back()
    assert host.verdict()[1] == "web: a crash under a deployment that was condemned before"


def test_with_zero_tolerance_the_environment_is_still_no_fault_of_it() -> None:
    host = condemned("zero-tolerance")
    host.deploy(BAD, "web")
    host.crash("db")
    assert not host.rolls_back()


def test_with_rollback_it_does_not_stay_at_all() -> None:
    host = condemned("rollback")
    host.deploy(BAD, "web")
    assert host.rolls_back()
    host.comes_of_it()
    assert host.current == GOOD
    assert host.open_intent() is None


@pytest.mark.parametrize("policy", ["warn", "zero-tolerance", "rollback"])
def test_the_same_system_deployed_again_while_healer_was_down_is_a_new_deployment(
    policy: str,
) -> None:
    """Root's helper has gone back from it, and healer has not seen that."""
    host = bad(lived(options={"condemned": policy}))
    host.while_healer_is_down(deployed=BAD)
    host.comes_of_it()
    assert host.of("action.outcome")[-1].data["running"] == BAD
    activated = host.of("deployment.activated")[-1].data
    assert (activated["toplevel"], activated["previous"]) == (BAD, GOOD)
    assert (activated["kind"], activated["condemned"]) == ("switch", True)
    again = [told for told in host.told() if "it was condemned before" in told]
    assert len(again) == (2 if policy == "rollback" else 1), again
    assert host.rolls_back() == (policy == "rollback")
    if policy != "rollback":
        host.crash("web")
        assert host.rolls_back() == (policy == "zero-tolerance")
        host.crash("web", times=5)
    assert host.rolls_back()
    host.restart_healer()


def test_a_person_forgives_and_condemns() -> None:
    host = condemned("rollback")
    host.ask("forgive", target=BAD)
    assert host.of("deployment.forgiven")[0].data["asked_by"] == "alice"
    host.deploy(BAD, "web")
    assert host.open_intent() is None
    host.ask("condemn", target=BAD)
    assert host.decisions.deployment.condemned == {BAD}
    host.after(700)
    assert host.open_intent() is None
    assert "it is condemned: deploy another, or forgive it" in host.verdict()[1]
    host.ask("forgive", target=BAD)
    host.after(400)
    assert host.open_intent() is not None


def test_what_is_forgiven_while_it_runs_is_judged_like_any_other() -> None:
    host = condemned("zero-tolerance")
    host.deploy(BAD, "web")
    host.ask("forgive", target=BAD)
    host.crash("web")
    assert host.open_intent() is None
    host.after(700)
    intent = host.open_intent()
    assert intent is not None
    assert intent.data["action"] == "promote"


def test_a_known_good_that_a_person_condemns_is_no_target_any_more() -> None:
    host = lived()
    host.deploy(OTHER, "mail")
    host.after(400)
    host.comes_of_it()
    host.ask("condemn", target=GOOD)
    assert host.decisions.deployment.known_goods == (OTHER,)


def test_a_rollback_by_hand_condemns_nobody_and_uses_nothing_up() -> None:
    host = lived()
    host.deploy(BAD, "web")
    host.ask("rollback", **{"target": GOOD, "from": BAD})
    assert host.current == GOOD
    assert host.of("deployment.activated")[-1].data["kind"] == "rollback"
    assert host.decisions.deployment.condemned == frozenset()
    assert host.decisions.deployment.rollbacks == ()
    bad(host)
    assert host.rolls_back()


@pytest.mark.parametrize("ok", [True, False])
def test_the_state_is_what_the_ledger_says(ok: bool) -> None:
    host = bad(lived())
    host.restart_healer()
    host.comes_of_it(ok)
    host.restart_healer()
    host.crash("web", times=2)
    host.after(700)
    host.restart_healer()


def test_a_clean_end_of_another_agent_holds_up_no_verdict() -> None:
    host = lived()
    host.deploy(OTHER, "web")
    host.sec += 1
    ends = [host.ended("db", "0", "exited", "success")]
    host.start("db")
    for _ in range(3):
        host.start("web")
        ends.append(host.ended("web", "1", "exited", "exit-code"))
    for end in ends:
        host.keep(host.decisions.on_ended(end, Context(), host.now()))
    # Of no unit was the state asked for since.
    made = host.decisions.on_tick(host.units, host.systems(), host.now(), fresh=())
    assert [record.data["action"] for record in made if record.type == "action.intent"] == [
        "rollback"
    ]


def test_a_rollback_that_waits_for_a_reboot_is_told_once_however_often_healer_starts() -> None:
    host = lived()
    host.deploy(BAD, "web")
    host.crash("web", times=5)
    assert host.rolls_back()
    assert host.decisions.deployment.staged is None
    host.tell([Record(host.now(), "rollback.staged", {"detail": "it is what boots next"})])
    host.restart_healer()
    assert host.decisions.deployment.staged == "it is what boots next"
    host.comes_of_it()
    assert host.decisions.deployment.staged is None


def test_an_agent_that_is_declared_no_more_is_not_unwell() -> None:
    host = lived()
    host.crash("db")
    assert not host.decisions.is_alone("web")
    agents = {name: agent for name, agent in host.config.agents.items() if name != "db"}
    host.decisions.configure(msgspec.structs.replace(host.config, agents=agents))
    assert host.decisions.is_alone("web")


@pytest.mark.parametrize(("condemned", "left"), [(GOOD, []), ("special", [GOOD])])
def test_a_condemned_system_takes_its_specialisations_with_it_and_not_its_base(
    condemned: str, left: list[str]
) -> None:
    """Whoever goes back to a specialisation has its base boot next."""
    host = lived()
    special = "/nix/store/s-nixos"
    host.base = GOOD
    host.deploy(special, "web")
    host.promoted()
    assert host.decisions.deployment.known_goods == (GOOD, special)
    host.base = None
    host.deploy(OTHER, "web")
    host.restart_healer()
    host.ask("condemn", target=special if condemned == "special" else condemned)
    assert [*host.decisions.deployment.known_goods] == left
