"""What the restart policy answers, by the settings alone and by what PID 1 noted."""

from dataclasses import replace

import pytest

from healer.config import Restart, Rule
from healer.events import Ended
from healer.watchdog.policy import Answer, answer, exit_status
from tests.watchdog.test_classify import ended

STOP_3 = Rule(exit_codes=(3,), signals=("SIGTERM",), action="stop")
RESTART_75 = Rule(exit_codes=(75,), action="restart")
LATER_7 = Rule(exit_codes=(7,), action="restart", delay_sec=30)
OOM = Rule(classes=("oom",), action="backoff")
KILLED = Rule(signals=("SIGKILL",), action="restart")
ESCALATE = Rule(classes=("watchdog",), action="escalate")
ROLLBACK = Rule(exit_codes=(78,), action="rollback")
CHOOSY = Restart(
    policy="conditional", rules=(STOP_3, LATER_7, OOM, KILLED, ESCALATE, ROLLBACK), delay_sec=0.5
)
STRICT = Restart(policy="conditional", rules=(RESTART_75, ROLLBACK), otherwise="stop")
GENTLE = Restart(policy="conditional", rules=(RESTART_75,), otherwise="backoff")

EXIT_1 = ended("exit-code", "exited", "1")
KILL = ended("signal", "killed", "KILL")
STOP = Answer("stop", restarts=False, delay_ms=None)
NOW = Answer("restart", restarts=True, delay_ms=0)
BACKOFF = Answer("backoff", restarts=True, delay_ms=None)


@pytest.mark.parametrize(
    ("restart", "end", "crash_class", "expected"),
    [
        (Restart(), EXIT_1, "exit", NOW),
        (Restart(), ended("success"), "", NOW),
        (Restart(on="failure"), ended("success"), "", STOP),
        (Restart(on="failure"), ended("success", "killed", "TERM"), "", STOP),
        (Restart(on="failure"), KILL, "signal", NOW),
        (Restart(policy="never"), KILL, "signal", STOP),
        (Restart(policy="exponential", delay_sec=0.1), KILL, "signal", BACKOFF),
        (CHOOSY, ended("exit-code", "exited", "3"), "exit", STOP),
        (CHOOSY, ended("success", "killed", "TERM"), "", STOP),
        (CHOOSY, EXIT_1, "exit", Answer("restart", restarts=True, delay_ms=500)),
        (
            CHOOSY,
            ended("exit-code", "exited", "7"),
            "exit",
            Answer("delay", restarts=True, delay_ms=30_000),
        ),
        # The first rule counts: a SIGKILL out of memory is one of the rule before.
        (CHOOSY, KILL, "oom", BACKOFF),
        (CHOOSY, KILL, "signal", Answer("restart", restarts=True, delay_ms=500)),
        (
            CHOOSY,
            ended("watchdog", "dumped", "ABRT"),
            "watchdog",
            Answer("escalate", restarts=True, delay_ms=500),
        ),
        (
            CHOOSY,
            ended("exit-code", "exited", "78"),
            "exit",
            Answer("rollback", restarts=True, delay_ms=500),
        ),
        (STRICT, ended("exit-code", "exited", "75"), "exit", NOW),
        (STRICT, EXIT_1, "exit", STOP),
        (
            STRICT,
            ended("exit-code", "exited", "78"),
            "exit",
            Answer("rollback", restarts=False, delay_ms=None),
        ),
        (GENTLE, EXIT_1, "exit", BACKOFF),
        # systemd would count this restart's pause as one more of the backoff.
        (
            GENTLE,
            ended("exit-code", "exited", "75"),
            "exit",
            Answer("delay", restarts=True, delay_ms=0),
        ),
    ],
)
def test_answer(restart: Restart, end: Ended, crash_class: str, expected: Answer) -> None:
    assert answer(restart, end, crash_class) == expected


def test_what_pid_1_carried_out_goes_before_what_is_declared_now() -> None:
    """A deployment may have changed the rules since."""
    done = replace(EXIT_1, answer="backoff", delay_ms=400)
    assert answer(Restart(), done, "exit") == Answer("backoff", restarts=True, delay_ms=400)
    assert answer(CHOOSY, replace(EXIT_1, answer="stop"), "exit") == STOP


@pytest.mark.parametrize(
    ("signal", "status"),
    [
        ("SIGKILL", "KILL"),
        ("SIGRTMIN", "RTMIN+0"),
        ("SIGRTMIN+3", "RTMIN+3"),
        ("SIGRTMAX", "RTMIN+30"),
        ("SIGRTMAX-2", "RTMIN+28"),
    ],
)
def test_exit_status_of_a_signal(signal: str, status: str) -> None:
    assert exit_status(signal) == status
