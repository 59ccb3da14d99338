"""The host's clocks, as they are: nothing in the decisions reads them."""

import time
from functools import cache
from pathlib import Path

from healer.events import Instant


@cache
def boot_id() -> str:
    """Return this boot's id, 32 hexadecimal digits as journald writes it (random(4))."""
    text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    return text.strip().replace("-", "")


def uptime_ms() -> int:
    """Return the milliseconds since boot, suspends included (CLOCK_BOOTTIME)."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def from_monotonic_us(monotonic_us: int) -> int:
    """Convert a time of systemd's to milliseconds since boot.

    CLOCK_MONOTONIC stands still while the machine is suspended; what was before a suspend comes
    out later than it was, never earlier.
    """
    behind_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
    return monotonic_us // 1000 + behind_ns // 1_000_000


def now() -> Instant:
    """Return this moment."""
    return Instant(boot_id(), uptime_ms(), time.time_ns() // 1000)


def minute_of_day() -> int:
    """Return the minutes since midnight, in the host's time zone."""
    local = time.localtime()
    return local.tm_hour * 60 + local.tm_min
