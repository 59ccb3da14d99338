"""``healer status``: what the daemon says of the agents, the deployment, drift and the ledger."""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from healer.status import AgentStatus, DeploymentStatus, Status

DIRECTORY = Path("/run/healer")
WIDTH = 100
STALE_SEC = 30

WELL, DEGRADED, NOT_RUNNING = 0, 1, 3

_EXIT_CODES = """\
exit codes:
  0  all is well
  1  degraded: an agent is down, held back, given up, failing a health check or not yet
     recovered from a crash, the deployment fails a gate, a rollback does not outlive the
     next boot, a switch does not end, something has drifted, or the ledger cannot be
     written
  3  the daemon is not running (as systemctl status)
"""

_HEADINGS = ("AGENT", "UNIT", "STATE", "SINCE", "PID", "RESTARTS", "CRASHES", "HEALTH")
_RUNNING = frozenset({"active", "reloading", "refreshing"})


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to healer's parser."""
    parser = subparsers.add_parser(
        "status",
        help="show the agents, the deployment, drift and the ledger",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--runtime-dir", type=Path, metavar="DIR", default=DIRECTORY, help=f"default: {DIRECTORY}"
    )
    parser.add_argument(
        "--json", action="store_true", help="write the status as JSON, with running and problems"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show the status; the exit code says how things stand."""
    from healer.status import NAME, read

    path = args.runtime_dir / NAME
    status = read(path)
    boottime_us = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
    stopped = why_not_running(path, status, boottime_us)
    found = problems(status) if status is not None else []
    if args.json:
        _print_json(status, stopped, found)
    else:
        print("\n".join(_text(status, stopped, found)))
    if stopped is not None:
        return NOT_RUNNING
    return DEGRADED if found else WELL


def why_not_running(path: Path, status: "Status | None", boottime_us: int) -> str | None:
    """Say why the daemon cannot be running, None if it is; the time is CLOCK_BOOTTIME's."""
    if status is None:
        return f"{path} does not exist"
    age_us = boottime_us - status.updated_boottime_us
    if not 0 <= age_us <= STALE_SEC * 1_000_000:
        return f"{path} was not updated for {STALE_SEC} s"
    if not _exists(status.pid):
        return f"its process {status.pid} is gone"
    return None


def problems(status: "Status") -> list[str]:
    """Name everything that is not well, one line each."""
    return list(_problems(status))


def _problems(status: "Status") -> Iterator[str]:
    for name, agent in status.agents.items():
        yield from _problems_of(name, agent)
    if not status.deployment.lasts:
        again = f"healer safeswitch rollback --to {status.deployment.toplevel}"
        yield f"the rollback does not outlive the next boot; once what failed is mended: {again}"
    if status.deployment.switch_stuck:
        yield "a switch-to-configuration does not end, and nothing can be deployed until it does"
    failed = [gate for gate, known in status.deployment.gates.items() if known.state == "failed"]
    if failed:
        yield f"the deployment fails its gate {', '.join(sorted(failed))}: healer safeswitch status"
    if status.drift:
        yield f"drift: {len(status.drift)} not as declared: healer incidents --open"
    if not status.ledger.ok:
        yield f"the ledger cannot be written: {status.ledger.reason or 'no reason known'}"


def _problems_of(name: str, agent: "AgentStatus") -> Iterator[str]:
    if agent.gave_up is not None:
        again = f"once it is mended: healer agent {name} release"
        yield f"agent {name} was GIVEN UP, {agent.gave_up}; {again}"
    elif agent.held is not None:
        yield f"agent {name} is held back: {agent.held}"
    elif agent.restart_timer is not None:
        yield f"agent {name} waits for its restart, by {agent.restart_timer}"
    elif agent.active_state == "not-found":
        yield f"agent {name} has no unit {agent.unit}; is the agent's option `unit` right?"
    elif agent.active_state not in _RUNNING:
        yield f"agent {name} is {agent.active_state} ({agent.sub_state})"
    failing = [check for check, state in agent.health.items() if state == "failing"]
    if failing:
        yield f"agent {name} fails its health check {', '.join(sorted(failing))}"
    if agent.incident is not None:
        yield f"agent {name} has an open incident: healer incident {agent.incident}"


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _print_json(status: "Status | None", stopped: str | None, found: Sequence[str]) -> None:
    import json

    import msgspec

    known: dict[str, Any] = {} if status is None else msgspec.to_builtins(status)
    state = {"running": stopped is None, "not_running_reason": stopped, "problems": list(found)}
    print(json.dumps(known | state, indent=2))


def _text(status: "Status | None", stopped: str | None, found: Sequence[str]) -> Iterator[str]:
    if stopped is not None:
        yield f"healer is NOT running: {stopped}."
        yield "Agents still restart by their systemd policy, and their crashes are recorded later."
        yield "See `systemctl status healer` and `journalctl -u healer`; start it with"
        yield "`systemctl start healer`."
        if status is None:
            return
        yield ""
        yield "What it last said:"
    if status is None:
        return
    now_us = time.time_ns() // 1000
    if stopped is None:
        yield f"healer {status.version} is running as process {status.pid}"
    yield ""
    yield from _agents(status, now_us)
    yield ""
    yield from _deployment(status)
    yield from _drift(status)
    yield from _ledger(status)
    if found:
        yield ""
        yield "Not well:"
        for problem in found:
            yield from _wrap("  - ", problem)


def _agents(status: "Status", now_us: int) -> Iterator[str]:
    if not status.agents:
        yield "no agents are declared"
        return
    rows = [_row(name, agent, now_us) for name, agent in status.agents.items()]
    header, *lines = table((_HEADINGS, *rows), WIDTH)
    yield header
    for agent, shown in zip(status.agents.values(), lines, strict=True):
        yield shown
        for note in _notes(agent, now_us):
            yield from _wrap("    ", note)


def _row(name: str, agent: "AgentStatus", now_us: int) -> tuple[str, ...]:
    from healer.incident.words import duration

    failing = sum(state == "failing" for state in agent.health.values())
    unknown = sum(state == "unknown" for state in agent.health.values())
    health = "failing" if failing else "unknown" if unknown else "ok" if agent.health else "-"
    plain = agent.sub_state in {"running", agent.active_state}
    state = agent.sub_state if plain else f"{agent.active_state} ({agent.sub_state})"
    if agent.restart_due_us is not None:
        state = "waiting"
    since = "-" if agent.since_us is None else duration(max(0, now_us - agent.since_us))
    restarts, crashes = str(agent.n_restarts), str(agent.crashes)
    return (name, agent.unit, state, since, str(agent.pid or "-"), restarts, crashes, health)


def _notes(agent: "AgentStatus", now_us: int) -> Iterator[str]:
    from healer.incident.words import duration

    if agent.last_crash is not None:
        age = duration(max(0, now_us - agent.last_crash.time_us))
        yield f"last crash {age} ago: {agent.last_crash.words}"
    if agent.gave_up is not None:
        yield f"given up: {agent.gave_up}"
    elif agent.held is not None:
        yield f"held back: {agent.held}"
    elif agent.restart_due_us is not None:
        left = duration(max(0, agent.restart_due_us - now_us))
        yield f"waits for its restart in {left}, by {agent.restart_timer}"


def _deployment(status: "Status") -> Iterator[str]:
    from healer.incident.words import duration, toplevel

    deployment = status.deployment
    numbered = "" if _has_other(deployment, deployment.profile) else _generation(deployment)
    state = str(deployment.state)
    if deployment.probation_left_s is not None:
        left = duration(deployment.probation_left_s * 1_000_000)
        state += f", {left} of probation left"
    yield from _field("deployment", f"{toplevel(deployment.toplevel)}{numbered}")
    yield from _field("", state)
    for other in _elsewhere(deployment):
        yield from _field("", other)
    if deployment.waiting_for is not None:
        yield from _field("", deployment.waiting_for)
    if deployment.switching:
        yield from _field("", "a switch-to-configuration is under way")
    if deployment.known_good != deployment.toplevel:
        yield from _field("known-good", toplevel(deployment.known_good))
    if deployment.trial is not None:
        yield from _field("on trial", deployment.trial)
    if deployment.gates:
        states = [f"{name} {gate.state}" for name, gate in sorted(deployment.gates.items())]
        yield from _field("gates", ", ".join(states))
    yield from _field("SafeSwitch", deployment.safe_switch)


def _elsewhere(deployment: "DeploymentStatus") -> Iterator[str]:
    """Say which system is where, as far as that is not simply the one that runs."""
    from healer.incident.words import toplevel

    if deployment.specialisation is not None:
        yield f"it is the specialisation {deployment.specialisation} of {toplevel(deployment.base)}"
    if _has_other(deployment, deployment.profile):
        there = f"{toplevel(deployment.profile)}{_generation(deployment)}"
        yield f"the profile has another system, which does not run: {there}"
    if _has_other(deployment, deployment.boot_default):
        there = toplevel(deployment.boot_default)
        yield f"the boot default is another system, which the next boot starts: {there}"
    if deployment.booted not in {None, deployment.toplevel}:
        there = toplevel(deployment.booted)
        yield f"another system was booted, and its kernel still runs: {there}"


def _has_other(deployment: "DeploymentStatus", there: str | None) -> bool:
    """Whether a place has another system than the one that runs; it may have that one's base."""
    return there not in {None, deployment.toplevel, deployment.base}


def _generation(deployment: "DeploymentStatus") -> str:
    return "" if deployment.generation is None else f", generation {deployment.generation}"


def _drift(status: "Status") -> Iterator[str]:
    count = len(status.drift)
    yield from _field("drift", f"{count} open" if count else "none found")
    for finding in status.drift[:5]:
        yield from _field("", f"{finding.get('subject', '?')}: {finding.get('observed', '?')}")
    if count > 5:
        yield from _field("", f"and {count - 5} more: healer incidents --open")
    if status.drift_off is not None:
        yield from _field("", f"not watched: {status.drift_off}")


def _ledger(status: "Status") -> Iterator[str]:
    ledger = status.ledger
    state = "ok" if ledger.ok else f"FAILING: {ledger.reason or 'no reason known'}"
    waiting = f", {ledger.spooled} waiting to be written" if ledger.spooled else ""
    yield from _field("ledger", f"{ledger.size} entries{waiting}, {state}")


def _field(name: str, value: str) -> Iterator[str]:
    yield from _wrap(f"{name:<12}", value)


def _wrap(start: str, text: str) -> list[str]:
    import textwrap

    from healer.incident.words import printable

    return textwrap.wrap(
        printable(text), WIDTH, initial_indent=start, subsequent_indent=" " * len(start)
    )


def table(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Lay out rows in aligned columns; the widest columns are cut until all fit ``width``."""
    from healer.incident.words import printable

    clean = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*clean, strict=True)]
    while sum(widths) + 2 * (len(widths) - 1) > width:
        widths[widths.index(max(widths))] -= 1
    return [
        "  ".join(
            _cut(cell, size).ljust(size) for cell, size in zip(row, widths, strict=True)
        ).rstrip()
        for row in clean
    ]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
