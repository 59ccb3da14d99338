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


def run(agents: Mapping[str, Agent], concerned: Iterable[str]) -> list[str]:
    """Run the hooks of these agents, all snapshots first; return what was run, in words.

    RefusedError names the first that failed or took too long.
    """
    names = [name for name in concerned if name in agents]
    ran = []
    for name in names:
        if (command := agents[name].snapshot) is not None:
            _run(name, agents[name], "snapshot", command, [])
            ran.append(f"snapshot of {name}")
    for name in names:
        if (command := agents[name].before_rollback) is not None:
            _run(name, agents[name], "beforeRollback", command, _identity(agents[name].unit))
            ran.append(f"beforeRollback of {name}")
    return ran


def longest_sec(agents: Mapping[str, Agent]) -> float:
    """Return how long all hooks may take together, in seconds."""
    return sum(
        agent.before_rollback_timeout_sec * ((agent.snapshot is not None) + 1)
        for agent in agents.values()
        if agent.snapshot is not None or agent.before_rollback is not None
    )


def _identity(unit: str) -> list[str]:
    """Return the properties of an agent's unit that its hook shares."""
    names = [f"--property={name}" for name in _INHERITED]
    done = _call(["systemctl", "show", *names, unit])
    pairs = (line.partition("=") for line in done.stdout.splitlines())
    # "!" marks a working directory whose absence is borne, "~" the user's home.
    return [
        f"--property={key}={value}" for key, _, value in pairs if value and value[0] not in "!["
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
