"""Ends that are recorded while everything else goes on."""

import asyncio
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path

import pytest

from healer.config import Agent, Config
from healer.decisions import Decisions
from healer.events import Systems
from healer.ledger.entry import Entry
from healer.ledger.writer import Ledger
from healer.records import Record
from healer.watchdog.recorder import Recorder
from healer.watchdog.status_texts import StatusTexts
from healer.watchdog.units import Units
from tests.host.test_stamps import INVOCATION, STOP

SYSTEMS = Systems(None, None, None, None, switching=False)


def agents(directory: Path, *names: str) -> Config:
    return Config(
        version=1,
        agents={name: Agent(unit="web.service") for name in names},
        state_dir=str(directory),
        runtime_dir=str(directory),
    )


@pytest.mark.parametrize(("name", "recorded"), [("www", ["agent.crash"]), (None, [])])
def test_an_agent_is_removed_or_renamed_while_its_end_is_being_recorded(
    tmp_path: Path, name: str | None, recorded: list[str]
) -> None:
    (tmp_path / "stamps").mkdir()
    (tmp_path / "stamps" / f"web.service.{INVOCATION}.stop").write_text(STOP)
    config = agents(tmp_path, "web")
    decisions = Decisions(config)
    ledger = Ledger.open(tmp_path / "ledger", origin="", boot="boot")
    units = Units(decisions.units, StatusTexts(config), lambda _: None, lambda *_: None)

    async def look_at_systems() -> Systems:
        # The journal is asked for the agent's last lines next, and that takes a moment.
        new = agents(tmp_path, *filter(None, [name]))
        asyncio.get_running_loop().call_soon(decisions.configure, new)
        return SYSTEMS

    told: list[str] = []

    def tell(records: Iterable[Record]) -> "list[Future[Entry]]":
        made = list(records)
        told.extend(record.type for record in made)
        return [ledger.append(record.type, record.data) for record in made]

    async def record() -> None:
        recorder = Recorder(
            decisions,
            units,
            ledger,
            tell,
            look_at_systems,
            lambda *_: None,
            lambda: None,
        )
        await recorder.look_at_stamps(lambda: None)

    asyncio.run(record())
    ledger.close()
    assert told == recorded
