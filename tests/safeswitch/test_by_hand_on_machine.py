"""What `healer safeswitch` refuses, and going back by hand, on a real systemd."""

import json

from healer.host import known_good
from tests.conftest import Boot
from tests.machine.agents import assert_intact, entries, wait_for_entry
from tests.safeswitch.asking import TRIAL, ask, gated, refused, status, where


def test_what_cannot_be_tried_is_refused_before_anything_changes(container: Boot) -> None:
    machine = container(system=gated("old"))
    old = machine.current_system()
    new = machine.build(gated("new"))
    refused(machine, f"run {old}", "runs already")
    refused(machine, "run /nix/store/nothing", "is not the path of a system")
    refused(machine, "run /no/such/result", "does not exist")
    refused(machine, "run /etc", "is not a system in /nix/store")
    gone = "/nix/store/" + "a" * 32 + "-nixos-system-local"
    refused(machine, f"run {gone}", "may have been garbage-collected")
    package = machine.succeed("readlink -f $(dirname $(readlink -f $(which healer)))/..").strip()
    refused(machine, f"run {package}", "is not a NixOS system")
    lost = machine.build(gated("lost"))
    machine.succeed(f"nix-store --delete {lost}")
    refused(machine, f"run {lost}", "may have been garbage-collected")
    # There, but not what Nix put there.
    machine.succeed(f"cp -a {new} {gone}")
    refused(machine, f"run {gone}", "is not valid in the Nix store")
    machine.succeed("systemd-run --unit=hog flock /run/nixos/switch-to-configuration.lock sleep 99")
    machine.wait_until_succeeds("grep -q FLOCK /proc/locks && systemctl is-active hog")
    refused(machine, f"run {new}", "switch-to-configuration.lock")
    machine.succeed("systemctl stop hog")
    machine.succeed("systemd-run --unit=nixos-rebuild-switch-to-configuration sleep 99")
    refused(machine, f"run {new}", "nixos-rebuild-switch-to-configuration.service is active")
    machine.succeed("systemctl stop nixos-rebuild-switch-to-configuration")
    # The kernel has to be copied there, and there is no room for it.
    machine.succeed("cp -a /boot/loader /tmp/ && mount -t tmpfs -o size=200k tmpfs /boot")
    machine.succeed("cp -a /tmp/loader /boot/")
    refused(machine, f"run {new}", "no space: /boot has")
    machine.succeed("umount /boot")
    # Nor can root leave its word on a full disk.
    machine.succeed("mount -t tmpfs -o size=4k tmpfs /var/lib/healer-helper")
    machine.execute("dd if=/dev/zero of=/var/lib/healer-helper/filler bs=1k")
    full = "cannot write to /var/lib/healer-helper/grants: No space left on device; free space"
    refused(machine, f"run {new}", full)
    machine.succeed("umount /var/lib/healer-helper")
    # What the switch itself refuses has changed nothing either.
    inhibited = machine.build({**gated("inhibited"), "switchInhibitors": {"dbus": "broker"}})
    classic = {"dbus": "classic"}
    older = machine.deploy({**gated("older"), "switchInhibitors": classic})
    refused(
        machine,
        f"run {inhibited}",
        f"{older} still runs: switch-to-configuration test exited with 1",
    )
    condemned = machine.build(gated("condemned"))
    assert ask(machine, f"condemn {condemned}")[0]
    refused(machine, f"run {condemned}", "is condemned")
    tried = [e["data"]["target"] for e in entries(machine, "action.intent")]
    assert gone in tried
    assert condemned in tried
    machine.fail(f"grep -q waiting {TRIAL}")


