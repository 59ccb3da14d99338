"""How healer's own run before this one ended, where that run could not say so itself. Pure.

A run that ends in order records ``healer.stopped``. One that was killed, also by its own watchdog
(WatchdogSec=), leaves systemd's record of that in the journal, and the next run tells of it.
"""

from healer.events import Ended
from healer.records import Record
from healer.watchdog.classify import crash_class

UNIT = "healer.service"


def ended_unsaid(last: Record, boot: str) -> bool:
    """Whether the run before this one, in the same boot, left no word of its end.

    ``last`` is the last record of a run's begin or end.
    """
    return last.type == "healer.started" and last.at.boot == boot


def previous_end(last: Record, failure: Ended | None) -> dict[str, str]:
    """Return how the run that ``last`` began ended: the fields of an ``agent.crash`` of that name.

    ``failure`` is the last that systemd recorded of healer's unit; one from before that run says
    nothing of it. All fields are empty where it is not known.
    """
    if (
        failure is None
        or failure.boot != last.at.boot
        or (failure.stop_uptime_ms or 0) < last.at.uptime_ms
    ):
        return {"class": "", "result": "", "code": "", "status": ""}
    return {
        "class": crash_class(failure, None),
        "result": failure.result,
        "code": failure.code,
        "status": failure.status,
    }
