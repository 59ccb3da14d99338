"""How two toplevels differ as a whole: the store paths that each needs, and their sizes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from healer.errors import RefusedError
from healer.host import program

# Store paths of one command line; the kernel takes some 2 MB of arguments.
_PATHS = 2000


@dataclass(frozen=True, slots=True)
class Closure:
    """Store paths that are only in the one or only in the other, and the bytes of these (NAR)."""

    added: int
    removed: int
    bytes_added: int
    bytes_removed: int


def between(before: str, after: str) -> Closure:
    """Compare what two toplevels need. Needs root where there is no Nix daemon.

    RefusedError when Nix does not know one of them.
    """
    old, new = (set(_nix_store("--requisites", [toplevel])) for toplevel in (before, after))
    added, removed = new - old, old - new
    return Closure(len(added), len(removed), _size(added), _size(removed))


def _size(paths: Iterable[str]) -> int:
    return sum(int(size) for size in _nix_store("--size", paths))


def _nix_store(query: str, paths: Iterable[str]) -> Iterator[str]:
    ordered = sorted(paths)
    for first in range(0, len(ordered), _PATHS):
        done = program.completed("nix-store", "--query", query, *ordered[first : first + _PATHS])
        if done.returncode != 0:
            raise RefusedError(f"nix-store --query {query}: {program.last_words(done)}")
        yield from done.stdout.split()