def test_nobody_but_root_runs_what_was_never_deployed(container: Boot) -> None:
    """Not the daemon, whose user signs the intents, nor the group healer."""
    machine = container(system=gated("old"))
    old = machine.current_system()
    new = machine.build(gated("new"))
    refused(machine, f"run {new}", "only root", user="healer")
    older = machine.deploy(gated("older"))
    for verb, toplevel, said in (
        ("run", new, "only root may ask for try"),
        ("rollback", old, "only root may ask for rollback"),
    ):
        request = json.dumps({"type": "SafeSwitchRequest", "verb": verb, "toplevel": toplevel})
        machine.write_file("/run/request", request + "\n")
        _, out = machine.execute(
            "setpriv --reuid=healer --regid=healer --clear-groups "
            "nc -N -U /run/healer/control.sock < /run/request"
        )
        assert said in out
    assert where(machine) == (older, older, older)
    # A grant is for one thing, once.
    machine.succeed("systemctl stop healer")
    assert not ask(machine, f"rollback --to {old}")[0]
    (grant,) = machine.succeed("ls /var/lib/healer-helper/grants").split()
    machine.succeed("systemctl start healer")
    machine.wait_for_unit("healer.service")
    stolen = {"type": "SafeSwitchRequest", "verb": "run", "toplevel": new, "grant": grant}
    machine.write_file("/run/request", json.dumps(stolen) + "\n")
    out = machine.succeed("nc -N -U /run/healer/control.sock < /run/request")
    assert "only root may ask for try" in out
    assert where(machine) == (older, older, older)


def test_going_back_by_hand(container: Boot) -> None:
    machine = container(system=gated("first"))
    first = machine.current_system()
    refused(machine, "rollback", "no system is known to be good yet")
    assert ask(machine, "confirm")[0]
    wait_for_entry(machine, "deployment.known-good", toplevel=first)
    refused(machine, "rollback", "it is the last known-good")
    second, third = machine.deploy(gated("second")), machine.deploy(gated("third"))
    # To the last known-good.
    done, out = ask(machine, "rollback")
    assert done, out
    assert where(machine) == (first, first, first)
    # To any generation of the profile.
    done, out = ask(machine, f"rollback --to {second}")
    assert done, out
    assert where(machine) == (second, second, second)
    refused(machine, f"rollback --to {second}", "runs already")
    never = machine.build(gated("never deployed"))
    refused(machine, f"rollback --to {never}", "neither known-good nor a generation")
    intents = [e["data"] for e in entries(machine, "action.intent")]
    asked = [i["asked_by"] for i in intents if i["action"] == "rollback"]
    assert asked == ["alice (by sudo)"] * 3
    # Nobody is condemned for it, unless somebody says so.
    assert status(machine)["condemned"] == []
    assert ask(machine, f"condemn {third}")[0]
    assert status(machine)["condemned"] == [third]
    refused(machine, f"condemn {third}", "condemned already")
    refused(machine, f"rollback --to {third}", "is condemned")
    done, out = ask(machine, f"condemn {first}")
    assert done
    assert "no known-good system is left" in out
    assert "it was the only known-good system" in out
    machine.fail(f"ls {known_good.PROFILE}*")
    refused(machine, "rollback", "no system is known to be good yet")
    assert ask(machine, f"forgive {third}")[0]
    refused(machine, f"forgive {third}", "is not condemned")
    assert ask(machine, f"rollback --to {third}")[0]
    assert where(machine) == (third, third, third)
    assert_intact(machine)


def test_going_back_by_hand_to_another_kernel(container: Boot) -> None:
    """No live switch can do that: the system boots next, and whoever asked is told at once."""
    machine = container(system={**gated("old"), "kernel": "6.6"})
    old = machine.current_system()
    new = machine.deploy({**gated("new"), "kernel": "6.12"}, how="boot")
    machine.reboot()
    machine.wait_for_unit("healer.service")
    assert where(machine) == (new, new, new)
    done, out = ask(machine, f"rollback --to {old}")
    assert done, out
    assert f"{old} is the system that boots next (another kernel)" in out
    assert where(machine) == (new, old, old)
    machine.reboot()
    machine.wait_for_unit("healer.service")
    assert where(machine) == (old, old, old)
    assert wait_for_entry(machine, "action.outcome", action="rollback")["data"]["ok"]
    assert_intact(machine)
