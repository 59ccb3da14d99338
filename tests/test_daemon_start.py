"""How the daemon starts, without a machine: what it tells systemd before it is ready."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from healer import control, daemon
from tests.ledger.helpers import environment, write

_ENTRIES = 2 * daemon._TOLD_ENTRIES + 1


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration with one agent that nobody runs, all in a directory of its own."""
    (tmp_path / "state").mkdir()
    (tmp_path / "run").mkdir()
    path = tmp_path / "config.yaml"
    declared = {
        "version": 1,
        "stateDir": str(tmp_path / "state"),
        "runtimeDir": str(tmp_path / "run"),
        "agents": {"ghost": {"unit": "ghost.service"}},
        "safeSwitch": {"enable": False},
        "drift": {"enable": False},
    }
    path.write_text(json.dumps(declared), encoding="utf-8")
    return path


class Started:
    """A daemon with a socket in place of systemd's, that is told what the daemon notifies."""

    def __init__(self, directory: Path, config: Path, systemd: socket.socket) -> None:
        systemd.bind(str(directory / "notify"))
        systemd.settimeout(60)
        self._systemd = systemd
        self.process = subprocess.Popen(
            [sys.executable, "-m", "healer", "daemon", "--config", str(config)],
            env={**environment(), "NOTIFY_SOCKET": str(directory / "notify")},
            stderr=subprocess.PIPE,
            text=True,
        )

    def told_until(self, last: str) -> list[str]:
        """Wait until it notifies this; return all that it has notified."""
        told: list[str] = []
        while last not in told:
            told.append(self._systemd.recv(4096).decode())
        return told


@pytest.fixture
def started(tmp_path: Path, config: Path) -> Iterator[Callable[[], Started]]:
    """A function that starts the daemon; it is gone after the test."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        running: list[Started] = []

        def start() -> Started:
            running.append(Started(tmp_path, config, systemd))
            return running[-1]

        yield start
        for each in running:
            each.process.kill()
            each.process.communicate(timeout=10)


def test_a_long_ledger_is_no_start_that_hangs(
    tmp_path: Path, started: Callable[[], Started]
) -> None:
    write(tmp_path / "state/ledger", [256] * (_ENTRIES // 256 + 1))
    told = started().told_until("READY=1")
    assert told == [*["EXTEND_TIMEOUT_USEC=60000000"] * 3, "READY=1"]


def test_it_heals_where_nobody_can_ask_it(tmp_path: Path, started: Callable[[], Started]) -> None:
    where = tmp_path / "run" / control.NAME
    where.mkdir()
    running = started()
    running.told_until("READY=1")
    assert running.process.stderr is not None
    for line in running.process.stderr:
        if "nobody can ask healer for anything" in line:
            break
    running.told_until("WATCHDOG=1")
    where.rmdir()
    request = control.AgentRequest(verb="reset", agent="none")
    deadline = time.monotonic() + 60
    while not where.is_socket():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert control.ask(where, request).detail == "there is no agent none; there are: ghost"


@pytest.mark.parametrize("known", [True, False], ids=["all options known", "an option unknown"])
def test_a_system_with_another_healer_gets_that(
    known: bool, config: Path, started: Callable[[], Started]
) -> None:
    """Also where its configuration is not to be read by this one: another version wrote it."""
    declared = json.loads(config.read_text()) | {"package": "/nix/store/one-healer"}
    config.write_text(json.dumps(declared))
    daemon = started()
    daemon.told_until("READY=1")
    declared["package"] = "/nix/store/another-healer"
    if not known:
        declared["invented"] = {"since": "then"}
    config.write_text(json.dumps(declared))
    daemon.process.send_signal(signal.SIGHUP)
    _, said = daemon.process.communicate(timeout=30)
    assert daemon.process.returncode == 0
    assert "the system has another healer now" in said
    assert "config.refused" not in said
