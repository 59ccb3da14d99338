"""The simulated fleet, small: it is the same each time, and the decisions stand up to it."""

from dataclasses import replace

from bench import fleet
from bench.fleet import DAY, World, live

# Bad deployments all the time, so that a few host-months have some of each kind.
WORLD = World(bad=0.3, upstream_down=30, full=10, out_of_memory=10, unplugged=10)


def test_a_bad_deployment_is_rolled_back_and_a_good_one_is_not() -> None:
    counts = fleet.simulate(6, WORLD, until_ms=90 * DAY)
    assert counts["bad: rolled back"] > 10
    assert counts["troubles"] > 10
    assert counts["false rollbacks"] == 0
    assert counts["bad: missed"] == 0


def test_a_host_lives_the_same_life_again() -> None:
    job = (3, WORLD, 1, 60 * DAY)
    assert live(job) == live(job)


def test_in_a_perfect_world_nothing_is_rolled_back() -> None:
    counts = live((1, replace(WORLD, bad=0, slow=0), 1, 120 * DAY))
    assert counts["deployments"] > 0
    assert counts["crashes"] > 0
    assert counts["rollbacks"] == 0
