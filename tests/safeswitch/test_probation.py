"""What a deployment has to stand before it is known-good, and what begins that anew."""

import pytest

from healer.events import NO_DEFAULT_ROUTE
from healer.records import Record
from healer.safeswitch.probation import probation_left_ms
from tests.safeswitch.judged import BAD, GOOD, OTHER, Judged, lived


def left_sec(host: Judged) -> float | None:
    left_ms = probation_left_ms(host.decisions.deployment, host.config.safe_switch, host.now())
    return None if left_ms is None else left_ms / 1000


def promotes(host: Judged) -> bool:
    intent = host.open_intent()
    return intent is not None and intent.data["action"] == "promote"


def test_a_deployment_that_holds_becomes_known_good() -> None:
    host = lived()
    host.deploy(BAD, "web")
    assert left_sec(host) == 300
    host.after(299)
    assert host.open_intent() is None
    host.after(1)
    assert promotes(host)
    host.comes_of_it()
    assert host.decisions.deployment.known_goods == (GOOD, BAD)
    assert left_sec(host) is None


def test_a_crash_beyond_the_baseline_begins_the_probation_anew() -> None:
    host = lived()
    host.deploy(BAD, "web")
    host.after(20)
    host.crash("web", after=30)
    assert left_sec(host) == 300
    host.after(299)
    assert not promotes(host)
    host.after(1)
    assert promotes(host)


def test_crashes_far_between_ask_for_a_longer_quiet() -> None:
    host = lived()
    host.deploy(BAD, "web")
    for _ in range(2):
        host.after(120)
        host.crash("web", after=1)
    assert left_sec(host) == 5 * 121
    host.after(604)
    assert not promotes(host)
    host.after(1)
    assert promotes(host)


def test_the_time_that_was_served_before_a_reboot_counts() -> None:
    host = lived()
    host.deploy(BAD, "web")
    host.after(200)
    served = left_sec(host)
    assert served == 100
    host.tell([Record(host.now(), "healer.stopped", {"reason": "asked to stop"})])
    host.reboot()
    assert left_sec(host) == 100
    host.after(99)
    assert not promotes(host)
    host.after(1)
    assert promotes(host)


def test_a_power_cut_costs_a_minute_of_it_at_most() -> None:
    host = lived()
    host.deploy(BAD, "web")
    host.after(200)
    host.reboot()
    left = left_sec(host)
    assert left is not None
    assert 100 <= left <= 160
    checkpoints = host.of("deployment.probation")
    assert 3 <= len(checkpoints) <= 10


def test_after_a_reboot_every_agent_has_to_be_stable_again() -> None:
    host = lived()
    host.deploy(BAD, "web")
    host.after(290)
    host.reboot()
    host.after(30)
    assert left_sec(host) == 0 or not promotes(host)
    host.after(60)
    assert promotes(host)


def test_a_gate_that_fails_begins_the_probation_anew_when_it_passes() -> None:
    host = Judged(gates=("port",))
    host.after(400)
    assert "the gate port has not passed yet" in host.verdict()[1]
    host.keep(host.decisions.on_gate("port", True, "listens", host.now()))
    host.look()
    assert promotes(host)
    host.comes_of_it()
    host.deploy(BAD, "web")
    host.keep(host.decisions.on_gate("port", True, "listens", host.now()))
    host.after(200)
    host.keep(host.decisions.on_gate("port", False, "nothing listens", host.now()))
    assert host.decisions.on_gate("port", False, "nothing listens", host.now()) == []
    host.after(100)
    assert host.open_intent() is None
    assert "the gate port fails: nothing listens" in host.verdict()[1]
    host.keep(host.decisions.on_gate("port", True, "listens", host.now()))
    assert left_sec(host) == 300
    host.after(299)
    assert host.open_intent() is None
    host.after(1)
    assert promotes(host)


def test_a_gate_that_passed_before_and_fails_for_a_whole_probation_is_rolled_back() -> None:
    host = Judged(gates=("ssh",))
    host.keep(host.decisions.on_gate("ssh", True, "listens", host.now()))
    host.promoted()
    host.deploy(BAD, "web")
    host.keep(host.decisions.on_gate("ssh", False, "nothing listens", host.now()))
    host.after(299)
    assert not host.rolls_back()
    host.after(1)
    assert host.rolls_back()
    assert host.verdict() == ("unhealthy", "ssh: the gate has failed for 300 s")
    host.comes_of_it()
    assert host.of("deployment.recovered") == []
    host.keep(host.decisions.on_gate("ssh", True, "listens", host.now()))
    host.look()
    assert host.of("deployment.recovered")[0].data["gate"] == "ssh"


