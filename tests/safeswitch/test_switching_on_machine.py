"""Rollbacks with something in the way: what the switch answers, what holds it, what is gone."""

from typing import Any

import pytest

from healer.host.switching import UNIT
from tests.conftest import Boot
from tests.machine.agents import (
    PROGRAMS,
    agent,
    assert_intact,
    entries,
    main_pid,
    system,
    wait_for_entry,
    wait_for_ledger,
)
from tests.machine.local import PROFILE, LocalMachine
from tests.safeswitch.test_on_machine import assert_rolled_back, promoted

LOCK = "/run/nixos/switch-to-configuration.lock"


def good(safe_switch: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    healer = {"safeSwitch": {"probationSec": 2, **(safe_switch or {})}}
    label = more.pop("label", "good")
    return system({"worker": agent(**more.pop("options", {}))}, label=label, healer=healer, **more)


def bad(
    safe_switch: dict[str, Any] | None = None, label: str = "bad", **more: Any
) -> dict[str, Any]:
    """A system whose agent crashes; its options are those in force when it is rolled back."""
    healer = {"safeSwitch": {"probationSec": 120, **(safe_switch or {})}, **more.pop("healer", {})}
    options = more.pop("options", {})
    # It does not crash so fast that a ledger of it takes long to read.
    restart = {"policy": "exponential", "delaySec": 0.2, "maxDelaySec": 5}
    broken = agent("broken", restart=restart, **options)
    return system({"worker": broken}, label=label, healer=healer, **more)


def by_itself(program: str, **service: Any) -> dict[str, Any]:
    """Declare the worker's unit as somebody else's, which healer only adopts."""
    return {
        "wantedBy": ["multi-user.target"],
        "unitConfig": {"StartLimitIntervalSec": 0},
        "serviceConfig": {
            "Type": "simple",
            "ExecStart": f"/usr/bin/python3 /etc/agents/{program}.py",
            "StateDirectory": "worker",
            "NotifyAccess": "all",
            **service,
        },
    }


def outcome_of_rollback(machine: LocalMachine) -> dict[str, Any]:
    data: dict[str, Any] = wait_for_entry(machine, "action.outcome", action="rollback")["data"]
    return data


def assert_not_rolled_back(machine: LocalMachine, toplevel: str, why: str) -> None:
    """The one rollback failed, in these words, and what it says is what runs."""
    outcome = outcome_of_rollback(machine)
    assert not outcome["ok"]
    assert why in outcome["detail"], outcome
    assert outcome["running"] == machine.current_system() == toplevel
    assert entries(machine, "deployment.condemned") == []
    assert_intact(machine)


@pytest.mark.parametrize(
    ("code", "obstacle"),
    [
        (2, {"activationScript": "test ! -e /run/obstacle"}),
        (
            4,
            {
                "services": {
                    "sulky": {
                        "wantedBy": ["multi-user.target"],
                        "serviceConfig": {
                            "Type": "oneshot",
                            "RemainAfterExit": True,
                            "ExecStart": "/bin/sh -c 'test ! -e /run/obstacle'",
                        },
                    }
                }
            },
        ),
    ],
)
def test_a_switch_that_half_fails_is_judged_by_what_runs(
    container: Boot, code: int, obstacle: dict[str, Any]
) -> None:
    machine = container(system=good(**obstacle))
    known_good = promoted(machine)
    machine.succeed("touch /run/obstacle")
    toplevel = machine.deploy(bad(), status={0, 4})
    outcome = assert_rolled_back(machine, toplevel, known_good)
    assert outcome["detail"] == f"switch-to-configuration exited with {code}"


def test_what_cannot_or_must_not_be_made_to_boot_is_activated(container: Boot) -> None:
    machine = container(system=good(bootLoaderScript="test ! -e /run/obstacle"))
    known_good = promoted(machine)
    machine.succeed("touch /run/obstacle")
    toplevel = machine.deploy(bad(), status={0, 4})
    detail = assert_rolled_back(machine, toplevel, known_good)["detail"]
    assert f"the profile is {known_good}, {toplevel} boots next, {known_good} runs" in detail
    # What it says has to be done does it, and nothing before that.
    machine.wait_until_succeeds("(healer status || true) | grep 'does not outlive the next boot'")
    machine.succeed("rm /run/obstacle")
    machine.succeed(f"{detail.split('and run: ')[1].split(';')[0]} >&2")
    boots = "grep init={}/init /boot/loader/entries/$(sed -n 's/^default //p' {})"
    machine.succeed(boots.format(known_good, "/boot/loader/loader.conf"))
    machine.wait_until_fails("(healer status || true) | grep 'does not outlive the next boot'")

    # A fix that is staged for the next boot is left to that.
    fix = machine.deploy(good(label="fix"), how="boot")
    worse = machine.build(bad(label="worse"))
    assert machine.switch(worse, "test") in {0, 4}
    wait_for_entry(machine, "deployment.condemned", toplevel=worse)
    assert machine.current_system() == known_good
    assert machine.succeed(f"readlink -f {PROFILE}").strip() == fix
    machine.succeed(boots.format(fix, "/boot/loader/loader.conf"))
    assert_intact(machine)


def test_a_switch_that_is_refused_waits_for_somebody_to_reboot(container: Boot) -> None:
    refuses = 'test "$2" = boot || test ! -e /run/obstacle'
    machine = container(system=good(preSwitchCheck=refuses))
    known_good = promoted(machine)
    machine.succeed("touch /run/obstacle")
    toplevel = machine.deploy(bad(), status={0, 4})
    staged = wait_for_entry(machine, "rollback.staged")
    assert staged["data"]["reason"] == "switch-to-configuration exited with 1"
    assert "somebody has to reboot the host" in staged["data"]["detail"]
    assert machine.current_system() == toplevel
    assert machine.succeed(f"readlink -f {PROFILE}").strip() == known_good
    # Also who is killed while it waits goes on waiting.
    machine.succeed("systemctl kill --signal=KILL healer")
    machine.wait_until_succeeds(
        "test $(journalctl -u 'healer-helper@*' | grep -c 'is the system that boots next') = 2",
        timeout=60,
    )
    machine.wait_until_succeeds("healer safeswitch status | grep 'somebody has to reboot the host'")
    assert len(entries(machine, "rollback.staged")) == 1
    machine.reboot()
    assert_rolled_back(machine, toplevel, known_good)


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"switchInhibitors": {"dbus": "broker"}}, "switch inhibitor dbus"),
        ({"kernel": "6.18", "initrd": "6.18"}, "another kernel, another initrd"),
        ({"initInterfaceVersion": "systemd 4"}, "switch-to-configuration exited with 100"),
    ],
)
def test_what_no_switch_can_do_is_done_by_a_reboot(
    container: Boot, part: dict[str, Any], reason: str
) -> None:
    machine = container(system=good(switchInhibitors={"dbus": "dbus"}))
    known_good = promoted(machine)
    machine.deploy(bad({"reboot": "at-once"}, **part), how="boot")
    machine.reboot()
    staged = wait_for_entry(machine, "rollback.staged")
    assert staged["data"]["reason"] == reason
    machine.wait_until_succeeds(
        f"test $(readlink -f /run/current-system) = {known_good}", timeout=120
    )
    outcome = outcome_of_rollback(machine)
    assert (outcome["ok"], outcome["running"]) == (True, known_good)
    assert "the host booted it" in outcome["detail"]
    assert machine.succeed("readlink -f /run/booted-system").strip() == known_good
    assert_intact(machine)


