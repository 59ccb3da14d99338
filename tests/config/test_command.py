"""`healer config check`, as a person runs it."""

import json
import subprocess
import sys
from pathlib import Path

from tests.config.test_config import RIGHT, change


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "import sys; from healer.cli import main; sys.exit(main())"]
    return subprocess.run(
        [*command, "config", "check", *arguments], capture_output=True, text=True, check=False
    )


def test_a_right_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(RIGHT))
    done = check(str(path))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{path}: right, 2 agents\n", "")
    report = json.loads(check("--json", str(path)).stdout)
    assert report["ok"] is True
    assert len(report["sha256"]) == 64
    assert report["errors"] == []


def test_a_wrong_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(change("agents/worker/restart/delaySec", -1)))
    done = check(str(path))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"healer: {path}: agents.worker.restart.delaySec: is -1; "
        "write a number of seconds from 0 to 31536000\n"
    )
    done = check("--json", str(path))
    assert done.returncode == 1
    assert done.stderr == ""
    (error,) = json.loads(done.stdout)["errors"]
    assert error == {
        "option": "agents.worker.restart.delaySec",
        "wrong": "is -1",
        "mend": "write a number of seconds from 0 to 31536000",
    }


def test_a_missing_file(tmp_path: Path) -> None:
    done = check(str(tmp_path / "none"))
    assert done.returncode == 1
    assert "cannot read it: No such file or directory" in done.stderr
    assert "Traceback" not in done.stderr
