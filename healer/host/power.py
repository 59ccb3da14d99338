"""Reboots of the host: asked of systemd, which stops everything in order; never forced."""

import shutil
import subprocess

from healer.errors import RefusedError


def reboot(reason: str) -> None:
    """Ask for a reboot and return at once; logged-in people are told why. Needs root.

    To ask again while the host goes down changes nothing (systemctl(1), ``reboot``). Raises
    RefusedError when systemd does not begin it.
    """
    systemctl = shutil.which("systemctl")
    if systemctl is None:
        raise RefusedError("systemctl is not on the PATH of healer-helper@.service")
    command = [systemctl, "reboot", "--no-block", f"--message=healer: {reason}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RefusedError(f"systemctl reboot: {done.stderr.strip()}")
