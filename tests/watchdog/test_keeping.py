"""What root does to an agent's unit, with a PID 1 that is invented."""

from dataclasses import dataclass, field

import pytest

from healer.config import Config
from healer.host import clock
from healer.ledger.entry import Entry
from healer.watchdog import keeping

CONFIG = Config(version=1, runtime_dir="/nonexistent")


@dataclass
class Pid1:
    """A unit that takes ``starting`` looks to start, and then is as ``state`` says."""

    began_ms: int
    starting: int = 1
    state: str = "active"
    told: list[tuple[str, ...]] = field(default_factory=list)
    job: int = 0

    def show(self, _unit: str, *_properties: str) -> dict[str, str]:
        self.job = max(0, self.job - 1)
        began_us = (self.began_ms - clock.from_monotonic_us(0)) * 1000
        began = {"ExecMainStartTimestampMonotonic": str(began_us)}
        return {"Job": str(self.job), "ActiveState": self.state, **began}

    def systemctl(self, *arguments: str) -> str:
        self.told.append(arguments)
        self.job = self.starting
        return ""


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "_STOP_SEC", 0.3)


def restart(pid_1: Pid1, monkeypatch: pytest.MonkeyPatch) -> keeping.Came:
    """Have an agent restarted that a person asked for a second ago."""
    monkeypatch.setattr(keeping, "show", pid_1.show)
    monkeypatch.setattr(keeping, "systemctl", pid_1.systemctl)
    asked_us = (clock.uptime_ms() - 1000) * 1000
    data = {"action": "restart", "target": "web.service"}
    intent = Entry(
        seq=7,
        batch=0,
        epoch=0,
        prev="0" * 64,
        time_us=0,
        boottime_us=asked_us,
        boot=clock.boot_id(),
        type="action.intent",
        incident=None,
        data=data,
        leaf="",
        raw=b"",
    )
    return keeping.restart(CONFIG, "web.service", intent)


@pytest.mark.parametrize(
    ("pid_1", "ok", "words"),
    [
        (Pid1(0), True, "was restarted"),
        # The daemon asks again for what it has no answer about: a slow start must come to its end.
        (Pid1(0, starting=1_000_000), True, "is being restarted"),
        (Pid1(0, state="failed"), False, "was restarted, and failed"),
    ],
)
def test_a_restart_is_waited_for_but_not_for_ever(
    pid_1: Pid1, ok: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, detail = restart(pid_1, monkeypatch)
    assert (done, words in detail) == (ok, True), detail
    assert pid_1.told == [("restart", "--no-block", "web.service")]


def test_what_has_been_started_since_is_not_restarted_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pid_1 = Pid1(clock.uptime_ms())
    assert restart(pid_1, monkeypatch)[0]
    assert pid_1.told == []
