"""Kill an agent again and again, and take the time until its crash is durable in the ledger."""

import os
import random
import select
import signal
import time
from pathlib import Path

from bench.guest import common
from bench.guest.common import Announcements, TooLateError, Watch, boottime_ns
from bench.guest.ledger_tail import LedgerTail, Seen

_STAMPS = Path("/run/healer/stamps")
_OWN_FILE = Path("/var/lib/bench-append")
_TIMEOUT_SEC = 30


def main() -> None:
    given = common.options()
    name: str = given["name"]
    common.first_in_line()
    heard = Announcements()
    heard.wait_all(given["names"], 120)
    time.sleep(given["settle_sec"])
    pid = int(common.show(f"{name}.service", "MainPID"))
    times: dict[str, list[int]] = {
        key: [] for key in ("stamp", "decided", "visible", "durable", "append")
    }
    pause = random.Random(given["seed"])
    own = os.open(_OWN_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for _ in range(given["kills"]):
        # At no fixed phase of the daemon's own ticks.
        time.sleep(pause.uniform(0.3, 0.8))
        tail, stamps = LedgerTail(), Watch()
        stamps.add(_STAMPS, Watch.CLOSE_WRITE)
        began = boottime_ns()
        os.kill(pid, signal.SIGKILL)
        stamp_ns, seen = _wait(tail, stamps, name, began)
        tail.close()
        stamps.close()
        times["stamp"].append(stamp_ns - began)
        times["decided"].append(seen.entry["boottime_us"] * 1000 - began)
        times["visible"].append(seen.visible_ns - began)
        times["durable"].append(seen.durable_ns - began)
        pid = heard.wait(name, _TIMEOUT_SEC).pid
        time.sleep(0.1)
        times["append"].append(_append(own))
    common.answer(times)


def _wait(tail: LedgerTail, stamps: Watch, name: str, began: int) -> tuple[int, Seen]:
    """Wait for the stop stamp and for the crash's entry."""
    poll = select.poll()
    poll.register(stamps.fd, select.POLLIN)
    poll.register(tail.fd, select.POLLIN)
    stamp_ns: int | None = None
    crash: Seen | None = None
    while stamp_ns is None or crash is None:
        if not poll.poll(_TIMEOUT_SEC * 1000):
            raise TooLateError(f"no stamp ({stamp_ns}) or no entry ({crash}) of {name}'s death")
        now = boottime_ns()
        if any(file.startswith(f"{name}.") and file.endswith(".stop") for file in stamps.drain()):
            stamp_ns = stamp_ns or now
        for seen in tail.read():
            entry = seen.entry
            if entry["type"] == "agent.crash" and entry["boottime_us"] * 1000 >= began:
                crash = seen
    return stamp_ns, crash


def _append(file: int) -> int:
    """Take the time of one append and one fdatasync, as a ledger at least needs them."""
    began = boottime_ns()
    os.write(file, b"x" * 1000 + b"\n")
    os.fdatasync(file)
    return boottime_ns() - began


if __name__ == "__main__":
    main()
