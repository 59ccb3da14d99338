"""One run of a system's switch-to-configuration, bounded in time, with its last words."""

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass

_SAID_BYTES = 2000
_SAID_LINES = 3


@dataclass(frozen=True, slots=True)
class Activated:
    """How it ended: its exit code, None where it had to be killed, and what it said last."""

    code: int | None
    words: str


def activate(toplevel: str, action: str, timeout_sec: float) -> Activated:
    """Run ``switch-to-configuration ACTION``; one that hangs is killed with all it started.

    It waits for jobs without a timeout of its own, and holds the lock for as long.
    """
    command = [f"{toplevel}/bin/switch-to-configuration", action]
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        except OSError as error:
            return Activated(None, f"{command[0]} cannot be run: {error.strerror}")
        try:
            code: int | None = process.wait(timeout_sec)
        except subprocess.TimeoutExpired:
            code = None
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        output = log.read().decode(errors="replace")
    print(output, end="", file=sys.stderr, flush=True)
    lines = [line.strip() for line in output[-_SAID_BYTES:].splitlines() if line.strip()]
    said = "; ".join(lines[-_SAID_LINES:])
    how = f"exited with {code}" if code is not None else f"did not end within {timeout_sec:g} s"
    return Activated(
        code, f"switch-to-configuration {action} {how}" + (f": {said}" if said else "")
    )
