"""A host as root's rollback finds it: a directory tree with real systems, profiles and a /boot.

The rollback's own code and its sh run here as they are, on real files. What a machine would have
and this has not: systemd (a transient unit is a process here) and Nix (``nix-env --set`` is some
sh). Each system's switch-to-configuration is sh as well, with the steps and exit codes of the real
one.
"""

import hashlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from healer import helper
from healer.config import Agent, Config, SafeSwitch
from healer.errors import RefusedError
from healer.host import (
    bootloader,
    clock,
    hooks,
    known_good,
    nix,
    power,
    space,
    switching,
    transient,
)
from healer.ledger.entry import Entry
from healer.safeswitch import rollback
from healer.safeswitch.rollback import Progress

# The steps of switch-to-configuration in their order; $t is the tree, $o the system's own toplevel.
# A file of a step's name makes it fail, and one that is named for that kills the whole unit there.
_SWITCH = """\
#!/bin/sh
t={tree} o={toplevel}
at() {{
  [ ! -e $t/hang/$1 ] || sleep 1000
  if [ -e $t/kill/$1 ]; then rm $t/kill/$1; kill -KILL 0; fi
}}
fails() {{ [ -e $t/fail/$1 ]; }}
echo "$1 $o" >>$t/switched
at begin
fails check && exit 1
case $1 in switch|boot)
  at loading
  fails loader && exit 1
  ln -sfn $o $t/boot/default.new && mv -T $t/boot/default.new $t/boot/default
  printf 'menuentry x {{ linux init=%s/init }}\\n' $o >$t/boot/grub/new
  mv $t/boot/grub/new $t/boot/grub/grub.cfg ;;
esac
at loader
[ $1 = boot ] && exit 0
fails init && exit 100
fails activate && exit 2
ln -sfn $o $t/run/new && mv -T $t/run/new $t/run/current-system
at activate
fails script && exit 2
fails unit && exit 4
exit 0
"""

_NIX_ENV = """\
#!/bin/sh
case $3 in
  --delete-generations)
    for n; do case $n in *[!0-9]*) ;; *) rm $2-$n-link ;; esac; done; exit ;;
esac
[ "$1 $3" = "--profile --set" ] || exit 9
t={tree}
[ -e $t/fail/profile ] && exit 1
[ "$(readlink -f $2)" = "$4" ] && exit 0
n=1
for l in $2-*-link; do
  l=${{l%-link}} l=${{l##*-}}
  [ "$l" = "*" ] || [ $l -lt $n ] || n=$((l + 1))
done
ln -s $4 $2-$n-link && ln -sfn ${{2##*/}}-$n-link $2.new && mv -T $2.new $2
[ -e $t/kill/profile ] && rm $t/kill/profile && kill -KILL 0
exit 0
"""

STEPS = ("check", "loader", "init", "activate", "script", "unit", "profile")
"""What can be made to fail."""
MOMENTS = ("profile", "begin", "loader", "activate")
"""Where the unit can be killed."""


