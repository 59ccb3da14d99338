"""The harness itself, on both back ends: what the other tests take for granted."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Boot
from tests.machine.local import PROFILE, LocalMachine
from tests.machine.outcome import RequestedAssertionError
from tests.machine.rootfs import debian_sources
from tests.machine.script import run_script

STC_LOCKED = 11
STATE = "/run/nixos"


def service(command: str, **unit: Any) -> dict[str, Any]:
    config = {"ExecStart": command, **unit.pop("serviceConfig", {})}
    return {"wantedBy": ["multi-user.target"], "serviceConfig": config, **unit}


def web(seconds: int, **unit: Any) -> dict[str, Any]:
    return {"services": {"web": service(f"/bin/sleep {seconds}", **unit)}}


def main_pid(machine: LocalMachine, unit: str = "web.service") -> str:
    return machine.get_unit_property(unit, "MainPID")


def boot_default(machine: LocalMachine) -> str:
    entry = machine.succeed("sed -n 's/^default //p' /boot/loader/loader.conf").strip()
    options = machine.succeed(f"grep -o 'init=[^ ]*' /boot/loader/entries/{entry}").strip()
    return options.removeprefix("init=").removesuffix("/init")


def test_commands_behave_as_in_the_driver(container: Boot, tmp_path: Path) -> None:
    commands_behave_as_in_the_driver(container(), tmp_path)


def commands_behave_as_in_the_driver(machine: LocalMachine, tmp_path: Path) -> None:
    assert machine.execute("echo out; echo err >&2; exit 3") == (3, "out\n")
    assert machine.execute("false | true")[0] == 1, "pipefail"
    assert machine.execute("echo $no_such_variable")[0] != 0, "nounset"
    assert machine.execute("false; true")[0] == 1, "errexit"
    assert machine.execute("sleep 30", timeout=1)[0] == 124
    assert machine.execute("true", check_return=False) == (-1, "")
    assert machine.succeed("echo a", "echo b") == "a\nb\n"
    with pytest.raises(RequestedAssertionError, match="exit code 7"):
        machine.succeed("exit 7")
    with pytest.raises(RequestedAssertionError, match="unexpectedly succeeded"):
        machine.fail("true")
    # A program left behind must not hold the command up once it has let go of stdout.
    start = time.monotonic()
    machine.succeed("sleep 60 >/dev/null & echo started")
    assert time.monotonic() - start < 30

    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(bytes(range(256)) * 1000)
    machine.copy_from_host(str(source), "/var/lib/new/copy")
    machine.copy_from_machine("/var/lib/new/copy", "back")
    assert (tmp_path / "back/copy/file").read_bytes() == bytes(range(256)) * 1000

    # It is a running systemd with a journal and a bus.
    assert machine.succeed("systemctl is-system-running --wait") == "running\n"
    assert machine.succeed("cat /proc/1/comm") == "systemd\n"
    machine.succeed(
        "busctl call org.freedesktop.DBus /org/freedesktop/DBus org.freedesktop.DBus GetId"
    )
    machine.succeed("systemd-run --wait --unit said echo something to remember")
    assert "something to remember" in machine.succeed(
        "journalctl --sync; journalctl -u said -o cat"
    )
    machine.succeed("test -d /var/log/journal/$(cat /etc/machine-id)")
    machine.wait_until_fails("systemctl is-active said")
    with pytest.raises(RequestedAssertionError, match="no pending jobs"):
        machine.wait_for_unit("said.service", timeout=10)


@pytest.mark.parametrize("spelling", ["timeout", "timeout_seconds"])
def test_waiting_ends(container: Boot, spelling: str) -> None:
    machine = container()
    limit: Mapping[str, Any] = {spelling: 1}
    with pytest.raises(RequestedAssertionError, match="timed out"):
        machine.wait_until_succeeds("false", **limit)
    with pytest.raises(RequestedAssertionError, match="timed out"):
        machine.wait_for_open_port(80, **limit)
    machine.wait_for_closed_port(80, **limit)
    machine.deploy(
        {
            "services": {
                "port": service("/bin/nc -lk 127.0.0.1 8080"),
                "socket": service("/bin/nc -lkU /run/open.sock"),
                "file": service("/bin/sh -c 'sleep 0.5; touch /run/made'"),
            }
        }
    )
    machine.wait_for_open_port(8080, timeout=10)
    machine.wait_for_open_unix_socket("/run/open.sock", timeout=10)
    machine.wait_for_file("/run/made", timeout=10)
    machine.require_unit_state("port.service")
    assert machine.get_unit_info("port.service")["ActiveState"] == "active"


def test_generations_are_built_registered_and_switched(container: Boot) -> None:
    machine = container(system=web(1000, environment={"GREETING": 'it\'s "here"'}))
    first = machine.current_system()
    machine.wait_for_unit("web.service")
    environment = machine.succeed(f"tr '\\0' '\\n' </proc/{main_pid(machine)}/environ")
    assert 'GREETING=it\'s "here"' in environment
    assert machine.succeed("readlink -f /etc/systemd/system").strip() == f"{first}/units"

    second = machine.deploy({"etc": {"some/file": "text"}, "label": "second"})
    assert machine.succeed("cat /etc/some/file /run/current-system/nixos-version") == "textsecond"
    assert machine.get_unit_property("web.service", "ActiveState") == "inactive"
    assert machine.succeed(f"readlink -f {PROFILE}").strip() == second == boot_default(machine)
    assert machine.succeed("readlink -f /run/booted-system").strip() not in {first, second}

    assert machine.switch(first, "test") == 0
    machine.wait_for_unit("web.service")
    machine.fail("test -e /etc/some/file")
    assert boot_default(machine) == second, "test leaves the boot default alone"
    generations = machine.succeed(f"nix-env -p {PROFILE} --list-generations")
    assert len(generations.splitlines()) == 3
    machine.succeed(f"nix-store --verify-path {first} {second}")


def test_what_a_switch_restarts_and_what_it_leaves_alone(container: Boot) -> None:
    machine = container(
        system={
            "services": {
                "changed": service("/bin/sleep 1000"),
                "same": service("/bin/sleep 1000"),
                "described": service("/bin/sleep 1000", description="before"),
                "kept": service("/bin/sleep 1000", restartIfChanged=False),
                "removed": service("/bin/sleep 1000"),
                "stays": service("/bin/sleep 1000", unitConfig={"X-StopOnRemoval": False}),
                "reloaded": service(
                    "/bin/sleep 1000",
                    reloadIfChanged=True,
                    serviceConfig={"ExecReload": "/bin/touch /run/was-reloaded"},
                ),
            }
        }
    )
    names = ("changed", "same", "described", "kept", "stays", "reloaded")
    before = {name: main_pid(machine, f"{name}.service") for name in names}
    machine.succeed("systemctl start --no-block does-not-matter || true")
    machine.deploy(
        {
            "services": {
                "changed": service("/bin/sleep 1001"),
                "same": service("/bin/sleep 1000"),
                "described": service("/bin/sleep 1000", description="after"),
                "kept": service("/bin/sleep 1001", restartIfChanged=False),
                "reloaded": service(
                    "/bin/sleep 1001",
                    reloadIfChanged=True,
                    serviceConfig={"ExecReload": "/bin/touch /run/was-reloaded"},
                ),
                "new": service("/bin/sleep 1000"),
            }
        }
    )
    after = {name: main_pid(machine, f"{name}.service") for name in names}
    assert {name for name in names if before[name] != after[name]} == {"changed"}
    machine.succeed("test -e /run/was-reloaded")
    assert machine.get_unit_property("removed.service", "ActiveState") == "inactive"
    machine.require_unit_state("new.service")


def test_exit_code_1_before_anything_has_changed(container: Boot) -> None:
    machine = container(system={"switchInhibitors": {"init": "old"}})
    before = machine.current_system()
    inhibited = machine.build({"switchInhibitors": {"init": "new"}})
    for action in ("check", "switch", "test"):
        assert machine.switch(inhibited, action) == 1
    unchecked = machine.build({"preSwitchCheck": "exit 1"})
    assert machine.switch(unchecked) == 1
    broken = machine.build({"bootLoaderScript": "exit 1"})
    assert machine.switch(broken) == 1
    assert machine.switch(before, "no-such-action") == 1
    assert machine.current_system() == before == boot_default(machine)

    assert machine.switch(inhibited, "boot") == 0, "across an inhibitor by a reboot"
    assert (machine.current_system(), boot_default(machine)) == (before, inhibited)
    machine.succeed(f"NIXOS_NO_CHECK=1 {unchecked}/bin/switch-to-configuration test >&2")
    assert machine.current_system() == unchecked


def test_exit_code_2_when_activation_fails(container: Boot) -> None:
    machine = container()
    toplevel = machine.deploy({"activationScript": "exit 5", **web(1000)}, status={2})
    assert machine.current_system() == toplevel, "it is the current system all the same"
    machine.wait_for_unit("web.service")


def test_exit_code_4_for_units_that_fail(container: Boot) -> None:
    machine = container()
    restarting = {"Restart": "always", "RestartSec": "10s"}
    for code, unit in (
        (4, service("/bin/false", serviceConfig={"Type": "oneshot"})),
        (4, service("/bin/false", serviceConfig=restarting)),
        (0, service("/bin/true", serviceConfig=restarting)),
    ):
        toplevel = machine.deploy({"services": {"odd": unit}}, status={code})
        assert machine.current_system() == toplevel, "4 does not mean that it did not switch"


def test_exit_code_100_when_the_init_interface_differs(container: Boot) -> None:
    machine = container()
    before = machine.current_system()
    toplevel = machine.deploy({"initInterfaceVersion": "systemd 4", **web(1000)}, status={100})
    assert machine.current_system() == before
    assert boot_default(machine) == toplevel, "the split state: the boot default has moved"
    machine.reboot()
    machine.wait_for_unit("web.service")
    assert machine.current_system() == toplevel


def test_reset_failed_and_reexec(container: Boot) -> None:
    machine = container()
    machine.fail("systemd-run --wait --unit lost false")
    machine.require_unit_state("lost.service", "failed")
    machine.deploy({"systemd": "258"})
    machine.fail("systemctl is-failed lost.service")
    assert "Reexecuting" in machine.succeed("journalctl --sync; journalctl -b _PID=1 -o cat")


def test_two_switches_exclude_each_other(container: Boot) -> None:
    machine = container()
    toplevel = machine.build(web(1000))
    machine.succeed(f"mkdir -p {STATE}")
    held = f"flock {STATE}/switch-to-configuration.lock"
    assert machine.execute(f"{held} {toplevel}/bin/switch-to-configuration switch")[0] == STC_LOCKED
    assert machine.switch(toplevel) == 0


def test_an_interrupted_switch_is_finished_by_the_next(container: Boot) -> None:
    """Killed between stop and start, it leaves a list; any later switch starts what is in it."""
    machine = container(system=web(1000))
    second = machine.build(
        {"activationScript": "kill -KILL $PPID $(ps -o ppid= $PPID)", **web(1001)}
    )
    assert machine.switch(second) != 0
    assert machine.get_unit_property("web.service", "ActiveState") == "inactive"
    assert "web.service" in machine.succeed(f"cat {STATE}/start-list").split()
    third = machine.build(web(1001))
    assert machine.switch(third) == 0
    machine.require_unit_state("web.service")
    machine.fail(f"test -e {STATE}/start-list")


def test_healers_units_come_from_its_own_rendering(container: Boot) -> None:
    machine = container(system=web(1000))
    agents = {
        "mine": {"command": ["/bin/sleep", "1000"]},
        "web": {"adopt": True, "restart": {"policy": "never"}},
    }
    toplevel = machine.build({"healer": {"agents": agents}, "healerTag": "one", **web(1000)})
    other = machine.build({"healer": {"agents": agents}, "healerTag": "two", **web(1000)})
    units = f"{toplevel}/etc/systemd/system"
    assert "StateDirectory=healer" in machine.succeed(f"cat {units}/healer.service")
    assert "ListenStream=/run/healer" in machine.succeed(f"cat {units}/healer-helper.socket")
    machine.succeed(f"test -L {units}/multi-user.target.wants/mine.service")
    assert "sleep 1000" in machine.succeed(f"cat {units}/web.service")
    assert "Restart=no" in machine.succeed(f"cat {units}/web.service.d/overrides.conf")
    packages = [machine.succeed(f"readlink {each}/sw/bin/healer") for each in (toplevel, other)]
    assert packages[0] != packages[1], "a generation can carry another version of healer"


def test_a_specialisation_and_a_driver_script(container: Boot, tmp_path: Path) -> None:
    machine = container(
        system={**web(1000), "specialisation": {"other": {"etc": {"which": "other"}}}}
    )
    script = tmp_path / "script.py"
    script.write_text(
        "start_all()\n"
        "base = machine.succeed('readlink -f /run/current-system').strip()\n"
        "with subtest('switching to a specialisation'):\n"
        "    machine.succeed(f'{base}/specialisation/other/bin/switch-to-configuration test')\n"
        "    t.assertEqual(machine.succeed('cat /etc/which'), 'other')\n"
        "retry(lambda last: box.execute('true')[0] == 0, timeout_seconds=5)\n"
        "assert machines == [box]\n"
        "log.info('done')\n"
        "t.assertIn('no such thing', base)\n"
    )
    machine.name = "box"
    with pytest.raises(RequestedAssertionError, match="no such thing"):
        run_script(script, [machine])


def test_a_reboot_comes_up_in_the_boot_default(container: Boot) -> None:
    machine = container()
    a_reboot_comes_up_in_the_boot_default(machine)
    machine.shutdown()
    assert not machine.is_up()


def a_reboot_comes_up_in_the_boot_default(machine: LocalMachine) -> None:
    boot_id = machine.succeed("cat /proc/sys/kernel/random/boot_id")
    running = machine.current_system()
    toplevel = machine.deploy(web(1000), how="boot")
    assert machine.current_system() == running
    machine.succeed("touch /var/lib/kept /run/gone")
    machine.reboot()
    machine.wait_for_unit("web.service")
    assert machine.succeed("cat /proc/sys/kernel/random/boot_id") != boot_id
    assert machine.current_system() == toplevel
    assert machine.succeed("readlink -f /run/booted-system").strip() == toplevel
    machine.succeed("test -e /var/lib/kept", "test ! -e /run/gone")
    assert len(machine.succeed("journalctl --list-boots --no-pager -q").splitlines()) >= 2


def own_kernel(machine: LocalMachine) -> None:
    machine.succeed(
        "systemd-run --wait --unit hungry -p MemoryMax=20M -p MemorySwapMax=0 "
        "/usr/bin/python3 -c 'b\"x\" * (100 << 20)' || true"
    )
    assert machine.get_unit_property("hungry.service", "Result") == "oom-kill"
    machine.succeed("systemd-run --unit=small -p MemoryAccounting=yes sleep 1000")
    group = "/sys/fs/cgroup/system.slice/small.service"
    assert int(machine.succeed(f"cat {group}/memory.peak")) > 0
    assert "oom_kill 0" in machine.succeed(f"cat {group}/memory.events")
    machine.block()
    machine.wait_until_succeeds("grep -qx 0 /sys/class/net/eth0/carrier", timeout=30)
    machine.unblock()
    machine.wait_until_succeeds("grep -qx 1 /sys/class/net/eth0/carrier", timeout=30)


def test_a_virtual_machine_has_its_own_kernel_and_power(vm: Boot, tmp_path: Path) -> None:
    """All of it in one, for an emulated one boots for a minute."""
    machine = vm()
    commands_behave_as_in_the_driver(machine, tmp_path)
    a_reboot_comes_up_in_the_boot_default(machine)
    own_kernel(machine)
    a_power_cut_keeps_what_was_synced(machine)
    machine.shutdown()
    assert not machine.is_up()


def a_power_cut_keeps_what_was_synced(machine: LocalMachine) -> None:
    machine.succeed("echo synced >/var/lib/one; sync /var/lib/one /var/lib")
    # As a journal's commit is written, with FUA and without a flush behind it, to a part of the
    # disk where nothing was written before.
    machine.succeed("test $(stat -c %s /usr/bin/perl) -gt $((301 * 4096)) && sync && sleep 1")
    machine.succeed(
        "printf %4096s |"
        " dd of=/usr/bin/perl bs=4096 seek=300 iflag=fullblock oflag=direct,dsync conv=notrunc"
    )
    machine.succeed("echo lost >/var/lib/two")
    machine.crash()
    assert not machine.is_up()
    machine.start()
    assert machine.succeed("cat /var/lib/one") == "synced\n"
    machine.succeed("test $(dd if=/usr/bin/perl bs=4096 skip=300 count=1 | tr -d ' ' | wc -c) = 0")
    machine.fail("test -s /var/lib/two")
    machine.succeed("systemctl is-system-running --wait")
    machine.wait_for_console_text("Multi-User System")
    machine.wait_for_unit("web.service")


def test_the_mirrors_are_those_of_this_machines_apt() -> None:
    deb822 = (
        "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n\n"
        "Types: deb\nURIs: http://other.example/debian-security\nSuites: bookworm-security\n"
    )
    foreign = "deb [signed-by=/x.gpg] https://packages.example/apt stable main\n"
    lines = debian_sources([foreign, deb822]).splitlines()
    assert [line.split()[2:4] for line in lines] == [
        ["http://mirror.example/debian", "trixie"],
        ["http://mirror.example/debian", "trixie-updates"],
        ["http://other.example/debian-security", "trixie-security"],
    ]
    one_line = "deb [arch=amd64] http://old.example/debian/ bookworm main\n"
    assert "http://old.example/debian/ trixie main" in debian_sources([one_line])
    assert "http://deb.debian.org/debian trixie main" in debian_sources([])
