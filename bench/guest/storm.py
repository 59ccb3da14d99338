"""Kill all programs at once; take the time until all run again and all crashes are durable."""

import os
import select
import signal
from typing import Any

from bench.guest import common
from bench.guest.common import Announcements, TooLateError, boottime_ns
from bench.guest.ledger_tail import LedgerTail

_TIMEOUT_SEC = 300
_SETTLE_SEC = 15


def main() -> None:
    given = common.options()
    names: list[str] = given["names"]
    watched: bool = given["watched"]
    common.first_in_line()
    heard = Announcements()
    pids = {name: word.pid for name, word in heard.wait_all(names, _TIMEOUT_SEC).items()}
    storms = []
    for _ in range(given["storms"]):
        heard.read(_SETTLE_SEC)
        storm = _Storm(heard, pids, LedgerTail() if watched else None)
        storms.append(storm.run())
        pids = storm.alive
    common.answer(storms)


class _Storm:
    """One storm: all of ``pids`` are killed, then everything is awaited."""

    def __init__(self, heard: Announcements, pids: dict[str, int], tail: LedgerTail | None) -> None:
        self._heard = heard
        self._pids = pids
        self._tail = tail
        self._crashes: set[tuple[str, str]] = set()
        self._doubled = 0
        self._durable_ns = 0
        self.alive: dict[str, int] = {}
        self._last_start_ns = 0

    def run(self) -> dict[str, Any]:
        daemon = int(common.show("healer.service", "MainPID")) if self._tail else 0
        cpu_us = common.cpu_us("healer.service") if self._tail else 0
        began = boottime_ns()
        for pid in self._pids.values():
            os.kill(pid, signal.SIGKILL)
        killed = boottime_ns()
        self._watch(began)
        result: dict[str, Any] = {
            "kill_ns": killed - began,
            "restart_ns": self._last_start_ns - began,
            "restarted": len(self.alive),
        }
        if self._tail is not None:
            same = int(common.show("healer.service", "MainPID")) == daemon
            result |= {
                "durable_ns": self._durable_ns - began,
                "crashes": len(self._crashes),
                "doubled": self._doubled,
                "same_daemon": same,
                "cpu_us": common.cpu_us("healer.service") - cpu_us,
                "peak_kib": common.status_kib(daemon, "VmHWM") if same else 0,
            }
            self._tail.close()
        return result

    def _watch(self, began: int) -> None:
        poll = select.poll()
        poll.register(self._heard.fd, select.POLLIN)
        if self._tail is not None:
            poll.register(self._tail.fd, select.POLLIN)
        deadline = began + _TIMEOUT_SEC * 1_000_000_000
        while not self._over():
            if boottime_ns() > deadline:
                if len(self.alive) < len(self._pids):
                    raise TooLateError(f"only {len(self.alive)} of {len(self._pids)} run again")
                return  # the losses are in the counts
            poll.poll(1000)
            for started in self._heard.read(0):
                self.alive[started.name] = started.pid
                self._last_start_ns = started.at_ns
            self._read_ledger()

    def _over(self) -> bool:
        all_run = len(self.alive) >= len(self._pids)
        return all_run and (self._tail is None or len(self._crashes) >= len(self._pids))

    def _read_ledger(self) -> None:
        for seen in self._tail.read() if self._tail else ():
            if seen.entry["type"] != "agent.crash":
                continue
            data = seen.entry["data"]
            crash = (data["unit"], data["invocation"])
            self._doubled += crash in self._crashes
            self._crashes.add(crash)
            self._durable_ns = seen.durable_ns


if __name__ == "__main__":
    main()