class Tree:
    """The host. ``agents`` are those that the system which is rolled back declares."""

    def __init__(self, root: Path, **options: Any) -> None:
        self.root = root
        for name in (
            "store",
            "run",
            "boot/grub",
            "fail",
            "kill",
            "hang",
            "bin",
            "helper",
            "profiles/kept",
        ):
            (root / name).mkdir(parents=True)
        self.profile = root / "profiles/system"
        self.known_good = root / "profiles/kept/known-good"
        self._program(root / "bin/nix-env", _NIX_ENV.format(tree=root))
        options = {"lock_timeout_sec": 1, "timeout_sec": 30, **options}
        self.safe_switch = SafeSwitch(profile=str(self.profile), **options)
        self.agents: dict[str, Agent] = {}
        self.units: dict[str, subprocess.Popen[bytes]] = {}
        self.ends: dict[str, float] = {}
        self.boot = 1
        self.reboots = 0
        self.answered: int | None = None

    # What there is

    def system(self, name: str, kernel: str = "6.12", inhibitor: str = "dbus") -> str:
        """Make a complete system and return its toplevel."""
        toplevel = self.root / "store" / f"{name}-nixos"
        (toplevel / "bin").mkdir(parents=True)
        (toplevel / "nixos-version").write_text(name)
        (self.root / "store" / kernel).touch()
        (toplevel / "kernel").symlink_to(self.root / "store" / kernel)
        (toplevel / "switch-inhibitors").write_text(f'{{"bus": "{inhibitor}"}}')
        text = _SWITCH.format(tree=self.root, toplevel=toplevel)
        self._program(toplevel / "bin/switch-to-configuration", text)
        return str(toplevel)

    def specialise(self, toplevel: str, name: str) -> str:
        """Make a specialisation of a system, and return its own toplevel."""
        special = self.system(f"{Path(toplevel).name}-{name}")
        links = Path(toplevel, "specialisation")
        links.mkdir(exist_ok=True)
        (links / name).symlink_to(special)
        return special

    def root_known_good(self, toplevel: str) -> None:
        """Root a toplevel as known-good."""
        self.set_profile(toplevel, self.known_good)

    # What people do

    def set_profile(self, toplevel: str, profile: Path | None = None) -> None:
        """Make a toplevel a profile's newest generation."""
        profile = profile or self.profile
        if os.path.realpath(profile) != toplevel:
            number = len(nix.generations(profile)) + 1
            generation = profile.with_name(f"{profile.name}-{number}-link")
            generation.symlink_to(toplevel)
            self._link(profile, generation.name)

    def deploy(self, toplevel: str, how: str = "switch") -> None:
        """Do what ``nixos-rebuild HOW`` does where nothing fails, after what is under way."""
        for unit in self.units.values():
            unit.wait()
        if how != "test":
            self.set_profile(toplevel)
            self._link(self.root / "boot/default", toplevel)
            new = self.root / "boot/grub/new"
            new.write_text(f"menuentry x {{ linux init={toplevel}/init }}\n")
            new.rename(self.root / "boot/grub/grub.cfg")
        if how != "boot":
            self._link(self.root / "run/current-system", toplevel)

    def fail(self, *steps: str) -> None:
        """Make these steps of every switch fail from now on, and no others."""
        for path in (self.root / "fail").iterdir():
            path.unlink()
        for step in steps:
            (self.root / "fail" / step).touch()

    def kill_unit_at(self, moment: str) -> None:
        """Have the unit killed once, when it comes to this."""
        (self.root / "kill" / moment).touch()

    def hang(self, moment: str) -> None:
        """Have each switch hang when it comes to this."""
        (self.root / "hang" / moment).touch()

    def reboot(self) -> None:
        """Boot what is to boot; what runs is gone, and so is /run."""
        for unit in self.units.values():
            self._kill(unit)
        self.units = {}
        self.boot += 1
        for path in (self.root / "run").iterdir():
            path.unlink()
        for name in ("current-system", "booted-system"):
            (self.root / "run" / name).symlink_to(self.boots)

    # What is where

    @property
    def runs(self) -> str:
        return os.path.realpath(self.root / "run/current-system")

    @property
    def boots(self) -> str:
        return os.path.realpath(self.root / "boot/default")

    @property
    def in_profile(self) -> str:
        return os.path.realpath(self.profile)

    @property
    def switched(self) -> list[tuple[str, str]]:
        """Return the action and the system of each switch that a rollback has begun."""
        file = self.root / "switched"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(line.split()[0], line.split()[1]) for line in lines]

    # What the rollback meets

    def intent(self, source: str, target: str, seq: int = 7, **more: str) -> Entry:
        data = {"action": "rollback", "from": source, "target": target, **more}
        leaf = hashlib.sha256(f"{seq} {source} {target}".encode()).hexdigest()
        kind = "action.intent"
        return Entry(seq, 0, 0, "", 0, 0, self.boot_id(), kind, None, data, leaf, b"")

    def roll_back(self, intent: Entry) -> Progress:
        """Run root's helper once: begin, or go on where the last run of it came to."""
        config = Config(version=1, agents=self.agents, safe_switch=self.safe_switch)
        return rollback.roll_back(config, intent)

    def carry_out(self, action: str, source: str, target: str, seq: int = 7) -> helper.Reply:
        """Have root's helper carry out a signed intent of this kind."""
        config = Config(version=1, agents=self.agents, safe_switch=self.safe_switch)
        intent = self.intent(source, target, seq, action=action, reason="x")
        return helper.carry_out(config, intent)

    def known_goods(self) -> list[str]:
        """Return the systems that root keeps as known-good, the newest first."""
        return [os.path.realpath(link) for link in nix.generations(self.known_good)]

    def boot_id(self) -> str:
        return f"boot{self.boot}"

    def start(
        self, unit: str, _description: str, command: Sequence[str], runtime_max_sec: float
    ) -> bool:
        """Start a transient unit: a process of its own session, for a kill to hit all of it."""
        if not self.is_over(unit):
            return False
        self.units[unit] = subprocess.Popen(command, start_new_session=True)
        self.ends[unit] = time.monotonic() + runtime_max_sec
        return True

    def is_over(self, unit: str) -> bool:
        if unit not in self.units:
            return True
        if time.monotonic() > self.ends[unit]:
            self._kill(self.units[unit])
        return self.units[unit].poll() is not None

    def run_hooks(self, agents: dict[str, Agent], concerned: list[str], _ends: Path) -> None:
        for name in concerned:
            command = agents[name].before_rollback
            if command is not None and subprocess.run(command, check=False).returncode != 0:
                raise RefusedError(f"beforeRollback of {name} failed")

    def signed_intent(self, _config: Config, seq: int) -> None:
        """Refuse the intent that has its outcome by now."""
        if seq == self.answered:
            raise RefusedError(f"intent {seq} is answered")

    def count_reboot(self, _why: str) -> None:
        self.reboots += 1

    @staticmethod
    def _kill(unit: "subprocess.Popen[bytes]") -> None:
        with suppress(ProcessLookupError):
            os.killpg(unit.pid, signal.SIGKILL)
        unit.wait()

    @staticmethod
    def _link(link: Path, target: str) -> None:
        new = link.with_name(f"{link.name}.new")
        new.unlink(missing_ok=True)
        new.symlink_to(target)
        new.rename(link)

    @staticmethod
    def _program(path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)


