"""nix/boot.sh as sh runs it early in the boot, on directories that stand for systems.

What it calls when it goes back (nix-env, switch-to-configuration, systemctl) only says so here.
"""

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "nix" / "boot.sh"


@dataclass
class Host:
    """A host whose known-good profile has some generations; ``tries`` is safeSwitch.bootTries."""

    path: Path
    tries: int = 2
    unsafe: tuple[str, ...] = ()
    systems: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.state, self.calls = self.path / "state", self.path / "calls"
        self.profile = self.path / "system"
        self.known_good = self.path / "healer-known-good"
        self.bin = self.path / "bin"
        self.bin.mkdir()
        self.program(self.bin / "nix-env", f'[ "$2 $3" = "{self.profile} --set" ] && echo set "$4"')
        self.program(self.bin / "systemctl", "echo systemctl $1")
        self.program(self.bin / "sync", ":")

    def program(self, path: Path, does: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/bin/sh\n{{ {does}; }} >>"{self.calls}"\n')
        path.chmod(0o755)

    def system(self, name: str) -> Path:
        if name not in self.systems:
            base, _, special = name.partition("+")
            path = self.systems[name] = self.path / "store" / name
            self.program(path / "bin" / "switch-to-configuration", f"echo {base} $1")
            if special:
                link = self.system(base) / "specialisation" / special
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(path)
        return self.systems[name]

    def promote(self, *names: str) -> None:
        """Make each the next generation of the known-good profile."""
        for name in names:
            number = 1 + len([*self.path.glob("healer-known-good-*-link")])
            link = self.path / f"healer-known-good-{number}-link"
            link.symlink_to(self.system(name))
            self.known_good.unlink(missing_ok=True)
            self.known_good.symlink_to(link.name)

    def boot(self, name: str, times: int = 1) -> tuple[str, str]:
        """Boot a system so often; return what the last boot called, and what it said."""
        for _ in range(times):
            self._end_the_boot()
            self.calls.write_text("")
            booted = self.system(name)
            arguments = (booted, self.state, str(self.tries), self.profile, self.known_good)
            done = subprocess.run(
                ["/bin/sh", SCRIPT, *arguments, *self.unsafe],
                env={"PATH": f"{self.bin}:{os.environ['PATH']}"},
                stderr=subprocess.PIPE,
                text=True,
                check=True,
            )
        return self.calls.read_text().replace(f"{self.path}/store/", ""), done.stderr

    def count(self) -> int | None:
        file = self.state / "boots"
        return int(file.read_text().split()[1]) if file.exists() else None

    def _end_the_boot(self) -> None:
        """What was counted was in another boot than this one."""
        file = self.state / "boots"
        if file.exists():
            toplevel, count, _ = file.read_text().split()
            file.write_text(f"{toplevel} {count} another\n")


def went_back(to: str) -> str:
    return f"set {to}\n{to} boot\nsystemctl reboot\n"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_system_that_does_not_come_up_is_gone_back_from_after_its_boots(host: Host) -> None:
    host.promote("good")
    for number in (1, 2):
        assert host.boot("bad") == ("", "")
        assert host.count() == number
    calls, said = host.boot("bad")
    assert calls == went_back("good")
    assert "did not come up in 2 boots; going back" in said
    assert host.count() is None
    source, target, tries, _ = (host.state / "boot-rollback").read_text().split()
    assert (source, target) == (str(host.system("bad")), str(host.system("good")))
    assert tries == "2"


def test_nothing_goes_back_while_an_agent_is_not_safe_to_roll_back(host: Host) -> None:
    host.promote("good")
    host.unsafe = ("db", "queue")
    calls, said = host.boot("bad", times=4)
    assert (calls, host.count()) == ("", 4)
    assert said.endswith("not going back: rollbackSafe is false for db queue\n")
    assert not (host.state / "boot-rollback").exists()
    host.unsafe = ()
    assert host.boot("bad")[0] == went_back("good")


def test_nothing_is_counted_for_the_known_good_or_without_one(host: Host) -> None:
    assert host.boot("bad", times=4) == ("", "")
    host.promote("good")
    host.boot("bad")
    for name in ("good", "good+special"):
        assert host.boot(name, times=4) == ("", "")
        assert host.count() is None
