#!/usr/bin/python3 -I
"""``<toplevel>/bin/switch-to-configuration``: behaves like NixOS's in what healer relies on.

Written from the behaviour of nixpkgs' switch-to-configuration-ng, none of its code: the lock, the
exit codes, the order of steps, what is stopped, restarted, reloaded or left alone, and the lists
that let the next run finish what an interrupted one began. Left out: fstab and swap, user units,
nspawn containers, lists written by activation scripts.

Exit codes: 0 done; 1 refused by a check, boot loader failed, wrong usage; 2 activation failed; 4 a
unit failed or is in auto-restart with a non-zero status; 100 a reboot is needed; 11 (EAGAIN)
another run holds the lock.
"""

import fcntl
import json
import os
import re
import subprocess
import sys
import syslog
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

TOPLEVEL = Path(__file__).resolve().parents[1]
UNITS = TOPLEVEL / "etc/systemd/system"
CURRENT = Path("/run/current-system")
CURRENT_UNITS = Path("/etc/systemd/system")
STATE = Path("/run/nixos")
LOADER = Path("/boot/loader")
GENERATIONS = Path("/nix/var/nix/profiles")

USAGE = "Usage: switch-to-configuration [check|switch|boot|test|dry-activate]"
ACTIONS = {"check", "switch", "boot", "test", "dry-activate"}
# Restarting these is never what a changed unit file asks for.
NEVER_RESTARTED = {"sysinit.target", "basic.target", "multi-user.target", "graphical.target"}
NEVER_STARTED = {"suspend.target", "hibernate.target", "hybrid-sleep.target"}
# Keys of [Unit] whose change alone restarts nothing.
NO_RESTART = {
    "X-Reload-Triggers",
    "Description",
    "Documentation",
    "OnFailure",
    "OnSuccess",
    "OnFailureJobMode",
    "IgnoreOnIsolate",
    "StopWhenUnneeded",
    "RefuseManualStart",
    "RefuseManualStop",
    "AllowIsolate",
    "CollectMode",
    "SourcePath",
}
# How long the bus has to be quiet before failed units are counted.
SETTLE_SEC = 0.25

UnitFile = dict[str, dict[str, list[str]]]


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def environment_says(name: str) -> bool:
    return os.environ.get(name) == "1"


# Unit files ---------------------------------------------------------------------------------------


def read_ini(into: UnitFile, text: str) -> None:
    """Add the assignments of one file; an empty one clears what was assigned before."""
    section: dict[str, list[str]] = {}
    for raw in text.replace("\\\n", " ").splitlines():
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        if line.startswith("["):
            name = line.strip("[]")
            section = {} if name == "Install" else into.setdefault(name, {})
            continue
        key, _, value = (part.strip() for part in line.partition("="))
        if value:
            section.setdefault(key, []).append(value)
        else:
            section[key] = []


def read_unit(directory: Path, unit: str) -> UnitFile:
    """Read a unit with its drop-ins; an instance without a file of its own is its template."""
    data: UnitFile = {}
    for name in dict.fromkeys((template_of(directory, unit), unit)):
        files = [directory / name, *sorted((directory / f"{name}.d").glob("*.conf"))]
        for file in files:
            if file.exists():
                read_ini(data, file.read_text())
    return data


def template_of(directory: Path, unit: str) -> str:
    match = re.fullmatch(r"(.*)@[^.]*\.(.*)", unit)
    if match and not (directory / unit).exists():
        return f"{match[1]}@.{match[2]}"
    return unit


def exists(directory: Path, unit: str) -> bool:
    file = directory / template_of(directory, unit)
    return file.exists() and file.resolve() != Path("/dev/null")


def flag(data: UnitFile, section: str, key: str, default: bool) -> bool:
    values = data.get(section, {}).get(key)
    return values[-1] in {"1", "yes", "true", "on"} if values else default


def compare(old: UnitFile, new: UnitFile) -> str:
    """Say what a changed unit file needs: "nothing", "reload" or "restart"."""
    result = "nothing"
    for section in old.keys() | new.keys():
        before, after = old.get(section, {}), new.get(section, {})
        for key in before.keys() | after.keys():
            if before.get(key) == after.get(key):
                continue
            triggers = section == "Unit" and key == "X-Reload-Triggers" and key in after
            options = section == "Mount" and key == "Options" and key in before and key in after
            if triggers or options:
                result = "reload"
            elif section != "Unit" or key not in NO_RESTART:
                return "restart"
    return result


