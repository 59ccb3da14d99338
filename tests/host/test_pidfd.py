"""The kernel's word on real processes."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable

import pytest

from healer.events import Death
from healer.host.pidfd import Deaths

_TELLS_STATUS = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 15)


def watch_until_death(end: Callable[["subprocess.Popen[bytes]"], None]) -> Death | None:
    """Watch a process, end it, wait for the word of it, and return what is known then."""

    async def scenario() -> Death | None:
        told: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        deaths = Deaths(lambda unit, invocation: told.put_nowait((unit, invocation)))
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
            deaths.watch("a.service", "1", process.pid)
            assert deaths.of("a.service", "1") is None
            end(process)
            assert await asyncio.wait_for(told.get(), 10) == ("a.service", "1")
            process.wait()
        death = deaths.of("a.service", "1")
        assert deaths.is_watched("a.service", "1", process.pid)
        assert not deaths.is_watched("a.service", "2", process.pid)
        assert not deaths.is_watched("a.service", "1", process.pid + 1)
        assert deaths.of("a.service", "2") is None
        assert told.empty()
        deaths.close()
        return death

    return asyncio.run(scenario())


def close_stdin(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    process.stdin.close()


@pytest.mark.parametrize(
    ("end", "status"),
    [(lambda process: process.send_signal(signal.SIGKILL), signal.SIGKILL), (close_stdin, 0)],
)
def test_a_death_and_its_status(
    end: Callable[["subprocess.Popen[bytes]"], None], status: int
) -> None:
    death = watch_until_death(end)
    assert death is not None
    assert death.uptime_ms > 0
    assert death.wait_status == (status if _TELLS_STATUS else None)


def test_a_process_that_is_gone_already_is_nobody() -> None:
    async def scenario() -> None:
        deaths = Deaths(lambda *_: None)
        with subprocess.Popen(["true"]) as process:
            process.wait()
        deaths.watch("a.service", "1", process.pid)
        deaths.watch("b.service", "1", 0)
        assert deaths.of("a.service", "1") is None
        deaths.close()

    asyncio.run(scenario())


def test_descriptors_are_closed() -> None:
    async def scenario() -> None:
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the listing's own descriptor too
        deaths = Deaths(lambda *_: None)
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
            deaths.watch("a.service", "1", process.pid)
            deaths.watch("a.service", "2", process.pid)
            deaths.watch("b.service", "1", process.pid)
            deaths.keep(frozenset({"a.service"}))
            close_stdin(process)
        deaths.close()
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208

    asyncio.run(scenario())
