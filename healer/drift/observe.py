"""What is at a path, seen without root and without trusting what is there."""

import errno
import hashlib
import os
import stat
from pathlib import Path

from healer.drift.compare import ABSENT, Kind, Node

# Hashing more than this of one file would let whoever writes it keep healer busy.
HASH_BYTES = 16 * 1024 * 1024


def observe(path: Path, *, follow: bool) -> Node:
    """Return what is at ``path``; with ``follow`` a link's node holds what it leads to as well.

    Raises nothing: an error other than "there is nothing" is an unreadable node.
    """
    try:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            return _link(path, follow=follow)
        if stat.S_ISDIR(status.st_mode):
            return Node(Kind.DIRECTORY)
        return observe_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return ABSENT
    except OSError as error:
        return unreadable(error)


def observe_file(path: Path) -> Node:
    """Return the node of the file that ``path`` leads to; OSError as from stat(2) and read(2).

    Without the right to read a file its mode, owners and size are still known: healer is not
    root, and a file with mode 0440 is not drift. Only regular files are opened: opening a device
    can set it off, and opening a FIFO can wait for ever.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        return Node(Kind.OTHER)
    content = None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except PermissionError:
        pass
    else:
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            content = file.read(HASH_BYTES) if stat.S_ISREG(status.st_mode) else None
    return Node(
        Kind.FILE,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        size=status.st_size,
        sha256=None if content is None else hashlib.sha256(content).hexdigest(),
        hashed=None if content is None else len(content),
    )


def observe_directory(path: Path) -> Node:
    """Return what is at ``path``, unreadable where it is a directory that cannot be searched."""
    node = observe(path, follow=False)
    if node.kind is Kind.DIRECTORY:
        try:
            os.lstat(f"{path}/.")
        except OSError as error:
            return unreadable(error)
    return node


def unreadable(error: OSError) -> Node:
    """Return the node of what cannot be looked at, with the errno's name (errno(3))."""
    return Node(Kind.UNREADABLE, error=errno.errorcode.get(error.errno or 0, str(error.errno)))


def printable(path: str) -> str:
    """Return a file name as valid Unicode: bytes that are not UTF-8 become backslash escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _link(path: Path, *, follow: bool) -> Node:
    target = printable(str(path.readlink()))
    if not follow:
        return Node(Kind.LINK, target=target)
    try:
        content = observe_file(path)
    except OSError:
        return Node(Kind.LINK, target=target)
    return Node(
        Kind.LINK,
        target=target,
        mode=content.mode,
        uid=content.uid,
        gid=content.gid,
        size=content.size,
        sha256=content.sha256,
        hashed=content.hashed,
    )
