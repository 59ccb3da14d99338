"""Where the local machine keeps what it builds, and how two test workers share it.

Everything is below ``build/machine`` in the checkout, or below ``$HEALER_CACHE/machine``. A *layer*
is a directory that is built once, never changed afterwards, and named by a hash of what went into
it.
"""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent

# A layer is some 400 MB (a disk image: 1 GB), and each change of healer/ makes a new one.
_LAYERS_KEPT = 2

# Seconds in which a layer that was just asked for gets its shared lock from hold_layer().
_LAYER_GRACE = 600


def cache() -> Path:
    """Return the directory of everything that is built, making it first."""
    root = os.environ.get("HEALER_CACHE")
    directory = (Path(root).absolute() if root else CHECKOUT / "build") / "machine"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold flock(2) on PATH, waiting for it. The lock dies with the process, so none is stale."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield


def try_lock(path: Path) -> int | None:
    """Take PATH's lock for good and return its file descriptor, or None if another holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def digest(parts: Iterable[str | bytes]) -> str:
    """Return a short hash of PARTS, unambiguous about where each of them ends."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "big") + data)
    return total.hexdigest()[:16]


def source_files(directory: Path) -> list[Path]:
    """Return the files below DIRECTORY that count as source, in a fixed order."""
    return sorted(
        path
        for path in directory.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    )


def layer(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """Return the layer KIND-KEY, calling BUILD with an empty directory if there is none yet.

    The directory gets its name only when BUILD has returned, so an interrupted build leaves
    nothing behind that could be taken for a layer.
    """
    final = cache() / f"{kind}-{key}"
    with locked(cache() / f"{kind}.lock"):
        if not final.exists():
            scratch = cache() / f"{kind}-{key}.tmp"
            remove(scratch)
            scratch.mkdir()
            build(scratch)
            scratch.rename(final)
            _prune(kind, keep=final)
        os.utime(final)
    return final


def hold_layer(path: Path) -> int:
    """Keep a layer from being pruned while a machine uses it; close the descriptor when done."""
    descriptor = os.open(_lock_of(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def remove(path: Path) -> None:
    """Remove a tree if it is there."""
    if path.exists():
        shutil.rmtree(path)


def _lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _prune(kind: str, *, keep: Path) -> None:
    others = [path for path in cache().glob(f"{kind}-*") if path.is_dir() and path != keep]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in others[_LAYERS_KEPT - 1 :]:
        if time.time() - path.stat().st_mtime < _LAYER_GRACE:
            continue
        descriptor = try_lock(_lock_of(path))
        if descriptor is not None:
            remove(path)
            _lock_of(path).unlink(missing_ok=True)
            os.close(descriptor)
