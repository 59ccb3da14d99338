"""What agents declare to be run before a rollback: a snapshot, then their own preparation.

Each runs in a transient unit with a run-time bound: the snapshot as root, for file systems ask for
that, and the preparation as the agent's user, in its working and state directories.
"""

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping

from healer.config import Agent
from healer.errors import RefusedError

# Of the agent's own unit: who it is and where it works. systemd.exec(5)
_INHERITED = ("User", "Group", "DynamicUser", "StateDirectory", "WorkingDirectory")


def run(agents: Mapping[str, Agent], concerned: Iterable[str]) -> None:
    """Run the hooks of these agents, all snapshots first.

    The preparation of an agent whose unit does not exist is left out: no run of it under this
    system has changed anything. RefusedError names the first that failed or took too long.
    """
    names = [name for name in concerned if name in agents]
    for name in names:
        if (command := agents[name].snapshot) is not None:
            _run(name, agents[name], "snapshot", command, [])
    for name in names:
        if (command := agents[name].before_rollback) is not None:
            properties = _identity(name, agents[name].unit)
            if properties is not None:
                _run(name, agents[name], "beforeRollback", command, properties)


def longest_sec(agents: Mapping[str, Agent]) -> float:
    """Return how long all hooks may take together, in seconds."""
    return sum(
        agent.before_rollback_timeout_sec * ((agent.snapshot is not None) + 1)
        for agent in agents.values()
        if agent.snapshot is not None or agent.before_rollback is not None
    )


def _identity(name: str, unit: str) -> list[str] | None:
    """Return the properties of an agent's unit that its hook shares; None where there is no unit.

    Without a user among them a hook would run as root: RefusedError where systemd does not say.
    """
    names = [f"--property={name}" for name in ("LoadState", *_INHERITED)]
    done = _call(["systemctl", "show", *names, unit])
    pairs = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    state = pairs.pop("LoadState", "not known")
    if done.returncode == 0 and state in {"not-found", "masked"}:
        return None
    if done.returncode != 0 or state != "loaded":
        raise RefusedError(
            f"beforeRollback of {name} cannot be run as its user, for {unit} is {state}: nothing "
            f"was changed; see systemctl status {unit}"
        )
    # "!" marks a working directory whose absence is borne, "~" the user's home.
    return [
        f"--property={key}={value}"
        for key, value in pairs.items()
        if value and value[0] not in "!["
    ]


def _run(
    name: str, agent: Agent, hook: str, command: tuple[str, ...], properties: list[str]
) -> None:
    unit = f"healer-{hook.lower()}-{agent.unit}"
    limit = agent.before_rollback_timeout_sec
    done = _call(
        [
            "systemd-run",
            f"--unit={unit}",
            f"--description=healer: {hook} of {name}",
            "--collect",
            "--wait",
            "--no-ask-password",
            "--service-type=oneshot",
            "--expand-environment=no",
            f"--property=TimeoutStartSec={limit:g}",
            *properties,
            f"--setenv=PATH={os.environ.get('PATH', os.defpath)}",
            f"--setenv=HEALER_AGENT={name}",
            "--",
            *command,
        ]
    )
    if done.returncode != 0:
        how = "took too long" if "result: timeout" in done.stderr else "failed"
        raise RefusedError(
            f"{hook} of {name} {how} (exit code {done.returncode}): nothing was changed; "
            f"see journalctl --unit={unit}"
        )


def _call(command: list[str]) -> "subprocess.CompletedProcess[str]":
    program = shutil.which(command[0])
    if program is None:
        raise RefusedError(f"{command[0]} is not on the PATH of healer-helper@.service")
    return subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False)
