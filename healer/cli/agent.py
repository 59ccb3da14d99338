"""``healer agent NAME hold|release|restart|reset``: a person steps in."""

import argparse
import json
import sys
from pathlib import Path

RUNTIME_DIR = Path("/run/healer")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "agent",
        help="hold an agent back, let it go, restart it, or have its backoff begin anew",
        description="Each of these is recorded in the ledger, with who asked. A hold ends by "
        "itself, with its time or with a reboot: no agent stays down because healer or somebody "
        "forgot it. A hold replaces the one before it, a longer one too.",
    )
    parser.add_argument("name", help="the agent, as declared under services.healer.agents")
    parser.add_argument("verb", choices=["hold", "release", "restart", "reset"])
    parser.add_argument(
        "--for",
        dest="ttl",
        type=duration,
        metavar="TIME",
        help="how long a hold lasts at most: 90s, 30m, 12h or 7d (default: 1h)",
    )
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    parser.add_argument("--runtime-dir", type=Path, default=RUNTIME_DIR, help=argparse.SUPPRESS)
    parser.set_defaults(run=run, usage_error=parser.error)


def run(args: argparse.Namespace) -> int:
    """Ask the daemon; 0 when it was done."""
    from healer import control

    if args.ttl is not None and args.verb != "hold":
        args.usage_error(f"--for says how long a hold lasts; {args.verb} has no use for it")
    request = control.AgentRequest(
        verb=args.verb, agent=args.name, ttl_sec=args.ttl, sudo_user=control.sudo_user()
    )
    answer = control.ask(args.runtime_dir / control.NAME, request)
    return tell(args, ok=answer.ok, detail=answer.detail)


def tell(args: argparse.Namespace, *, ok: bool, detail: str) -> int:
    """Print what became of a request, and return the exit code."""
    if args.json:
        print(json.dumps({"ok": ok, "detail": detail}))
    elif ok:
        print(detail)
    else:
        print(f"healer: {detail}", file=sys.stderr)
    return 0 if ok else 1


def duration(text: str) -> int:
    """Return the seconds of 90s, 30m, 12h or 7d; argparse's error for anything else."""
    number, unit = text[:-1], text[-1:]
    if not number.isdigit() or unit not in _UNITS or not 0 < int(number) * _UNITS[unit] <= 2592000:
        raise argparse.ArgumentTypeError("write 90s, 30m, 12h or 7d; 30d at the most")
    return int(number) * _UNITS[unit]
