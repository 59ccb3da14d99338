"""When each health check is due. Pure.

Each check has a beat of its own by its names, so that a thousand of one interval spread over it,
and do so again after a restart of healer. Beats lie on a grid, so that what is due together is
made together and healer wakes at most four times a second for one interval.
"""

import hashlib
import heapq
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

from healer.config import HealthCheck, ListenCheck

_GRID_SEC = 0.25
# One question to the kernel answers all the `listen` checks of a beat, and none disturbs an agent:
# these share three beats to an interval, which are healer's own looks where that is 3 s.
_LISTEN_BEATS = 3
# A sum of binary fractions, and a timer, can be a little off the beat that was meant.
_ROUNDING_SEC = 0.001


def beat(name: str, check: HealthCheck) -> tuple[float, float]:
    """Return the phase and the interval of an agent's check, in seconds.

    It is due at all multiples of the interval, each later by the phase.
    """
    if isinstance(check, ListenCheck):
        beats, step_sec = _LISTEN_BEATS, check.interval_sec / _LISTEN_BEATS
    else:
        beats, step_sec = max(1, int(check.interval_sec / _GRID_SEC)), _GRID_SEC
    digest = hashlib.sha256(f"{name}\0{check.name}".encode()).digest()
    return int.from_bytes(digest[:8]) % beats * step_sec, check.interval_sec


def next_beat(now_sec: float, phase: float, interval_sec: float) -> float:
    """Return the first beat later than ``now_sec``, on the same clock.

    A beat that healer missed is left out.
    """
    due = (math.floor((now_sec - phase) / interval_sec) + 1) * interval_sec + phase
    # The sum is rounded: it can come out as the beat that is now.
    return due if due > now_sec + _ROUNDING_SEC else due + interval_sec


class Beats:
    """What is due by turns: each by its number, with its phase and its interval in seconds."""

    def __init__(self, now_sec: float, beats: Sequence[tuple[float, float]]) -> None:
        self._together = defaultdict[tuple[float, float], list[int]](list)
        for number, each in enumerate(beats):
            self._together[each].append(number)
        self._heap = [(next_beat(now_sec, *each), each) for each in self._together]
        heapq.heapify(self._heap)

    @property
    def next_sec(self) -> float:
        """When the next one is due; infinity where there is none."""
        return self._heap[0][0] if self._heap else math.inf

    def due(self, now_sec: float) -> Iterator[int]:
        """Yield each that is due, once, and have it due again later."""
        while self.next_sec <= now_sec + _ROUNDING_SEC:
            _, each = self._heap[0]
            heapq.heapreplace(self._heap, (next_beat(now_sec, *each), each))
            yield from self._together[each]