def test_a_reboot_waits_for_its_window(container: Boot) -> None:
    machine = container(system=good(switchInhibitors={"dbus": "dbus"}))
    known_good = promoted(machine)
    now = int(machine.succeed("date +%H")) * 60 + int(machine.succeed("date +%M"))
    later, end, before = (f"{(now + m) // 60 % 24:02}:{(now + m) % 60:02}" for m in (120, 180, -60))
    window = {"reboot": "window", "rebootWindow": {"lower": later, "upper": end}}
    toplevel = machine.deploy(bad(window, switchInhibitors={"dbus": "broker"}), how="boot")
    machine.reboot()
    staged = wait_for_entry(machine, "rollback.staged")
    assert f"the host reboots between {later} and {end}" in staged["data"]["detail"]
    machine.wait_until_succeeds(f"healer safeswitch status | grep 'between {later} and {end}'")
    assert machine.current_system() == toplevel
    assert machine.succeed(f"readlink -f {PROFILE}").strip() == known_good

    # Now the window begins earlier.
    config = "/etc/healer/config.yaml"
    machine.succeed(
        f"sed 's/{later}/{before}/' {config} >/run/config.yaml",
        f"rm {config}; mv /run/config.yaml {config}",
        "systemctl restart --no-block healer",
    )
    machine.wait_until_succeeds(
        f"test $(readlink -f /run/booted-system) = {known_good}", timeout=120
    )
    assert "the host booted it" in outcome_of_rollback(machine)["detail"]
    assert_rolled_back(machine, toplevel, known_good)
    assert len(entries(machine, "rollback.staged")) == 1


