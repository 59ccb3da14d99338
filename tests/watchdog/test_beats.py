"""When checks are due, over invented names, intervals and moments."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from healer.config import HealthCheck, ListenCheck, TcpCheck
from healer.watchdog.beats import Beats, beat, next_beat

MOMENT = st.floats(0, 1e9)
INTERVAL = st.floats(0.1, 86400)
NAME = st.text(min_size=1, max_size=8)


def check(name: str = "live", **options: Any) -> TcpCheck:
    return TcpCheck(name=name, port=1, **options)


def moments(count: int, kind: type[TcpCheck | ListenCheck], interval_sec: float) -> list[float]:
    """Return when the checks of so many agents are due, in one interval."""
    checks: list[HealthCheck] = [kind(name="c", port=1, interval_sec=interval_sec)] * count
    beats = (beat(f"agent-{number}", each) for number, each in enumerate(checks))
    return [round(next_beat(999.99, *each) - 999.99, 3) for each in beats]


@settings(deadline=None)
@given(MOMENT, NAME, INTERVAL, st.integers(1, 20))
def test_each_check_keeps_its_beat(now: float, name: str, interval_sec: float, looks: int) -> None:
    phase, interval = beat("web", check(name, interval_sec=interval_sec))
    assert interval == interval_sec
    assert 0 <= phase < interval
    for _ in range(looks):
        due = next_beat(now, phase, interval)
        assert now < due <= now + interval * 1.001 + 0.001
        # A check that took a little while is due again one interval after it was last.
        assert next_beat(due + interval / 2, phase, interval) == pytest.approx(due + interval)
        now = due


def test_a_thousand_checks_do_not_beat_together() -> None:
    quarters = Counter(moments(1000, TcpCheck, 3.0))
    assert len(quarters) == 12
    assert max(quarters.values()) < 120
    # Those that cost the agents nothing share what the kernel says of a moment.
    seconds = Counter(moments(1000, ListenCheck, 3.0))
    assert len(seconds) == 3
    # The checks of one agent differ as well.
    assert len({beat("a", check(f"c{number}")) for number in range(20)}) > 5


@settings(deadline=None)
@given(MOMENT, st.lists(st.tuples(st.floats(0, 3), INTERVAL), max_size=20), st.floats(0.01, 1e6))
def test_what_is_due_is_yielded_once(
    now: float, each: list[tuple[float, float]], after_sec: float
) -> None:
    beats = Beats(now, each)
    first = {number: next_beat(now, *one) for number, one in enumerate(each)}
    assert beats.next_sec == min(first.values(), default=float("inf"))
    assert list(beats.due(now)) == []
    later = now + after_sec
    due = list(beats.due(later))
    assert len(due) == len(set(due))
    assert set(due) == {number for number, at in first.items() if at <= later + 0.001}
    # Whatever was missed, each is due again in the future.
    assert beats.next_sec > later
    assert list(beats.due(later)) == []
