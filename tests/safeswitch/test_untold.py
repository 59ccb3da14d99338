"""A kill, or a power cut, between an outcome and what follows from it."""

from collections.abc import Callable

import pytest

from healer.events import Instant
from healer.records import Record
from healer.safeswitch.untold import Untold
from tests.safeswitch.judged import BAD, GOOD, Judged, KilledError, lived

NOW = Instant("boot", 0)


def rolled_back() -> Judged:
    host = lived()
    host.deploy(BAD, "web")
    host.crash("web", times=5)
    assert host.rolls_back()
    return host


def on_trial() -> Judged:
    host = Judged()
    host.after(400)
    return host


def asked(verb: str) -> Judged:
    host = lived()
    data = {"action": verb, "asked_by": "alice", "reason": "alice asked for it", "target": BAD}
    host.tell([Record(host.now(), "action.intent", data)])
    return host


@pytest.mark.parametrize(
    ("made", "kind", "toplevel"),
    [
        (rolled_back, "deployment.condemned", BAD),
        (on_trial, "deployment.known-good", GOOD),
        (lambda: asked("condemn"), "deployment.condemned", BAD),
        (lambda: asked("forgive"), "deployment.forgiven", BAD),
    ],
)
@pytest.mark.parametrize("durable", [0, 1, 2])
def test_what_follows_from_an_outcome_is_told_once(
    made: Callable[[], Judged], kind: str, toplevel: str, durable: int
) -> None:
    host = made()
    before = len(host.of(kind))
    if durable < 2:
        with pytest.raises(KilledError):
            outcome(host, durable)
    if durable != 1:
        host.comes_of_it()
    host.restart_healer()
    told = host.of(kind)[before:]
    assert [record.data["toplevel"] for record in told] == [toplevel]
    assert host.open_intent() is None


def outcome(host: Judged, durable: int) -> None:
    """Have the open intent come to its end, with healer killed when so much of that is durable."""
    data = host.open_intent()
    assert data is not None
    if data.data["action"] == "rollback":
        host.while_healer_is_down()
    host.killed_after = durable
    host.comes_of_it()


def test_a_rollback_early_in_a_boot_condemns_also_after_a_kill() -> None:
    untold = Untold()
    reason = {"from": BAD, "target": GOOD, "boot": "b", "reason": "it did not come up"}
    untold.fold(7, Record(NOW, "boot.rolled-back", reason))
    untold.fold(8, Record(NOW, "ledger.recovered"))
    records = untold.records(NOW)
    assert [(record.type, record.data["toplevel"]) for record in records] == [
        ("deployment.condemned", BAD)
    ]
    untold.fold(9, records[0])
    assert untold.records(NOW) == []
