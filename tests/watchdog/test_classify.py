import pytest

from healer.events import Ended, Memory
from healer.watchdog.classify import crash_class, is_crash


def ended(
    result: str, code: str = "exited", status: str = "0", oom_kill: int | None = None
) -> Ended:
    memory = Memory(1, 1, oom_kill, None) if oom_kill is not None else None
    return Ended(
        "w.service", "a" * 32, "b" * 32, result, code, status, 0, 1000, None, memory, "stamp"
    )


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (ended("exit-code", "exited", "3"), "exit"),
        (ended("signal", "killed", "KILL"), "signal"),
        (ended("signal", "killed", "KILL", oom_kill=0), "signal"),
        (ended("signal", "killed", "KILL", oom_kill=1), "oom"),
        (ended("oom-kill", "killed", "KILL"), "oom"),
        (ended("core-dump", "dumped", "SEGV"), "core-dump"),
        (ended("watchdog", "dumped", "ABRT"), "watchdog"),
        (ended("timeout", "killed", "TERM"), "timeout"),
        (ended("exit-code", "", ""), "start-failed"),
        (ended("resources", "", ""), "resources"),
    ],
)
def test_class(end: Ended, expected: str) -> None:
    assert crash_class(end, None) == expected


def test_a_failed_health_check_names_the_class() -> None:
    assert crash_class(ended("core-dump", "dumped", "ABRT"), "web") == "health"
    # A program that handles SIGABRT and leaves with 0 was still ended by the check.
    assert is_crash(ended("success"), stop_requested=False, health_check="web")


def test_what_was_asked_for_is_no_crash() -> None:
    assert not is_crash(ended("exit-code", "exited", "1"), stop_requested=True, health_check=None)
    assert not is_crash(ended("success"), stop_requested=False, health_check=None)
    assert is_crash(ended("exit-code", "exited", "1"), stop_requested=False, health_check=None)
