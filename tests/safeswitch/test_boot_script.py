"""nix/boot.sh as sh runs it early in the boot, on directories that stand for systems.

What it calls when it goes back (nix-env, switch-to-configuration, systemctl) only says so here.
"""

import os
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from healer.events import Systems
from healer.host import clock, known_good
from healer.safeswitch import booting

SCRIPT = Path(__file__).parents[2] / "nix" / "boot.sh"


@dataclass
class Host:
    """A host whose known-good profile has some generations; ``tries`` is safeSwitch.bootTries."""

    path: Path
    tries: int = 2
    unsafe: tuple[str, ...] = ()
    booted: str = ""
    systems: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.state, self.calls = self.path / "state", self.path / "calls"
        self.profile = self.path / "system"
        self.known_good = self.path / "healer-known-good"
        self.roots = self.path / "roots" / "known-good"
        self.bin = self.path / "bin"
        self.bin.mkdir()
        # What the script sets is only said; what is done to the known-good profile is done.
        self.program(
            self.bin / "nix-env",
            f"""case "$2 $3" in
              "{self.profile} --set") echo set "$4" ;;
              "{self.known_good} --set")
                last=$(readlink "$2") last=${{last%-link}}
                link={self.known_good.name}-$((${{last##*-}} + 1))-link
                ln -s "$4" "{self.path}/$link" && ln -sfn "$link" "$2" ;;
              "{self.known_good} --delete-generations")
                shift 3
                for number; do
                  link={self.known_good.name}-$number-link
                  if [ "$(readlink "{self.known_good}")" = "$link" ]; then exit 1; fi
                  rm "{self.path}/$link"
                done ;;
              *) exit 1 ;;
            esac""",
        )
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
            links = self.path.glob("healer-known-good-*-link")
            number = 1 + max((int(link.name.split("-")[3]) for link in links), default=0)
            link = self.path / f"healer-known-good-{number}-link"
            link.symlink_to(self.system(name))
            self.known_good.unlink(missing_ok=True)
            self.known_good.symlink_to(link.name)

    def boot(self, name: str, times: int = 1) -> tuple[str, str]:
        """Boot a system so often; return what these boots called, and what they said."""
        self.calls.write_text("")
        said = ""
        for _ in range(times):
            self._end_the_boot()
            self.booted = name
            booted = self.system(name)
            arguments = (booted, self.state, str(self.tries), self.profile)
            done = subprocess.run(
                ["/bin/sh", SCRIPT, *arguments, self.known_good, self.roots, *self.unsafe],
                env={"PATH": f"{self.bin}:{os.environ['PATH']}"},
                stderr=subprocess.PIPE,
                text=True,
                check=True,
            )
            said += done.stderr
        return self.calls.read_text().replace(f"{self.path}/store/", ""), said

    def comes_up(self, running: str | None = None) -> None:
        """Have root told that every agent is up under what was booted, or was switched to since."""
        booted = str(self.system(self.booted))
        current = booted if running is None else str(self.system(running))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(booting, "COUNT", self.state / "boots")
            patched.setattr(booting, "CAME_UP", self.state / "came-up")
            patched.setattr(booting, "EXCUSED", self.state / "excused")
            patched.setattr(known_good, "PROFILE", self.known_good)
            patched.setattr(known_good, "ROOTS", self.roots)
            booting.note_up(Systems(current, booted, current, 1, switching=False))

    def is_excused(self, running: str | None = None) -> bool:
        """Have root told that what keeps this boot from coming up is no fault of the system."""
        booted = str(self.system(self.booted))
        current = booted if running is None else str(self.system(running))
        systems = Systems(current, booted, current, 1, switching=False)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(booting, "COUNT", self.state / "boots")
            patched.setattr(booting, "EXCUSED", self.state / "excused")
            return booting.excuse(systems, clock.boot_id(), self.tries)

    def condemn(self, name: str) -> str:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(known_good, "PROFILE", self.known_good)
            patched.setattr(known_good, "ROOTS", self.roots)
            patched.setenv("PATH", f"{self.bin}:{os.environ['PATH']}")
            return known_good.drop(str(self.system(name)))

    def came_up(self) -> list[str]:
        file = self.state / "came-up"
        return [Path(line).name for line in file.read_text().split()] if file.exists() else []

    def count(self) -> int | None:
        file = self.state / "boots"
        return int(file.read_text().split()[1]) if file.exists() else None

    def _end_the_boot(self) -> None:
        """What was counted was in another boot than this one."""
        for file in (self.state / "boots", self.state / "excused"):
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


