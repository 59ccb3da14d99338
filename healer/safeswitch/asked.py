"""What a person asks of SafeSwitch, and what healer makes of it: an intent, or a refusal in words.

Pure. This looks at what healer knows; root's helper looks at the machine once more before it acts.
"""

import re
from collections.abc import Mapping
from typing import Any

from healer.errors import RefusedError
from healer.events import Systems
from healer.records import Record
from healer.safeswitch.state import DeploymentState

# 32 letters of Nix's base 32, which leaves out e, o, t and u.
_TOPLEVEL = re.compile(r"/nix/store/[0-9a-df-np-sv-z]{32}-[0-9A-Za-z+?=._-]+")

Data = dict[str, Any]


def intend(
    verb: str,
    toplevel: str | None,
    who: str,
    state: DeploymentState,
    trial: Record | None,
    systems: Systems,
) -> Data:
    """Return the data of the intent that a person's request becomes.

    ``trial`` is the intent of a trial under way. Raises RefusedError, in words for that person.
    """
    data: Data = {"asked_by": who, "reason": f"{who} asked for it"}
    if verb == "confirm":
        return data | _confirm(state, trial, systems)
    if verb == "rollback" and toplevel is None and trial is not None:
        return data | {"action": "abandon", "target": trial.data["from"]}
    if verb == "rollback":
        return data | _rollback(toplevel, state, systems)
    target = _store_path(toplevel)
    if verb == "run":
        return data | _run(target, state, trial, systems)
    if verb == "forgive" and target not in state.condemned:
        names = ", ".join(sorted(state.condemned)) or "none"
        raise RefusedError(f"{target} is not condemned; condemned: {names}")
    if verb == "condemn" and target in state.condemned:
        raise RefusedError(f"{target} is condemned already")
    return data | {"action": verb, "target": target}


def _store_path(toplevel: str | None) -> str:
    if toplevel is None or not _TOPLEVEL.fullmatch(toplevel):
        raise RefusedError(f"{toplevel} is not the path of a system in /nix/store")
    return toplevel


def _run(target: str, state: DeploymentState, trial: Record | None, systems: Systems) -> Data:
    if trial is not None:
        raise RefusedError(f"{trial.data['target']} is on trial: confirm it, or roll back, first")
    _nothing_under_way(state, systems)
    if target == systems.current:
        raise RefusedError(f"{target} runs already")
    if target in state.condemned:
        raise RefusedError(f"{target} is condemned; if it is to run all the same, forgive it first")
    return {"action": "try", "target": target, "from": systems.current}


def _confirm(state: DeploymentState, trial: Record | None, systems: Systems) -> Data:
    if trial is not None:
        return {"action": "confirm", "target": trial.data["target"]}
    if state.current is None or systems.current != state.current:
        raise RefusedError("it is not known yet which system runs; try again in a few seconds")
    if not state.on_probation:
        raise RefusedError(f"{state.current} is known-good already, and no system is on trial")
    _nothing_under_way(state, systems)
    return {"action": "promote", "target": state.current}


def _rollback(toplevel: str | None, state: DeploymentState, systems: Systems) -> Data:
    _nothing_under_way(state, systems)
    if toplevel is None:
        if state.known_good is None:
            raise RefusedError("no system is known to be good yet: name one with --to")
        if state.known_good == systems.current:
            others = ", ".join(reversed(state.known_goods[:-1])) or "none"
            raise RefusedError(
                f"{systems.current} runs, and it is the last known-good: name another with --to; "
                f"known-good before it: {others}"
            )
    target = _store_path(toplevel or state.known_good)
    if target == systems.current == systems.profile and state.lasts:
        raise RefusedError(f"{target} runs already")
    if target in state.condemned:
        raise RefusedError(f"{target} is condemned; if it is to run all the same, forgive it first")
    return {
        "action": "rollback",
        "target": target,
        "from": systems.current,
        "agent": None,
        "gate": None,
    }


def _nothing_under_way(state: DeploymentState, systems: Systems) -> None:
    if state.pending is not None:
        raise RefusedError(f"healer is busy: a {state.pending.data['action']} is under way")
    if systems.switching:
        raise RefusedError(
            "a switch-to-configuration is under way (it holds "
            "/run/nixos/switch-to-configuration.lock): wait for its end"
        )
    if systems.current is None:
        raise RefusedError("no NixOS system runs here: /run/current-system leads nowhere")


def warnings(intent: Mapping[str, Any], state: DeploymentState) -> str:
    """Say what a person should know beside that the intent was carried out; else nothing."""
    if intent["action"] != "condemn":
        return ""
    said = []
    if intent["target"] == state.current:
        said.append("it still runs: healer safeswitch rollback goes back")
    if not state.known_goods:
        said.append("no known-good system is left to go back to")
    return "".join(f"; {each}" for each in said)
