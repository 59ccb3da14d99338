"""When a rollback that needs a boot may reboot the host: what the owner allows.

Pure: the policy, the window and the local time of day go in.
"""

import re

from healer.config import SafeSwitch

_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")


def minutes(time: str) -> int | None:
    """Return the minutes since midnight of HH:MM; None for what is no such time."""
    match = _TIME.fullmatch(time)
    return int(match[1]) * 60 + int(match[2]) if match else None


def may_reboot(config: SafeSwitch, minute_of_day: int) -> bool:
    """Whether the host may be rebooted now; a window may go over midnight."""
    if config.reboot != "window":
        return config.reboot == "at-once"
    lower, upper = minutes(config.reboot_window.lower), minutes(config.reboot_window.upper)
    if lower is None or upper is None:
        return False
    if lower <= upper:
        return lower <= minute_of_day < upper
    return minute_of_day >= lower or minute_of_day < upper


def in_words(config: SafeSwitch) -> str:
    """Say when the reboot comes."""
    return {
        "at-once": "the host reboots now",
        "never": "somebody has to reboot the host (safeSwitch.reboot is never)",
        "window": f"the host reboots between {config.reboot_window.lower} and "
        f"{config.reboot_window.upper}",
    }[config.reboot]
