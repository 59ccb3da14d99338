"""Programs on root's PATH, for its one-shot work."""

import shutil
import subprocess

from healer.errors import RefusedError

# A program may print without end; of what it says this much is told, the last of it.
_TOLD = 2000


def path(name: str) -> str:
    """Return the path of a program; RefusedError where it is not there."""
    found = shutil.which(name)
    if found is None:
        raise RefusedError(f"{name} is not on the PATH of healer-helper@.service")
    return found


def completed(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, whatever that is; RefusedError where it is not there.

    What it prints need not be UTF-8.
    """
    return subprocess.run(
        [path(name), *arguments], capture_output=True, text=True, errors="replace", check=False
    )


def run(name: str, *arguments: str, check: bool = True) -> str:
    """Run a program and return its output.

    Raises RefusedError when it is not there, and with its own words when it fails; the latter not
    where ``check`` is false.
    """
    done = completed(name, *arguments)
    if check and done.returncode != 0:
        raise RefusedError(f"{name} {' '.join(arguments)}: {last_words(done)}")
    return done.stdout


def last_words(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a program said last on its standard error."""
    return done.stderr.strip()[-_TOLD:]
