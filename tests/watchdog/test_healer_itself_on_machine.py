"""healer stopped, hung, out of memory, off the bus: it comes back, and nothing was lost."""

from tests.conftest import Boot
from tests.machine.agents import (
    agent,
    assert_intact,
    entries,
    kill_and_wait,
    losses,
    main_pid,
    running_pid,
    system,
    wait_for_entry,
    wait_for_new_pid,
    wait_until_all_are_recorded,
    wait_until_every_end_is_recorded,
)
from tests.machine.local import LocalMachine

STOPPER = """\
end=$(($(date +%s) + 60)) last=0
while [ $(date +%s) -lt $end ]; do
  pid=$(systemctl show -P MainPID healer)
  if [ $pid != $last ] && systemctl is-active --quiet healer; then
    kill -STOP $pid && echo stopped $pid && last=$pid
  fi
  sleep 0.1
done
"""


def booted(boot: Boot) -> tuple[LocalMachine, int]:
    """Boot a machine with one agent; return it, and the daemon's PID, once it looks at it."""
    machine = boot(system=system({"worker": agent()}))
    machine.wait_for_unit("worker.service")
    wait_for_entry(machine, "restarts.counted")
    return machine, main_pid(machine, "healer.service")


def kill_thrice(machine: LocalMachine) -> None:
    for _ in range(3):
        kill_and_wait(machine, "worker.service")


def previous_end(machine: LocalMachine) -> dict[str, str]:
    """Return how healer's last run ended, as the next one tells."""
    told: dict[str, str] = entries(machine, "healer.started")[-1]["data"]["previous_end"]
    return told


def assert_complete(machine: LocalMachine, crashes: int) -> None:
    """Each crash is recorded, once, and none is called lost."""
    assert wait_until_all_are_recorded(machine) == crashes
    assert losses(machine, "restarts") == []
    wait_for_entry(machine, "agent.recovered", agent="worker")


def test_stopped_again_and_again_for_a_minute(container: Boot) -> None:
    """Each run of healer's is stopped as soon as it is up, until its watchdog ends it."""
    machine, _ = booted(container)
    machine.write_file("/run/stopper.sh", STOPPER)
    machine.succeed("systemd-run --quiet --unit=stopper sh /run/stopper.sh")
    machine.wait_until_succeeds("journalctl -u stopper -o cat | grep stopped")
    crashes = 0
    while machine.get_unit_property("stopper.service", "ActiveState") == "active":
        kill_and_wait(machine, "worker.service")
        crashes += 1
        machine.sleep(3)
    stopped = machine.succeed("journalctl -u stopper -o cat | grep '^stopped'").split()[1::2]
    assert len(set(stopped)) == len(stopped) >= 3
    wait_for_new_pid(machine, "healer.service", int(stopped[-1]))
    assert_complete(machine, crashes)
    assert previous_end(machine)["class"] == "watchdog"
    assert "missed its watchdog deadline" in machine.succeed("journalctl -u healer -o cat")
    # What systemd has it wait before each restart does not grow for ever.
    machine.wait_until_succeeds("test $(systemctl show -P NRestarts healer) = 0")


def test_stopped_for_a_moment(container: Boot) -> None:
    machine, healer = booted(container)
    machine.succeed(f"kill -STOP {healer}")
    kill_thrice(machine)
    machine.succeed(f"kill -CONT {healer}")
    assert_complete(machine, 3)
    assert main_pid(machine, "healer.service") == healer


def test_hung_in_its_loop(container: Boot) -> None:
    machine, healer = booted(container)
    # Whoever opens a FIFO to read it waits for a writer: here the loop, for ever.
    fifo = f"/run/healer/stamps/worker.service.{'0' * 32}.stop"
    machine.succeed(f"mkfifo -m 644 {fifo}")
    machine.wait_until_succeeds(f"grep -E 'fifo|partner' /proc/{healer}/wchan")
    machine.succeed(f"rm {fifo}")
    kill_thrice(machine)
    wait_for_new_pid(machine, "healer.service", healer)
    assert "watchdog" in machine.succeed("journalctl _PID=1 UNIT=healer.service")
    assert_complete(machine, 3)


def test_off_the_bus(container: Boot) -> None:
    machine, healer = booted(container)
    machine.succeed("systemctl stop dbus.socket dbus.service")
    machine.wait_until_succeeds("journalctl -u healer | grep 'does not answer'")
    kill_thrice(machine)
    # Stamps need no bus.
    assert wait_until_all_are_recorded(machine) == 3
    machine.succeed("systemctl start dbus.socket dbus.service")
    kill_and_wait(machine, "worker.service")
    assert_complete(machine, 4)
    assert main_pid(machine, "healer.service") == healer


def test_a_bus_that_hangs(container: Boot) -> None:
    machine, healer = booted(container)
    bus = main_pid(machine, "dbus.service")
    machine.succeed(f"kill -STOP {bus}")
    kill_thrice(machine)
    machine.wait_until_succeeds("journalctl -u healer | grep 'does not answer'")
    assert wait_until_all_are_recorded(machine) == 3
    machine.succeed(f"kill -CONT {bus}")
    kill_and_wait(machine, "worker.service")
    assert_complete(machine, 4)
    assert main_pid(machine, "healer.service") == healer


def test_a_storm_in_which_systemd_and_the_bus_restart(container: Boot) -> None:
    loop = {
        "command": ["/bin/sh", "-c", "sleep 0.2; exit 3"],
        "crashLoop": {"maxCrashes": 1000, "windowSec": 1, "earlyDeathSec": 0},
    }
    names = [f"loop-{n}" for n in range(5)]
    agents = dict.fromkeys(names, loop)
    machine = container()
    machine.deploy(system(agents), status={0, 4})
    healer = running_pid(machine, "healer.service")
    for disturbance in ("systemctl daemon-reexec", "systemctl kill -s KILL dbus.service") * 3:
        machine.succeed(disturbance)
        machine.wait_until_succeeds("systemctl is-active healer")
        machine.sleep(1)
    units = " ".join(f"{name}.service" for name in names)
    machine.succeed(f"systemctl stop {units}")
    for name in names:
        assert wait_until_every_end_is_recorded(machine, name) >= 10
    assert losses(machine, "restarts") == []
    assert main_pid(machine, "healer.service") == healer
    assert_intact(machine)


def it_runs_out_of_memory(machine: LocalMachine) -> None:
    """For a machine with a kernel of its own, and its agent worker."""
    healer = running_pid(machine, "healer.service")
    machine.succeed("systemctl set-property --runtime healer.service MemoryMax=8M")
    wait_for_new_pid(machine, "healer.service", healer)
    kill_thrice(machine)
    machine.succeed("systemctl set-property --runtime healer.service MemoryMax=infinity")
    assert "oom-kill" in machine.succeed("journalctl _PID=1 UNIT=healer.service")
    assert_complete(machine, 3)
    assert previous_end(machine)["class"] == "oom"
    assert [e["data"]["class"] for e in entries(machine, "agent.crash")] == ["signal"] * 3
