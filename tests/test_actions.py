"""Intents handed to root's helper, of whose answers some are refusals."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from healer import actions
from healer.actions import Done
from healer.config import Config
from healer.errors import HostUnavailableError
from healer.events import UnitState
from healer.helper import Reply
from healer.host import clock, nix
from healer.ledger.entry import Entry
from healer.safeswitch import trial
from tests.safeswitch import on_trial

REFUSED, DONE = Reply(False, "no"), Reply(True, "yes")


def intent(action: str, boot: str | None = None, **more: Any) -> Entry:
    data = {"action": action, "target": "web.service", "agent": "web", "reason": "x", **more}
    return Entry(
        seq=7,
        batch=0,
        epoch=0,
        prev="0" * 64,
        time_us=0,
        boottime_us=0,
        boot=boot or clock.boot_id(),
        type="action.intent",
        incident=None,
        data=data,
        leaf="",
        raw=b"",
    )


async def carried_out(entry: Entry, replies: list[Reply], directory: Path) -> tuple[Done, int]:
    """Answer each request with the next of ``replies``; return what became of it, of how many."""
    asked = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await reader.readline()
        writer.write(msgspec.json.encode(replies[min(asked, len(replies) - 1)]) + b"\n")
        asked += 1
        writer.close()

    async def no_unit(_: str) -> UnitState | None:
        return None

    server = await asyncio.start_unix_server(answer, directory / "helper.sock")
    config = Config(version=1, runtime_dir=str(directory))
    async with server:
        standby = actions.Standby()
        done = await actions.carry_out(entry, config, no_unit, standby, lambda _: None)
    return done, asked


@pytest.mark.parametrize(
    ("entry", "replies", "expected"),
    [
        (intent("reset"), [DONE], (True, 1)),
        (intent("reset"), [REFUSED, REFUSED, DONE], (True, 3)),
        (intent("reset"), [REFUSED], (False, 10)),
        (intent("release", hold=3), [REFUSED, DONE], (True, 2)),
        # Whoever asked is told at once; what is not as it was is decided anew.
        (intent("reset", asked_by="alice"), [REFUSED, DONE], (False, 1)),
        (intent("quarantine"), [REFUSED, DONE], (False, 1)),
        # asyncio reads no line of more than 64 KiB.
        (intent("quarantine"), [Reply(True, "x" * 70_000), DONE], (True, 2)),
        # Nothing is left of the counter of another boot.
        (intent("reset", boot="another"), [REFUSED], (False, 1)),
    ],
)
def test_what_is_refused(
    entry: Entry,
    replies: list[Reply],
    expected: tuple[bool, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(actions, "_RETRY_SEC", 0)
    done, asked = asyncio.run(carried_out(entry, replies, tmp_path))
    assert (done.ok, asked) == expected


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


async def tried(trial_file: Path, *, unanswered: int) -> Done:
    """Take up a trial of this boot that ends once PID 1 was asked so often, without an answer."""
    entry = intent("try")
    phases = {
        phase: msgspec.json.encode(
            on_trial.trial(leaf=entry.leaf, boot=entry.boot, phase=phase, ok=phase == "done")
        )
        for phase in ("waiting", "done")
    }
    trial_file.write_bytes(phases["waiting"])
    asked = 0

    async def no_bus(_: str) -> UnitState | None:
        nonlocal asked
        asked += 1
        if asked == unanswered:
            trial_file.write_bytes(phases["done"])
        raise HostUnavailableError("the system bus does not answer")

    config = Config(version=1)
    return await actions.carry_out(entry, config, no_bus, actions.Standby(), lambda _: None)


def test_a_trial_outlives_the_bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for pause in ("_RETRY_SEC", "_TRIAL_POLL_SEC"):
        monkeypatch.setattr(actions, pause, 0)
    monkeypatch.setattr(trial, "PATH", tmp_path / "trial.json")
    assert asyncio.run(tried(tmp_path / "trial.json", unanswered=1000)).ok


async def rolled_back(ready: Config, now: Config, directory: Path) -> tuple[int, list[int]]:
    """Roll back with helpers got ready beforehand; return how many began, and which were asked."""
    begun, asked = 0, []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal begun
        number, begun = begun, begun + 1
        if await reader.readline():
            asked.append(number)
            writer.write(msgspec.json.encode(DONE) + b"\n")
        writer.close()

    async def no_unit(_: str) -> UnitState | None:
        return None

    server = await asyncio.start_unix_server(answer, directory / "helper.sock")
    async with server:
        standby = actions.Standby()
        await asyncio.gather(*(standby.prepare(ready) for _ in range(3)))
        done = await actions.carry_out(intent("rollback"), now, no_unit, standby, lambda _: None)
        assert done.ok
    return begun, asked


def test_one_helper_is_ready_however_many_crashes_ask_for_it_at_once(tmp_path: Path) -> None:
    config = Config(version=1, runtime_dir=str(tmp_path))
    assert asyncio.run(rolled_back(config, config, tmp_path)) == (1, [0])


def test_a_helper_that_has_read_another_configuration_is_not_asked(tmp_path: Path) -> None:
    before = Config(version=1, runtime_dir=str(tmp_path))
    now = Config(version=1, runtime_dir=str(tmp_path))
    assert asyncio.run(rolled_back(before, now, tmp_path)) == (2, [1])


@pytest.mark.parametrize("declared", [True, False])
def test_no_helper_is_asked_for_while_a_switch_drops_healer(
    declared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For that moment PID 1 has nothing to start it from; other switches make no difference."""
    template = tmp_path / "healer-helper@.service"
    if declared:
        template.touch()
    switching = [True, True, False]

    def is_locked(_: Path) -> bool:
        return switching.pop(0)

    monkeypatch.setattr(actions, "_HELPER", template)
    monkeypatch.setattr(actions, "_DROPPED_SEC", 0)
    monkeypatch.setattr(nix, "is_locked", is_locked)
    done, asked = asyncio.run(carried_out(intent("reset", asked_by="alice"), [DONE], tmp_path))
    assert (done.ok, asked) == (True, 1)
    assert switching == ([True, True, False] if declared else [])
