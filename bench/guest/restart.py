"""Kill each supervisor's program in turn, and take the time until it says that it runs again."""

import os
import random
import signal
import subprocess
import time

from bench.guest import common
from bench.guest.common import Announcements, Started

# Nothing is killed that is younger: s6 and runit make a program wait that died within a second.
_LEAST_AGE_NS = 1_200_000_000
_REST_SEC = 0.08
_TIMEOUT_SEC = 30


def main() -> None:
    given = common.options()
    names: list[str] = given["names"]
    program: list[str] = given["program"]
    common.first_in_line()
    heard = Announcements()
    alive = heard.wait_all(names, _TIMEOUT_SEC)
    times: dict[str, list[int]] = {name: [] for name in [*names, "floor"]}
    order = random.Random(given["seed"])
    for _ in range(given["rounds"]):
        for name in order.sample(names, len(names)):
            _until_old_enough(alive[name])
            time.sleep(_REST_SEC)
            began = common.boottime_ns()
            os.kill(alive[name].pid, signal.SIGKILL)
            alive[name] = heard.wait(name, _TIMEOUT_SEC)
            times[name].append(alive[name].at_ns - began)
        times["floor"].append(_floor(heard, program))
    common.answer(times)


def _until_old_enough(started: Started) -> None:
    age_ns = common.boottime_ns() - started.at_ns
    time.sleep(max(0, _LEAST_AGE_NS - age_ns) / 1e9)


def _floor(heard: Announcements, program: list[str]) -> int:
    """Take the time of fork and exec alone, by this very process."""
    time.sleep(_REST_SEC)
    began = common.boottime_ns()
    with subprocess.Popen([*program, "floor"]) as child:
        took = heard.wait("floor", _TIMEOUT_SEC).at_ns - began
        child.kill()
    return took


if __name__ == "__main__":
    main()
