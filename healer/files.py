"""Files that are either there completely after a power cut, or not at all."""

import os
import tempfile
from pathlib import Path


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable (fsync(2))."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    """Write all of ``data``: one write(2), and further ones only where the kernel took less."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_atomically(path: Path, data: bytes, mode: int, *, durable: bool = True) -> None:
    """Write a file under a temporary name, then rename it into place; OSError if that fails.

    The temporary name is this call's own: two processes may write the same file, and the later
    one's stays. What is not ``durable`` is not synchronised to the disk (below /run, say).
    """
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent)
    try:
        try:
            os.fchmod(fd, mode)
            write_all(fd, data)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        Path(temporary).rename(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if durable:
        sync_directory(path.parent)
