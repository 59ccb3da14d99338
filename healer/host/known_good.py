"""The known-good systems: generations of a profile of their own, which only root writes.

Such a profile roots them against garbage collection, gives them entries in the boot menu, and is
what root believes when it is asked to go back to one. A specialisation is rooted by its base.
"""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from healer.errors import RefusedError
from healer.host import nix

PROFILE = Path("/nix/var/nix/profiles/system-profiles/healer-known-good")


@dataclass(frozen=True, slots=True)
class Goal:
    """A toplevel to go back to: what the profile is set to, and the program that switches to it."""

    toplevel: str
    base: str
    switch: str


def root(toplevel: str, profile: Path, keep: int, came_up: Collection[str]) -> str:
    """Root a toplevel as known-good and return what was rooted.

    The last ``keep`` of them are kept, and the last of those that have come up in a boot, for that
    is where a boot that fails goes back to.
    """
    base, _ = nix.base_of(toplevel, profile, os.path.realpath(profile))
    PROFILE.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    nix.run_nix_env("--profile", str(PROFILE), "--set", base)
    links = nix.generations(PROFILE)
    proven = next((link for link in links if os.path.realpath(link) in came_up), None)
    past = [nix.number(link) for link in links[keep:] if link != proven]
    if past:
        nix.run_nix_env("--profile", str(PROFILE), "--delete-generations", *map(str, past))
    return base


def drop(toplevel: str) -> str:
    """Have a toplevel be known-good no more, and say what that leaves; it may be done twice.

    nix-env(1) removes no generation that is the current one: the newest of the others becomes that.
    Where there is none, the profile ends, as if nothing had ever been known to be good.
    """
    links = nix.generations(PROFILE)
    dropped = [link for link in links if os.path.realpath(link) == toplevel]
    kept = [link for link in links if link not in dropped]
    if not dropped:
        return "root did not keep it as known-good"
    profile = ("--profile", str(PROFILE))
    if kept:
        if newest() == toplevel:
            nix.run_nix_env(*profile, "--switch-generation", str(nix.number(kept[0])))
        numbers = [str(nix.number(link)) for link in dropped]
        nix.run_nix_env(*profile, "--delete-generations", *numbers)
        return f"{PROFILE} is {newest()}"
    PROFILE.unlink(missing_ok=True)
    for link in dropped:
        link.unlink(missing_ok=True)
    return "it was the only known-good system: until another is, no boot is gone back from"


def holds(toplevel: str) -> bool:
    """Whether root has rooted this toplevel as known-good."""
    return _find(PROFILE, toplevel) is not None


def find(toplevel: str, profile: Path) -> Goal:
    """Return how to go back to a known-good toplevel, or to a generation of ``profile``.

    RefusedError when it is none of these, or is gone.
    """
    nix.check_toplevel(toplevel)
    goal = _find(PROFILE, toplevel) or _find(profile, toplevel)
    if goal is None:
        raise RefusedError(f"{toplevel} is not among the known-good systems at {PROFILE}")
    return goal


def _find(profile: Path, toplevel: str) -> Goal | None:
    for base in map(os.path.realpath, nix.generations(profile)):
        if base == toplevel:
            return Goal(toplevel, base, f"{base}/bin/switch-to-configuration")
        for link in Path(base, "specialisation").glob("*"):
            if os.path.realpath(link) == toplevel:
                return Goal(toplevel, base, f"{link}/bin/switch-to-configuration")
    return None


def newest() -> str | None:
    """Return the last known-good system, or None."""
    return os.path.realpath(PROFILE) if PROFILE.exists() else None
