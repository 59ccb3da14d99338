"""The crash-loop budget of one agent: how many crashes, how close together, how soon. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from healer.config import Agent
from healer.records import Record

# So many budgets of crashes without a stable run in between are a crash loop, however slow.
_NEVER_STABLE = 4


@dataclass(frozen=True, slots=True)
class Death:
    """One recorded crash, as far as the crash-loop budget needs it."""

    boot: str
    uptime_ms: int
    toplevel: str | None
    early: bool


def crash_loop(
    agent: Agent, deaths: Sequence[Death], quarantines: int, crash: Record
) -> Iterator[Record]:
    """Tell whether ``deaths``, the last of which is ``crash``, spend the budget.

    They are those under one toplevel since the last recovery or step. Backoff hides a loop from a
    time window, so deaths soon after the start are counted as well, and many of those that are
    neither soon nor close together. A rule can spend the budget at once; ``escalate`` does so
    before the last step, so that SafeSwitch has been asked before it.
    """
    limits, newest = agent.crash_loop, deaths[-1]
    since = newest.uptime_ms - limits.window_sec * 1000
    in_window = sum(death.boot == newest.boot and death.uptime_ms >= since for death in deaths)
    early = 0
    for death in reversed(deaths):
        if not death.early:
            break
        early += 1
    answer = crash.data["answer"]
    at_the_end = quarantines >= agent.escalation.max_quarantines
    if in_window >= limits.max_crashes:
        reason = f"{in_window} crashes within {limits.window_sec:g} s"
    elif early >= limits.max_crashes:
        reason = f"{early} deaths in a row within {limits.early_death_sec:g} s of their start"
    elif len(deaths) >= _NEVER_STABLE * limits.max_crashes:
        reason = f"{len(deaths)} crashes without {agent.stable_sec:g} s up in between"
    elif answer == "rollback" or (answer == "escalate" and at_the_end):
        reason = f"its rule for this end says {answer}"
    else:
        return
    data = {
        "agent": crash.data["agent"],
        "crashes": in_window,
        "early_deaths": early,
        "window_ms": int(limits.window_sec * 1000),
        "toplevel": crash.data["toplevel"],
        "reason": reason,
    }
    yield Record(crash.at, "agent.crash-loop", data, crash.incident)
