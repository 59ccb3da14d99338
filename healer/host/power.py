"""Reboots of the host: asked of systemd, which stops everything in order; never forced."""

from healer.host.systemctl import systemctl


def reboot(reason: str) -> None:
    """Ask for a reboot and return at once; logged-in people are told why. Needs root.

    To ask again while the host goes down changes nothing (systemctl(1), ``reboot``). Raises
    RefusedError when systemd does not begin it.
    """
    systemctl("reboot", "--no-block", f"--message=healer: {reason}")
