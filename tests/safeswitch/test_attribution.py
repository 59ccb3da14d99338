"""Which crashes are blamed on a deployment, which are not, and what is told of each."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from healer.events import NO_DEFAULT_ROUTE
from healer.records import Record
from healer.safeswitch.baseline import BLAMED, SUSPICIOUS, Baseline, threshold
from tests.safeswitch.judged import BAD, GOOD, HOUR, OTHER, Judged, lived


def test_a_changed_agent_that_crashes_beyond_its_baseline_is_blamed_with_its_evidence() -> None:
    host = lived()
    host.deploy(BAD, "web")
    host.crash("web", times=2)
    assert not host.rolls_back()
    host.crash("web")
    assert host.rolls_back()
    intent = host.open_intent()
    assert intent is not None
    assert (intent.data["target"], intent.data["from"]) == (GOOD, BAD)
    assert host.verdict() == ("unhealthy", "web: crashes beyond its own baseline")
    evidence = host.of("safeswitch.verdict")[-1].data["evidence"]
    assert evidence == [
        "3 of its crashes were of runs that started under this deployment",
        "its unit was changed since the known-good",
        "0 crashes in 48 h under known-good deployments before: from 3 on they are no chance",
        "nothing points at the environment",
    ]


def test_with_no_baseline_the_declared_budget_counts() -> None:
    host = lived(hours=0)
    host.deploy(BAD, "web")
    host.crash("web", times=4)
    assert not host.rolls_back()
    host.crash("web")
    assert host.rolls_back()
    assert "5 crashes within 60 s" in host.verdict()[1]


def test_with_no_baseline_slow_crashes_spend_the_budget_as_well() -> None:
    host = lived(hours=0)
    host.deploy(BAD, "web")
    host.crash("web", times=4, after=90)
    assert host.open_intent() is None
    host.crash("web", after=90)
    assert host.rolls_back()


def test_an_agent_that_the_deployment_did_not_change_is_not_blamed_on_it() -> None:
    host = lived()
    host.deploy(BAD, "web")
    host.crash("db", times=8)
    assert host.verdict()[0] == "inconclusive"
    assert "neither its unit nor what all share was changed" in host.verdict()[1]
    assert host.open_intent() is None


def test_a_shared_input_can_break_an_agent_that_was_not_changed() -> None:
    host = lived()
    host.deploy(BAD, "web", shared=("systemd",))
    host.crash("db", times=3)
    assert host.rolls_back()
    assert "changed for all: systemd" in host.of("safeswitch.verdict")[-1].data["evidence"][1]


BOOTED = ("kernel", "initrd", "kernel-modules", "kernel-params")


@pytest.mark.parametrize("name", BOOTED)
def test_a_kernel_that_does_not_run_yet_can_break_nothing(name: str) -> None:
    host = lived()
    host.deploy(BAD, "web", shared=(name,))
    host.crash("db", times=8)
    assert host.open_intent() is None
    assert "neither its unit nor what all share was changed" in host.verdict()[1]
    evidence = host.of("safeswitch.verdict")[-1].data["evidence"][1]
    assert evidence.endswith(f"; changed for all, but not booted yet: {name}")
    # That it was changed stays recorded.
    assert host.of("deployment.activated")[-1].data["changes"]["shared"] == [name]


@pytest.mark.parametrize("name", BOOTED)
def test_a_kernel_can_break_every_agent_once_it_is_booted(name: str) -> None:
    host = lived()
    host.deploy(BAD, "web", shared=(name,))
    host.after(30)
    host.reboot()
    host.crash("db", times=3)
    assert host.rolls_back()
    evidence = host.of("safeswitch.verdict")[-1].data["evidence"][1]
    assert evidence.endswith(f"; changed for all: {name}")


def test_a_kernel_that_was_booted_first_of_all_can_break_every_agent() -> None:
    """By ``nixos-rebuild boot``, or by autoUpgrade with its reboot."""
    host = lived()
    host.tell([Record(host.now(), "healer.stopped", {"reason": "reboot"})])
    host.boot += 1
    host.sec, host.booted = 20, BAD
    host.deploy(BAD, "web", shared=("kernel",))
    host.crash("db", times=3)
    assert host.rolls_back()


def test_a_kernel_that_was_booted_stays_so_under_what_is_deployed_on_it() -> None:
    host = lived()
    host.deploy(BAD, shared=("kernel",))
    host.reboot()
    host.deploy(OTHER, "web", "db", shared=("initrd",))
    assert host.decisions.deployment.shared == {"kernel"}
    assert host.decisions.deployment.unbooted == {"initrd"}
    host.reboot()
    assert host.decisions.deployment.shared == {"kernel", "initrd"}


def test_to_switch_to_the_system_that_was_booted_is_no_boot() -> None:
    """The kernel that runs is the same all the time."""
    host = lived()
    host.deploy(OTHER, shared=("kernel",))
    host.promoted()
    host.deploy(GOOD, "web", shared=("kernel",))
    host.crash("db", times=8)
    assert host.open_intent() is None


def test_what_is_not_known_to_be_unchanged_can_be_blamed() -> None:
    host = lived()
    host.deploy(BAD, "web", known=False)
    host.crash("db", times=3)
    assert not host.rolls_back()  # its first crash was of a run from before
    host.crash("db")
    assert host.rolls_back()
    evidence = host.of("safeswitch.verdict")[-1].data["evidence"]
    assert evidence[1] == "it is not known whether its unit was changed"


def test_changes_add_up_until_the_next_known_good() -> None:
    host = lived()
    host.deploy(BAD, "db")
    host.deploy(OTHER, "web")
    host.stop("db")
    host.start("db")
    host.crash("db", times=3)
    assert host.rolls_back()
    intent = host.open_intent()
    assert intent is not None
    assert intent.data["target"] == GOOD


def test_a_flaky_agent_with_its_old_crash_rate_is_not_blamed_and_holds_nothing_up() -> None:
    host = lived(hours=0)
    for _ in range(200):
        host.crash("web", after=600)  # six an hour
        host.after(61)
    host.deploy(BAD, "web")
    host.after(100)
    host.crash("web", after=30)
    host.after(400)
    intent = host.open_intent()
    assert intent is not None
    assert intent.data["action"] == "promote"


def test_a_burst_of_a_flaky_agent_is_told_as_its_own_baseline() -> None:
    host = lived(hours=0)
    for _ in range(400):
        host.crash("web", after=70)
        host.after(61)
    host.deploy(BAD, "web")
    host.after(120)
    host.crash("web", times=5, after=3)
    assert host.verdict()[0] == "inconclusive"
    assert "its own baseline explains as many" in host.verdict()[1]


def test_agents_that_were_not_changed_and_crash_too_tell_of_the_environment() -> None:
    host = lived()
    host.deploy(BAD, "web")
    host.stop("db")
    host.start("db")
    host.crash("db", "web", times=3)
    assert host.verdict()[0] == "inconclusive"
    assert "db crashes too, and nothing of it was changed" in host.verdict()[1]
    # It is over for the one, and goes on for the other: from here on it counts.
    host.after(61)
    assert host.of("agent.recovered")
    host.crash("web", times=2, after=20)
    assert not host.rolls_back()
    host.crash("web", after=20)
    assert host.rolls_back()


def test_agents_that_the_accused_drags_along_are_no_excuse() -> None:
    host = lived()
    host.deploy(BAD, "web")
    host.stop("db")
    host.start("db")
    host.crash("web")
    host.crash("web", "db", times=3)
    assert host.rolls_back()


def test_an_agent_that_crashes_each_time_just_after_the_accused_is_no_excuse() -> None:
    """A common cause would end the one or the other first: ten times the same is no chance."""
    host = lived()
    host.deploy(BAD, "web")
    host.after(40)
    for _ in range(9):
        host.crash("web", after=47)
        host.crash("db", after=3)
    assert not host.rolls_back()
    assert "db crashes too, and nothing of it was changed" in " ".join(host.told())
    host.crash("web", after=47)
    host.crash("db", after=3)
    host.crash("web", times=2, after=50)
    assert host.rolls_back()


def test_an_agent_that_crashes_now_and_then_before_the_accused_is_not_dragged_along() -> None:
    host = lived()
    host.deploy(BAD, "web")
    host.after(40)
    for index in range(20):
        first, second = ("db", "web") if index % 5 == 2 else ("web", "db")
        host.crash(first, after=47)
        host.crash(second, after=3)
    assert not host.rolls_back()


def test_a_single_crash_of_an_agent_that_was_not_changed_raises_a_doubt() -> None:
    """Its run is from before the deployment, and its third crash would come too late."""
    host = lived()
    host.deploy(BAD, "web")
    host.after(40)
    host.crash("db")
    host.crash("web", times=3, after=6)
    assert not host.rolls_back()
    assert "db crashes too, and nothing of it was changed" in host.verdict()[1]
    # It stays the only one, and is well again.
    host.crash("web", times=9, after=6)
    assert host.rolls_back()


@given(
    begins=st.integers(31, 600),
    rounds=st.lists(st.tuples(st.integers(1, 25), st.integers(1, 25), st.booleans()), max_size=12),
)
def test_an_outage_that_hits_first_what_was_not_changed_is_never_blamed(
    begins: int, rounds: list[tuple[int, int, bool]]
) -> None:
    """Whenever it begins, whichever of the two goes on to crash first, and however fast."""
    host = lived()
    host.deploy(BAD, "web")
    host.after(begins)
    host.crash("db")
    for first, second, changed_first in rounds:
        names = ("web", "db") if changed_first else ("db", "web")
        host.crash(names[0], after=first)
        host.crash(names[1], after=second)
        assert not host.rolls_back()


def test_what_crashes_while_a_switch_restarts_what_it_needs_raises_no_doubt() -> None:
    host = lived()
    host.deploy(BAD, "web")
    host.crash("db")
    host.crash("web", times=3)
    assert host.rolls_back()


def test_another_agents_word_counts_too() -> None:
    host = lived()
    host.deploy(BAD, "web", "db")
    host.crash("db", status="75")
    for _ in range(4):
        host.crash("db", status="75")
        host.crash("web")
    assert not host.rolls_back()
    assert "db crashes too, and it says itself" in host.verdict()[1]


@pytest.mark.parametrize(("oom", "blamed"), [(1, True), (0, False)])
def test_memory_that_ran_out_on_the_host_is_not_the_deployments(oom: int, blamed: bool) -> None:
    host = lived()
    host.deploy(BAD, "web")
    host.starve("web", times=4, oom=oom)
    assert host.rolls_back() is blamed
    if not blamed:
        assert "memory ran out on the whole host" in host.verdict()[1]


def test_exit_75_is_the_agents_own_word_for_the_environment() -> None:
    host = lived()
    host.deploy(BAD, "web")
    host.crash("web", times=6, status="75")
    assert host.open_intent() is None
    assert "exit code 75" in host.verdict()[1]


def test_a_full_disk_pauses_and_what_was_seen_in_it_does_not_count() -> None:
    host = lived()
    host.deploy(BAD, "web")
    host.trouble = ["there is no space left on /var"]
    host.crash("web", times=6)
    assert host.verdict()[0] == "inconclusive"
    assert "no space left on /var" in host.verdict()[1]
    host.trouble = []
    host.look()
    host.crash("web", times=2)
    assert not host.rolls_back()
    host.crash("web")
    assert host.rolls_back()
    assert [record.data["trouble"] for record in host.of("host.trouble")] == [
        ["there is no space left on /var"],
        [],
    ]


def test_a_run_from_before_that_a_full_disk_ended_does_not_count_either() -> None:
    host = lived()
    host.deploy(BAD, "web")
    host.after(40)
    host.trouble = ["there is no space left on /var"]
    host.crash("db")
    host.trouble = []
    host.after(70)
    host.stop("web")
    host.start("web")
    host.crash("web")
    host.crash("web", "db", times=3)
    assert host.rolls_back()


def test_an_agent_that_was_in_a_crash_loop_before_is_not_blamed_on_what_came_after() -> None:
    host = lived()
    host.crash("web", times=4)
    host.deploy(BAD, "web")
    host.crash("web", times=6)
    assert host.open_intent() is None
    assert "before this deployment as well" in host.verdict()[1]


def test_an_outage_under_a_deployment_on_probation_is_not_blamed_on_the_next() -> None:
    """A person deployed what it hit, on top of a deployment that had not touched it."""
    host = lived()
    host.deploy(OTHER, "mail")
    host.crash("web", "db", times=6)
    host.deploy(BAD, "web", "db")
    host.crash("web", times=6)
    assert host.open_intent() is None
    assert "before this deployment as well" in host.verdict()[1]
    host.after(70)
    host.crash("web", times=3, after=30)
    assert host.rolls_back()


def test_an_agent_that_a_deployment_was_not_blamed_for_is_not_blamed_on_the_next() -> None:
    """The first changed all, and all ran well under it until an outage came."""
    host = lived()
    host.deploy(OTHER, "web", "db", "mail")
    host.after(90)
    host.crash("web", times=5)
    assert host.open_intent() is None
    host.deploy(BAD, "web")
    host.crash("web", times=6)
    assert host.open_intent() is None
    assert "before this deployment as well" in host.verdict()[1]


def test_what_a_deployment_was_convicted_of_excuses_no_later_one() -> None:
    host = lived()
    host.deploy(BAD, "web")
    host.crash("web", times=3)
    assert host.rolls_back()
    host.comes_of_it()
    host.after(10)
    host.deploy(OTHER, "web")
    host.crash("web", times=4)
    assert host.rolls_back()


def test_two_outages_in_one_probation_are_not_blamed_on_the_deployment() -> None:
    """It was deployed in the first, and had recovered from that before the second began."""
    host = lived()
    host.crash("web", times=6)
    host.deploy(BAD, "web")
    host.crash("web", times=6)
    host.after(290)
    assert len(host.of("agent.recovered")) == 1
    host.crash("web", times=6)
    assert host.open_intent() is None
    assert "it ran well under this deployment" in str(host.verdict())


def test_crashes_of_an_outage_that_is_over_do_not_count_with_a_later_one_by_chance() -> None:
    host = lived()
    host.crash("web", times=4)
    host.deploy(BAD, "web")
    host.crash("web", times=6)
    host.after(70)
    host.crash("web", after=250)
    assert host.open_intent() is None
    host.after(1400)
    intent = host.open_intent()
    assert intent is not None
    assert intent.data["action"] == "promote"


def test_an_outage_is_not_over_because_another_is() -> None:
    """Two that began at different times: the agent that is well again tells of its own only."""
    host = lived()
    host.crash("db", times=4, after=30)
    host.crash("web", times=4)
    host.deploy(BAD, "web")
    assert not host.of("agent.recovered")
    host.crash("web", times=3, after=25)
    assert "db" in [record.data["agent"] for record in host.of("agent.recovered")]
    host.crash("web", times=6, after=25)
    assert host.open_intent() is None
    assert "before this deployment as well" in host.verdict()[1]


def test_an_outage_is_over_for_all_that_it_hit_at_once() -> None:
    host = lived()
    host.crash("db", "web", times=4)
    host.deploy(BAD, "web")
    host.crash("web", times=3, after=25)
    assert host.open_intent() is None
    host.crash("web", times=5, after=25)
    assert host.rolls_back()


def test_an_agent_that_ran_well_and_then_could_not_start_met_something_else() -> None:
    host = lived()
    host.deploy(BAD, "web")
    host.crash("web", after=120)
    host.crash("web", times=5, after=1)
    assert host.open_intent() is None
    assert "it ran well under this deployment" in host.verdict()[1]


def test_a_run_far_longer_than_all_later_ones_was_of_another_kind() -> None:
    """An outage began before the agent was called stable."""
    host = lived()
    host.deploy(BAD, "web")
    host.crash("web", after=25)
    host.crash("web", times=9, after=3)
    assert host.open_intent() is None
    assert "it ran well under this deployment" in host.verdict()[1]


def test_an_agent_that_ends_each_time_after_much_the_same_time_is_blamed() -> None:
    host = lived()
    host.deploy(BAD, "web")
    host.crash("web", after=25)
    host.crash("web", times=2, after=4)
    assert host.rolls_back()


def test_an_early_death_was_no_good_run_however_soon_an_agent_is_called_stable() -> None:
    """A slow host takes seconds until a broken program has ended for the first time."""
    host = lived(stable_sec=2)
    host.deploy(BAD, "web")
    host.crash("web", after=5)
    host.crash("web", times=4, after=1)
    assert host.rolls_back()


def test_a_slow_first_start_was_no_good_run_where_no_death_is_declared_early() -> None:
    host = lived(early_death_sec=0)
    host.deploy(BAD, "web")
    host.crash("web", after=0.9)
    host.crash("web", times=4, after=0.1)
    assert host.rolls_back()


def test_an_agent_that_recovers_is_accused_of_nothing() -> None:
    host = lived(hours=0)
    host.deploy(BAD, "web")
    host.crash("web", times=3)
    host.after(500)
    intent = host.open_intent()
    assert intent is not None
    assert intent.data["action"] == "promote"


def test_a_baseline_fades_and_is_estimated_with_caution() -> None:
    day = 86_400_000
    assert Baseline(0, 0).expected(day, day) == 1
    assert Baseline(9, 0).expected(10 * day, day) == 1
    old = Baseline(100, 0).crash(100 * day)
    assert old.crashes == 50.5
    assert old.seen_ms(100 * day) == 50 * day
    assert not Baseline(5, 0).is_warm(HOUR * 1000 - 1)


@pytest.mark.parametrize("expected", [0.0, 1e-4, 0.003, 0.08, 1.0, 7.5, 60.0, 300.0])
@pytest.mark.parametrize("chance", [SUSPICIOUS, BLAMED])
def test_the_threshold_is_the_smallest_that_chance_hardly_reaches(
    expected: float, chance: float
) -> None:
    def at_least(k: int) -> float:
        logs = (
            -expected + n * math.log(expected or 1e-300) - math.lgamma(n + 1)
            for n in range(k, k + 400)
        )
        return math.fsum(map(math.exp, logs))

    k = threshold(expected, chance, least=1)
    assert at_least(k) < chance
    assert k == 1 or at_least(k - 1) >= chance * 0.999
    assert threshold(expected, chance) == max(3, k)


def kept_down(*changed: str, shared: tuple[str, ...] = ()) -> Judged:
    """Return a host on which web was crashing when it was booted, under what changes these."""
    host = lived()
    host.deploy(BAD, *changed, shared=shared)
    host.after(30)
    host.reboot()
    host.crash("web", times=3)
    host.counted = True
    host.after(55)
    assert host.of("boot.excused") == []
    host.crash("web", times=3)
    return host


def test_a_boot_that_does_not_come_up_for_the_deployment_is_not_excused() -> None:
    assert kept_down("web").of("boot.excused") == []
    assert kept_down("db", shared=("systemd",)).of("boot.excused") == []


def test_a_boot_is_excused_for_what_was_not_changed_once() -> None:
    host = kept_down("db")
    (excused,) = host.of("boot.excused")
    assert excused.data["toplevel"] == BAD
    assert excused.data["reason"] == (
        "web has crashed and is not stable yet, but neither its unit nor what all share was changed"
    )
    host.restart_healer()
    host.crash("web", times=3)
    assert len(host.of("boot.excused")) == 1


def test_a_boot_is_excused_for_a_full_disk_and_for_others_that_crash_too() -> None:
    host = kept_down("web")
    host.trouble = ["there is no space left on /var"]
    host.look()
    assert host.of("boot.excused")[0].data["reason"] == "there is no space left on /var"
    host = lived()
    host.deploy(BAD, "web")
    host.reboot()
    host.crash("mail", "web")
    host.counted = True
    host.crash("mail", "web", times=5, after=13)
    (excused,) = host.of("boot.excused")
    assert "mail crashes too, and nothing of it was changed" in excused.data["reason"]


@pytest.mark.parametrize("known", [True, False])
def test_a_gate_that_never_passed_under_the_known_good_excuses_a_boot(known: bool) -> None:
    host = Judged(gates=("port",))
    host.gate("port", True)
    host.promoted()
    if not known:
        state = host.decisions.deployment
        host.decisions.deployment = replace(state, passed_by_good=frozenset())
    host.deploy(BAD, "web")
    host.counted = True
    host.boot, host.sec, host.booted = 2, 20, BAD
    for name in host.agents:
        host.start(name)
    host.gate("port", False)
    host.after(70)
    assert len(host.of("boot.excused")) == (not known)


@pytest.mark.parametrize(
    ("trouble", "excused"), [("there is no space left on /var", True), (NO_DEFAULT_ROUTE, False)]
)
def test_of_the_hosts_troubles_only_the_network_excuses_no_boot_whose_gate_fails(
    trouble: str, excused: bool
) -> None:
    host = Judged(gates=("port",))
    host.gate("port", True)
    host.promoted()
    host.deploy(BAD, "web")
    host.counted = True
    host.reboot()
    host.trouble = [trouble]
    host.gate("port", False)
    host.after(70)
    assert bool(host.of("boot.excused")) == excused
