"""inotify(7): being told when something in a directory changes. A hint to look, never a fact."""

import asyncio
import errno
from collections.abc import Callable, Mapping
from pathlib import Path

from inotify_simple import INotify, flags

# The names in a directory whose events matter; None: all of them.
Names = frozenset[str] | None

CHANGES = (
    flags.CREATE
    | flags.DELETE
    | flags.MOVED_FROM
    | flags.MOVED_TO
    | flags.CLOSE_WRITE
    | flags.ATTRIB
    | flags.DELETE_SELF
    | flags.MOVE_SELF
)
"""Whatever changes what a directory holds."""

WRITTEN = flags.CLOSE_WRITE
"""A file is written, and closed."""


class Watches:
    """inotify watches that wake healer through ``on_event`` in the event loop.

    It is told the file's name, empty where that is not known. ``limit`` says, after ``set``, what
    could not be watched; None when all is.
    """

    def __init__(self, on_event: Callable[[str], None], mask: flags = CHANGES) -> None:
        self.limit: str | None = None
        self._on_event = on_event
        self._mask = mask | flags.ONLYDIR | flags.DONT_FOLLOW
        self._inotify: INotify | None = None
        self._names: dict[int, Names] = {}

    def open(self) -> None:
        """Begin to listen, in the running event loop; does nothing if that is so already."""
        if self._inotify is not None:
            return
        try:
            self._inotify = INotify(nonblocking=True)
        except OSError as error:
            self.limit = f"inotify is not available ({error.strerror}): drift is only polled"
            return
        asyncio.get_running_loop().add_reader(self._inotify.fileno(), self._read)

    def close(self) -> None:
        """Stop to listen."""
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify.fileno())
            self._inotify.close()
            self._inotify = None
            self._names = {}

    def set(self, wanted: Mapping[Path, Names]) -> None:
        """Watch exactly these directories, those of them that exist (may run in a thread)."""
        inotify = self._inotify
        if inotify is None:
            return
        self.limit = None
        names: dict[int, Names] = {}
        for path, those in wanted.items():
            try:
                watch = inotify.add_watch(path, self._mask)
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    self.limit = (
                        "fs.inotify.max_user_watches is used up: some of the drift is only "
                        "polled; raise it with boot.kernel.sysctl"
                    )
                continue
            names[watch] = those
        # A watch that stayed on a directory which was moved away or is no longer declared.
        stale = self._names.keys() - names.keys()
        self._names = names
        for watch in stale:
            try:
                inotify.rm_watch(watch)
            except OSError as error:
                if error.errno != errno.EINVAL:  # the kernel removed it with its directory
                    raise

    def _read(self) -> None:
        if self._inotify is None:
            return
        for event in self._inotify.read(timeout=0):
            if event.mask & flags.IGNORED:  # the end of a watch, and no change by itself
                continue
            # An overflow has no watch: everything may have changed.
            names = self._names.get(event.wd)
            if not event.name or names is None or event.name in names:
                self._on_event(event.name)
