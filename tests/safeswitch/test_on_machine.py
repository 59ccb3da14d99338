"""SafeSwitch on real generations: real derivations, profiles, switches and kills."""

import json
from typing import Any

import pytest

from healer.host.switching import UNIT
from tests.conftest import Boot
from tests.machine.agents import (
    agent,
    assert_intact,
    entries,
    kill_and_wait,
    main_pid,
    system,
    wait_for_entries,
    wait_for_entry,
    wait_until_told,
)
from tests.machine.local import PROFILE, LocalMachine

GOOD = system({"worker": agent()}, label="good")
# An emulated machine takes seconds to start a program: it must not pass for stable meanwhile.
PATIENT = {"safeSwitch": {"probationSec": 120}}
BAD = system({"worker": agent("broken")}, label="bad", healer=PATIENT)


def promoted(machine: LocalMachine) -> str:
    """Wait until the running system is known-good, and return it."""
    toplevel = machine.current_system()
    wait_for_entry(machine, "deployment.known-good", toplevel=toplevel)
    return toplevel


def assert_rolled_back(machine: LocalMachine, bad: str, good: str) -> dict[str, Any]:
    """Wait for the one rollback from bad to good, and check what runs; return its outcome."""
    wait_for_entry(machine, "deployment.condemned", toplevel=bad, timeout=600)
    assert machine.current_system() == good
    assert machine.succeed(f"readlink -f {PROFILE}").strip() == good
    intents = [e for e in entries(machine, "action.intent") if e["data"]["action"] == "rollback"]
    assert [(e["data"]["from"], e["data"]["target"]) for e in intents] == [(bad, good)]
    outcome = wait_for_entry(machine, "action.outcome", action="rollback")
    assert outcome["data"]["ok"]
    assert outcome["data"]["intent"] == intents[0]["seq"]
    assert outcome["data"]["running"] == good
    wait_until_told(machine, "agent.recovered", intents[0]["incident"])
    machine.wait_until_succeeds("systemctl is-active worker")
    assert_intact(machine)
    data: dict[str, Any] = outcome["data"]
    return data


def test_a_good_deployment_is_promoted_and_a_bad_one_rolled_back(container: Boot) -> None:
    machine = container(system=GOOD)
    good = promoted(machine)
    known_good = "/nix/var/nix/profiles/system-profiles/healer-known-good"
    assert machine.succeed(f"readlink -f {known_good}").strip() == good
    assert good in machine.succeed("nix-store --gc --print-roots")

    bad = machine.deploy(BAD, status={0, 4})
    outcome = assert_rolled_back(machine, bad, good)
    measured = wait_for_entry(machine, "deployment.closure", toplevel=bad, previous=good)["data"]
    assert measured["added"] == measured["removed"] == 2, "the toplevel and its configuration"
    assert measured["bytes_added"] > 10_000
    back = wait_for_entry(machine, "deployment.closure", toplevel=good, previous=bad)["data"]
    assert back["bytes_removed"] == measured["bytes_added"]
    assert set(outcome["steps"]) == {"start", "profile", "switch"}

    intent = wait_for_entry(machine, "action.intent", action="rollback")
    story = machine.succeed(f"healer incident {intent['incident']}")
    for part in ("exited with code 3", "schema version 7 is too new", "rollback", "recovered"):
        assert part in story, story
    # The agent keeps its state over all that.
    machine.succeed("test $(cat /var/lib/worker/counter) -gt 20")

    # Deployed once more it gets one more rollback, and no ping-pong in between.
    machine.deploy(BAD, status={0, 4})
    wait_for_entries(machine, 2, "deployment.condemned")
    assert machine.current_system() == good
    status = json.loads(machine.execute("healer status --json")[1])
    assert status["deployment"]["state"] == "known-good"


def test_nothing_is_rolled_back_without_a_known_good(container: Boot) -> None:
    machine = container()
    machine.deploy(BAD, status={0, 4})
    verdict = wait_for_entry(machine, "safeswitch.verdict", verdict="inconclusive")
    assert "known to be good" in verdict["data"]["reason"]
    machine.sleep(3)
    assert entries(machine, "action.intent") == []
    # The first system that holds is promoted, and serves from then on.
    good = machine.deploy(GOOD)
    assert promoted(machine) == good


