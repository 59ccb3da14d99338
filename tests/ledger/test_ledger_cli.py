import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from healer.cli.ledger import add_parser
from healer.ledger import reader
from healer.ledger.entry import Entry
from tests.ledger.helpers import environment, open_ledger, write

FIRST = "0000000000000000.jsonl"
FORGED = "\x1b[31mred"


def run(*words: object) -> int:
    parser = argparse.ArgumentParser(prog="healer")
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["ledger", *map(str, words)])
    code: int = args.run(args)
    return code


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Entry]]:
    directory = tmp_path_factory.mktemp("cli") / "ledger"
    ledger = open_ledger(directory)
    for n in range(3):
        data = {"agent": "worker", "n": n, "status_text": FORGED}
        ledger.append("agent.crash", data, incident="worker-01234567").result(5)
        ledger.append("agent.restarted", {"agent": "worker", "n": n}).result(5)
    ledger.close()
    return directory, list(reader.read(directory))


def test_verify_names_what_is_proved_and_what_is_not(
    made: tuple[Path, list[Entry]], capsys: pytest.CaptureFixture[str]
) -> None:
    directory, entries = made
    last = entries[-1]
    assert run("verify", directory) == 0
    out = capsys.readouterr().out
    assert out.startswith("INTACT: 7 entries")
    assert f"{last.seq}:{last.leaf}" in out
    assert "NOT PROVED: the tail" in out
    assert "ledger.pub lies beside the ledger" in out
    known = f"{entries[-3].seq}:{entries[-3].leaf}"
    key = directory / "ledger.pub"
    assert run("verify", directory, "--at-least", known, "--public-key", key) == 0
    out = capsys.readouterr().out
    assert "2 entries / 0 s behind entry 4 could be removed without trace" in out
    assert "beside" not in out
    assert run("verify", directory, "--require-anchor") == 1
    assert run("verify", directory, "--require-anchor", "--at-least", known) == 1
    known = f"{last.seq}:{last.leaf}"
    assert run("verify", directory, "--require-anchor", "--at-least", known) == 0


def test_verify_names_the_first_bad_entry(
    made: tuple[Path, list[Entry]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, entries = made
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(directory / "ledger.pub", copy)  # the public key alone
    data = bytearray((directory / FIRST).read_bytes())
    data[data.index(entries[3].raw) + 200] ^= 1
    (copy / FIRST).write_bytes(data)
    assert run("verify", copy) == 2
    assert capsys.readouterr().out.startswith(f"TAMPERED: {FIRST} line 4 (entry 3): ")
    assert run("verify", copy, "--json") == 2
    report = json.loads(capsys.readouterr().out)
    assert report["verdict"] == "tampered"
    assert report["entries"] == 3
    assert {**report["first_bad"], "reason": ""} == {
        "file": FIRST,
        "line": 4,
        "seq": 3,
        "reason": "",
    }


def test_verify_finds_truncation(
    made: tuple[Path, list[Entry]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, entries = made
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    lines = (directory / FIRST).read_bytes().splitlines(keepends=True)
    (copy / FIRST).write_bytes(b"".join(lines[:-2]))
    assert run("verify", copy, "--at-least", f"6:{entries[6].leaf.upper()}") == 3
    assert capsys.readouterr().out.startswith("TRUNCATED: entry 6 was acknowledged")
    assert run("verify", copy) == 0


@pytest.mark.parametrize(
    "words",
    [
        ("--bogus",),
        ("--at-least", "6"),
        ("--at-least", "6:abc"),
        ("--public-key", "/nonexistent"),
        ("extra", "words"),
    ],
)
def test_wrong_usage_leaves_with_4(
    made: tuple[Path, list[Entry]], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = run("verify", made[0], *words)
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 4
    assert capsys.readouterr().err


def test_a_ledger_that_is_not_there_leaves_with_4(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("verify", tmp_path / "missing") == 4
    assert f"there is no ledger at {tmp_path}/missing" in capsys.readouterr().err


def test_show_selects(made: tuple[Path, list[Entry]], capsys: pytest.CaptureFixture[str]) -> None:
    directory, entries = made

    def shown(*words: object) -> list[int]:
        assert run("show", directory, "--json", *words) == 0
        return [json.loads(line)["seq"] for line in capsys.readouterr().out.splitlines()]

    assert shown() == [0, 1, 2, 3, 4, 5, 6]
    assert shown("--last", 2) == [5, 6]
    assert shown("--last", 0) == []
    assert shown("--type", "agent.crash") == [1, 3, 5]
    assert shown("--incident", "worker-01234567", "--last", 1) == [5]
    assert shown("--seq", 3) == [3]
    assert run("show", directory, "--seq", 3, "--json") == 0
    entry = json.loads(capsys.readouterr().out)
    assert entry["leaf"] == entries[3].leaf
    assert entry["data"] == entries[3].data
    assert bytes.fromhex(entry["signature"]) == entries[3].signature
    assert run("show", directory, "--seq", 99) == 1
    assert "no entry 99" in capsys.readouterr().err


def test_show_keeps_terminal_sequences_from_the_terminal(
    made: tuple[Path, list[Entry]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("show", made[0]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[worker-01234567]" in out
    assert len(out.splitlines()) == 7


def test_an_export_verifies_again(
    made: tuple[Path, list[Entry]], tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    directory, _ = made
    assert run("export", directory) == 0
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / FIRST).write_bytes(capfdbinary.readouterr().out)
    assert run("verify", copy, "--public-key", directory / "ledger.pub") == 0


def test_an_ecs_export_holds_each_line(
    made: tuple[Path, list[Entry]], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    directory, entries = made
    assert run("export", directory, "--format", "ecs") == 0
    events = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert [e["event"]["original"].encode() for e in events] == [e.raw for e in entries]
    assert events[1]["event"]["action"] == "agent.crash"
    assert events[1]["service"]["name"] == "worker"
    assert events[1]["labels"] == {"incident": "worker-01234567"}


@pytest.mark.parametrize("last", ["0", "1"])
def test_follow_shows_new_entries_as_they_come(tmp_path: Path, last: str) -> None:
    directory = tmp_path / "ledger"
    write(directory, [1])
    program = (
        "import argparse, sys\n"
        "from healer.cli.ledger import add_parser\n"
        "parser = argparse.ArgumentParser()\n"
        "add_parser(parser.add_subparsers())\n"
        "args = parser.parse_args(sys.argv[1:])\n"
        "sys.exit(args.run(args))\n"
    )
    command = ["ledger", "show", str(directory), "--follow", "--last", last, "--json"]
    child = subprocess.Popen(
        [sys.executable, "-c", program, *command],
        stdout=subprocess.PIPE,
        env=environment(),
    )
    assert child.stdout is not None
    try:
        if last == "1":
            assert json.loads(child.stdout.readline())["seq"] == 1
        else:
            time.sleep(1)  # it has nothing to show that it is there
        started = time.monotonic()
        write(directory, [1])
        assert json.loads(child.stdout.readline())["seq"] == 2
        assert time.monotonic() - started < 5
    finally:
        child.kill()
        child.wait(10)
        child.stdout.close()