def test_an_excused_boot_does_not_count_once_and_so_many_times(host: Host) -> None:
    host.promote("good")
    for _ in range(host.tries):
        assert host.boot("bad")[0] == ""
        assert not host.is_excused(running="good")
        assert host.is_excused()
        assert not host.is_excused()
    assert host.boot("bad", times=2)[0] == ""
    assert not host.is_excused()
    calls, said = host.boot("bad")
    assert calls == went_back("good")
    assert "did not come up in 4 boots" in said
    assert not (host.state / "excused").exists()


def test_what_excused_one_system_excuses_no_other_and_is_over_when_it_comes_up(host: Host) -> None:
    host.promote("good")
    host.boot("bad")
    assert host.is_excused()
    assert host.boot("other", times=3)[0] == went_back("good")
    host.boot("bad")
    assert host.is_excused()
    host.comes_up()
    assert not host.is_excused()
    assert host.boot("bad", times=3)[0] == went_back("good")


@settings(max_examples=40)
@given(st.lists(st.booleans(), min_size=5, max_size=5))
def test_no_system_is_excused_for_ever(excused: list[bool]) -> None:
    with tempfile.TemporaryDirectory() as path:
        host = Host(Path(path), tries=2)
        host.promote("good")
        taken_back = 0
        for number, each in enumerate(excused, 1):
            went = host.boot("bad")[0]
            assert bool(went) == (number > host.tries + taken_back)
            if went:
                return
            taken_back += each and host.is_excused()
        raise AssertionError("it was never gone back from")


def test_no_boot_goes_back_to_what_a_person_condemned(host: Host) -> None:
    host.promote("old", "good", "bad", "good")
    host.boot("good")
    host.comes_up()
    assert "did not keep it" in host.condemn("other")
    # Twice in the profile, and the current one.
    assert str(host.system("bad")) in host.condemn("good")
    assert host.boot("other", times=3)[0] == went_back("bad")
    assert str(host.system("bad")) in host.condemn("old")
    assert "the only known-good system" in host.condemn("bad")
    assert not [*host.path.glob("healer-known-good*")]
    assert host.boot("other", times=4) == ("", "")
    host.promote("good")
    assert host.boot("other", times=3)[0] == went_back("good")


def test_nothing_is_counted_for_the_known_good_or_without_one(host: Host) -> None:
    assert host.boot("bad", times=4) == ("", "")
    host.promote("good")
    host.boot("bad")
    for name in ("good", "good+special"):
        assert host.boot(name, times=4) == ("", "")
        assert host.count() is None


def test_what_became_known_good_without_a_boot_has_to_come_up_in_one(host: Host) -> None:
    host.promote("old", "good")
    host.boot("good")
    host.comes_up()
    host.promote("new", "newer")
    assert host.boot("newer", times=2) == ("", "")
    assert host.count() == 2
    calls, said = host.boot("newer")
    # Not to `new`, which has come up in no boot either.
    assert calls == went_back("good")
    assert "did not come up in 2 boots; going back" in said
    source, target, *_ = (host.state / "boot-rollback").read_text().split()
    assert (source, target) == (str(host.system("newer")), str(host.system("good")))
    # What is condemned now is known-good no more.
    kept = [link.readlink().name for link in sorted(host.path.glob("healer-known-good-*-link"))]
    assert kept == ["old", "good", "new", "good"]
    assert host.known_good.resolve() == host.system("good")
    # There it ends, although a newer one is in the profile.
    assert host.boot("good", times=4) == ("", "")
    assert host.count() is None
    # Nor is that where another one goes back to.
    assert host.boot("bad", times=3)[0] == went_back("good")


