"""Which crashes are blamed on a deployment, which are not, and what is told of each."""

import math

import pytest

from healer.records import Record
from healer.safeswitch.baseline import BLAMED, SUSPICIOUS, Baseline, threshold
from tests.safeswitch.judged import BAD, GOOD, HOUR, OTHER, lived


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