def test_an_environment_that_was_bad_before_is_not_blamed_on_a_known_good(container: Boot) -> None:
    # It is not well again between two of them.
    machine = container(system=system({"worker": agent(stableSec=10)}, label="good"))
    good = promoted(machine)
    for _ in range(7):
        kill_and_wait(machine, "worker.service")
    wait_for_entry(machine, "agent.crash-loop", agent="worker")
    machine.sleep(2)
    assert machine.current_system() == good
    assert [e["data"]["action"] for e in entries(machine, "action.intent")] == ["promote"]


def test_a_test_activation_and_a_held_lock(container: Boot) -> None:
    machine = container(system=GOOD)
    good = promoted(machine)
    # Somebody's switch hangs with the lock held: healer waits for it instead of adding to it.
    lock = "/run/nixos/switch-to-configuration.lock"
    bad = machine.build(BAD)
    # It waits for the lock while the switch to the bad system still has it.
    waits = f"until [ /run/current-system -ef {bad} ]; do sleep 0.01; done"
    machine.write_file("/run/hog.sh", f"{waits}\nexec flock {lock} sleep infinity\n")
    machine.succeed("systemd-run --unit=hog sh /run/hog.sh")
    assert machine.switch(bad, "test") in {0, 4}
    wait_for_entry(machine, "agent.crash-loop", toplevel=bad)
    machine.sleep(2)
    # Either it was waited for before the decision or, if that came first, in the rollback itself.
    assert machine.current_system() == bad
    machine.succeed("systemctl stop hog")
    assert_rolled_back(machine, bad, good)


@pytest.mark.parametrize("moment", ["intent", "switch", "outcome"])
def test_healer_killed_during_the_rollback(container: Boot, moment: str) -> None:
    """The daemon dies at a moment of the rollback; it comes back and the story is complete."""
    machine = container(system=GOOD)
    good = promoted(machine)
    bad = machine.build(BAD)
    waits = {
        "intent": 'grep -qs \'"action":"rollback"\' /var/lib/healer/ledger/*.jsonl',
        "switch": f"systemctl is-active {UNIT}",
        "outcome": "ls /var/lib/healer-helper/rollback-*.json",
    }
    machine.set_profile(bad)
    machine.write_file(
        "/run/killer.sh",
        f"until {waits[moment]}; do :; done\n"
        "for _ in 1 2 3; do systemctl kill --signal=KILL healer; sleep 0.1; done\n",
    )
    machine.succeed("systemd-run --unit=killer sh /run/killer.sh")
    assert machine.switch(bad) in {0, 4}
    machine.wait_until_succeeds("! systemctl is-active killer")
    assert_rolled_back(machine, bad, good)


def test_the_rollback_itself_killed(container: Boot) -> None:
    machine = container(system=GOOD)
    good = promoted(machine)
    machine.write_file(
        "/run/killer.sh",
        f"until systemctl is-active {UNIT}; do :; done\nsystemctl kill --signal=KILL {UNIT}\n",
    )
    machine.succeed("systemd-run --unit=killer sh /run/killer.sh")
    bad = machine.deploy(BAD, status={0, 4})
    assert_rolled_back(machine, bad, good)


def test_a_generation_with_another_healer_starts_it(container: Boot) -> None:
    machine = container(system=GOOD)
    promoted(machine)
    pid = main_pid(machine, "healer.service")
    new = machine.deploy({**GOOD, "healerTag": "another version", "label": "new healer"})
    machine.wait_until_succeeds(
        f"p=$(systemctl show -P MainPID healer); test $p != 0 && test $p != {pid}"
    )
    machine.wait_for_unit("healer.service")
    running = machine.succeed("tr '\\0' ' ' < /proc/$(systemctl show -P MainPID healer)/cmdline")
    assert machine.succeed(f"readlink -f {new}/sw/bin/healer").strip() in running
    kill_and_wait(machine, "worker.service")
    wait_for_entry(machine, "agent.crash", agent="worker")
    assert promoted(machine) == new
    assert_intact(machine)


def test_a_fix_deployed_while_the_rollback_waits_is_not_undone(container: Boot) -> None:
    machine = container(system=GOOD)
    promoted(machine)
    bad = machine.build(BAD)
    fix = machine.build({**GOOD, "label": "fix"})
    assert machine.switch(bad, "test") in {0, 4}
    wait_for_entry(machine, "action.intent", action="rollback")
    # Whoever comes first, the fix stays: either the rollback was done, or it gives way.
    machine.set_profile(fix)
    machine.wait_until_succeeds(f"{fix}/bin/switch-to-configuration switch")
    wait_for_entry(machine, "action.outcome", action="rollback")
    wait_for_entry(machine, "deployment.known-good", toplevel=fix)
    assert machine.current_system() == fix
