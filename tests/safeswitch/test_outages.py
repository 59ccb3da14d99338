"""What the environment is to blame for, when a deployment could be blamed for it as well."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.safeswitch.judged import BAD, OTHER, lived


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
