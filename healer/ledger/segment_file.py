"""The file under the writer's hand, and what to say when the disk refuses it."""

import errno
import os
from pathlib import Path

from healer import files


class SegmentFile:
    """The segment being written: all before ``size`` is durable.

    ``bad`` says why nothing more may be written to it; None while it is sound.
    """

    def __init__(self, path: Path, first: int, size: int) -> None:
        self.path = path
        self.first = first
        self.size = size
        self.bad: str | None = None
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            files.sync_directory(path.parent)
        except OSError:
            self.close()
            if size == 0:  # made anew next time, so that the directory is written again
                path.unlink(missing_ok=True)
            raise

    def append(self, data: bytes) -> None:
        """Make ``data`` durable; after an OSError the file ends at ``size``, or is bad."""
        state = os.fstat(self._fd)
        if state.st_size != self.size or state.st_nlink == 0:
            self.bad = f"changed by another hand: {state.st_size} bytes where {self.size} belong"
            raise OSError(errno.EIO, self.bad)
        try:
            files.write_all(self._fd, data)
        except OSError:
            self._undo()
            raise
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            # The kernel has dropped the pages it could not write and reports that once: a second
            # fdatasync would succeed without the data being on the disk.
            self.bad = f"fdatasync: {error.strerror}"
            raise
        self.size += len(data)

    def _undo(self) -> None:
        try:
            os.ftruncate(self._fd, self.size)
        except OSError as error:
            self.bad = f"ftruncate: {error.strerror}"

    def close(self) -> None:
        """Close the file; what was acknowledged is durable already."""
        os.close(self._fd)


_MENDS = {
    errno.ENOENT: "make its parent directory",
    errno.EACCES: "it must belong to the user that healer runs as",
    errno.EPERM: "it must belong to the user that healer runs as",
    errno.EEXIST: "a file is in its place: move that away",
    errno.ENOTDIR: "a file is in its place: move that away",
    errno.EROFS: "mount the file system read-write",
    errno.ENOSPC: "free space on its file system",
    errno.EDQUOT: "free space or raise the quota",
}


def io_message(directory: Path, error: OSError) -> str:
    """Say what the disk refused, where, and how to mend it."""
    mend = _MENDS.get(error.errno or 0, "check its disk (dmesg)")
    detail = error.strerror or str(error)
    return f"cannot write the ledger at {directory}: {detail}; {mend}"
