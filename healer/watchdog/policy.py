"""What the restart policy answers to the end of an invocation.

Pure. systemd carries it out by the settings that nix/restart.nix renders (systemd.service(5)
``Restart=``), and nix/stamp-rules.sh, under PID 1, what systemd has no setting for.
"""

import re
from dataclasses import dataclass

from healer.config import Restart, Rule
from healer.events import AnswerKind, Ended

# systemd counts these as a clean end unless SuccessExitStatus= says more (systemd.service(5)).
_CLEAN_SIGNALS = frozenset({"HUP", "INT", "TERM", "PIPE"})

# ``$EXIT_STATUS`` counts the realtime signals from the first; the last is so many behind it.
_REALTIME = re.compile(r"SIGRT(?P<end>MIN|MAX)(?:[+-](?P<count>[0-9]+))?")
_REALTIME_SIGNALS = 30


@dataclass(frozen=True, slots=True)
class Answer:
    """What follows an end, and whether and when the agent runs again.

    ``delay_ms`` is the pause before the next run where the policy names it; None where systemd
    counts it (a backoff) or nothing is to run.
    """

    kind: AnswerKind
    restarts: bool
    delay_ms: int | None


def answer(restart: Restart, ended: Ended, crash_class: str) -> Answer:
    """Return what the policy answers; what the stop stamp already carried out goes before."""
    rule = _first_rule(restart, ended.status, crash_class)
    if ended.answer is not None:
        kind = ended.answer
    elif rule is not None:
        kind = _kind(restart, rule)
    else:
        return _otherwise(restart, ended, crash_class)
    if kind == "stop":
        return Answer(kind, restarts=False, delay_ms=None)
    if kind in {"escalate", "rollback"}:
        rest = _otherwise(restart, ended, crash_class)
        return Answer(kind, rest.restarts, rest.delay_ms)
    if ended.delay_ms is not None or kind == "backoff":
        return Answer(kind, restarts=True, delay_ms=ended.delay_ms)
    own_sec = rule.delay_sec if rule is not None else None
    delay_sec = restart.delay_sec if own_sec is None else own_sec
    return Answer(kind, restarts=True, delay_ms=_ms(delay_sec))


def backs_off(restart: Restart) -> bool:
    """Whether systemd lets each restart wait longer than the one before (RestartSteps=)."""
    conditional = restart.policy == "conditional"
    return restart.policy == "exponential" or (conditional and restart.otherwise == "backoff")


def _otherwise(restart: Restart, ended: Ended, crash_class: str) -> Answer:
    """Answer an end that no rule is about.

    What healer's helper ended for a failed check has failed, however cleanly it left.
    """
    conditional = restart.policy == "conditional"
    clean = _clean(ended) and crash_class != "health"
    if (
        restart.policy == "never"
        or (conditional and restart.otherwise == "stop")
        or (restart.on == "failure" and clean)
    ):
        return Answer("stop", restarts=False, delay_ms=None)
    if backs_off(restart):
        return Answer("backoff", restarts=True, delay_ms=ended.delay_ms)
    delay_ms = _ms(restart.delay_sec) if ended.delay_ms is None else ended.delay_ms
    return Answer("restart", restarts=True, delay_ms=delay_ms)


def _kind(restart: Restart, rule: Rule) -> AnswerKind:
    if rule.action != "restart":
        return rule.action
    native = restart.otherwise != "backoff" and rule.delay_sec in {None, restart.delay_sec}
    return "restart" if native else "delay"


def _first_rule(restart: Restart, status: str, crash_class: str) -> Rule | None:
    if restart.policy != "conditional":
        return None
    for rule in restart.rules:
        statuses = {*map(str, rule.exit_codes), *map(exit_status, rule.signals)}
        if status in statuses or crash_class in rule.classes:
            return rule
    return None


def exit_status(signal: str) -> str:
    """Return ``$EXIT_STATUS`` (systemd.exec(5)) of a process that this signal killed."""
    found = _REALTIME.fullmatch(signal)
    if found is None:
        return signal.removeprefix("SIG")
    count = int(found["count"] or 0)
    return f"RTMIN+{count if found['end'] == 'MIN' else _REALTIME_SIGNALS - count}"


def _clean(ended: Ended) -> bool:
    if ended.result != "success":
        return False
    return ended.status in {"", "0"} or ended.status in _CLEAN_SIGNALS


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
