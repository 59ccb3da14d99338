"""What an owner has done before a rollback."""

from typing import Any

import pytest

from tests.conftest import Boot
from tests.machine.local import PROFILE
from tests.safeswitch.switched import (
    assert_not_rolled_back,
    bad,
    good,
)
from tests.safeswitch.test_on_machine import assert_rolled_back, promoted


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
    machine.wait_until_succeeds("grep here /var/lib/worker/hooks")
    if power_cut:
        machine.crash()
        machine.start()
    else:
        pids = "systemctl show -P MainPID 'healer-helper@*' | grep -v -e '^0*$'"
        before = machine.succeed(pids).split()
        machine.succeed("systemctl kill --signal=KILL 'healer-helper@*'")
        gone = " ".join(f"-e '^{pid}$'" for pid in before)
        machine.wait_until_succeeds(f"{pids} {gone}")
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
