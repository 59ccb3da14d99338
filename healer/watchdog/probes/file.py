"""`file` checks: whether a file is kept fresh."""

import asyncio
import concurrent.futures
import time
from pathlib import Path

from healer.config import FileCheck
from healer.watchdog.health import Outcome


class Files:
    """Looks at files' times, in a thread of its own: a file system can keep it waiting."""

    def __init__(self) -> None:
        self._threads = concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="file-checks")

    def close(self) -> None:
        """Look no more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def look(self, check: FileCheck) -> tuple[Outcome, str]:
        """Make one check; OSError where the file is out of sight."""
        loop = asyncio.get_running_loop()
        try:
            age_sec = await loop.run_in_executor(self._threads, _age_sec, Path(check.path))
        except FileNotFoundError:
            return Outcome.FAILED, f"there is no {check.path}"
        # A time in the future is a clock that was set back since: the file is not older than that.
        outcome = Outcome.OK if age_sec < check.max_age_sec else Outcome.FAILED
        return outcome, f"{check.path} was written {age_sec:.1f} s ago"


def _age_sec(path: Path) -> float:
    """Return how long ago a file was written: file times are of CLOCK_REALTIME."""
    return time.time() - path.stat().st_mtime
