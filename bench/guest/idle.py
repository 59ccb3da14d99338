"""Take the CPU time and the memory of a healer that has nothing to do but to watch."""

import json
import time
from pathlib import Path

from bench.guest import common
from bench.guest.common import Announcements

_UNIT = "healer.service"


def main() -> None:
    given = common.options()
    if given["names"]:
        Announcements().wait_all(given["names"], 300)
    time.sleep(given["settle_sec"])
    pid = int(common.show(_UNIT, "MainPID"))
    began, cpu_us, systemd = time.monotonic(), common.cpu_us(_UNIT), _ticks(1)
    time.sleep(given["seconds"])
    seconds = time.monotonic() - began
    common.answer(
        {
            "cpu_percent": (common.cpu_us(_UNIT) - cpu_us) / seconds / 1e4,
            "systemd_percent": (_ticks(1) - systemd) / seconds,
            "rss_kib": common.status_kib(pid, "VmRSS"),
            "peak_kib": common.status_kib(pid, "VmHWM"),
            "healthy": _healthy(),
            "same_daemon": int(common.show(_UNIT, "MainPID")) == pid,
        }
    )


def _healthy() -> int:
    """Return how many health checks healer says are passing."""
    status = json.loads(Path("/run/healer/status.json").read_text())
    answers = (check for agent in status["agents"].values() for check in agent["health"].values())
    return sum(answer == "ok" for answer in answers)


def _ticks(pid: int) -> int:
    """Return user and system time of a process, in hundredths of a second (proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


if __name__ == "__main__":
    main()
