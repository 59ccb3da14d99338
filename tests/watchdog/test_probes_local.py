"""Health checks against real commands, processes and files."""

import asyncio
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from healer.config import CommandCheck, FileCheck, MemoryCheck
from healer.watchdog.health import Outcome
from healer.watchdog.probes.file import Files
from healer.watchdog.probes.memory import cgroup_of, look_at_memory
from tests.machine.outcome import retry
from tests.watchdog.looking import ERROR, FAILED, OK, outcome

# Commands


def command_check(*command: str, **options: Any) -> CommandCheck:
    return CommandCheck(name="c", command=command, **options)


def test_commands(tmp_path: Path) -> None:
    assert outcome(command_check("/bin/true")) is OK
    assert outcome(command_check("/bin/sh", "-c", "exit 3")) is FAILED
    assert outcome(command_check("/no/such/program")) is ERROR
    (tmp_path / "data").write_text("")
    assert outcome(command_check(str(tmp_path / "data"))) is ERROR


def test_a_command_does_not_see_healers_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/x")
    assert outcome(command_check("/bin/sh", "-c", 'test -z "$NOTIFY_SOCKET"')) is OK


def test_a_command_that_hangs_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"sleep 1000 & echo $$ $! > {pids}; wait"
    assert outcome(command_check("/bin/sh", "-c", script, timeout_sec=1)) is FAILED
    # A signal is sent before it has killed.
    retry(lambda _last: all(map(is_dead, pids.read_text().split())), interval=0.05)


def is_dead(pid: str) -> bool:
    """Whether a process is gone, or would be if somebody reaped it: the grandchild has nobody."""
    try:
        stat = (Path("/proc") / pid / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(") ")[2].startswith("Z")


# Memory


def test_memory(tmp_path: Path) -> None:
    process, cgroups = tmp_path / "proc" / "7", tmp_path / "cgroups"
    process.mkdir(parents=True)
    (process / "cgroup").write_text("0::/system.slice/web.service\n")
    (process / "status").write_text("Name:\ta\nVmRSS:\t    4097 kB\n")
    check = MemoryCheck(name="m", max_bytes=4 * 1024**2)

    def found() -> Outcome:
        return look_at_memory(check, "web.service", 7, tmp_path / "proc", cgroups)[0]

    assert found() is FAILED
    (process / "status").write_text("Name:\ta\nVmRSS:\t    4096 kB\n")
    assert found() is OK
    current = cgroups / "system.slice" / "web.service" / "memory.current"
    current.parent.mkdir(parents=True)
    current.write_text("4194305\n")
    assert found() is FAILED
    current.write_text("4194304\n")
    assert found() is OK


def test_memory_of_what_is_no_process_of_the_unit() -> None:
    assert outcome(MemoryCheck(name="m", max_bytes=1), main_pid=os.getpid()) is ERROR
    assert outcome(MemoryCheck(name="m", max_bytes=1)) is ERROR


def test_a_process_that_is_gone_is_no_failure() -> None:
    process = subprocess.Popen(["/bin/true"])
    process.wait()
    assert outcome(MemoryCheck(name="m", max_bytes=1), main_pid=process.pid) is ERROR


@pytest.mark.parametrize(
    ("membership", "expected"),
    [
        ("0::/system.slice/web.service\n", "system.slice/web.service"),
        ("1:name=systemd:/x\n0::/a.slice/web.service/inner/b\n", "a.slice/web.service"),
        ("0::/system.slice/other.service\n", None),
        ("0::/\n", None),
        ("1:memory:/system.slice/web.service\n", None),
    ],
)
def test_the_cgroup_of_a_unit(membership: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(ValueError, match=r"no cgroup of web\.service"):
            cgroup_of("web.service", membership)
    else:
        assert cgroup_of("web.service", membership) == expected


# Files


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "beat"
    check = FileCheck(name="f", path=str(path), max_age_sec=60)
    assert outcome(check) is FAILED
    path.write_text("")
    assert outcome(check) is OK
    now = path.stat().st_mtime
    for written, expected in ((now - 61, FAILED), (now - 30, OK), (now + 3600, OK)):
        os.utime(path, (written, written))
        assert outcome(check) is expected
    assert outcome(FileCheck(name="f", path=f"{path}/x", max_age_sec=60)) is ERROR


def test_a_file_does_not_age_by_a_clock_that_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor by a suspend, of which CLOCK_MONOTONIC knows nothing either."""
    path, ahead_sec, up_sec = tmp_path / "beat", 0.0, 1000.0
    real_time = time.time
    monkeypatch.setattr(time, "time", lambda: real_time() + ahead_sec)
    monkeypatch.setattr(time, "monotonic", lambda: up_sec)
    check = FileCheck(name="f", path=str(path), max_age_sec=60)

    async def looks() -> list[Outcome]:
        nonlocal ahead_sec, up_sec
        files, found = Files(), []

        async def look() -> None:
            nonlocal up_sec
            up_sec += 3
            found.append((await files.look(check))[0])

        path.touch()
        await look()
        ahead_sec = 3600.0
        await look()
        # Written in the same moment in which the clock is set on, once more.
        os.utime(path, (real_time() + ahead_sec,) * 2)
        ahead_sec = 7200.0
        await look()
        up_sec += 40
        await look()
        ahead_sec = -7200.0
        up_sec += 40
        await look()
        files.close()
        return found

    assert asyncio.run(looks()) == [OK, OK, OK, OK, FAILED]
