"""What every command has in common: where its output goes, and what of that goes wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ledger.helpers import environment, write


@pytest.mark.parametrize("command", ["show", "export", "verify"])
def test_output_that_finds_no_room_is_one_clear_error(tmp_path: Path, command: str) -> None:
    write(tmp_path / "ledger", [1])
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "healer", "ledger", command, str(tmp_path / "ledger")],
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(),
            text=True,
            check=False,
        )
    assert done.returncode == os.EX_IOERR
    said = "healer: standard output, or a file of healer's: No space left on device\n"
    assert done.stderr == said


def test_who_reads_no_further_gets_no_error(tmp_path: Path) -> None:
    write(tmp_path / "ledger", [256, 256])
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "healer", "ledger", "export", str(tmp_path / "ledger")],
        stdout=writer,
        stderr=subprocess.PIPE,
        env=environment(),
        text=True,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
