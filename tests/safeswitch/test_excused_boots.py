"""Boots that do not come up for what is no fault of their system."""

import pytest
from msgspec.structs import replace

from healer.events import NO_DEFAULT_ROUTE
from tests.safeswitch.judged import BAD, Judged, lived


def kept_down(*changed: str, shared: tuple[str, ...] = ()) -> Judged:
    """Return a host on which web was crashing when it was booted, under what changes these."""
    host = lived()
    host.deploy(BAD, *changed, shared=shared)
    host.after(30)
    host.reboot()
    host.crash("web", times=3)
    host.counted = True
    host.after(55)
    assert host.of("boot.excused") == []
    host.crash("web", times=3)
    return host


def test_a_boot_comes_up_only_once_no_agent_can_die_early_in_it() -> None:
    """What is known to be good of a live switch only may crash from its first boot on."""
    host = lived()
    host.deploy(BAD, "web", shared=("kernel",))
    host.after(400)
    host.comes_of_it()
    host.counted = True
    host.reboot()
    assert host.of("host.up") == []
    host.crash("web", times=3)
    assert host.of("host.up") == []
    host.after(100)
    assert len(host.of("host.up")) == 1


def test_a_boot_that_does_not_come_up_for_the_deployment_is_not_excused() -> None:
    assert kept_down("web").of("boot.excused") == []
    assert kept_down("db", shared=("systemd",)).of("boot.excused") == []


def test_a_boot_is_excused_for_what_was_not_changed_once() -> None:
    host = kept_down("db")
    (excused,) = host.of("boot.excused")
    assert excused.data["toplevel"] == BAD
    assert excused.data["reason"] == (
        "web has crashed and is not stable yet, but neither its unit nor what all share was changed"
    )
    host.restart_healer()
    host.crash("web", times=3)
    assert len(host.of("boot.excused")) == 1


def test_a_boot_is_excused_for_a_full_disk_and_for_others_that_crash_too() -> None:
    host = kept_down("web")
    host.trouble = ["there is no space left on /var"]
    host.look()
    assert host.of("boot.excused")[0].data["reason"] == "there is no space left on /var"
    host = lived()
    host.deploy(BAD, "web")
    host.reboot()
    host.crash("mail", "web")
    host.counted = True
    host.crash("mail", "web", times=5, after=13)
    (excused,) = host.of("boot.excused")
    assert "mail crashes too, and nothing of it was changed" in excused.data["reason"]


@pytest.mark.parametrize("known", [True, False])
def test_a_gate_that_never_passed_under_the_known_good_excuses_a_boot(known: bool) -> None:
    host = Judged(gates=("port",))
    host.gate("port", True)
    host.promoted()
    if not known:
        state = host.decisions.deployment
        host.decisions.deployment = replace(state, passed_by_good=frozenset())
    host.deploy(BAD, "web")
    host.counted = True
    host.boot, host.sec, host.booted = 2, 20, BAD
    for name in host.agents:
        host.start(name)
    host.gate("port", False)
    host.after(70)
    assert len(host.of("boot.excused")) == (not known)


@pytest.mark.parametrize(
    ("trouble", "excused"), [("there is no space left on /var", True), (NO_DEFAULT_ROUTE, False)]
)
def test_of_the_hosts_troubles_only_the_network_excuses_no_boot_whose_gate_fails(
    trouble: str, excused: bool
) -> None:
    host = Judged(gates=("port",))
    host.gate("port", True)
    host.promoted()
    host.deploy(BAD, "web")
    host.counted = True
    host.reboot()
    host.trouble = [trouble]
    host.gate("port", False)
    host.after(70)
    assert bool(host.of("boot.excused")) == excused