def test_a_gate_that_never_passed_is_no_reason_to_roll_back() -> None:
    host = Judged(gates=())
    host.promoted()
    host.config = Judged(gates=("new",)).config
    host.decisions.configure(host.config)
    host.deploy(OTHER, "web")
    host.keep(host.decisions.on_gate("new", False, "refused", host.now()))
    host.after(700)
    assert host.open_intent() is None
    assert "not known to have passed under the known-good" in host.verdict()[1]


def gated() -> Judged:
    """Return a host whose known-good system has the gate ``uplink``, with another deployed."""
    host = Judged(gates=("uplink",))
    host.gate("uplink", True)
    host.promoted()
    host.deploy(BAD, "web")
    return host


def test_a_gate_that_held_for_long_before_it_failed_is_not_blamed_on_the_deployment() -> None:
    host = gated()
    host.after(200)
    host.gate("uplink", False, "no route to host")
    host.after(1000)
    assert host.open_intent() is None
    verdict, reason = host.verdict()
    assert verdict == "inconclusive"
    assert "uplink: the gate has failed for 300 s, but it passed for a minute" in reason
    host.gate("uplink", True)
    host.after(299)
    assert host.open_intent() is None
    host.after(1)
    assert promotes(host)


def test_that_a_gate_held_is_known_again_when_healer_comes_back() -> None:
    host = gated()
    host.after(200)
    host.restart_healer()
    host.gate("uplink", False, "no route to host")
    host.after(400)
    assert host.open_intent() is None
    assert "it passed for a minute" in host.verdict()[1]
    assert [record.data["toplevel"] for record in host.of("gate.held")] == [GOOD, BAD]


def test_a_gate_that_passed_only_until_the_damage_showed_is_rolled_back_for() -> None:
    host = gated()
    host.after(59)
    host.gate("uplink", False, "no route to host")
    host.after(300)
    assert host.rolls_back()


def test_looks_that_failed_too_seldom_to_tell_are_no_time_in_which_a_gate_held() -> None:
    """What fails needs some looks to be said to fail: until then nothing is told of it."""
    host = gated()
    host.after(30)
    del host.looks["uplink"]
    host.after(60)
    host.gate("uplink", False, "no route to host")
    host.after(300)
    assert host.rolls_back()


def test_to_pass_while_the_switch_is_under_way_says_nothing_of_the_deployment_yet() -> None:
    """What the gate looks at may be restarted last of all."""
    host = Judged(gates=("uplink",))
    host.gate("uplink", True)
    host.promoted()
    host.switching = True
    host.deploy(BAD, "web")
    host.after(100)
    host.switching = False
    host.look()
    host.gate("uplink", False, "no route to host")
    host.after(300)
    assert host.rolls_back()


def test_time_in_which_healer_was_down_is_none_in_which_a_gate_held() -> None:
    host = gated()
    host.after(30)
    host.sec += 100
    host.restart_healer()
    host.gate("uplink", True)
    host.after(30)
    host.gate("uplink", False, "no route to host")
    host.after(300)
    assert host.rolls_back()


def test_a_gate_that_held_until_the_reboot_and_fails_since_is_rolled_back_for() -> None:
    """What a deployment breaks may show only once it was booted."""
    host = gated()
    host.after(200)
    host.reboot()
    host.gate("uplink", False, "no route to host")
    host.after(300)
    assert host.rolls_back()


def test_a_gate_that_held_under_one_deployment_does_not_excuse_the_next() -> None:
    host = gated()
    host.after(200)
    host.deploy(OTHER, "web")
    host.gate("uplink", False, "no route to host")
    host.after(300)
    assert host.rolls_back()


FULL = "there is no space left on /var"


