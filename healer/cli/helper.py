"""``healer helper``: root's side, started by systemd for one request."""

import argparse
from pathlib import Path

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
        "--roll-back",
        type=int,
        metavar="SEQ",
        help="carry out the rollback that this intent asked for, in this process",
    )
    parser.add_argument(
        "--release", metavar="UNIT", help="end a hold whose time is up (run by its timer)"
    )
    parser.add_argument("--hold", type=int, metavar="SEQ", help="the intent of that hold")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out one intent."""
    from healer import helper
    from healer.config import load

    config = load(args.config).config
    if args.roll_back is not None:
        return 0 if helper.run_rollback(config, args.roll_back) else 1
    if args.release is not None:
        helper.release(config, args.release, args.hold)
        return 0
    helper.serve(config)
    return 0
