"""Two toplevels compared, as directories: what each agent gets from them, and what all share."""

import json
from pathlib import Path

import pytest

from healer.host import changes

UNITS = {"worker": "worker.service", "queue": "queue@one.service"}


class Toplevel:
    """A toplevel with one agent's unit, and the template of another's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write("etc/systemd/system/worker.service", "[Service]\nExecStart=/etc/worker -v\n")
        self.write("etc/systemd/system/queue@.service", "[Service]\nEnvironmentFile=-/etc/q.env\n")
        self.write("etc/worker", "1")
        self.write("etc/q.env", "A=1")
        self.write("switch-inhibitors", json.dumps({"dbus": "broker"}))
        for name in ("kernel", "initrd", "kernel-modules", "systemd"):
            self.write(f"store/{name}", name)
            (self.path / name).symlink_to(path.parent / f"{name}-1")
            (path.parent / f"{name}-1").touch()

    def write(self, name: str, text: str) -> None:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def link(self, name: str, target: str) -> None:
        (self.path / name).unlink(missing_ok=True)
        (self.path / name).symlink_to(self.path.parent / target)
        (self.path.parent / target).touch()


@pytest.fixture
def before(tmp_path: Path) -> Toplevel:
    return Toplevel(tmp_path / "before")


@pytest.fixture
def after(tmp_path: Path) -> Toplevel:
    return Toplevel(tmp_path / "after")


def compared(before: Toplevel, after: Toplevel) -> tuple[dict[str, str], tuple[str, ...]]:
    found = changes.between(str(before.path), str(after.path), UNITS)
    return dict(found.agents), found.shared


def test_two_builds_of_the_same_change_nothing(before: Toplevel, after: Toplevel) -> None:
    assert compared(before, after) == ({"worker": "same", "queue": "same"}, ())


@pytest.mark.parametrize(
    ("file", "text", "changed"),
    [
        ("etc/systemd/system/worker.service", "[Service]\nExecStart=/etc/worker\n", "worker"),
        ("etc/systemd/system/worker.service.d/a.conf", "[Service]\nNice=1\n", "worker"),
        ("etc/worker", "2", "worker"),
        ("etc/q.env", "A=2", "queue"),
        ("etc/systemd/system/queue@one.service.d/a.conf", "[Service]\nNice=1\n", "queue"),
    ],
)
def test_an_agent_is_changed_by_all_that_its_unit_reads(
    before: Toplevel, after: Toplevel, file: str, text: str, changed: str
) -> None:
    after.write(file, text)
    same = dict.fromkeys(UNITS, "same")
    assert compared(before, after) == (same | {changed: "changed"}, ())


def test_a_command_below_the_system_path_is_followed(before: Toplevel, after: Toplevel) -> None:
    for toplevel in (before, after):
        toplevel.write(
            "etc/systemd/system/worker.service",
            "[Service]\nExecStart=/run/current-system/sw/bin/worker\n",
        )
    (before.path / "sw/bin").mkdir(parents=True)
    (after.path / "sw/bin").mkdir(parents=True)
    before.link("sw/bin/worker", "worker-1")
    after.link("sw/bin/worker", "worker-1")
    assert compared(before, after)[0]["worker"] == "same"
    after.link("sw/bin/worker", "worker-2")
    assert compared(before, after)[0]["worker"] == "changed"


def test_an_agent_without_a_unit_before_is_added(before: Toplevel, after: Toplevel) -> None:
    (before.path / "etc/systemd/system/worker.service").unlink()
    assert compared(before, after)[0]["worker"] == "added"


def test_what_all_agents_share_is_named(before: Toplevel, after: Toplevel) -> None:
    after.link("kernel", "kernel-2")
    after.link("systemd", "systemd-2")
    after.write("etc/set-environment", "export A=1")
    after.write("switch-inhibitors", json.dumps({"dbus": "dbus", "new": "x"}))
    shared = compared(before, after)[1]
    assert shared == ("kernel", "systemd", "environment", "switch inhibitor dbus")


def test_a_reboot_is_needed_across_an_inhibitor_or_another_kernel(
    before: Toplevel, after: Toplevel
) -> None:
    running, target = str(before.path), str(after.path)
    assert changes.needs_reboot(running, running, target) == []
    after.link("initrd", "initrd-2")
    after.write("switch-inhibitors", json.dumps({"dbus": "dbus"}))
    assert changes.needs_reboot(running, None, target) == ["switch inhibitor dbus"]
    assert changes.needs_reboot(running, running, target) == [
        "switch inhibitor dbus",
        "another initrd",
    ]


@pytest.mark.parametrize(
    ("left", "target", "reasons"),
    [
        # Switched to live and not booted yet: what runs is as good a start as what was booted.
        ({"kernel": "2", "initrd": "2"}, {"kernel": "2", "initrd": "2"}, []),
        ({"kernel": "2", "initrd": "2"}, {}, []),
        # In all of these links with one of the two, not in each link with either.
        ({"kernel": "2", "initrd": "2"}, {"kernel": "2"}, ["another kernel"]),
        ({"kernel": "2"}, {"kernel": "3"}, ["another kernel"]),
        ({}, {"kernel-modules": "2"}, ["another kernel-modules"]),
    ],
)
def test_no_reboot_is_needed_for_the_kernel_of_what_runs_or_of_what_was_booted(
    tmp_path: Path, left: dict[str, str], target: dict[str, str], reasons: list[str]
) -> None:
    booted = Toplevel(tmp_path / "booted")
    systems = [Toplevel(tmp_path / name) for name in ("left", "target")]
    for system, links in zip(systems, (left, target), strict=True):
        for name, number in links.items():
            system.link(name, f"{name}-{number}")
    running, wanted = (str(system.path) for system in systems)
    assert changes.needs_reboot(running, str(booted.path), wanted) == reasons
    assert changes.needs_reboot(running, None, wanted) == []


def test_what_a_deployment_changed_names_the_agents_that_it_brings_and_takes_away(
    before: Toplevel, after: Toplevel
) -> None:
    """Also where healer has still, or already, the configuration of one of the two only."""
    declares = {"agents": {"worker": {"unit": "worker.service", "stableSec": 2}}}
    before.write("etc/healer/config.yaml", json.dumps(declares))
    after.write("etc/systemd/system/new.service", "[Service]\nExecStart=/etc/new\n")
    (after.path / "etc/systemd/system/worker.service").unlink()
    declares = {"agents": {"new": {"unit": "new.service"}}}
    after.write("etc/healer/config.yaml", json.dumps(declares))
    expected = {"worker": "changed", "new": "added"}
    for loaded in ({"worker": "worker.service"}, {"new": "new.service"}):
        found = changes.of_deployment(str(before.path), str(after.path), loaded)
        assert found.agents == expected


@pytest.mark.parametrize("text", ["", "nonsense", "{}", '{"agents": {"worker": {}}}'])
def test_a_configuration_that_cannot_be_read_names_nobody(
    text: str, before: Toplevel, after: Toplevel
) -> None:
    after.write("etc/healer/config.yaml", text)
    found = changes.of_deployment(str(before.path), str(after.path), UNITS)
    assert found.agents == dict.fromkeys(UNITS, "same")
