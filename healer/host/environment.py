"""What is wrong with the host itself: a file system that is full, a network that is gone.

Looked at while a deployment is judged: crashes at such a time are not the deployment's.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from healer.events import NO_DEFAULT_ROUTE

# Where agents and Nix write.
_WRITTEN = ("/", "/var", "/var/lib", "/var/log", "/tmp", "/run", "/nix/store")  # noqa: S108
_ROUTES = Path("/proc/net")
# With less than this, in bytes, what a program writes does not fit.
_FULL = 1024 * 1024
# linux/route.h, ipv6_route.h: the route is up, and it refuses.
_UP, _REJECT = 0x0001, 0x0200


class Environment:
    """Looks at the host; it remembers that there was a network, which a host need not have."""

    def __init__(self) -> None:
        self._had_route = False

    def look(self) -> list[str]:
        """Return what is wrong now, in words."""
        return [*full(_WRITTEN), *self._network()]

    def _network(self) -> Iterable[str]:
        has_route = has_default_route(_ROUTES)
        if self._had_route and not has_route:
            yield NO_DEFAULT_ROUTE
        self._had_route = self._had_route or has_route


def full(paths: Iterable[str]) -> list[str]:
    """Name each file system, by the first of its paths, that has no space or no inodes left."""
    found, seen = [], set()
    for path in paths:
        try:
            device, space = Path(path).stat().st_dev, os.statvfs(path)
        except OSError:
            continue
        if device in seen:
            continue
        seen.add(device)
        if space.f_bavail * space.f_frsize < min(_FULL, space.f_blocks * space.f_frsize):
            found.append(f"there is no space left on {path}")
        elif space.f_files and space.f_favail == 0:
            found.append(f"there are no inodes left on {path}")
    return found


def has_default_route(directory: Path) -> bool:
    """Whether there is a default route, of IPv4 or IPv6, in ``route`` and ``ipv6_route``."""
    for line in _lines(directory / "route"):
        fields = line.split()
        if len(fields) > 7 and fields[1] == fields[7] == "00000000" and _is_up(fields[3]):
            return True
    for line in _lines(directory / "ipv6_route"):
        fields = line.split()
        everywhere = len(fields) > 9 and fields[:2] == ["0" * 32, "00"]
        if everywhere and fields[9] != "lo" and _is_up(fields[8]):
            return True
    return False


def _is_up(flags: str) -> bool:
    return int(flags, 16) & (_UP | _REJECT) == _UP


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
