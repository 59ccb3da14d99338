"""How often an agent crashes when nothing is wrong with the deployment, and what is beyond that.

Pure. An agent's baseline is what the records say of it under known-good deployments: its crashes
and the time in which they were seen. Crashes by chance are taken for a Poisson process.
"""

import math
from dataclasses import dataclass

WARM_MS = 3_600_000
"""With less than an hour under a known-good deployment an agent has no baseline."""

SUSPICIOUS = 1e-3
"""Crashes less likely than this are beyond a baseline: the probation begins anew."""

BLAMED = 1e-8
"""Crashes less likely than this are no chance: a fleet makes millions of such tests a year.

docs/fleet.md shows what a greater one would cost.
"""

# A single crash, or two, is never blamed.
_LEAST_BLAMED = 3
# Old crashes fade: beyond two of these, what was seen is halved.
_HALF_MS = 30 * 86_400_000


@dataclass(frozen=True, slots=True)
class Baseline:
    """One agent's crashes under known-good deployments.

    ``since_ms`` is where its time began, on the clock that counts the host's time under these.
    """

    crashes: float
    since_ms: int

    def crash(self, good_ms: int) -> "Baseline":
        """Return the baseline with one more crash, seen at ``good_ms``."""
        crashes, seen = self.crashes + 1, good_ms - self.since_ms
        while seen > 2 * _HALF_MS:
            crashes, seen = crashes / 2, seen // 2
        return Baseline(crashes, good_ms - seen)

    def seen_ms(self, good_ms: int) -> int:
        """Return in how much time the crashes were seen."""
        return good_ms - self.since_ms

    def is_warm(self, good_ms: int) -> bool:
        """Whether it is long enough to judge by."""
        return self.seen_ms(good_ms) >= WARM_MS

    def expected(self, good_ms: int, window_ms: int) -> float:
        """Return how many crashes chance brings in a window, estimated with caution.

        One crash more than was seen is assumed, so that none so far does not mean never.
        """
        return (self.crashes + 1) * window_ms / max(1, self.seen_ms(good_ms))


def threshold(expected: float, chance: float, least: int = _LEAST_BLAMED) -> int:
    """Return the smallest number of crashes, ``least`` or more, that chance hardly brings.

    That is the smallest k with P(N >= k) < ``chance`` where N is Poisson of mean ``expected``.
    """
    if expected > 600:  # e^-expected is nearly 0 there, and a normal distribution is close
        return math.ceil(expected + 6 * math.sqrt(expected))
    term = math.exp(-expected)
    below, k = 0.0, 0
    while k < least or 1 - below >= chance:
        below += term
        k += 1
        term *= expected / k
        if term == 0.0 and k > expected:
            break
    return max(k, least)
