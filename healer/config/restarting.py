"""What types cannot say of restarting: policies, their rules, groups of agents; see rules.py."""

import re
from collections.abc import Iterator
from signal import Signals

from healer.config import schema
from healer.config.problem import Problem, option_path

_REALTIME = re.compile(r"SIGRT(MIN(\+([0-9]|[12][0-9]|30))?|MAX(-([0-9]|[12][0-9]|30))?)")
# systemd does not grow a delay of zero, and rounds what is below a microsecond to it.
_MIN_GROWING_SEC = 0.001


def policy(restart: schema.Restart, path: str) -> Iterator[Problem]:
    """Judge a restart policy; ``path`` is the option it was declared by."""
    kind, delay = restart.policy, restart.delay_sec
    if kind == "immediate" and delay != 0:
        yield Problem(
            f"{path}.delaySec",
            f"is {delay:g}, but the policy is immediate",
            "write 0, or choose the policy exponential or conditional",
        )
    if kind == "exponential" and delay < _MIN_GROWING_SEC:
        yield Problem(
            f"{path}.delaySec",
            f"is {delay:g}, and a delay that starts at 0 cannot grow",
            f"write at least {_MIN_GROWING_SEC:g}, or choose the policy immediate",
        )
    if _backs_off(restart) and delay > restart.max_delay_sec:
        yield Problem(
            f"{path}.delaySec",
            f"is {delay:g}, more than maxDelaySec ({restart.max_delay_sec:g})",
            "lower delaySec or raise maxDelaySec",
        )
    if kind == "conditional" and not restart.rules:
        yield Problem(
            f"{path}.rules",
            "is empty, but the policy is conditional",
            "add a rule, or choose the policy immediate or never",
        )
    if kind != "conditional" and restart.rules:
        yield Problem(
            f"{path}.rules",
            f"has rules, but the policy is {kind}",
            "choose the policy conditional, or remove the rules",
        )
    yield from _contradictions(restart, path)


def _backs_off(restart: schema.Restart) -> bool:
    actions = {restart.otherwise, *(rule.action for rule in restart.rules)}
    return restart.policy == "exponential" or "backoff" in actions


def _contradictions(restart: schema.Restart, path: str) -> Iterator[Problem]:
    answers: dict[int | str, str] = {}
    for index, rule in enumerate(restart.rules):
        after = "" if rule.delay_sec is None else f" after {rule.delay_sec:g} s"
        answer = f"{rule.action}{after}"
        ends: tuple[int | str, ...] = (*rule.exit_codes, *rule.signals, *rule.classes)
        for end in ends:
            if answers.setdefault(end, answer) != answer:
                yield Problem(
                    f"{path}.rules[{index}]",
                    f"says {answer} for {end}, an earlier rule says {answers[end]}",
                    "keep one of the two",
                )


def rule(rule: schema.Rule, path: str) -> Iterator[Problem]:
    """Judge one rule of a policy by itself."""
    if not rule.exit_codes and not rule.signals and not rule.classes:
        yield Problem(
            path, "has neither exitCodes nor signals nor classes", "add one, or remove the rule"
        )
    if rule.delay_sec is not None and rule.action != "restart":
        yield Problem(
            f"{path}.delaySec",
            f"is {rule.delay_sec:g}, but the action is {rule.action}",
            "remove it, or write the action restart",
        )
    for index, name in enumerate(rule.signals):
        if name not in Signals.__members__ and not _REALTIME.fullmatch(name):
            yield Problem(
                f"{path}.signals[{index}]",
                f"is {name[:64]!a}, which is no signal",
                "write a name of signal(7), such as SIGTERM",
            )


def rollbacks(config: schema.Config) -> Iterator[Problem]:
    """Refuse rules that ask for a rollback, for a host on which nothing rolls back."""
    for name, agent in config.agents.items():
        for index, rule in enumerate(agent.restart.rules):
            if rule.action == "rollback":
                yield Problem(
                    f"{option_path('agents', name)}.restart.rules[{index}].action",
                    "is rollback, but safeSwitch.enable is false",
                    "write another action, or set safeSwitch.enable to true",
                )


def groups(config: schema.Config) -> Iterator[Problem]:
    """Judge the groups by the agents that they name."""
    groups: dict[str, str] = {}
    for name, group in config.groups.items():
        option = f"{option_path('groups', name)}.agents"
        if not group.agents:
            yield Problem(option, "is empty", "name agents, or remove the group")
        for agent in group.agents:
            if agent not in config.agents:
                yield Problem(
                    option, f"names {agent[:64]!a}, which is no agent", "declare it, or remove it"
                )
            elif agent in groups:
                yield Problem(
                    option,
                    f"names {agent}, which {option_path('groups', groups[agent])} names already",
                    "have each agent once, in one group",
                )
            groups.setdefault(agent, name)
