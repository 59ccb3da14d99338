"""The known-good systems: generations of a profile of their own, which only root writes.

Such a profile gives them entries in the boot menu, and is what root believes when it is asked to go
back to one. But `nix-collect-garbage -d` removes every generation of every profile that is not the
current one: so each is rooted by a link beside it as well. A specialisation is rooted by its base.
"""

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from healer.errors import RefusedError
from healer.host import nix

PROFILE = Path("/nix/var/nix/profiles/system-profiles/healer-known-good")
ROOTS = Path("/nix/var/nix/gcroots/healer/known-good")
"""What the links are named after, in the way of a profile's generations."""


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
    there = systems()
    proven = [system for system in there if system in came_up][:1]
    _keep({*there[:keep], *proven})
    return base


def drop(toplevel: str) -> str:
    """Have a toplevel be known-good no more, and say what that leaves; it may be done twice.

    Where it was the only one, the profile ends, as if nothing had ever been known to be good.
    """
    there = systems()
    if toplevel not in there:
        return "root did not keep it as known-good"
    kept = [system for system in there if system != toplevel]
    if kept:
        if newest() == toplevel:  # nix-env(1) removes no generation that is the current one
            nix.run_nix_env("--profile", str(PROFILE), "--set", kept[0])
        _keep(kept)
        return f"{PROFILE} is {newest()}"
    for link in (PROFILE, *nix.generations(PROFILE), *nix.generations(ROOTS)):
        link.unlink(missing_ok=True)
    return "it was the only known-good system: until another is, no boot is gone back from"


def systems() -> list[str]:
    """Return the systems that the known-good ones are or are based on, the newest first."""
    links = [*nix.generations(PROFILE), *nix.generations(ROOTS)]
    links.sort(key=nix.number, reverse=True)
    return list(dict.fromkeys(map(os.path.realpath, links)))


def _keep(kept: Collection[str]) -> None:
    """Keep these systems, each by its newest generation and by a link of the same number."""
    past, own = [], {}
    for link in nix.generations(PROFILE):
        system = os.path.realpath(link)
        if system in kept and system not in own:
            own[system] = ROOTS.with_name(f"{ROOTS.name}-{nix.number(link)}-link")
        else:
            past.append(str(nix.number(link)))
    ROOTS.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    for system, link in own.items():
        if os.path.realpath(link) != system:
            link.unlink(missing_ok=True)
            link.symlink_to(system)
    for link in nix.generations(ROOTS):
        system = os.path.realpath(link)
        if system not in kept or own.setdefault(system, link) != link:
            link.unlink()
    if past:
        nix.run_nix_env("--profile", str(PROFILE), "--delete-generations", *past)


def holds(toplevel: str) -> bool:
    """Whether root has rooted this toplevel as known-good."""
    return _find(systems(), toplevel) is not None


def find(toplevel: str, profile: Path) -> Goal:
    """Return how to go back to a known-good toplevel, or to a generation of ``profile``.

    RefusedError when it is none of these, or is gone.
    """
    nix.check_toplevel(toplevel)
    deployed = map(os.path.realpath, nix.generations(profile))
    goal = _find(systems(), toplevel) or _find(deployed, toplevel)
    if goal is None:
        raise RefusedError(f"{toplevel} is not among the known-good systems at {PROFILE}")
    return goal


def _find(bases: Iterable[str], toplevel: str) -> Goal | None:
    for base in bases:
        if base == toplevel:
            return Goal(toplevel, base, f"{base}/bin/switch-to-configuration")
        for link in Path(base, "specialisation").glob("*"):
            if os.path.realpath(link) == toplevel:
                return Goal(toplevel, base, f"{link}/bin/switch-to-configuration")
    return None


def newest() -> str | None:
    """Return the last known-good system, or None."""
    return os.path.realpath(PROFILE) if PROFILE.exists() else None
