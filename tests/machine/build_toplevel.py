"""Nix builder (Python's standard library only): a system toplevel out of toplevel.nix's spec."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_INIT = """\
#!/bin/sh
# Stage 2: what the boot loader starts as PID 1. Activates this very system, then becomes systemd.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mountpoint -q /proc || mount -t proc proc /proc
mountpoint -q /sys || mount -t sysfs sysfs /sys
mountpoint -q /run || mount -t tmpfs -o mode=0755,nodev,nosuid tmpfs /run
{out}/activate {out} || echo "stage 2: activation failed" >&2
ln -sfn {out} /run/booted-system
exec /usr/lib/systemd/systemd "$@"
"""

# The units that every NixOS system has and that the switch relies on.
_RESETUP = """\
[Unit]
Description=Re-setup tmpfiles on a system that is already running.
DefaultDependencies=no
RequiresMountsFor=/
After=systemd-sysusers.service systemd-journald.service
Before=sysinit-reactivation.target
X-Restart-Triggers={triggers}

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=systemd-tmpfiles --create --remove --exclude-prefix=/dev
SuccessExitStatus=DATAERR CANTCREAT
"""
_REACTIVATION = """\
[Unit]
Description=Reactivate sysinit units
DefaultDependencies=no
Wants=systemd-tmpfiles-resetup.service
After=systemd-tmpfiles-resetup.service
"""

_ORDERING = {
    "after": "After",
    "before": "Before",
    "bindsTo": "BindsTo",
    "conflicts": "Conflicts",
    "onFailure": "OnFailure",
    "partOf": "PartOf",
    "requires": "Requires",
    "wants": "Wants",
}
# systemd.services.<name>.… and what NixOS writes for it where it is not the default.
_SWITCH_FLAGS = {
    "restartIfChanged": ("X-RestartIfChanged", True),
    "reloadIfChanged": ("X-ReloadIfChanged", False),
    "stopIfChanged": ("X-StopIfChanged", True),
    "notSocketActivated": ("X-NotSocketActivated", False),
}
_KINDS = {
    "services": ("service", "Service"),
    "sockets": ("socket", "Socket"),
    "timers": ("timer", "Timer"),
    "targets": ("target", None),
}

Unit = Mapping[str, Any]


def value_text(value: object) -> str:
    """Write a value as a unit file has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def assignments(values: Mapping[str, Any]) -> Iterable[str]:
    """Write KEY=VALUE lines; a list stands for one line per element, null for none."""
    for key, value in sorted(values.items()):
        if value is None:
            continue
        for each in value if isinstance(value, list) else [value]:
            yield f"{key}={value_text(each)}"


def unit_text(unit: Unit, section: str | None) -> str:
    """Render one unit the way NixOS's serviceToUnit does."""
    head = [f"{key}={' '.join(unit[name])}" for name, key in _ORDERING.items() if unit.get(name)]
    if unit.get("description"):
        head.append(f"Description={unit['description']}")
    lines = ["[Unit]", *head, *assignments(unit.get("unitConfig", {}))]
    if section is not None:
        lines += ["", f"[{section}]"]
        for name, text in sorted(unit.get("environment", {}).items()):
            if text is not None:
                lines.append(f"Environment={json.dumps(f'{name}={value_text(text)}')}")
        for name, (key, default) in _SWITCH_FLAGS.items():
            if unit.get(name, default) != default:
                lines.append(f"{key}={value_text(unit[name])}")
        lines += assignments(unit.get(f"{section.lower()}Config", {}))
    return "\n".join(lines) + "\n"


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file, making its directories."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(mode)


def write_units(units: Path, spec: Mapping[str, Any]) -> None:
    """Write all unit files, with the links that wantedBy and requiredBy stand for."""
    units.mkdir()
    for unit in Path(spec["upstream"]).iterdir():
        (units / unit.name).symlink_to(unit.readlink() if unit.is_symlink() else unit)
    (units / "default.target").unlink()
    (units / "default.target").symlink_to("multi-user.target")
    triggers = hashlib.sha256("\n".join(spec["tmpfiles"]).encode()).hexdigest()
    write(units / "systemd-tmpfiles-resetup.service", _RESETUP.format(triggers=triggers))
    write(units / "sysinit-reactivation.target", _REACTIVATION)
    for kind, (suffix, section) in _KINDS.items():
        for name, unit in spec[kind].items():
            full = f"{name}.{suffix}"
            write(units / full, unit_text(unit, section))
            for directory, wanted in (("wants", "wantedBy"), ("requires", "requiredBy")):
                for target in unit.get(wanted, []):
                    link = units / f"{target}.{directory}" / full
                    link.parent.mkdir(exist_ok=True)
                    link.symlink_to(f"../{full}")
    for name, unit in spec["adopted"].items():
        write(units / f"{name}.service.d" / "overrides.conf", unit_text(unit, "Service"))


def script(text: str) -> str:
    """Wrap a test's shell text into a program."""
    return f"#!/bin/sh\nset -eu\n{text}\n"


def main() -> None:
    attributes = json.loads(Path(os.environ["NIX_ATTRS_JSON_FILE"]).read_text())
    out, spec = Path(attributes["outputs"]["out"]), attributes["spec"]
    etc = out / "etc"
    for name, text in spec["etc"].items():
        write(etc / name, text)
    write(etc / "NIXOS", "")
    write(etc / "tmpfiles.d" / "00-nixos.conf", "".join(f"{line}\n" for line in spec["tmpfiles"]))
    users = "".join(f"u {user} -\n" for user in dict.fromkeys(spec["users"]))
    write(etc / "sysusers.d" / "00-nixos.conf", users)
    write_units(out / "units", spec)
    (etc / "systemd").mkdir(exist_ok=True)
    (etc / "systemd" / "system").symlink_to(out / "units")

    write(out / "init", _INIT.format(out=out), 0o755)
    for name, source in spec["programs"].items():
        write(out / name, Path(source).read_text(), 0o755)
    for name in ("activationScript", "preSwitchCheck", "bootLoaderScript"):
        if spec[name]:
            write(out / "scripts" / name, script(spec[name]), 0o755)
    write(out / "nixos-version", spec["label"])
    write(out / "init-interface-version", spec["initInterfaceVersion"])
    write(out / "switch-inhibitors", json.dumps(spec["switchInhibitors"]))
    for name, target in spec["parts"].items():
        (out / name).symlink_to(target)
    (out / "specialisation").mkdir()
    for name, target in spec["specialisation"].items():
        (out / "specialisation" / name).symlink_to(target)
    (out / "sw" / "bin").mkdir(parents=True)
    if spec["package"] is not None:
        (out / "sw" / "bin" / "healer").symlink_to(f"{spec['package']}/bin/healer")


main()