def test_a_switch_that_is_stuck_is_told_of_and_the_rollback_comes_after_it(container: Boot) -> None:
    machine = container(system=good())
    known_good = promoted(machine)
    late = "test ! -e /run/obstacle || exit 3; exec sleep infinity"
    slowly = {"policy": "exponential", "delaySec": 0.2, "maxDelaySec": 5}
    worker = {"command": ["/bin/sh", "-c", late], "stableSec": 2, "restart": slowly}
    patient = {"safeSwitch": {"probationSec": 120, "lockTimeoutSec": 3}}
    toplevel = machine.deploy(system({"worker": worker}, label="bad", healer=patient))
    wait_for_entry(machine, "config.loaded")
    machine.succeed(f"systemd-run --unit=hog flock {LOCK} sleep infinity")
    hog = main_pid(machine, "hog")
    machine.succeed("touch /run/obstacle; systemctl kill --signal=KILL worker")
    wait_for_entry(machine, "agent.crash-loop", toplevel=toplevel)
    stuck = wait_for_entry(machine, "switch.stuck")["data"]
    assert stuck["holder"] == f"process {hog} (flock)"
    assert stuck["held_ms"] >= 3000
    told = "(healer status || true) | grep 'switch-to-configuration does not end'"
    machine.wait_until_succeeds(told)
    assert machine.current_system() == toplevel
    assert [e["data"]["action"] for e in entries(machine, "action.intent")] == ["promote"]
    machine.succeed("systemctl stop hog")
    assert_rolled_back(machine, toplevel, known_good)
    assert len(entries(machine, "switch.stuck")) == 1


def test_a_switch_that_hangs_is_ended(container: Boot) -> None:
    machine = container(system=good(activationScript="test ! -e /run/obstacle || sleep 1000"))
    promoted(machine)
    machine.succeed("touch /run/obstacle")
    toplevel = machine.deploy(bad({"timeoutSec": 5}), status={0, 4})
    assert_not_rolled_back(machine, toplevel, "did not end within safeSwitch.timeoutSec")
    assert entries(machine, "rollback.staged") == []
    assert machine.execute(f"flock --nonblock {LOCK} true")[0] == 0


def test_a_switch_that_hangs_after_it_has_switched_is_a_rollback(container: Boot) -> None:
    slow = {
        "wantedBy": ["multi-user.target"],
        "serviceConfig": {
            "Type": "oneshot",
            "TimeoutStartSec": "infinity",
            "ExecStart": "/bin/sh -c 'test ! -e /run/obstacle || sleep 1000'",
        },
    }
    machine = container(system=good(services={"slow": slow}))
    known_good = promoted(machine)
    machine.succeed("touch /run/obstacle")
    toplevel = machine.deploy(bad({"timeoutSec": 10}), status={0, 4})
    outcome = assert_rolled_back(machine, toplevel, known_good)
    assert "did not end within" in outcome["detail"]


