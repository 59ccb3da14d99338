"""What agents declare to be run before a rollback: a snapshot, then their own preparation.

Each runs in a transient unit with a run-time bound: the snapshot as root, for file systems ask for
that, and the preparation as the agent's user, in its working and state directories. The unit goes
on when whoever started it is killed, and systemd has root write down how it ended: whoever comes
after that waits for it and takes its end for its own.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from healer.config import Agent
from healer.errors import RefusedError
from healer.files import write_atomically
from healer.host import program, transient

# Of the agent's own unit: who it is and where it works. systemd.exec(5)
_INHERITED = ("User", "Group", "DynamicUser", "StateDirectory", "WorkingDirectory")
_POLL_SEC = 0.2
# How long systemd may take to stop a unit that took too long: TimeoutStopSec= is 90 s, twice.
_STOP_SEC = 180.0
_SUCCESS = ("success", "0")


def run(agents: Mapping[str, Agent], concerned: Iterable[str], ends: Path) -> None:
    """Run the hooks of these agents, all snapshots first; but none that has run.

    ``ends`` is the beginning of the names of files of root's in which it is noted how each ended.
    The preparation of an agent whose unit does not exist is left out: no run of it under this
    system has changed anything. RefusedError names the first that failed or took too long.
    """
    names = [name for name in concerned if name in agents]
    for name in names:
        if (command := agents[name].snapshot) is not None:
            _run(name, agents[name], "snapshot", command, [], ends)
    for name in names:
        if (command := agents[name].before_rollback) is not None:
            properties = _identity(name, agents[name].unit)
            if properties is not None:
                _run(name, agents[name], "beforeRollback", command, properties, ends)


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
    done = program.completed("systemctl", "show", *names, unit)
    pairs = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    state = pairs.pop("LoadState", "not known")
    if done.returncode == 0 and state in {"not-found", "masked"}:
        return None
    if done.returncode != 0 or state != "loaded":
        raise RefusedError(
            f"beforeRollback of {name} cannot be run as its user, for {unit} is {state}; "
            f"see systemctl status {unit}"
        )
    # "!" marks a working directory whose absence is borne, "~" the user's home.
    return [
        f"--property={key}={value}"
        for key, value in pairs.items()
        if value and value[0] not in "!["
    ]


def _run(
    name: str,
    agent: Agent,
    hook: str,
    command: tuple[str, ...],
    properties: list[str],
    ends: Path,
) -> None:
    unit = f"healer-{hook.lower()}-{agent.unit}"
    limit = agent.before_rollback_timeout_sec
    noted = ends.with_name(f"{ends.name}.{hook}.{name}")
    _wait_until_over(unit, limit + _STOP_SEC)
    result, status = _noted(noted) or _ended(
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
            # "+": as root, and on its file system. systemd.service(5)
            f"--property=ExecStopPost=+/bin/sh -c 'echo $SERVICE_RESULT $EXIT_STATUS >{noted}'",
            *properties,
            f"--setenv=PATH={os.environ.get('PATH', os.defpath)}",
            f"--setenv=HEALER_AGENT={name}",
            "--",
            *command,
        ]
    )
    if (result, status) != _SUCCESS:
        how = "took too long" if result == "timeout" else "failed"
        raise RefusedError(
            f"{hook} of {name} {how} (exit code {status}); see journalctl --unit={unit}"
        )
    # So that after a power cut it is known. A full disk does not keep the system from going back.
    with contextlib.suppress(OSError):
        write_atomically(noted, " ".join(_SUCCESS).encode("ascii"), 0o644)


def _wait_until_over(unit: str, patience_sec: float) -> None:
    """Wait for what a helper started that was killed since, or another rollback's helper."""
    deadline = time.monotonic() + patience_sec
    while not transient.is_over(unit):
        if time.monotonic() > deadline:
            raise RefusedError(f"{unit} runs for longer than it may")
        time.sleep(_POLL_SEC)


def _noted(path: Path) -> tuple[str, str] | None:
    """Return the result of a hook's unit, and its exit code or signal; None where it has not run.

    What a power cut has left of the file says nothing.
    """
    try:
        result, status = path.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return result, status


def _ended(command: list[str]) -> tuple[str, str]:
    """Run the unit to its end, and return that as in ``_noted``."""
    done = program.completed(*command)
    timed_out = done.returncode != 0 and "result: timeout" in done.stderr
    result = "timeout" if timed_out else "success" if done.returncode == 0 else "failed"
    return result, str(done.returncode)
