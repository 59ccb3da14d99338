"""What a person asks of SafeSwitch, over invented states of the host."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from healer.errors import RefusedError
from healer.events import Instant, Systems
from healer.records import Record
from healer.safeswitch import asked
from healer.safeswitch.state import DeploymentState

A, B, C, D = (f"/nix/store/{letter * 32}-nixos-system-host-26.05" for letter in "abcd")
NOW = Instant("boot", 0)
TRIAL = Record(NOW, "action.intent", {"action": "try", "target": B, "from": A})
PENDING = Record(NOW, "action.intent", {"action": "promote", "target": A})
SYSTEMS = Systems(current=A, booted=A, profile=A, generation=1, switching=False)
ON_PROBATION = DeploymentState(current=A, known_goods=(C, B))
GOOD = DeploymentState(current=A, known_goods=(C, B, A))


def intend(verb: str, toplevel: str | None = None, **given: Any) -> Any:
    state, systems = given.get("state", ON_PROBATION), given.get("systems", SYSTEMS)
    return asked.intend(verb, toplevel, "alice", state, given.get("trial"), systems)


@pytest.mark.parametrize(
    ("verb", "toplevel", "state", "trial", "action", "target"),
    [
        ("run", D, ON_PROBATION, None, "try", D),
        ("confirm", None, ON_PROBATION, None, "promote", A),
        ("confirm", None, ON_PROBATION, TRIAL, "confirm", B),
        ("rollback", None, ON_PROBATION, None, "rollback", B),
        ("rollback", C, GOOD, None, "rollback", C),
        # What runs and is in the profile, but is not what boots.
        ("rollback", A, structs.replace(GOOD, lasts=False), None, "rollback", A),
        ("rollback", None, ON_PROBATION, TRIAL, "abandon", A),
        ("rollback", C, ON_PROBATION, TRIAL, "rollback", C),
        ("condemn", D, ON_PROBATION, None, "condemn", D),
        (
            "forgive",
            D,
            structs.replace(GOOD, condemned=frozenset({D})),
            None,
            "forgive",
            D,
        ),
    ],
)
def test_what_becomes_of_a_request(
    verb: str,
    toplevel: str | None,
    state: DeploymentState,
    trial: Record | None,
    action: str,
    target: str,
) -> None:
    data = intend(verb, toplevel, state=state, trial=trial)
    assert (data["action"], data["target"], data["asked_by"]) == (action, target, "alice")


@pytest.mark.parametrize(
    ("verb", "toplevel", "given", "said"),
    [
        ("run", None, {}, "is not the path"),
        ("run", "/etc/passwd", {}, "is not the path"),
        ("run", f"{D}/etc", {}, "is not the path"),
        ("run", A, {}, "runs already"),
        ("run", D, {"trial": TRIAL}, "is on trial"),
        ("run", D, {"state": structs.replace(GOOD, pending=PENDING)}, "a promote is under way"),
        ("run", D, {"state": structs.replace(GOOD, condemned=frozenset({D}))}, "condemned"),
        (
            "run",
            D,
            {"systems": dataclasses.replace(SYSTEMS, switching=True)},
            "/run/nixos/switch-to-configuration.lock",
        ),
        ("run", D, {"systems": dataclasses.replace(SYSTEMS, current=None)}, "no NixOS system"),
        ("confirm", None, {"state": GOOD}, "known-good already"),
        ("confirm", None, {"state": DeploymentState()}, "not known yet"),
        ("rollback", None, {"state": GOOD}, f"known-good before it: {B}, {C}"),
        ("rollback", None, {"state": DeploymentState(current=A)}, "name one with --to"),
        ("rollback", A, {}, "runs already"),
        ("forgive", D, {}, "condemned: none"),
        ("forgive", "x", {}, "is not the path"),
    ],
)
def test_refusals(verb: str, toplevel: str | None, given: dict[str, Any], said: str) -> None:
    with pytest.raises(RefusedError) as caught:
        intend(verb, toplevel, **given)
    assert said in str(caught.value)


paths = st.sampled_from([A, B, C, D])


@given(
    verb=st.sampled_from(["run", "rollback", "confirm"]),
    toplevel=st.none() | paths,
    current=st.none() | paths,
    running=st.none() | paths,
    known_goods=st.lists(paths, unique=True),
    condemned=st.frozensets(paths),
    busy=st.booleans(),
    switching=st.booleans(),
)
def test_nobody_gets_a_condemned_system_or_into_a_switch(
    verb: str,
    toplevel: str | None,
    current: str | None,
    running: str | None,
    known_goods: list[str],
    condemned: frozenset[str],
    busy: bool,
    switching: bool,
) -> None:
    state = DeploymentState(
        current=current,
        known_goods=tuple(known_goods),
        condemned=condemned,
        pending=PENDING if busy else None,
    )
    systems = dataclasses.replace(SYSTEMS, current=running, switching=switching)
    try:
        data = intend(verb, toplevel, state=state, systems=systems)
    except RefusedError:
        return
    assert not busy
    assert not switching
    assert running is not None
    if data["action"] in {"try", "rollback"}:
        assert data["target"] not in condemned
        assert data["from"] == running


def test_who_condemns_hears_what_that_leaves() -> None:
    left = DeploymentState(current=D)
    said = asked.warnings({"action": "condemn", "target": D}, left)
    assert "still runs" in said
    assert "no known-good" in said
    assert asked.warnings({"action": "rollback", "target": D}, left) == ""