@contextmanager
def host(root: Path, **options: Any) -> Iterator[Tree]:
    """Have this process take a tree for its host for as long as this lasts."""
    tree = Tree(root, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{root}/bin:{os.environ['PATH']}")
        patch.setattr(nix, "STORE", root / "store")
        patch.setattr(nix, "CURRENT", root / "run/current-system")
        patch.setattr(nix, "BOOTED", root / "run/booted-system")
        patch.setattr(nix, "SWITCH_LOCK", root / "run/lock")
        patch.setattr(bootloader, "default", partial(bootloader.default, (root / "boot",)))
        init = re.compile(rf"\binit=({root}/store/[^/\s]+)/init\b")
        patch.setattr(bootloader, "_INIT", init)
        patch.setattr(space, "BOOT", (root / "boot",))
        patch.setattr(known_good, "PROFILE", tree.known_good)
        patch.setattr(known_good, "ROOTS", tree.root / "roots/known-good")
        patch.setattr(rollback, "PROGRESS_DIR", root / "helper")
        patch.setattr(rollback, "RESULT_DIR", root / "run")
        patch.setattr(switching, "_POLL_SEC", 0.001)
        patch.setattr(switching, "_WATCH_SEC", 0.001)
        patch.setattr(switching, "_LOOK_SEC", 0.01)
        patch.setattr(transient, "start", tree.start)
        patch.setattr(transient, "is_over", tree.is_over)
        patch.setattr(hooks, "run", tree.run_hooks)
        patch.setattr(clock, "boot_id", tree.boot_id)
        patch.setattr(power, "reboot", tree.count_reboot)
        patch.setattr(helper, "signed_intent", tree.signed_intent)
        yield tree
