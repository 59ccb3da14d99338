"""What a start of healer takes from the ledger of a real history of decisions."""

from pathlib import Path

from healer.config import Agent, Config
from healer.decisions import Decisions
from healer.events import Instant
from healer.history import History, fold
from healer.ledger import shrink
from healer.ledger.writer import Ledger
from healer.records import Record
from tests.safeswitch.judged import BAD, GOOD, Judged, lived


def folded(host: Judged, directory: Path) -> History:
    boot = "b" * 32
    written = Ledger.open(directory, origin="healer/test", boot=boot)
    for record in host.ledger:
        written.append(record.type, record.data, incident=record.incident)
    written.close()
    again = Ledger.open(directory, origin="healer/test", boot=boot)
    history = fold(again.history(), Decisions(host.config))
    again.close()
    return history


def measured(host: Judged, toplevel: str, previous: str) -> None:
    data = {"toplevel": toplevel, "previous": previous, "added": 1, "removed": 1}
    sizes = {"bytes_added": 1, "bytes_removed": 1}
    host.tell([Record(host.now(), "deployment.closure", data | sizes)])


def unmeasured(host: Judged, directory: Path) -> tuple[str, str] | None:
    record = folded(host, directory).unmeasured
    return None if record is None else (record.data["previous"], record.data["toplevel"])


def test_each_deployment_of_another_system_is_to_be_measured_once(tmp_path: Path) -> None:
    host = lived()
    assert unmeasured(host, tmp_path / "first") is None, "there is nothing to hold it against"
    host.deploy(BAD, "web")
    assert unmeasured(host, tmp_path / "switch") == (GOOD, BAD)
    measured(host, BAD, GOOD)
    assert unmeasured(host, tmp_path / "measured") is None
    host.reboot()
    assert unmeasured(host, tmp_path / "the same in a new boot") is None


def test_one_that_a_boot_or_a_rollback_made_active_is_measured_as_well(tmp_path: Path) -> None:
    host = lived()
    host.current = BAD
    host.reboot()
    assert host.of("deployment.activated")[-1].data["kind"] == "boot"
    assert unmeasured(host, tmp_path / "boot") == (GOOD, BAD)
    host = lived()
    host.deploy(BAD, "web")
    host.crash("web", times=5)
    host.comes_of_it()
    measured(host, BAD, GOOD)
    assert host.of("deployment.activated")[-1].data["kind"] == "rollback"
    assert unmeasured(host, tmp_path / "rollback") == (BAD, GOOD)


def test_whom_an_entry_has_no_room_to_name_is_not_forgotten() -> None:
    names = [f"an-agent-with-a-longer-name-{number:04}" for number in range(1000)]
    config = Config(version=1, agents={name: Agent(unit=f"{name}.service") for name in names})
    decisions, now = Decisions(config), Instant("boot", 0, 0)
    told: dict[str, object] = {"agents": names, "units": sorted(decisions.units)}
    decisions.replay(Record(now, "config.loaded", told))
    for first in range(0, 1000, 200):
        counts = {f"{name}.service": 1 for name in names[first : first + 200]}
        decisions.replay(Record(now, "restarts.counted", {"counts": counts}))
    data = shrink.fit(told)[0]
    assert names[500] not in str(data)
    decisions.replay(Record(now, "healer.started", data))
    assert decisions.deployment.baselines.keys() == {*names}
    assert decisions.counts.keys() == decisions.units
