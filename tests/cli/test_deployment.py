"""`healer deployment` on the ledger of a real history of decisions."""

import argparse
import json
from pathlib import Path

import pytest

from healer.cli import deployment as command
from healer.errors import HealerError
from healer.ledger.writer import Ledger
from tests.safeswitch.judged import BAD, GOOD, Judged, lived


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """A good system, a bad one that was rolled back, and the good one again."""
    host = lived()
    host.deploy(BAD, "web")
    host.crash("web", times=3)
    host.comes_of_it()
    host.after(61)
    return recorded(host, tmp_path / "ledger")


def recorded(host: Judged, directory: Path) -> Path:
    written = Ledger.open(directory, origin="healer/test", boot="b" * 32)
    for record in host.ledger:
        written.append(record.type, record.data, incident=record.incident)
    written.close()
    return directory


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["deployment", *arguments])
    code: int = args.run(args)
    return code, capsys.readouterr().out


def test_the_list_says_what_became_of_each(
    ledger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = run(capsys, "list", "--ledger", str(ledger))
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[-1] for line in lines[::2]] == [GOOD, BAD, GOOD]
    assert lines[1].strip().startswith("known-good: healthy; every agent and gate held")
    assert lines[3].strip() == "condemned: unhealthy; web: crashes beyond its own baseline"
    assert lines[5].strip().startswith("known-good")


def test_one_is_told_with_its_verdict_and_the_evidence(
    ledger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = run(capsys, "show", "b-nixos", "--ledger", str(ledger))
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == BAD
    assert lines[1] == "condemned: unhealthy; web: crashes beyond its own baseline"
    told = " ".join(" ".join(lines).split())
    for part in (
        "it changes web",
        "unhealthy; web: crashes beyond its own baseline",
        "- 3 of its crashes were of runs that started under this deployment",
        "- its unit was changed since the known-good",
        "healer decided to roll back to /nix/store/g-nixos",
        "is condemned",
        "the rollback helped: web is well under /nix/store/g-nixos",
    ):
        assert part in told, told


def test_the_current_one_is_shown_if_none_is_named(
    ledger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out = run(capsys, "show", "--ledger", str(ledger), "--json")
    (deployment,) = json.loads(out)
    assert deployment["toplevel"] == GOOD
    assert deployment["kind"] == "rollback"
    assert deployment["entries"][0]["type"] == "deployment.activated"
    _, out = run(capsys, "show", GOOD, "--ledger", str(ledger), "--json")
    assert [each["kind"] for each in json.loads(out)] == ["first", "rollback"]


def test_a_name_that_fits_none_or_several_is_refused_in_words(ledger: Path) -> None:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(required=True))
    for name, said in (("nowhere", "was never deployed"), ("nixos", "is not unique")):
        args = parser.parse_args(["deployment", "show", name, "--ledger", str(ledger)])
        with pytest.raises(HealerError, match=said):
            args.run(args)


def test_the_same_system_deployed_again_unseen_is_a_deployment_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was deployed while healer was down, right after root's helper had gone back from it."""
    host = lived()
    host.deploy(BAD, "web")
    host.crash("web", times=3)
    host.while_healer_is_down(deployed=BAD)
    host.comes_of_it()
    directory = recorded(host, tmp_path / "ledger")
    _, out = run(capsys, "show", BAD, "--ledger", str(directory), "--json")
    first, again = json.loads(out)
    assert [entry["type"] for entry in first["entries"]][-1] == "deployment.condemned"
    assert (again["kind"], again["previous"], again["state"]) == ("switch", GOOD, "condemned")
    assert "it was condemned before" in again["summary"]
