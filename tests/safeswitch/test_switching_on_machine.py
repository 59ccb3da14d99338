"""Rollbacks with something in the way: what the switch answers, what holds it, what is gone."""

from typing import Any

import pytest

from healer.host.switching import UNIT
from tests.conftest import Boot
from tests.machine.agents import (
    assert_intact,
    entries,
    main_pid,
    system,
    wait_for_entry,
)
from tests.machine.local import PROFILE
from tests.safeswitch.switched import (
    assert_not_rolled_back,
    bad,
    good,
    outcome_of_rollback,
)
from tests.safeswitch.test_on_machine import assert_rolled_back, promoted

LOCK = "/run/nixos/switch-to-configuration.lock"


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
    machine.wait_until_succeeds(f"test $(readlink -f /run/current-system) = {known_good}")
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
    machine.wait_until_succeeds(f"test $(readlink -f /run/booted-system) = {known_good}")
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
