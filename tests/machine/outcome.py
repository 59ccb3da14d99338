"""What can come of asking a machine for something."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from unittest import TestCase

DEFAULT_TIMEOUT = 300


class MachineError(Exception):
    """The machine or the harness does not work."""


class RequestedAssertionError(AssertionError):
    """What a test asked for is not so."""


class AssertionTester(TestCase):
    """The ``t`` of a test script: unittest's assertions."""

    failureException = RequestedAssertionError


@dataclass(frozen=True, slots=True)
class Completed:
    """How a command in the machine ended."""

    status: int
    stdout: bytes
    stderr: bytes


def retry(
    fn: Callable[[bool], bool],
    timeout_seconds: float = DEFAULT_TIMEOUT,
    *,
    timeout: float | None = None,
    interval: float = 1,
) -> None:
    """Call FN until it returns true; its argument says whether this is the last try.

    A quarter of the time at most goes into looking: it takes a processor from what is waited for.
    """
    limit = timeout_seconds if timeout is None else timeout
    start = time.monotonic()
    while (began := time.monotonic()) - start < limit:
        if fn(False):
            return
        time.sleep(max(interval, 3 * (time.monotonic() - began)))
    if not fn(True):
        elapsed = time.monotonic() - start
        raise RequestedAssertionError(
            f"action timed out after {elapsed:.2f} seconds (timeout={limit})"
        )