# What is to be done -------------------------------------------------------------------------------


@dataclass(slots=True)
class Plan:
    """The units to act on. What must survive an interruption is also in a list below STATE."""

    record: bool
    stop: set[str] = field(default_factory=set)
    skip: set[str] = field(default_factory=set)
    hidden: set[str] = field(default_factory=set)
    start: set[str] = field(default_factory=set)
    restart: set[str] = field(default_factory=set)
    reload: set[str] = field(default_factory=set)

    def resume(self) -> None:
        """Take up what an interrupted run has left to do."""
        for name in ("start", "restart", "reload"):
            file = list_file(name)
            if file.exists():
                getattr(self, name).update(filter(None, file.read_text().splitlines()))

    def note(self, name: str, unit: str) -> None:
        getattr(self, name).add(unit)
        if self.record:
            with list_file(name).open("a") as file:
                file.write(f"{unit}\n")

    def unnote_reload(self, unit: str) -> None:
        self.reload.discard(unit)
        file = list_file("reload")
        if self.record and file.exists():
            kept = [line for line in file.read_text().splitlines() if line != unit]
            file.write_text("".join(f"{line}\n" for line in kept))


def list_file(name: str) -> Path:
    return STATE / f"{name}-list"


def plan_unit(plan: Plan, unit: str, active: Mapping[str, "Active"]) -> None:
    """Decide on one unit that is running and that the running system declares."""
    if not exists(UNITS, unit):
        if flag(read_unit(CURRENT_UNITS, unit), "Unit", "X-StopOnRemoval", True):
            plan.stop.add(unit)
        return
    new = read_unit(UNITS, unit)
    if unit.endswith(".target"):
        refuses = flag(new, "Unit", "RefuseManualStart", False)
        manual = flag(new, "Unit", "X-OnlyManualStart", False)
        if unit not in NEVER_STARTED and not refuses and not manual:
            # Starting every active target starts what it now wants.
            plan.note("start", unit)
            plan.hidden.add(unit)
        if flag(new, "Unit", "X-StopOnReconfiguration", False):
            plan.stop.add(unit)
        return
    match compare(read_unit(CURRENT_UNITS, unit), new):
        case "restart":
            plan_changed(plan, unit, new, active)
        case "reload" if unit not in plan.restart:
            plan.note("reload", unit)


def plan_changed(plan: Plan, unit: str, new: UnitFile, active: Mapping[str, "Active"]) -> None:
    if unit in NEVER_RESTARTED or unit.endswith((".slice", ".socket")):
        return
    if unit.endswith(".mount"):
        plan.note("reload" if unit in {"-.mount", "nix.mount"} else "restart", unit)
    elif flag(new, "Service", "X-ReloadIfChanged", False) and unit not in plan.restart | plan.stop:
        plan.note("reload", unit)
    elif (
        not flag(new, "Service", "X-RestartIfChanged", True)
        or flag(new, "Unit", "RefuseManualStop", False)
        or flag(new, "Unit", "X-OnlyManualStart", False)
    ):
        plan.skip.add(unit)
    elif not flag(new, "Service", "X-StopIfChanged", True) or not unit.endswith(".service"):
        plan.note("restart", unit)
        plan.unnote_reload(unit)
    else:
        by_socket = plan_sockets(plan, unit, new, active)
        if not by_socket or flag(new, "Service", "X-NotSocketActivated", False):
            plan.note("start", unit)
        plan.stop.add(unit)
        plan.unnote_reload(unit)


def plan_sockets(plan: Plan, unit: str, new: UnitFile, active: Mapping[str, "Active"]) -> bool:
    """Stop a changed service's sockets with it, and start them instead of the service."""
    base = template_of(UNITS, unit).removesuffix(".service")
    named = " ".join(new.get("Service", {}).get("Sockets", [])).split()
    activated = False
    for socket in named or [f"{base}.socket"]:
        if socket in active:
            plan.stop.add(socket)
            if exists(UNITS, socket):
                plan.note("start", socket)
                activated = True
    return activated