def test_a_lock_that_is_never_released_ends_the_wait(container: Boot) -> None:
    machine = container(system=good())
    promoted(machine)
    toplevel = machine.build(bad({"lockTimeoutSec": 4}))
    machine.set_profile(toplevel)
    # A switch of somebody's begins when the rollback is intended, and hangs.
    waits = 'until grep -qs \'"action":"rollback"\' /var/lib/healer/ledger/*.jsonl; do :; done'
    machine.write_file("/run/hog.sh", f"{waits}\nexec flock {LOCK} sleep infinity\n")
    machine.succeed(f"systemd-run --unit={UNIT} --collect sleep infinity")
    machine.succeed("systemd-run --unit=hog sh /run/hog.sh")
    assert machine.switch(toplevel) in {0, 4}
    assert_not_rolled_back(machine, toplevel, "for longer than safeSwitch.lockTimeoutSec")


def test_nixos_rebuild_and_the_rollback_exclude_each_other(container: Boot) -> None:
    machine = container(system=good())
    known_good = promoted(machine)
    toplevel = machine.build(bad())
    machine.set_profile(toplevel)
    # nixos-rebuild switches in a unit of this name; here it takes its time.
    machine.succeed(f"systemd-run --unit={UNIT} --collect sleep 6")
    assert machine.switch(toplevel) in {0, 4}
    wait_for_entry(machine, "action.intent", action="rollback")
    assert_rolled_back(machine, toplevel, known_good)


def test_the_way_back_needs_no_bus(container: Boot) -> None:
    machine = container(system=good())
    known_good = promoted(machine)
    toplevel = machine.build(bad())
    machine.set_profile(toplevel)
    for unit in ("dbus.socket", "dbus.service"):
        off = f"/run/systemd/system/{unit}.d/off.conf"
        machine.write_file(off, "[Unit]\nConditionPathExists=/run/bus-is-mended\n")
    machine.succeed("systemctl daemon-reload; systemctl stop dbus.socket dbus.service")
    assert machine.switch(toplevel) in {0, 4}
    wait_for_entry(machine, "deployment.condemned", toplevel=toplevel)
    assert machine.execute("systemctl is-active dbus.service")[0] != 0
    machine.succeed("touch /run/bus-is-mended; systemctl start dbus.socket")
    assert_rolled_back(machine, toplevel, known_good)


def test_a_target_that_was_collected_as_garbage_is_told_of(container: Boot) -> None:
    machine = container(system=good())
    known_good = promoted(machine)
    toplevel = machine.build(bad())
    machine.set_profile(toplevel)
    assert machine.switch(toplevel, "test") in {0, 4}
    machine.succeed(
        f"systemctl stop healer; rm -f {PROFILE}-1-link {PROFILE}-2-link"
        " /nix/var/nix/profiles/system-profiles/*",
        f"nix-store --delete --ignore-liveness {known_good}",
        "systemctl start healer",
    )
    assert_not_rolled_back(machine, toplevel, "it may have been garbage-collected")


def test_hooks_run_before_the_rollback_as_whom_they_should(container: Boot) -> None:
    note = "echo $(id -u) $(pwd) $STATE_DIRECTORY $(readlink -f /run/current-system)"
    options = {
        "snapshot": ["/bin/sh", "-c", f"{note} >/run/snapshot"],
        "beforeRollback": ["/bin/sh", "-c", f"{note} >$STATE_DIRECTORY/prepared"],
    }
    # The bad system does not have this one's unit: nobody knows there as whom its hook should run.
    command = ["/bin/sh", "-c", "id -u >/run/gone"]
    gone = {"adopt": True, "unit": "gone.service", "stableSec": 2, "beforeRollback": command}
    service = {
        "wantedBy": ["multi-user.target"],
        "serviceConfig": {"ExecStart": "/bin/sleep infinity", "User": "nobody"},
    }
    before = good(options=options, services={"gone": service})
    after = bad(options=options)
    for declared in (before, after):
        declared["healer"]["agents"]["gone"] = gone
    machine = container(system=before)
    known_good = promoted(machine)
    toplevel = machine.deploy(after, status={0, 4})
    outcome = assert_rolled_back(machine, toplevel, known_good)
    assert "prepare" in outcome["steps"]
    machine.fail("test -e /run/gone")
    assert machine.succeed("cat /run/snapshot").split() == ["0", "/", toplevel]
    prepared = machine.succeed("cat /var/lib/worker/prepared").split()
    owner = machine.succeed("stat -L -c %u /var/lib/worker").strip()
    assert owner != "0"
    assert prepared == [owner, "/", "/var/lib/worker", toplevel]


