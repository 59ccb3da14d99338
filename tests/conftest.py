"""Fixtures that boot local machines, and a loud word about the tests that could not."""

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, settings

from tests.machine import paths
from tests.machine.container import ContainerMachine
from tests.machine.local import LocalMachine, SystemSpec
from tests.machine.support import why_no_container, why_no_vm
from tests.machine.vm import VirtualMachine, has_kvm

EVERY = "HEALER_EVERY_POWER_CUT"
"""The variable that asks also for what takes long in an emulated machine."""

_MACHINES = pytest.StashKey[list[LocalMachine]]()
_CANNOT: dict[str, Callable[[], str | None]] = {"machine": why_no_container, "vm": why_no_vm}

# On top of hypothesis's own profile, which differs in CI: how long an example takes is measured by
# the benches, and fails no test on a machine that has other work.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


class Boot(Protocol):
    """Boot a machine, with SYSTEM deployed if one is given."""

    def __call__(self, name: str = "machine", system: SystemSpec | None = None) -> LocalMachine: ...


def _booter(
    request: pytest.FixtureRequest, out_dir: Path, kind: Callable[[str, Path], LocalMachine]
) -> Iterator[Boot]:
    machines = request.node.stash.setdefault(_MACHINES, [])
    first = len(machines)

    def boot(name: str = "machine", system: SystemSpec | None = None) -> LocalMachine:
        machine = kind(name, out_dir)
        machines.append(machine)
        machine.start()
        if system is not None:
            machine.deploy(system)
        return machine

    yield boot
    for machine in machines[first:]:
        machine.release()


@pytest.fixture
def container(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Boot]:
    """A function that boots containers; they are gone after the test."""
    yield from _booter(request, tmp_path, ContainerMachine)


@pytest.fixture
def vm(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Boot]:
    """A function that boots virtual machines; they are gone after the test.

    Emulated ones take a processor each and are slow enough alone: one test has them at a time.
    """
    one = nullcontext() if has_kvm() else paths.locked(paths.cache() / "emulation.lock")
    with one:
        yield from _booter(request, tmp_path, VirtualMachine)


@pytest.fixture(params=["container", "vm"])
def boot(request: pytest.FixtureRequest) -> Boot:
    """Either of the two, for a test that has to hold on both."""
    booter: Boot = request.getfixturevalue(request.param)
    return booter


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what boots a machine, and skip it where there is no booting one.

    Virtual machines come first: xdist gives the first half to one worker, so that no other waits
    for emulation.lock meanwhile; it steals from the end.
    """
    for item in items:
        names = getattr(item, "fixturenames", [])
        parameter = getattr(item, "callspec", None)
        chosen = parameter.params.get("boot") if parameter else None
        if "container" in names or chosen == "container":
            item.add_marker("machine")
        if "vm" in names or chosen == "vm":
            item.add_marker("vm")
    items.sort(key=lambda item: item.get_closest_marker("vm") is None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, reason in _CANNOT.items():
        if item.get_closest_marker(marker):
            why = reason()
            if why is not None:
                pytest.skip(why)
    slow = item.get_closest_marker("vm") and item.get_closest_marker("slow_when_emulated")
    if slow and EVERY not in os.environ and not has_kvm():
        pytest.skip(f"emulated, this takes several minutes: set {EVERY}=1")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put each machine's journal and console into the report of a failed test."""
    report = yield
    if report.failed:
        for machine in item.stash.get(_MACHINES, []):
            report.sections.append((f"journal of {machine.name}", machine.post_mortem()))
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Name every test that was skipped, each with what it lacks."""
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped:
        terminalreporter.section(f"{len(skipped)} TESTS WERE NOT RUN", sep="!", red=True, bold=True)
        for report in skipped:
            why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            terminalreporter.line(f"{report.nodeid}: {why.removeprefix('Skipped: ')}")