# systemd ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Active:
    state: str
    sub: str


def active_units() -> dict[str, Active]:
    command = ["systemctl", "list-units", "--all", "--full", "--output=json"]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return {
        unit["unit"]: Active(unit["active"], unit["sub"])
        for unit in json.loads(answer.stdout)
        if unit["active"] != "inactive"
    }


def job(verb: str, units: Iterable[str]) -> bool:
    """Submit the jobs, and wait for them without a timeout, as the real program does."""
    names = sorted(units, key=str.lower)
    if not names:
        return True
    return subprocess.run(["systemctl", verb, "--", *names], check=False).returncode == 0


def show(unit: str, name: str) -> str:
    command = ["systemctl", "show", "--value", "-p", name, "--", unit]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def manager(verb: str) -> None:
    subprocess.run(["systemctl", verb], check=False)


def failed_units() -> list[str]:
    """Return what counts as failed: also a service that only waits for its next start."""
    time.sleep(SETTLE_SEC)
    return sorted(
        unit
        for unit, active in active_units().items()
        if active.state == "failed"
        or (
            active.sub == "auto-restart"
            and unit.endswith(".service")
            and show(unit, "ExecMainStatus") != "0"
        )
    )


# The steps ----------------------------------------------------------------------------------------


def pre_switch_checks(action: str) -> None:
    """Refuse with exit code 1 before anything has changed; NIXOS_NO_CHECK=1 goes past it."""
    if environment_says("NIXOS_NO_CHECK"):
        return
    if action in {"check", "switch", "test"}:
        old, new = (read_inhibitors(system) for system in (CURRENT, TOPLEVEL))
        changed = [key for key in old if key in new and old[key] != new[key]]
        if changed:
            say("there are changes to critical components of the system:")
            for key in changed:
                say(f"{key} : {old[key]} -> {new[key]}")
            say("you probably want to run 'nixos-rebuild boot' and reboot your system instead")
            refuse("Pre-switch checks failed")
    if not run_script("preSwitchCheck", str(TOPLEVEL), action):
        refuse("Pre-switch checks failed")


def read_inhibitors(system: Path) -> dict[str, str]:
    file = system / "switch-inhibitors"
    inhibitors: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    return inhibitors


def run_script(name: str, *arguments: str) -> bool:
    script = TOPLEVEL / "scripts" / name
    return not script.exists() or subprocess.run([script, *arguments], check=False).returncode == 0


def refuse(message: str) -> None:
    say(message)
    sys.exit(1)


def install_boot_loader() -> None:
    """Make this system the boot default: durable, and never half of one and half of the other."""
    if not run_script("bootLoaderScript", str(TOPLEVEL)):
        refuse("Failed to install bootloader")
    entry = f"nixos-generation-{generation()}.conf"
    (LOADER / "entries").mkdir(parents=True, exist_ok=True)
    options = f"title NixOS\noptions init={TOPLEVEL}/init\n"
    write_durably(LOADER / "entries" / entry, options)
    write_durably(LOADER / "loader.conf", f"timeout 5\ndefault {entry}\n")


def generation() -> int:
    """Return the number of this system's newest generation; 0 for one that is in no profile."""
    links = GENERATIONS.glob("system-*-link")
    numbers = [int(link.name.split("-")[1]) for link in links if link.resolve() == TOPLEVEL]
    return max(numbers, default=0)