@pytest.mark.parametrize("power_cut", [False, True], ids=["helper killed", "power cut"])
def test_what_interrupts_a_hook_has_none_run_twice_that_ended(
    container: Boot, power_cut: bool
) -> None:
    slowly = "echo here >>$STATE_DIRECTORY/hooks; until test -e /run/go-on; do sleep 0.1; done"
    options = {
        "snapshot": ["/bin/sh", "-c", "echo here >>/var/lib/snapshots"],
        "beforeRollback": ["/bin/sh", "-c", slowly],
    }
    machine = container(system=good(options=options))
    known_good = promoted(machine)
    toplevel = machine.deploy(bad(options=options), status={0, 4})
    machine.wait_until_succeeds("grep here /var/lib/worker/hooks", timeout=120)
    if power_cut:
        machine.crash()
        machine.start()
    else:
        pids = "systemctl show -P MainPID 'healer-helper@*' | grep -v -e '^0*$'"
        before = machine.succeed(pids).split()
        machine.succeed("systemctl kill --signal=KILL 'healer-helper@*'")
        gone = " ".join(f"-e '^{pid}$'" for pid in before)
        machine.wait_until_succeeds(f"{pids} {gone}", timeout=120)
    machine.succeed("touch /run/go-on")
    assert_rolled_back(machine, toplevel, known_good)
    assert machine.succeed("cat /var/lib/snapshots").split() == ["here"]
    interrupted = 2 if power_cut else 1
    assert machine.succeed("cat /var/lib/worker/hooks").split() == ["here"] * interrupted


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        ({"beforeRollback": ["/bin/false"]}, "beforeRollback of worker failed (exit code 1)"),
        (
            {"snapshot": ["/bin/sleep", "1000"], "beforeRollbackTimeoutSec": 1},
            "snapshot of worker took too long",
        ),
    ],
)
def test_a_hook_that_fails_keeps_everything_as_it_is(
    container: Boot, hook: dict[str, Any], said: str
) -> None:
    machine = container(system=good())
    promoted(machine)
    toplevel = machine.deploy(bad(options=hook), status={0, 4})
    assert_not_rolled_back(machine, toplevel, said)
    assert machine.succeed(f"readlink -f {PROFILE}").strip() == toplevel


def test_two_bad_systems_in_a_row(container: Boot) -> None:
    # All three have a kernel that was never booted: among them a live switch is as good as ever.
    machine = container(system=good(kernel="6.18"))
    known_good = promoted(machine)
    for label in ("first", "second"):
        toplevel = machine.deploy(bad(label=label, kernel="6.18"), status={0, 4})
        wait_for_entry(machine, "deployment.condemned", toplevel=toplevel)
        assert machine.current_system() == known_good
    intents = [e for e in entries(machine, "action.intent") if e["data"]["action"] == "rollback"]
    assert [e["data"]["target"] for e in intents] == [known_good] * 2
    assert_intact(machine)


def test_a_rollback_from_another_healer_brings_the_old_one_back(container: Boot) -> None:
    machine = container(system=good())
    known_good = promoted(machine)
    toplevel = machine.deploy(bad(healerTag="another version"), status={0, 4})
    assert_rolled_back(machine, toplevel, known_good)
    healer = machine.succeed(f"readlink -f {known_good}/sw/bin/healer").strip()
    machine.wait_until_succeeds(
        f"tr '\\0' ' ' </proc/$(systemctl show -P MainPID healer)/cmdline | grep {healer}",
        timeout=120,
    )


