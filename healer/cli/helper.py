"""``healer helper``: root's side, started by systemd for one request."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from healer.cli.agent import RUNTIME_DIR

if TYPE_CHECKING:
    from healer.config import Gate

DEFAULT_CONFIG = Path("/etc/healer/config.yaml")


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "helper",
        help="carry out one signed intent as root (run by healer-helper@.service)",
        description="Reads one request from standard input and does what the signed intent in "
        "the ledger says, if it may.",
    )
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG)
    parser.add_argument(
        "--kept-config",
        type=Path,
        metavar="PATH",
        help="what is read where that is gone: after the switch to a system without healer",
    )
    parser.add_argument(
        "--release", metavar="UNIT", help="end a hold whose time is up (run by its timer)"
    )
    parser.add_argument("--hold", type=int, metavar="SEQ", help="the intent of that hold")
    parser.add_argument("--runtime-dir", type=Path, default=RUNTIME_DIR, help=argparse.SUPPRESS)
    parser.add_argument(
        "--trial", action="store_true", help="carry the trial to its end (run by its own unit)"
    )
    parser.add_argument(
        "--watch-gates",
        action="store_true",
        help="look at the declared gates and print what changes (run in a trial, without root)",
    )
    parser.set_defaults(run=run)


def _watch(gates: "tuple[Gate, ...]") -> int:
    import asyncio
    import json

    from healer.safeswitch.gating import watch_alone

    def tell(gate: str, holds: bool, detail: str) -> None:
        print(json.dumps({"gate": gate, "ok": holds, "detail": detail}), flush=True)

    asyncio.run(watch_alone(gates, tell))
    return 0


def run(args: argparse.Namespace) -> int:
    """Carry out one intent."""
    if args.trial:
        from healer.safeswitch import trial

        # It may outlive the configuration that it began under.
        trial.run()
        return 0
    if args.release is not None:
        from healer.watchdog import keeping

        # As above.
        keeping.end_hold(args.runtime_dir, args.release, args.hold)
        return 0
    from healer.config import load

    config = load(args.config, args.kept_config).config
    if args.watch_gates:
        return _watch(config.safe_switch.gates)
    from healer import helper

    helper.serve(config)
    return 0
