"""``healer safeswitch``: a person looks at the deployment, tries one out, or decides on it."""

import argparse
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from healer.cli.agent import RUNTIME_DIR, duration, tell
from healer.errors import HealerError, HostUnavailableError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from healer.safeswitch.deadman import Trial
    from healer.status import DeploymentStatus

DEFAULT_CONFIRM_SEC = 120
_SHOWN = {
    "switching": "it is being switched to",
    "waiting": "it waits to be confirmed",
    "keeping": "it is being made the system that boots",
    "returning": "it goes back",
}


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "safeswitch",
        help="try a system out, confirm it, roll back, condemn or forgive one",
        description="Each of these is recorded in the ledger, with who asked. See "
        "docs/safeswitch.md.",
    )
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB", dest="verb")

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text)
        made.add_argument("--json", action="store_true", help="print the answer as JSON")
        made.add_argument("--runtime-dir", type=Path, default=RUNTIME_DIR, help=argparse.SUPPRESS)
        made.set_defaults(run=run)
        return made

    verb("status", "show the deployment, its probation, its gates and a trial")
    trying = verb("run", "switch to a system that goes away again unless somebody confirms it")
    trying.add_argument("toplevel", help="a system in the store, or a link to one (./result)")
    trying.add_argument(
        "--confirm-within",
        dest="confirm_sec",
        type=_time,
        default=DEFAULT_CONFIRM_SEC,
        metavar="TIME",
        help="how long it waits for that: 90 or 90s, 30m or 12h (default: 2m)",
    )
    verb("confirm", "keep the system that is on trial, or call the one on probation known-good")
    back = verb("rollback", "go back: from a trial, or to the known-good system")
    back.add_argument("--to", dest="toplevel", metavar="TOPLEVEL", help="go back to this one")
    for name, text in (
        ("condemn", "remember a system as bad, and never go back to it"),
        ("forgive", "forget that a system was condemned"),
    ):
        verb(name, text).add_argument("toplevel", help="the system, or a link to it")


def run(args: argparse.Namespace) -> int:
    """Do it; 0 when it was done."""
    if args.verb == "status":
        return _status(args)
    from healer import control
    from healer.safeswitch import grants

    toplevel = resolve(args.toplevel) if getattr(args, "toplevel", None) is not None else None
    if args.verb == "run" and os.geteuid() != 0:
        raise RefusedError("only root may run a system: what it does when activated, root does")
    actions = {"run": "try", "rollback": "rollback"}
    request = control.SafeSwitchRequest(
        verb=args.verb,
        toplevel=toplevel,
        confirm_sec=getattr(args, "confirm_sec", None),
        grant=grants.make(actions[args.verb], toplevel)
        if args.verb in actions and toplevel is not None
        else None,
        sudo_user=control.sudo_user(),
    )
    try:
        answer = control.ask(args.runtime_dir / control.NAME, request)
    except HostUnavailableError as error:
        raise HostUnavailableError(
            f"{error}. Where a switch has just replaced healer, look at: healer safeswitch status"
        ) from error
    if answer.ok and args.verb == "run":
        return _follow(args)
    return tell(args, ok=answer.ok, detail=answer.detail)


def resolve(path: str) -> str:
    """Return the store path that a path leads to; raises RefusedError when it leads nowhere.

    A path in the store may be one that is gone: it can still be condemned or forgiven.
    """
    real = Path(os.path.realpath(path))
    if real.parent == Path("/nix/store"):
        return str(real)
    if not real.exists():
        raise RefusedError(f"{path} does not exist")
    raise RefusedError(f"{path} is not a system in /nix/store")


def _follow(args: argparse.Namespace) -> int:
    """Wait until the trial waits for a word, or is over. It does not need this command."""
    from healer.safeswitch import trial

    told = ""
    while True:
        going = trial.read()
        if going is None:
            raise HealerError(f"the trial's file is gone: {trial.PATH}")
        if going.phase == "done":
            return tell(args, ok=going.ok, detail=going.detail)
        if going.phase == "waiting":
            left = max(0, (going.until_ms or 0) - _boottime_ms()) // 1000
            return tell(
                args,
                ok=True,
                detail=f"{going.target} runs on trial; confirm it within {left} s by `healer "
                f"safeswitch confirm`, or {going.source} comes back",
            )
        if going.phase != told and not args.json:
            print(f"{going.target}: {_SHOWN[going.phase]}", flush=True)
            told = going.phase
        time.sleep(0.2)


def _status(args: argparse.Namespace) -> int:
    from healer.cli.status import why_not_running
    from healer.safeswitch import trial
    from healer.status import NAME, read

    path = args.runtime_dir / NAME
    status = read(path)
    stopped = why_not_running(path, status, _boottime_ms() * 1000)
    if status is None:
        raise HostUnavailableError(f"healer is not running: {stopped}")
    going = trial.under_way()
    if args.json:
        import msgspec

        said: dict[str, Any] = msgspec.to_builtins(status.deployment)
        said["not_running_reason"] = stopped
        said["trial"] = None if going is None else _trial(going)
        print(json.dumps(said, indent=2))
    else:
        if stopped is not None:
            print(f"healer is NOT running: {stopped}. What it last said:")
        print("\n".join(_lines(status.deployment, going)))
    return 0


def _trial(going: "Trial") -> dict[str, Any]:
    left = None if going.until_ms is None else max(0, going.until_ms - _boottime_ms()) // 1000
    return {
        "target": going.target,
        "source": going.source,
        "phase": going.phase,
        "confirm_left_s": left,
        "gates": going.gates,
    }


def _lines(deployment: "DeploymentStatus", going: "Trial | None") -> "Iterator[str]":
    left = deployment.probation_left_s
    state = deployment.state if left is None else f"{deployment.state}, {left} s of probation left"
    yield f"running:     {deployment.toplevel or 'none'}"
    yield f"             {state}"
    if deployment.waiting_for is not None:
        yield f"             {deployment.waiting_for}"
    for name, gate in sorted(deployment.gates.items()):
        yield f"gate:        {name} {gate.state}" + (f": {gate.detail}" if gate.detail else "")
    if going is not None:
        left = _trial(going)["confirm_left_s"]
        yield f"on trial:    {going.target}"
        yield f"             {_SHOWN[going.phase]}" + (f", {left} s left" if left else "")
        yield f"             else back to {going.source}"
        for name, state in sorted(going.gates.items()):
            yield f"             gate {name} {state}"
    for toplevel in reversed(deployment.known_goods):
        yield f"known-good:  {toplevel}"
    for toplevel in deployment.condemned:
        yield f"condemned:   {toplevel}"
    yield f"SafeSwitch:  {deployment.safe_switch}"


def _time(text: str) -> int:
    """Return the seconds of a time; a number alone is one of seconds."""
    return duration(f"{text}s" if text.isdigit() else text)


def _boottime_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
