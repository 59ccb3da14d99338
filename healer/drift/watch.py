"""Notices drift as it happens: inotify(7) says when to look, a full scan says what is there.

Events are only hints. Whatever they miss (an overflow, a file written through another mount, a
full watch limit) the next full scan finds, at the latest after ``drift.intervalSec``.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from healer.config import Config
from healer.drift.compare import DriftState, Finding, compare
from healer.drift.scan import Declaration, Roots, read_declaration, scan
from healer.drift.units import UNIT_DIRECTORIES
from healer.host.inotify import Names, Watches

log = logging.getLogger(__name__)

DEBOUNCE_SEC = 0.2

# How soon a finding that has to be observed twice is looked at again, and how often healer looks
# whether a switch is over.
AGAIN_SEC = 1.0


class DriftWatcher:
    """Scans at start, on events and every ``drift.intervalSec``; reports what is new and gone.

    ``on_findings(found, resolved)`` is called in the event loop. ``is_switching()`` says whether a
    switch-to-configuration runs; meanwhile nothing is reported. ``state`` is what was known
    before (DriftState.replay). ``off`` says what is not watched and why, None if all is.
    """

    def __init__(
        self,
        config: Config,
        on_findings: Callable[[tuple[Finding, ...], tuple[Finding, ...]], None],
        is_switching: Callable[[], bool],
        *,
        state: DriftState | None = None,
        roots: Roots | None = None,
    ) -> None:
        self.state = state or DriftState()
        self.off: str | None = None
        self._config = config
        self._on_findings = on_findings
        self._is_switching = is_switching
        self._roots = roots or Roots()
        self._changed = asyncio.Event()
        self._watches = Watches(lambda _name: self._changed.set())

    def reload(self, config: Config) -> None:
        """Go on with another configuration, and look at once."""
        self._config = config
        self._changed.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            while True:
                interval = self._config.drift.interval_sec
                self._changed.clear()
                started = time.monotonic()
                wait = AGAIN_SEC if await self._look() else interval
                # However fast events come, looking takes at most a tenth of one core.
                rest = max(DEBOUNCE_SEC, 10 * (time.monotonic() - started))
                await asyncio.sleep(min(rest, interval))
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), wait)
                    await asyncio.sleep(DEBOUNCE_SEC)
        finally:
            self._watches.close()

    async def _look(self) -> bool:
        """Scan once, report, and say whether to look again soon."""
        if not self._config.drift.enable:
            self._watches.close()
            self.off = "drift.enable is false"
            return False
        if await self._asks_whether_switching():
            self.state, _, _ = self.state.update(frozenset(), paused=True)
            return True
        self._watches.open()
        try:
            findings = await asyncio.to_thread(self._scan)
        except OSError as error:
            self._turn_off(f"the declaration cannot be read: {error}")
            return False
        if findings is None:
            return False
        # A switch that began during the scan makes what it saw worthless.
        paused = await self._asks_whether_switching()
        self.state, found, resolved = self.state.update(findings, paused=paused)
        if found or resolved:
            self._on_findings(found, resolved)
        return paused or bool(self.state.suspected)

    async def _asks_whether_switching(self) -> bool:
        return await asyncio.to_thread(self._is_switching)  # see host/switch_lock.py

    def _scan(self) -> frozenset[Finding] | None:
        """Look at the machine, in a thread; None where nothing declares it.

        The watches are set before the scan, so that a change which it misses is an event.
        """
        declaration = read_declaration(self._roots)
        self._watches.set(self._directories(declaration))
        units = frozenset(agent.unit for agent in self._config.agents.values())
        snapshot = scan(self._roots, units, declaration)
        self._turn_off(snapshot.off or snapshot.etc_off or self._watches.limit)
        return None if snapshot.off else compare(snapshot, self._config.drift.ignore)

    def _directories(self, declaration: Declaration) -> dict[Path, Names]:
        at = self._roots.at
        units = [directory.path for directory in UNIT_DIRECTORIES]
        beside = [f"{path}/{name}" for path in units for name in _directories_in(at(path))]
        wanted = names_to_watch(declaration.nodes, (*units, *beside))
        paths = {at(path): names for path, names in wanted.items()}
        link = self._roots.current_system
        names = paths.get(link.parent, frozenset())
        paths[link.parent] = None if names is None else names | {link.name}
        return paths

    def _turn_off(self, reason: str | None) -> None:
        if reason != self.off and reason is not None:
            log.warning("drift: %s", reason)
        self.off = reason


def _directories_in(directory: Path) -> list[str]:
    """Return the names of the real directories in a directory that is no link itself."""
    if directory.is_symlink():  # into the store, where nothing changes
        return []
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def names_to_watch(files: Iterable[str], directories: Iterable[str]) -> dict[str, Names]:
    """Return the directories to watch for changes of these files, and in these directories.

    Every directory on the way is watched for the name that leads on: that is how one that is made
    later, or removed and made again, is noticed. ``/`` is not watched.
    """
    wanted: dict[str, Names] = {}
    for directory in directories:
        wanted[directory] = None
    for path in (*files, *directories):
        step = PurePosixPath(path)
        while len(step.parts) > 2:
            parent = str(step.parent)
            known = wanted.get(parent, frozenset())
            if known is None or step.name in known:
                break
            wanted[parent] = known | {step.name}
            step = step.parent
    return wanted
