"""A switch lock that is held for too long is told of, once."""

from dataclasses import dataclass, field

from healer.events import Instant
from healer.records import Record
from healer.safeswitch import sticking
from healer.safeswitch.sticking import Held


@dataclass
class Host:
    """Looks at a lock again and again."""

    uptime_ms: int = 0
    boot: str = "one"
    held: Held | None = None
    told: list[Record] = field(default_factory=list)

    def passes(self, seconds: int, *, switching: bool) -> None:
        for _ in range(seconds):
            self.uptime_ms += 1000
            now = Instant(self.boot, self.uptime_ms)
            held = sticking.look(self.held, now, switching=switching)
            self.held, told = sticking.tell(held, 60, lambda: "process 7 (stc)", now)
            self.told += told


def test_a_lock_is_told_of_once_when_it_was_held_for_too_long() -> None:
    host = Host()
    host.passes(60, switching=True)
    assert host.told == []
    host.passes(600, switching=True)
    (record,) = host.told
    assert (record.type, record.data) == (
        "switch.stuck",
        {"held_ms": 60_000, "holder": "process 7 (stc)"},
    )


def test_each_lock_has_its_own_time() -> None:
    host = Host()
    for _ in range(3):
        host.passes(50, switching=True)
        host.passes(1, switching=False)
    assert host.told == []
    host.passes(61, switching=True)
    host.passes(1, switching=False)
    host.passes(61, switching=True)
    assert len(host.told) == 2


def test_a_reboot_ends_every_lock() -> None:
    host = Host()
    host.passes(50, switching=True)
    host.boot, host.uptime_ms = "two", 0
    host.passes(50, switching=True)
    assert host.told == []
