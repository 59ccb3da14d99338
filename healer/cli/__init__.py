"""What a person types: ``healer COMMAND``."""

import argparse
import os
import sys
from collections.abc import Sequence

from healer import __version__
from healer.cli import (
    agent,
    config,
    daemon,
    deployment,
    helper,
    incident,
    ledger,
    safeswitch,
    status,
)
from healer.errors import HealerError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="healer", description="A NixOS host that heals itself and can prove what it did."
    )
    parser.add_argument("--version", action="version", version=f"healer {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for group in (status, incident, agent, safeswitch, deployment, ledger, config, daemon, helper):
        group.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see docs/exit-codes.md)."""
    args = _parser().parse_args(argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except HealerError as error:
        print(f"healer: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        _print_no_more()
        return 0
    except OSError as error:
        _print_no_more()
        where = error.filename or "standard output, or a file of healer's"
        print(f"healer: {where}: {error.strerror}", file=sys.stderr)
        return os.EX_IOERR
    return code


def _print_no_more() -> None:
    """Drop what was not printed: Python would try again at its end, and leave with a code of its
    own.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