@pytest.mark.parametrize("before", [0, 200])
def test_a_gate_that_failed_while_the_disk_was_full_is_not_blamed_on_the_deployment(
    before: float,
) -> None:
    """Nor once there is space again: what it looks at may stay down until somebody starts it."""
    host = gated()
    host.gate("uplink", False, "no route to host")
    host.after(before)
    host.trouble = [FULL]
    host.after(60)
    host.trouble = []
    host.after(30)
    host.restart_healer()
    host.gate("uplink", False, "no route to host")
    host.after(1000)
    assert host.open_intent() is None
    assert host.verdict() == (
        "inconclusive",
        "uplink: the gate has failed for 300 s, but the host was in trouble while it failed: "
        "there is no space left on /var",
    )


def test_a_gate_that_passed_after_the_disk_was_full_is_excused_no_more() -> None:
    host = gated()
    host.trouble = [FULL]
    host.gate("uplink", False, "no route to host")
    host.trouble = []
    host.gate("uplink", True)
    host.gate("uplink", False, "no route to host")
    host.after(300)
    assert host.rolls_back()


@pytest.mark.parametrize("first", ["gate", "memory"])
def test_a_gate_that_failed_when_memory_ran_out_is_not_blamed_on_the_deployment(
    first: str,
) -> None:
    host = gated()
    host.after(40)
    if first == "memory":
        host.starve("db", times=1, oom=0)
    host.gate("uplink", False, "no route to host")
    if first == "gate":
        host.starve("db", times=1, oom=0)
    host.after(1000)
    assert host.open_intent() is None
    assert "memory ran out on the whole host" in host.verdict()[1]


def test_a_gate_that_failed_while_an_agent_met_its_own_memory_limit_is_rolled_back_for() -> None:
    host = gated()
    host.gate("uplink", False, "no route to host")
    host.starve("db", times=1, oom=1)
    host.after(300)
    assert host.rolls_back()


def test_a_network_that_is_gone_excuses_no_gate() -> None:
    """To see that a deployment cuts the host off is what a gate is for."""
    host = gated()
    host.trouble = [NO_DEFAULT_ROUTE]
    host.gate("uplink", False, "no route to host")
    host.after(300)
    assert host.rolls_back()


def test_a_gate_that_fails_for_no_fault_of_one_deployment_excuses_the_next() -> None:
    host = gated()
    host.after(200)
    host.gate("uplink", False, "no route to host")
    host.reboot()
    host.deploy(OTHER, "web")
    host.gate("uplink", False, "no route to host")
    host.after(1000)
    assert host.open_intent() is None
    assert "it passed for a minute or more before it began to fail" in host.verdict()[1]


def test_a_deployment_in_an_outage_of_what_a_gate_looks_at_is_acquitted_later() -> None:
    """Nobody looks at the gates of a known-good system: docs/safeswitch.md tells of this limit."""
    host = gated()
    host.gate("uplink", False, "no route to host")
    host.after(300)
    assert host.rolls_back()
    host.comes_of_it()
    assert BAD in host.decisions.deployment.condemned
    host.after(700)
    (refuted,) = host.of("deployment.refuted")
    assert (refuted.data["toplevel"], refuted.data["gate"]) == (BAD, "uplink")
    assert BAD not in host.decisions.deployment.condemned


def test_a_gate_that_two_deployments_fail_in_turn_is_rolled_back_for() -> None:
    host = gated()
    host.gate("uplink", False, "no route to host")
    host.after(200)
    host.deploy(OTHER, "web")
    host.gate("uplink", False, "no route to host")
    host.after(300)
    assert host.rolls_back()


def test_after_a_start_of_healer_every_gate_has_to_pass_again() -> None:
    host = gated()
    host.after(100)
    host.sec += 400
    host.restart_healer()
    host.look()
    assert host.open_intent() is None
    assert "the gate uplink has not passed yet" in host.verdict()[1]
    # The time counts all the same, as it does over a reboot.
    assert left_sec(host) == 0
    host.gate("uplink", True)
    assert promotes(host)


def test_a_promotion_that_healer_is_restarted_in_keeps_what_the_gates_were() -> None:
    host = gated()
    host.after(300)
    assert promotes(host)
    host.restart_healer()
    host.comes_of_it()
    host.deploy(OTHER, "web")
    host.gate("uplink", False, "no route to host")
    host.after(300)
    assert host.rolls_back()


def test_a_start_of_healer_leaves_how_the_gates_stood_when_the_probation_ended() -> None:
    host = gated()
    host.after(300)
    host.comes_of_it()
    host.restart_healer()
    assert set(host.decisions.deployment.passed) == {"uplink"}
