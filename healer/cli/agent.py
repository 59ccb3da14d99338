"""``healer agent NAME hold|release|restart|reset``: a person steps in."""

import argparse
import json
from pathlib import Path

RUNTIME_DIR = Path("/run/healer")
DEFAULT_TTL_SEC = 3600
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "agent",
        help="hold an agent back, let it go, restart it, or have its backoff begin anew",
        description="Each of these is recorded in the ledger, with who asked. A hold ends by "
        "itself: no agent stays down because healer or somebody forgot it.",
    )
    parser.add_argument("name", help="the agent, as declared under services.healer.agents")
    parser.add_argument("verb", choices=["hold", "release", "restart", "reset"])
    parser.add_argument(
        "--for",
        dest="ttl",
        type=duration,
        default=DEFAULT_TTL_SEC,
        metavar="TIME",
        help="how long a hold lasts at most: 90s, 30m, 12h or 7d (default: 1h)",
    )
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    parser.add_argument("--runtime-dir", type=Path, default=RUNTIME_DIR, help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Ask the daemon; 0 when it was done."""
    from healer import control

    request = control.AgentRequest(
        verb=args.verb,
        agent=args.name,
        ttl_sec=args.ttl if args.verb == "hold" else None,
        sudo_user=control.sudo_user(),
    )
    answer = control.ask(args.runtime_dir / control.NAME, request)
    if args.json:
        print(json.dumps({"ok": answer.ok, "detail": answer.detail}))
    else:
        print(answer.detail)
    return 0 if answer.ok else 1


def duration(text: str) -> int:
    """Return the seconds of 90s, 30m, 12h or 7d; argparse's error for anything else."""
    number, unit = text[:-1], text[-1:]
    if not number.isdigit() or unit not in _UNITS or not 0 < int(number) * _UNITS[unit] <= 2592000:
        raise argparse.ArgumentTypeError("write 90s, 30m, 12h or 7d; 30d at the most")
    return int(number) * _UNITS[unit]
