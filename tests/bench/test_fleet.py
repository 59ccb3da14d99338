"""The simulated fleet, small: it is the same each time, and the decisions stand up to it."""

import os
import subprocess
import sys
from dataclasses import replace

from bench import fleet
from bench.fleet import live
from bench.world import DAY, World

# Bad deployments all the time, so that a few host-months have some of each kind.
WORLD = World(bad=0.3, upstream_down=30, full=10, out_of_memory=10, unplugged=10)


def test_a_bad_deployment_is_rolled_back_and_a_good_one_is_not() -> None:
    counts = fleet.simulate(6, WORLD, until_ms=90 * DAY)
    assert counts["bad: rolled back"] > 10
    assert counts["troubles"] > 10
    assert counts["false rollbacks"] == 0
    assert counts["bad: missed"] == 0


def test_a_host_lives_the_same_life_again_in_another_process() -> None:
    """In each process a set of names has an order of its own: nothing may hang on that."""
    code = (
        "from tests.bench.test_fleet import WORLD, DAY, live;"
        "print(sorted(live((3, WORLD, 1, 60 * DAY)).items()))"
    )
    lives = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            stdout=subprocess.PIPE,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert lives == {f"{sorted(live((3, WORLD, 1, 60 * DAY)).items())}\n".encode()}


def test_in_a_perfect_world_nothing_is_rolled_back() -> None:
    counts = live((1, replace(WORLD, bad=0, slow=0), 1, 120 * DAY))
    assert counts["deployments"] > 0
    assert counts["crashes"] > 0
    assert counts["rollbacks"] == 0
