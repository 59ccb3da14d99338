"""`healer status` on status files, and the file itself."""

import argparse
import json
import os
import subprocess
import time
from pathlib import Path

import msgspec
import pytest

from healer import report
from healer import status as status_file
from healer.cli import status as command
from healer.config import Config
from healer.decisions import Decisions
from healer.errors import HealerError
from healer.events import Instant, Systems
from healer.status import AgentStatus, DeploymentStatus, LastCrash, LedgerStatus, Status

TOPLEVEL = f"/nix/store/{'x' * 32}-nixos-system-host-26.05"
AGENT = AgentStatus(
    unit="worker.service",
    active_state="active",
    sub_state="running",
    pid=4711,
    invocation="1" * 32,
    since_us=1,
    n_restarts=2,
    crashes=2,
    last_crash=LastCrash(
        time_us=1, crash_class="signal", words="killed by SIGKILL (Killed)", status="KILL"
    ),
    health={"web": "ok"},
    incident=None,
    held=None,
)
FINDING = {"class": "etc", "subject": "/etc/motd", "expected": "link", "observed": "file"}


def boottime_us() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


def make(agent: AgentStatus = AGENT, drift: tuple[dict[str, str], ...] = ()) -> Status:
    return Status(
        updated_us=time.time_ns() // 1000,
        updated_boottime_us=boottime_us(),
        pid=os.getpid(),
        version="0.1.0",
        config_sha256="0" * 64,
        agents={"worker": agent},
        deployment=DeploymentStatus(
            toplevel=TOPLEVEL,
            generation=12,
            state="provisional",
            known_good=f"/nix/store/{'g' * 32}-nixos-system-host-26.05",
            probation_left_s=95,
            switching=False,
            safe_switch="on",
        ),
        drift=drift,
        drift_off=None,
        ledger=LedgerStatus(size=41, head="a" * 64, ok=True, reason=None, spooled=0),
    )


def run(
    directory: Path, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, list[str]]:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["status", "--runtime-dir", str(directory), *arguments])
    code: int = args.run(args)
    return code, capsys.readouterr().out.splitlines()


