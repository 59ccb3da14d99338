"""The watcher against real inotify; full scans are so rare that only events explain a find."""

import asyncio
import os
import resource
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from healer.config import Agent, Config, Drift
from healer.drift.compare import DriftState, Finding
from healer.drift.watch import DriftWatcher, names_to_watch
from healer.host.inotify import Watches
from tests.drift.machine import Machine

CONFIG = Config(
    version=1,
    agents={"worker": Agent(unit="worker.service")},
    drift=Drift(interval_sec=600),
)
DROP_IN = "/run/systemd/system.control/worker.service.d/50-MemoryMax.conf"


class Log:
    """What a watcher reported."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.resolved: list[str] = []
        self.switching = False

    def add(self, found: tuple[Finding, ...], resolved: tuple[Finding, ...]) -> None:
        self.found += [finding.subject for finding in found]
        self.resolved += [finding.subject for finding in resolved]


async def until(condition: Callable[[], object], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


@asynccontextmanager
async def watching(
    machine: Machine, config: Config = CONFIG, state: DriftState | None = None
) -> AsyncIterator[tuple[DriftWatcher, Log]]:
    log = Log()
    watcher = DriftWatcher(config, log.add, lambda: log.switching, state=state, roots=machine.roots)
    task = asyncio.create_task(watcher.run())
    await asyncio.sleep(0.5)  # the first scan, and a little idling
    try:
        yield watcher, log
        assert not task.done()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def test_a_drop_in_is_found_and_resolved_once(machine: Machine) -> None:
    async def scenario() -> None:
        async with watching(machine) as (watcher, log):
            machine.write(DROP_IN)
            await until(lambda: log.found)
            assert watcher.off is None
            machine.write("/run/systemd/transient/run-u1.service")
            await asyncio.sleep(0.7)
            shutil.rmtree(machine.path("/run/systemd/system.control"))
            await until(lambda: log.resolved)
            assert log.found == log.resolved == [DROP_IN]

    asyncio.run(scenario())


def test_a_replaced_link_is_found_after_a_second_look(machine: Machine) -> None:
    async def scenario() -> None:
        async with watching(machine) as (_, log):
            machine.write("/etc/ssh/keys.d/root", "mine")
            await until(lambda: log.found)
            assert log.found == ["/etc/ssh/keys.d/root"]

    asyncio.run(scenario())


def test_a_link_that_is_gone_only_for_a_moment_is_no_drift(machine: Machine) -> None:
    async def scenario() -> None:
        async with watching(machine) as (_, log):
            motd = machine.path("/etc/motd")
            target = motd.readlink()
            motd.unlink()
            await asyncio.sleep(0.5)
            motd.symlink_to(target)
            await asyncio.sleep(1.5)
            assert log.found == []

    asyncio.run(scenario())


def test_a_directory_removed_and_made_again_is_watched_again(machine: Machine) -> None:
    async def scenario() -> None:
        async with watching(machine) as (_, log):
            shutil.rmtree(machine.path("/run/systemd"))
            await asyncio.sleep(0.8)
            machine.path("/run/systemd/system").mkdir(parents=True)
            await asyncio.sleep(0.8)
            machine.write("/run/systemd/system/evil.service")
            await until(lambda: log.found)
            assert log.found == ["/run/systemd/system/evil.service"]

    asyncio.run(scenario())


def test_nothing_is_reported_while_a_switch_is_under_way(machine: Machine) -> None:
    async def scenario() -> None:
        async with watching(machine) as (_, log):
            log.switching = True
            machine.activate(machine.build("system-2", motd="new"))
            machine.write(DROP_IN)
            await asyncio.sleep(1.5)
            assert log.found == []
            log.switching = False
            await until(lambda: log.found)
            assert log.found == [DROP_IN]

    asyncio.run(scenario())


def test_the_directories_of_a_new_toplevel_are_watched(machine: Machine) -> None:
    async def scenario() -> None:
        async with watching(machine) as (_, log):
            toplevel = machine.build("system-2")
            (toplevel / "etc/new.d").mkdir()
            (toplevel / "etc/new.d/file").symlink_to(toplevel / "etc/motd")
            machine.activate(toplevel)
            await asyncio.sleep(1.5)
            assert log.found == []
            machine.path("/etc/new.d/file").unlink()
            await until(lambda: log.found)
            assert log.found == ["/etc/new.d/file"]

    asyncio.run(scenario())


def test_what_was_known_before_a_restart_is_not_found_again(machine: Machine) -> None:
    async def scenario() -> None:
        machine.write(DROP_IN)
        async with watching(machine) as (watcher, log):
            assert log.found == [DROP_IN]
            state = watcher.state
        async with watching(machine, state=state) as (_, log):
            assert log.found == []
            machine.path(DROP_IN).unlink()
            await until(lambda: log.resolved)

    asyncio.run(scenario())


def test_polling_finds_what_no_event_told(machine: Machine) -> None:
    config = Config(version=1, agents=CONFIG.agents, drift=Drift(interval_sec=0.3))

    async def scenario() -> None:
        with machine.path("/etc/sudoers").open("rb+", buffering=0) as sudoers:
            async with watching(machine, config) as (_, log):
                sudoers.write(b"evil")  # and never closed
                await until(lambda: log.found)
                assert log.found == ["/etc/sudoers"]

    asyncio.run(scenario())


def test_without_a_free_descriptor_the_watches_say_so_and_recover(machine: Machine) -> None:
    async def scenario() -> None:
        watches = Watches(lambda _name: None)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
        watches.open()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert "Too many open files" in str(watches.limit)
        watches.set({machine.root: None})
        assert watches.limit is not None
        watches.open()
        watches.set({machine.root: None})
        assert watches.limit is None
        watches.close()

    asyncio.run(scenario())


def test_switched_off_on_again_and_without_a_declaration(machine: Machine) -> None:
    async def scenario() -> None:
        off = Config(version=1, agents=CONFIG.agents, drift=Drift(enable=False))
        async with watching(machine, off) as (watcher, log):
            machine.write(DROP_IN)
            await asyncio.sleep(0.5)
            assert (log.found, watcher.off) == ([], "drift.enable is false")
            watcher.reload(CONFIG)
            await until(lambda: log.found)
            assert watcher.off is None
            machine.path("/run/current-system").unlink()
            await until(lambda: watcher.off)
            assert "no NixOS system declares" in str(watcher.off)
            assert log.resolved == []

    asyncio.run(scenario())


def test_an_overflow_and_only_names_of_interest_wake_healer(tmp_path: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())

    async def scenario() -> None:
        events: list[str] = []
        watches = Watches(events.append)
        watches.open()
        watches.set({tmp_path: frozenset({"wanted"})})
        (tmp_path / "other").touch()
        await asyncio.sleep(0.05)
        assert events == []
        (tmp_path / "wanted").touch()
        await asyncio.sleep(0.05)
        assert events
        events.clear()
        for _ in range(limit // 2 + 2):  # alternating, so that the kernel does not merge them
            os.close(os.open(tmp_path / "one", os.O_CREAT | os.O_WRONLY))
            os.close(os.open(tmp_path / "two", os.O_CREAT | os.O_WRONLY))
        await asyncio.sleep(0.1)
        assert events  # one and two are of no interest: only the overflow says so
        watches.close()

    asyncio.run(scenario())


def test_every_step_to_a_file_is_watched_by_name() -> None:
    assert names_to_watch(["/etc/ssh/config", "/etc/motd"], ["/run/systemd/system"]) == {
        "/etc/ssh": {"config"},
        "/etc": {"ssh", "motd"},
        "/run/systemd/system": None,
        "/run/systemd": {"system"},
        "/run": {"systemd"},
    }
