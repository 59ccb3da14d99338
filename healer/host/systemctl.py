"""systemctl(1) and systemd-run(1), for root's one-shot work."""

import os
import shutil
import subprocess

from healer.errors import RefusedError

_CURRENT_PROGRAMS = "/run/current-system/sw/bin"


def run(name: str, *arguments: str, check: bool = True) -> str:
    """Run a program and return its output.

    Raises RefusedError when it is not there, and with its own words when it fails; the latter not
    where ``check`` is false.
    """
    program = shutil.which(name)
    if program is None:
        raise RefusedError(f"{name} is not on the PATH of healer-helper@.service")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise RefusedError(f"{name} {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def systemctl(*arguments: str, check: bool = True) -> str:
    """Run systemctl(1); as ``run``."""
    return run("systemctl", *arguments, check=check)


def systemd_run(*arguments: str) -> str:
    """Run systemd-run(1), for a unit with this process's PATH that is forgotten when it is over.

    It may begin when nothing of that PATH is left: the system that runs then has these programs.
    """
    environment = f"--setenv=PATH={os.environ.get('PATH', os.defpath)}:{_CURRENT_PROGRAMS}"
    return run("systemd-run", "--collect", "--quiet", environment, *arguments)


def show(unit: str, *properties: str, check: bool = True) -> dict[str, str]:
    """Return properties of a unit, as systemctl(1) prints them; as ``run``."""
    out = systemctl("show", f"--property={','.join(properties)}", unit, check=check)
    return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