def write_durably(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}.new")
    scratch.write_text(text)
    with scratch.open() as file:
        os.fsync(file.fileno())
    scratch.rename(path)
    directory = os.open(path.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def same_file(one: Path, other: Path) -> bool:
    resolved = [path.resolve() if path.exists() else None for path in (one, other)]
    return resolved[0] == resolved[1]


def make_plan(action: str) -> tuple[Plan, dict[str, Active]]:
    plan = Plan(record=action != "dry-activate")
    plan.resume()
    active = active_units()
    for unit, state in active.items():
        running = state.state in {"active", "activating"}
        if running and (CURRENT_UNITS / template_of(CURRENT_UNITS, unit)).exists():
            plan_unit(plan, unit, active)
    return plan, active


def announce(phrase: str, units: Iterable[str]) -> None:
    names = sorted(units, key=str.lower)
    if names:
        say(f"{phrase} the following units: {', '.join(names)}")


def dry_activate(plan: Plan, reexec: bool) -> None:
    announce("would stop", plan.stop - plan.hidden)
    announce("would NOT stop changed", plan.skip)
    say("would activate the configuration...")
    if reexec:
        say("would restart systemd")
    announce("would reload", plan.reload)
    announce("would restart", plan.restart)
    announce("would start", plan.start - plan.hidden)


def apply(plan: Plan, reexec: bool) -> int:
    """Carry out the plan and return the exit code."""
    announce("stopping", plan.stop - plan.hidden)
    job("stop", plan.stop)
    announce("NOT restarting changed", plan.skip)

    code = 0
    say("activating the configuration...")
    if subprocess.run([TOPLEVEL / "activate", TOPLEVEL], check=False).returncode != 0:
        say("Failed to run activate script")
        code = 2

    if reexec:
        say("restarting systemd...")
        manager("daemon-reexec")
    manager("reset-failed")
    manager("daemon-reload")
    if not job("restart", ["sysinit-reactivation.target"]):
        code = 4

    # A unit to be reloaded may have gone down with one that it requires: start it instead.
    running = active_units()
    for unit in sorted(plan.reload):
        if unit not in running or running[unit].state not in {"active", "activating"}:
            plan.note("start", unit)
            plan.unnote_reload(unit)
    for verb, phrase in (("reload", "reloading"), ("restart", "restarting"), ("start", "starting")):
        units: set[str] = getattr(plan, verb)
        announce(phrase, units - plan.hidden)
        if not job(verb, units):
            code = 4
        list_file(verb).unlink(missing_ok=True)
    return code


def report(before: Mapping[str, Active], code: int) -> int:
    failed = failed_units()
    new = [unit for unit in active_units() if unit not in before and unit not in failed]
    announce("started new:", [unit for unit in new if not unit.endswith(".scope")])
    if failed:
        say(f"warning: the following units failed: {', '.join(failed)}")
        subprocess.run(["systemctl", "status", "--no-pager", "--full", "--", *failed], check=False)
        return 4
    return code


def switch(action: str) -> int:
    os.environ["NIXOS_ACTION"] = action
    pre_switch_checks(action)
    if action == "check":
        return 0
    if action in {"switch", "boot"}:
        install_boot_loader()
    if not environment_says("NIXOS_NO_SYNC"):
        subprocess.run(["sync", "--file-system", "/nix/store"], check=True)
    if action == "boot":
        return 0

    version = CURRENT / "init-interface-version"
    running_version = version.read_text() if version.exists() else ""
    if running_version != (TOPLEVEL / "init-interface-version").read_text():
        say("Warning: the new NixOS configuration has an init that is incompatible with the")
        say("current one's. It won't take effect until you reboot the system.")
        return 100

    reexec = (CURRENT / "systemd").resolve() != (TOPLEVEL / "systemd").resolve() or not same_file(
        CURRENT / "etc/systemd/system.conf", TOPLEVEL / "etc/systemd/system.conf"
    )
    plan, before = make_plan(action)
    if action == "dry-activate":
        dry_activate(plan, reexec)
        return 0
    syslog.syslog(f"switching to system configuration {TOPLEVEL}")
    code = report(before, apply(plan, reexec))
    if code == 0:
        syslog.syslog(f"finished switching to system configuration {TOPLEVEL}")
    else:
        syslog.syslog(
            syslog.LOG_ERR, f"switching to system configuration {TOPLEVEL} failed (status {code})"
        )
    return code


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in ACTIONS:
        refuse(USAGE)
    if os.geteuid() != 0:
        refuse("switch-to-configuration must be run as the root user")
    if not Path("/etc/NIXOS").is_file():
        refuse("This is not a NixOS installation!")
    syslog.openlog("nixos", facility=syslog.LOG_USER)
    STATE.mkdir(mode=0o755, exist_ok=True)
    # PEP 446: the programs started below do not inherit it, so the lock ends with this process.
    with (STATE / "switch-to-configuration.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            # The real one, like Perl's die before it, makes errno its exit code.
            say("Could not acquire lock")
            return error.errno or 1
        return switch(sys.argv[1])


if __name__ == "__main__":
    sys.exit(main())
