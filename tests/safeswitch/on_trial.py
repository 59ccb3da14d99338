"""A system on trial, as its file tells of it."""

from typing import Any

from healer.safeswitch.deadman import Trial

TARGET, SOURCE = "/nix/store/target", "/nix/store/source"


def trial(**changes: Any) -> Trial:
    """Return one that has just begun, but for these fields."""
    made = Trial(
        leaf="leaf",
        boot="boot",
        target=TARGET,
        source=SOURCE,
        profile="/p",
        profile_before=SOURCE,
        confirm_sec=60,
        timeout_sec=900,
        package="/h",
        judge="/h",
        config="/c",
        uid=1,
        gid=1,
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made
