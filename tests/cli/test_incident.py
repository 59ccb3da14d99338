"""`healer incidents` and `healer incident` on a real ledger."""

import argparse
import json
import os
from pathlib import Path

import pytest

from healer.cli import incident as command
from healer.errors import HealerError, LedgerError, LedgerIOError, RefusedError
from healer.incident.fold import Incident
from healer.ledger.writer import Ledger

CRASH = {"agent": "worker", "unit": "worker.service", "code": "exited", "status": "3"}


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    directory = tmp_path / "ledger"
    written = Ledger.open(directory, origin="healer/test", boot="b" * 32)
    written.append("agent.crash", CRASH, incident="worker-11111111")
    written.append("agent.recovered", {"agent": "worker"}, incident="worker-11111111")
    written.append("agent.crash", CRASH, incident="worker-12222222")
    written.append("agent.crash", {**CRASH, "agent": "other"}, incident="other-33333333")
    written.append("healer.stopped", {"reason": "asked to stop"})
    written.close()
    return directory


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(arguments)
    code: int = args.run(args)
    return code, capsys.readouterr().out


def test_the_list(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(capsys, "incidents", "--ledger", str(ledger))
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[::2]] == [
        "worker-11111111",
        "worker-12222222",
        "other-33333333",
    ]
    assert lines[0].endswith("recovered")
    assert lines[1] == "    worker crashed: exited with code 3; recovered"
    assert lines[2].endswith("UTC  open")


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ([], ["worker-11111111", "worker-12222222", "other-33333333"]),
        (["--open"], ["worker-12222222", "other-33333333"]),
        (["--agent", "worker"], ["worker-11111111", "worker-12222222"]),
        (["--agent", "worker", "--open"], ["worker-12222222"]),
        (["--agent", "nobody"], []),
    ],
)
def test_the_list_as_json(
    ledger: Path, capsys: pytest.CaptureFixture[str], options: list[str], ids: list[str]
) -> None:
    _, out = run(capsys, "incidents", "--json", "--ledger", str(ledger), *options)
    assert [incident["id"] for incident in json.loads(out)] == ids


def test_one_incident_by_id_and_by_a_unique_prefix(
    ledger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, whole = run(capsys, "incident", "other-33333333", "--ledger", str(ledger))
    _, short = run(capsys, "incident", "oth", "--ledger", str(ledger))
    assert whole == short
    assert whole.startswith("# Incident other-33333333\n")
    _, out = run(capsys, "incident", "worker-11", "--json", "--ledger", str(ledger))
    told = json.loads(out)
    assert [entry["type"] for entry in told["entries"]] == ["agent.crash", "agent.recovered"]
    assert told["entries"][0]["data"] == CRASH


def test_an_ambiguous_and_an_unknown_id(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(HealerError, match="not unique: worker-11111111, worker-12222222"):
        run(capsys, "incident", "worker-1", "--ledger", str(ledger))
    with pytest.raises(HealerError, match="no incident nobody"):
        run(capsys, "incident", "nobody", "--ledger", str(ledger))


def test_an_id_that_is_also_the_beginning_of_another() -> None:
    first, second = (Incident(name, None, 0, ()) for name in ("a-1", "a-12"))
    assert command.find([first, second], "a-1") is first


def test_no_incidents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Ledger.open(tmp_path / "new", origin="healer/test", boot="b" * 32).close()
    assert run(capsys, "incidents", "--ledger", str(tmp_path / "new")) == (0, "no incidents\n")


def test_a_missing_and_a_damaged_ledger(
    ledger: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(LedgerIOError, match="no ledger at"):
        run(capsys, "incidents", "--ledger", str(tmp_path / "nothing"))
    segment = next(ledger.glob("*.jsonl"))
    segment.write_bytes(segment.read_bytes().replace(b'"worker"', b'"forger"', 1))
    with pytest.raises(LedgerError, match=r"line"):
        run(capsys, "incidents", "--ledger", str(ledger))


def test_without_permission_it_says_who_may_read(ledger: Path) -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            ledger.chmod(0)
            if os.geteuid() == 0:
                os.setresuid(65534, 65534, 65534)
            command.run_list(argparse.Namespace(ledger=ledger, agent=None, open=False, json=False))
        except RefusedError as error:
            code = 0 if "run as root or as a member of group healer" in str(error) else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
