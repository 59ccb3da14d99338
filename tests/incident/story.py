"""Invented ledgers, as the writer would have recorded them."""

from collections.abc import Mapping
from typing import Any

from healer.ledger.entry import Entry

BOOT = "b" * 32
LATER_BOOT = "c" * 32
WALL_US = 1_790_000_000_000_000
GOOD = f"/nix/store/{'g' * 32}-nixos-system-host-26.05"
BAD = f"/nix/store/{'x' * 32}-nixos-system-host-26.05"
INVOCATIONS = ("1a2b3c4d" * 4, "22222222" * 4, "33333333" * 4)
INCIDENT = "worker-1a2b3c4d"


class Story:
    """Collects entries; times are microseconds since the boot."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def add(
        self,
        at_us: int,
        kind: str,
        data: Mapping[str, Any],
        *,
        incident: str | None = INCIDENT,
        boot: str = BOOT,
        step_us: int = 0,
    ) -> Entry:
        seq = len(self.entries)
        entry = Entry(
            seq=seq,
            batch=seq,
            epoch=0,
            prev="0" * 64,
            time_us=WALL_US + at_us + step_us,
            boottime_us=at_us,
            boot=boot,
            type=kind,
            incident=incident,
            data=dict(data),
            leaf=f"{seq:064x}",
            raw=b"{}",
        )
        self.entries.append(entry)
        return entry

    def crash(self, at_us: int, number: int = 0, **more: Any) -> Entry:
        data = {
            "agent": "worker",
            "unit": "worker.service",
            "invocation": INVOCATIONS[number],
            "boot": BOOT,
            "class": "signal",
            "result": "signal",
            "code": "killed",
            "status": "KILL",
            "runtime_ms": 90_500,
            "stop_uptime_ms": at_us // 1000,
            "toplevel": BAD,
            "early": False,
            "restart": "will-restart",
            "n_restarts": number,
            "memory": {"peak": 5 << 20, "current": 4096, "oom_kill": 0, "pressure": None},
            "status_text": "job 12 of 40",
            "journal": ["starting job 12", "half-way\x1b[2J"],
            "source": "stamp",
        }
        return self.add(at_us + 2_000, "agent.crash", data | more)

    def restarted(self, at_us: int, number: int = 1, delay_ms: int = 12) -> Entry:
        data = {
            "agent": "worker",
            "unit": "worker.service",
            "invocation": INVOCATIONS[number],
            "previous": INVOCATIONS[number - 1],
            "pid": 4711,
            "delay_ms": delay_ms,
        }
        return self.add(at_us, "agent.restarted", data)

    def recovered(self, at_us: int, number: int = 1) -> Entry:
        data = {"agent": "worker", "unit": "worker.service", "stable_ms": 60_000}
        return self.add(at_us, "agent.recovered", data | {"invocation": INVOCATIONS[number]})

    def rollback(self, at_us: int, *, ok: bool = True) -> None:
        intent = {"action": "rollback", "target": GOOD, "from": BAD, "reason": "3 crashes"}
        asked = self.add(at_us, "action.intent", intent)
        outcome = {
            "intent": asked.seq,
            "action": "rollback",
            "ok": ok,
            "detail": "switch-to-configuration exited with 0",
            "running": GOOD if ok else BAD,
            "steps": {"profile": 40, "switch": 1_200},
        }
        self.add(at_us + 1_300_000, "action.outcome", outcome)
