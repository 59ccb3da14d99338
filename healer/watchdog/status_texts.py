"""The agents' last STATUS= (sd_notify(3)): for the record of a crash, and for the agent's next run.

Each is dated, because the next run has its own soon. nix/last-crash.sh reads the file of an agent
that is told of its last crash, as the agent's user: a stale text is worse than none.
"""

import logging
from collections import deque
from pathlib import Path

from healer.config import Config
from healer.host import clock

log = logging.getLogger(__name__)

_REMEMBERED = 8
# An agent may change its mind a thousand times a second; its file follows at this pace.
_PACE_MS = 100
# /proc/uptime, by which an end is dated, counts hundredths of a second.
_TICK_MS = 10


class StatusTexts:
    """What agents said last, and a file for each agent that is told of its last crash."""

    def __init__(self, config: Config) -> None:
        self.configure(config)
        self._texts: dict[str, deque[tuple[int, str]]] = {}
        # By unit: the invocation that runs, and that with what it said first.
        self._invocations: dict[str, str] = {}
        self._first: dict[str, tuple[str, str]] = {}
        self._written_ms: dict[str, int] = {}
        self._waiting: set[str] = set()

    def configure(self, config: Config) -> None:
        """Write for the agents of this configuration from now on."""
        self._directory = Path(config.runtime_dir) / "status-texts"
        self._told = frozenset(a.unit for a in config.agents.values() if a.last_crash)

    def begin(self, unit: str, invocation: str) -> None:
        """Take what is noted from now on for this invocation's."""
        self._invocations[unit] = invocation

    def first(self, unit: str, invocation: str) -> str | None:
        """Return what an invocation said first; None if it said nothing, or is no longer known."""
        of, text = self._first.get(unit, ("", ""))
        return text if of == invocation else None

    def note(self, unit: str, text: str) -> None:
        """Note what an agent says now, if it is anything new."""
        invocation = self._invocations.get(unit)
        if text and invocation and self.first(unit, invocation) is None:
            self._first[unit] = (invocation, text)
        texts = self._texts.setdefault(unit, deque(maxlen=_REMEMBERED))
        if not text or (texts and texts[-1][1] == text):
            return
        now = clock.uptime_ms()
        texts.append((now, text))
        if unit not in self._told:
            return
        if now - self._written_ms.get(unit, -_PACE_MS) >= _PACE_MS:
            self._write(unit)
        else:
            self._waiting.add(unit)

    def before(self, unit: str, uptime_ms: int) -> str | None:
        """Return the last text that was noted up to a moment; None where there was none."""
        texts = self._texts.get(unit, ())
        return next((text for at, text in reversed(texts) if at <= uptime_ms + _TICK_MS), None)

    def flush(self) -> None:
        """Write the files that are behind."""
        for unit in self._waiting & self._told:
            self._write(unit)
        self._waiting.clear()

    def _write(self, unit: str) -> None:
        at_ms, text = self._texts[unit][-1]
        self._written_ms[unit] = clock.uptime_ms()
        self._waiting.discard(unit)
        try:
            self._directory.mkdir(mode=0o755, exist_ok=True)
            content = f"{at_ms // 10}\n{text}".encode(errors="replace")
            # Not atomic, which would cost thrice as much: who reads half of it ignores it.
            (self._directory / unit).write_bytes(content)
        except OSError as error:
            log.warning("cannot write the last status of %s: %s", unit, error.strerror)
