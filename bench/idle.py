"""What healer costs while nothing happens: CPU and memory, by agents and health checks."""

from collections.abc import Callable
from typing import Any

from bench.machine import GUEST, agent, machine, system
from bench.report import Report, Target

_PORT = 20_000
_PORTS = 1000
# Each agent has a port of its own, and its check.
_CHECKS: dict[str, Callable[[int], list[dict[str, Any]]]] = {
    "no checks": lambda _: [],
    "listen every 3 s": lambda port: [{"name": "port", "type": "listen", "port": port}],
    "TCP every 3 s": lambda port: [{"name": "port", "type": "tcp", "port": port}],
    "HTTP every 3 s": lambda port: [
        {"name": "web", "type": "http", "url": f"http://127.0.0.1:{port}/"}
    ],
}
_SERVER = {
    "wantedBy": ["multi-user.target"],
    "environment": {"PYTHONPATH": GUEST},
    "serviceConfig": {
        "ExecStart": f"/usr/bin/python3 -m bench.guest.server {_PORT} {_PORTS}",
        "LimitNOFILE": 8 * _PORTS,
    },
}
_TARGET_CPU_PERCENT = 1
_TARGET_MB = 80


def run(counts: tuple[int, ...] = (1, 100, 1000), seconds: int = 20) -> Report:
    """Measure SECONDS long for each of COUNTS agents, without checks and with each kind."""
    report = Report("idle")
    with machine("idle") as box:
        known = 0
        for count in counts:
            names = [f"agent-{n:04}" for n in range(count)]
            for title, checks in _CHECKS.items():
                agents = {
                    name: agent(name, health=checks(_PORT + number))
                    for number, name in enumerate(names)
                }
                box.deploy(system(agents, {"server": _SERVER}), status={0, 4})
                box.wait_for_healer()
                found = box.measure(
                    "idle",
                    names=names[known:],
                    settle_sec=12 if count < 1000 else 20,
                    seconds=seconds,
                )
                known = count
                if found["healthy"] != count * len(checks(_PORT)):
                    # A check that is not made costs nothing: no figure then.
                    raise RuntimeError(f"{found['healthy']} checks pass, with {count} {title}")
                _add(report, f"{count} agents, {title}", found)
    _judge(report, max(counts))
    return report


def _add(report: Report, title: str, found: dict[str, Any]) -> None:
    if not found["same_daemon"]:
        report.notes.append(f"{title}: healer was restarted while it was measured")
    report.add(f"{title}: CPU", found["cpu_percent"], "%")
    report.add(f"{title}: CPU of PID 1", found["systemd_percent"], "%")
    report.add(f"{title}: RSS", found["rss_kib"] * 1024 / 1e6, "MB")
    report.add(f"{title}: peak RSS", found["peak_kib"] * 1024 / 1e6, "MB")


def _judge(report: Report, count: int) -> None:
    report.notes.append(
        "100 % CPU is one core; the time is that of all processes in healer.service"
    )
    watching = report.value(f"{count} agents, no checks: CPU")
    for title in _CHECKS:
        cpu = report.value(f"{count} agents, {title}: CPU")
        why = f"{watching:.1f} % is watching the units, {max(0, cpu - watching):.1f} % the checks"
        name = f"{count} agents, {title}"
        report.targets.append(Target(f"CPU, {name}", cpu, _TARGET_CPU_PERCENT, "%", why))
        memory = report.value(f"{name}: peak RSS")
        report.targets.append(Target(f"peak RSS, {name}", memory, _TARGET_MB, "MB"))
