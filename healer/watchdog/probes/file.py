"""`file` checks: whether a file is kept fresh."""

import asyncio
import concurrent.futures
import time
from dataclasses import dataclass
from pathlib import Path

from healer.config import FileCheck
from healer.watchdog.health import Outcome


@dataclass(frozen=True, slots=True)
class _Seen:
    """A file's time when it was last looked at, and when it was written: on CLOCK_MONOTONIC."""

    mtime_ns: int
    looked_sec: float
    written_sec: float


class Files:
    """Looks at files' times, in a thread of its own: a file system can keep it waiting.

    File times are of CLOCK_REALTIME, which is set forward and back, and which goes on while the
    host is suspended. So it tells only of the first look how old a file is; from then on a file is
    as old as the last look before which it was not there yet.
    """

    def __init__(self) -> None:
        self._seen: dict[Path, _Seen] = {}
        self._threads = concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="file-checks")

    def close(self) -> None:
        """Look no more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def look(self, check: FileCheck) -> tuple[Outcome, str]:
        """Make one check; OSError where the file is out of sight."""
        loop = asyncio.get_running_loop()
        try:
            age_sec = await loop.run_in_executor(self._threads, self._age_sec, Path(check.path))
        except FileNotFoundError:
            return Outcome.FAILED, f"there is no {check.path}"
        outcome = Outcome.OK if age_sec < check.max_age_sec else Outcome.FAILED
        return outcome, f"{check.path} was written {age_sec:.1f} s ago"

    def _age_sec(self, path: Path) -> float:
        mtime_ns, now_sec = path.stat().st_mtime_ns, time.monotonic()
        seen = self._seen.get(path)
        if seen is None or seen.mtime_ns != mtime_ns:
            # A time in the future is a clock that was set back since.
            written_sec = now_sec - max(time.time() - mtime_ns / 1e9, 0)
            if seen is not None:
                written_sec = max(written_sec, seen.looked_sec)
        else:
            written_sec = seen.written_sec
        self._seen[path] = _Seen(mtime_ns, now_sec, written_sec)
        return now_sec - written_sec
