"""When a rollback that needs a boot may reboot the host: what the owner allows.

Pure: the policy, the window and the local time of day go in.
"""

from healer.config import SafeSwitch


def may_reboot(config: SafeSwitch, minute_of_day: int) -> bool:
    """Whether the host may be rebooted now; a window may go over midnight."""
    if config.reboot != "window":
        return config.reboot == "at-once"
    lower, upper = _minutes(config.reboot_window.lower), _minutes(config.reboot_window.upper)
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


def _minutes(time: str) -> int:
    """Return the minutes since midnight of HH:MM."""
    hours, _, minutes = time.partition(":")
    return int(hours) * 60 + int(minutes)
