"""What healer says where root's helper is not there, without a machine."""

import asyncio
import socket
from pathlib import Path

import pytest

from healer import actions
from healer.config import Config


@pytest.mark.parametrize(
    ("bound", "why"), [(False, "No such file or directory"), (True, "Connection refused")]
)
def test_a_helper_that_is_not_there_is_named(tmp_path: Path, bound: bool, why: str) -> None:
    path = tmp_path / "helper.sock"
    if bound:
        with socket.socket(socket.AF_UNIX) as gone:
            gone.bind(str(path))
    config = Config(version=1, agents={}, runtime_dir=str(tmp_path))
    done = asyncio.run(actions.remove_stamps([], config))
    assert not done.ok
    assert f"root's helper is not there at {path} ({why})" in done.detail
    assert done.detail.endswith("look at: systemctl status healer-helper.socket")