def show(
    status: Status, directory: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[int, list[str]]:
    status_file.write(directory / "status.json", status)
    return run(directory, capsys)


def test_all_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = show(make(), tmp_path, capsys)
    assert code == 0
    assert lines[0] == f"healer 0.1.0 is running as process {os.getpid()}"
    assert lines[2].split() == list(command._HEADINGS)
    row = lines[3].split()
    assert (row[:3], row[-4:]) == (
        ["worker", "worker.service", "running"],
        ["4711", "2", "2", "ok"],
    )
    assert lines[4].endswith("ago: killed by SIGKILL (Killed)")
    assert lines[6] == "deployment  nixos-system-host-26.05 (xxxxxxxx), generation 12"
    assert lines[7] == "            provisional, 1 min 35 s of probation left"
    assert "known-good  nixos-system-host-26.05 (gggggggg)" in lines
    assert "drift       none found" in lines
    assert "ledger      41 entries, ok" in lines


def store(letter: str) -> str:
    return f"/nix/store/{letter * 32}-nixos-system-host-26.05"


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({}, ""),
        (dict.fromkeys(("profile", "boot_default", "booted", "base"), TOPLEVEL), ""),
        (
            {"profile": store("p"), "base": TOPLEVEL},
            "the profile has another system, which does not run: nixos-system-host-26.05 "
            "(pppppppp), generation 12",
        ),
        (
            {"boot_default": store("d")},
            "the boot default is another system, which the next boot starts: "
            "nixos-system-host-26.05 (dddddddd)",
        ),
        ({"waiting_for": "web: too many crashes, but ..."}, "web: too many crashes, but ..."),
        (
            {"booted": store("k")},
            "another system was booted, and its kernel still runs: "
            "nixos-system-host-26.05 (kkkkkkkk)",
        ),
        (
            {"specialisation": "fast", **dict.fromkeys(("base", "profile"), store("f"))},
            "it is the specialisation fast of nixos-system-host-26.05 (ffffffff)",
        ),
    ],
)
def test_where_another_system_is_than_the_one_that_runs_is_said(
    facts: dict[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = make()
    deployment = msgspec.structs.replace(status.deployment, **facts)
    code, lines = show(msgspec.structs.replace(status, deployment=deployment), tmp_path, capsys)
    assert code == 0
    elsewhere = facts.get("profile") == store("p")
    assert lines[6].endswith(", generation 12") is not elsewhere
    until = lines.index("known-good  nixos-system-host-26.05 (gggggggg)")
    assert " ".join(line.strip() for line in lines[8:until]) == said


def test_the_five_facts_are_in_the_file_as_they_were_read() -> None:
    systems = Systems(TOPLEVEL, "b", "p", 12, False, "d", "s", "fast")
    decisions = Decisions(Config(version=1, agents={}))
    found = report._deployment(decisions, systems, None, Instant("boot", 0))
    assert (found.toplevel, found.booted, found.profile) == (TOPLEVEL, "b", "p")
    assert (found.boot_default, found.specialisation, found.base) == ("d", "fast", "s")


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        (
            make(msgspec.structs.replace(AGENT, active_state="failed", sub_state="failed")),
            "agent worker is failed (failed)",
        ),
        (
            make(
                msgspec.structs.replace(
                    AGENT, active_state="failed", restart_due_us=1, restart_timer="t.timer"
                )
            ),
            "agent worker waits for its restart, by t.timer",
        ),
        (make(msgspec.structs.replace(AGENT, held="quarantined")), "held back: quarantined"),
        (make(msgspec.structs.replace(AGENT, health={"web": "failing"})), "health check web"),
        (make(msgspec.structs.replace(AGENT, incident="worker-1")), "healer incident worker-1"),
        (make(drift=(FINDING,)), "drift: 1 not as declared"),
        (
            msgspec.structs.replace(
                make(), deployment=msgspec.structs.replace(make().deployment, lasts=False)
            ),
            "the rollback does not outlive the next boot",
        ),
        (
            msgspec.structs.replace(
                make(), deployment=msgspec.structs.replace(make().deployment, switch_stuck=True)
            ),
            "a switch-to-configuration does not end",
        ),
        (
            msgspec.structs.replace(
                make(),
                ledger=LedgerStatus(
                    size=41, head=None, ok=False, reason="No space left on device", spooled=3
                ),
            ),
            "the ledger cannot be written: No space left on device",
        ),
    ],
)
def test_what_is_not_well_is_named_and_exits_with_1(
    status: Status, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = show(
        msgspec.structs.replace(status, updated_boottime_us=boottime_us()), tmp_path, capsys
    )
    assert code == 1
    assert [line for line in lines[lines.index("Not well:") :] if problem in line]


def test_an_agent_without_a_unit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {"active_state": "not-found", "sub_state": "not-found", "pid": None}
    code, lines = show(make(msgspec.structs.replace(AGENT, **state)), tmp_path, capsys)
    assert code == 1
    said = "  - agent worker has no unit worker.service; is the agent's option `unit` right?"
    assert said in lines


def test_an_agent_that_waits_for_its_restart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    due_us = time.time_ns() // 1000 + 3_599_000_000
    failed = {"active_state": "failed", "sub_state": "failed", "pid": None}
    waits = {"restart_due_us": due_us, "restart_timer": "healer-restart-worker.timer"}
    _, lines = show(make(msgspec.structs.replace(AGENT, **failed, **waits)), tmp_path, capsys)
    assert lines[3].split()[2] == "waiting"
    assert "waits for its restart in 59 min" in lines[5]
    assert lines[5].endswith("by healer-restart-worker.timer")


def test_without_a_file_healer_is_not_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = run(tmp_path, capsys)
    assert code == 3
    assert lines[0] == f"healer is NOT running: {tmp_path}/status.json does not exist."
    assert "systemctl start healer" in "\n".join(lines)
    code, lines = run(tmp_path, capsys, "--json")
    assert (code, json.loads("\n".join(lines))["running"]) == (3, False)


@pytest.mark.parametrize("shift_us", [-31_000_000, 3_600_000_000])
def test_an_old_file_and_one_of_another_boot(
    shift_us: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = msgspec.structs.replace(make(), updated_boottime_us=boottime_us() + shift_us)
    code, lines = show(status, tmp_path, capsys)
    assert code == 3
    assert "was not updated for 30 s" in lines[0]
    assert "What it last said:" in lines


def test_a_process_that_is_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = subprocess.Popen(["/bin/true"])
    process.wait()
    status = msgspec.structs.replace(make(), pid=process.pid)
    code, lines = show(status, tmp_path, capsys)
    assert (code, lines[0]) == (3, f"healer is NOT running: its process {process.pid} is gone.")


def test_json_is_the_file_and_what_follows_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status_file.write(tmp_path / "status.json", make(drift=(FINDING,)))
    code, lines = run(tmp_path, capsys, "--json")
    shown = json.loads("\n".join(lines))
    assert code == 1
    assert (shown["running"], len(shown["problems"])) == (True, 1)
    assert shown["agents"]["worker"]["last_crash"]["class"] == "signal"
    assert shown["drift"] == [FINDING]


def test_it_fits_100_columns_and_escapes_what_agents_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crash = LastCrash(time_us=1, crash_class="x", words="\x1b[31m" + "w" * 300, status="1")
    agent = msgspec.structs.replace(
        AGENT,
        unit="u" * 90 + ".service",
        active_state="activating",
        sub_state="auto-restart",
        last_crash=crash,
        held="h" * 200,
    )
    status = make(drift=tuple({"subject": "/s" * 80, "observed": "o"} for _ in range(9)))
    status = msgspec.structs.replace(
        status, agents={"n" * 80: agent, "b": AGENT}, drift_off="d" * 150
    )
    _, lines = show(status, tmp_path, capsys)
    assert max(map(len, lines)) == 100
    assert all(line.isprintable() for line in lines)
    assert "".join(line.strip() for line in lines).count("w") >= 300  # wrapped, not cut
    rows = lines[2:]
    assert rows[0].index("PID") == next(row for row in rows if row.startswith("b ")).index("4711")


def test_the_file_is_replaced_atomically_and_everybody_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    status_file.write(path, make())
    held = path.open("rb")
    status = make(drift=(FINDING,))
    status_file.write(path, status)
    assert path.stat().st_mode & 0o777 == 0o644
    assert status_file.read(path) == status
    assert msgspec.json.decode(held.read(), type=Status).drift == ()  # the old one stayed whole
    assert [child.name for child in tmp_path.iterdir()] == ["status.json"]


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    path.mkdir()
    (path / "full").touch()
    with pytest.raises(OSError, match=r"status\.json"):
        status_file.write(path, make())
    assert [child.name for child in tmp_path.iterdir()] == ["status.json"]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[1]", b'{"pid": "x"}', b"{" * 2000])
def test_a_damaged_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "status.json").write_bytes(content)
    with pytest.raises(HealerError, match=r"status\.json is not a status"):
        status_file.read(tmp_path / "status.json")
