"""Gates watched for a trial: by a process of the user healer's, told of in lines of JSON.

So root does not run what a gate runs, and a trial goes on, to its end, if that process dies.
"""

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Literal

import msgspec

_AGAIN_SEC = 1.0


class Seen(msgspec.Struct, frozen=True):
    """That a gate passes or fails now."""

    gate: str
    ok: bool
    detail: str


class Watch:
    """The process, from ``with`` to its end; ``states`` says how each gate stands."""

    def __init__(self, package: str, config: str, uid: int, gid: int) -> None:
        self._command = [f"{package}/bin/healer", "helper", "--watch-gates", f"--config={config}"]
        self._uid, self._gid = uid, gid
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._rest = b""
        self.states: dict[str, Literal["passed", "failed"]] = {}
        self.failed: str | None = None

    def __enter__(self) -> "Watch":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def changed(self, timeout_sec: float) -> bool:
        """Wait for at most so long; return whether a gate stands otherwise than before."""
        try:
            seen = list(self._read(timeout_sec))
        except (OSError, msgspec.MsgspecError) as error:
            print(f"healer trial: the gates are not watched: {error}", file=sys.stderr, flush=True)
            time.sleep(timeout_sec)
            return False
        for each in seen:
            self.states[each.gate] = "passed" if each.ok else "failed"
            if not each.ok:
                self.failed = f"the gate {each.gate} failed: {each.detail}"
        return bool(seen)

    def _read(self, timeout_sec: float) -> Iterator[Seen]:
        process = self._running()
        if process is None or process.stdout is None:
            time.sleep(timeout_sec)
            return
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(timeout_sec):
                return
        data = os.read(process.stdout.fileno(), 65_536)
        if not data:
            process.wait()
            self._process = None
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            yield msgspec.json.decode(line, type=Seen)

    def _running(self) -> subprocess.Popen[bytes] | None:
        """Return the process, begun anew a while after it ended."""
        if self._process is None and time.monotonic() - self._started >= _AGAIN_SEC:
            self._started, self._rest = time.monotonic(), b""
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                env={"PATH": os.environ.get("PATH", os.defpath)},
                user=self._uid,
                group=self._gid,
                extra_groups=[],
                start_new_session=True,
            )
        return self._process
