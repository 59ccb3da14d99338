"""systemctl(1) and systemd-run(1), for root's one-shot work."""

import os

from healer.host.program import run

_CURRENT_PROGRAMS = "/run/current-system/sw/bin"


def systemctl(*arguments: str, check: bool = True) -> str:
    """Run systemctl(1); as ``program.run``."""
    return run("systemctl", *arguments, check=check)


def systemd_run(*arguments: str) -> str:
    """Run systemd-run(1), for a unit with this process's PATH that is forgotten when it is over.

    It may begin when nothing of that PATH is left: the system that runs then has these programs.
    """
    environment = f"--setenv=PATH={os.environ.get('PATH', os.defpath)}:{_CURRENT_PROGRAMS}"
    return run("systemd-run", "--collect", "--quiet", environment, *arguments)


def show(unit: str, *properties: str, check: bool = True) -> dict[str, str]:
    """Return properties of a unit, as systemctl(1) prints them; as ``program.run``."""
    out = systemctl("show", f"--property={','.join(properties)}", unit, check=check)
    return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