def test_a_system_without_healer_leaves_it_running_and_the_way_back(container: Boot) -> None:
    machine = container(system=good())
    known_good = promoted(machine)
    pid = main_pid(machine, "healer.service")
    bare = machine.deploy({"label": "without healer"}, status={0, 4})
    package = f"{known_good}/sw/bin"
    wait_for_ledger(
        machine,
        f"{package}/healer ledger show --type deployment.activated --json | grep {bare}",
        timeout=60,
    )
    assert main_pid(machine, "healer.service") == pid
    # PID 1 takes its word still: else WatchdogSec= would be the end of it.
    assert machine.succeed("systemctl show --value --property=NotifyAccess healer") == "main\n"
    machine.set_profile(known_good)
    assert machine.switch(known_good) == 0
    machine.wait_until_succeeds("systemctl is-active worker", timeout=60)
    wait_for_entry(machine, "deployment.activated", toplevel=known_good, previous=bare)
    assert [e["data"]["action"] for e in entries(machine, "action.intent")] == ["promote"]
    assert_intact(machine)


@pytest.mark.parametrize("dies", [False, True], ids=["healer lives", "healer dies"])
def test_a_bad_system_without_healer_is_rolled_back(container: Boot, dies: bool) -> None:
    """The daemon outlives the switch, or comes back; so must root's helper, and what both read."""
    adopted = {"adopt": True, "unit": "worker.service", "stableSec": 2}
    before = system({"worker": adopted}, label="good", healer={"safeSwitch": {"probationSec": 6}})
    machine = container(system={**before, "services": {"worker": by_itself("worker")}})
    known_good = promoted(machine)
    broken = by_itself("broken", Restart="always", RestartSec="200ms")
    bare = {"label": "without healer", "etc": PROGRAMS, "services": {"worker": broken}}
    if dies:  # before it can have judged
        machine.succeed("systemctl kill --signal=STOP healer")
    else:  # while PID 1 still looks for the units of the system before, a helper is asked for
        bare["activationScript"] = "systemctl kill --signal=KILL worker; sleep 2"
    toplevel = machine.deploy(bare, status={0, 4})
    if dies:
        machine.succeed("systemctl kill --signal=KILL healer")
    assert_rolled_back(machine, toplevel, known_good)
    assert len(entries(machine, "healer.started")) == 1 + dies
    assert entries(machine, "drift.found") == []


def test_the_kept_units_are_those_of_the_running_system(container: Boot) -> None:
    """Whatever a switch changed of them; also the second, by which systemd-tmpfiles has run."""
    machine = container(system=good())
    for probation_sec in (4, 5):
        assert machine.switch(machine.build(good({"probationSec": probation_sec}))) == 0
        for unit in ("healer.service", "healer-helper.socket", "healer-helper@.service"):
            machine.succeed(f"cmp /run/systemd/system/{unit} /etc/systemd/system/{unit}")


def test_a_specialisation_is_gone_back_to_through_its_base(container: Boot) -> None:
    special = good(specialisation={"fast": {"label": "fast"}})
    machine = container(system=special)
    base = machine.current_system()
    assert (
        machine.execute(f"{base}/specialisation/fast/bin/switch-to-configuration test >&2")[0] == 0
    )
    fast = promoted(machine)
    assert fast != base
    activated = wait_for_entry(machine, "deployment.activated", toplevel=fast)["data"]
    assert (activated["specialisation"], activated["base"]) == ("fast", base)
    toplevel = machine.deploy(bad(), status={0, 4})
    wait_for_entry(machine, "deployment.condemned", toplevel=toplevel)
    assert machine.current_system() == fast
    assert machine.succeed(f"readlink -f {PROFILE}").strip() == base
    assert_intact(machine)
