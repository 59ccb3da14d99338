"""How the daemon starts, without a machine: what it tells systemd before it is ready."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from healer import daemon
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


def test_a_long_ledger_is_no_start_that_hangs(tmp_path: Path, config: Path) -> None:
    write(tmp_path / "state/ledger", [256] * (_ENTRIES // 256 + 1))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(60)
        child = subprocess.Popen(
            [sys.executable, "-m", "healer", "daemon", "--config", str(config)],
            env={**environment(), "NOTIFY_SOCKET": str(tmp_path / "notify")},
        )
        try:
            told = []
            while "READY=1" not in told:
                told.append(systemd.recv(4096).decode())
        finally:
            child.kill()
            child.wait(10)
    assert told == [*["EXTEND_TIMEOUT_USEC=60000000"] * 3, "READY=1"]