def test_a_boot_goes_back_also_after_a_garbage_collection(host: Host) -> None:
    """As by nix-collect-garbage -d: of a profile it leaves the current generation alone."""
    host.promote("old", "good", "new")
    host.boot("good")
    host.comes_up()
    host.roots.parent.mkdir()
    for number, name in enumerate(("old", "good", "new"), 1):
        host.roots.with_name(f"known-good-{number}-link").symlink_to(host.system(name))
    for number in (1, 2):
        (host.path / f"healer-known-good-{number}-link").unlink()
    assert host.boot("new", times=3)[0] == went_back("good")
    # What is condemned now is rooted no more.
    kept = [link.readlink().name for link in sorted(host.roots.parent.iterdir())]
    assert kept == ["old", "good"]
    assert host.known_good.resolve() == host.system("good")
    assert host.boot("new", times=3)[0] == went_back("good")


def test_a_known_good_system_that_comes_up_is_left_alone_from_then_on(host: Host) -> None:
    host.promote("old")
    host.boot("old")
    host.comes_up()
    host.promote("good")
    host.boot("good")
    host.comes_up()
    assert (host.came_up(), host.count()) == (["old", "good"], None)
    assert host.boot("good", times=4) == ("", "")
    # A specialisation is a system of its own.
    assert host.boot("good+special", times=3)[0] == went_back("good")


def test_without_anything_that_has_come_up_all_is_as_if_that_did_not_matter(host: Host) -> None:
    host.promote("old", "good")
    assert host.boot("good", times=4) == ("", "")
    assert host.count() is None
    # What came up is not known-good, or is no more.
    host.boot("other")
    host.comes_up()
    assert host.boot("good", times=4) == ("", "")
    assert host.boot("bad", times=3)[0] == went_back("good")


def test_only_what_was_booted_is_noted_and_what_is_not_kept_is_dropped(host: Host) -> None:
    host.promote("good")
    for name in ("good", "other", "bad"):
        host.boot(name)
        host.comes_up()
    assert host.came_up() == ["good", "bad"]
    host.boot("other")
    host.comes_up(running="good")
    assert host.came_up() == ["good", "bad"]
    assert host.count() is None
    (host.path / "healer-known-good-1-link").unlink()
    host.comes_up()
    assert host.came_up() == ["other"]


def test_the_tenth_generation_is_newer_than_the_ninth(host: Host) -> None:
    names = [f"good{number}" for number in range(1, 11)]
    host.promote(*names)
    for name in names[8:]:
        host.boot(name)
        host.comes_up()
    assert host.boot("bad", times=3)[0] == went_back("good10")


def test_a_list_that_cannot_be_right_keeps_nothing_from_booting(host: Host) -> None:
    host.promote("old", "good")
    (host.state / "came-up").parent.mkdir()
    (host.state / "came-up").write_text("\n\\ *\n/nix/sto")
    assert host.boot("good", times=4) == ("", "")
    assert host.boot("bad", times=3)[0] == went_back("good")


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(["fails", "comes up", "is promoted"]), st.sampled_from("ab")),
        min_size=2,
        max_size=8,
    )
)
def test_it_never_goes_where_nothing_is_known_to_be_good(steps: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as path:
        host = Host(Path(path), tries=1)
        promoted: list[str] = []
        for step, name in steps:
            if step == "is promoted":
                host.promote(name)
                promoted.append(name)
            elif step == "comes up":
                host.boot(name)
                host.comes_up()
            else:
                proven = {*promoted} & {*host.came_up()}
                went = host.boot(name, times=2)[0].split()[1:2]
                if name in proven or (name in promoted and not proven) or not promoted:
                    assert not went
                else:
                    assert went[0] in (proven or {promoted[-1]})
                    assert went[0] != name
