"""`healer config`: look at a configuration file before it is put in force."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from healer.config import Problem


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `healer config check`."""
    group = subparsers.add_parser("config", help="validate a configuration file")
    commands = group.add_subparsers(title="commands", required=True, metavar="COMMAND")
    check = commands.add_parser(
        "check",
        help="print everything that is wrong with a configuration file",
        description="Print everything that is wrong with a configuration file: the option, what is "
        "wrong, and the mend. Exit code 0: it is right; 1: it is not.",
    )
    check.add_argument("file", type=Path, metavar="FILE")
    check.add_argument("--json", action="store_true", help="print one JSON object")
    check.set_defaults(run=_check)


def _check(args: argparse.Namespace) -> int:
    from healer.config import InvalidConfigError, load

    try:
        loaded = load(args.file)
    except InvalidConfigError as error:
        _report(args, error.problems, None)
        if not args.json:
            print(f"healer: {error}", file=sys.stderr)
        return 1
    _report(args, (), loaded.sha256)
    if not args.json:
        agents = len(loaded.config.agents)
        print(f"{args.file}: right, {agents} agent{'' if agents == 1 else 's'}")
    return 0


def _report(args: argparse.Namespace, problems: "tuple[Problem, ...]", sha256: str | None) -> None:
    if not args.json:
        return
    report = {
        "file": str(args.file),
        "ok": not problems,
        "sha256": sha256,
        "errors": [
            {"option": problem.option, "wrong": problem.wrong, "mend": problem.mend}
            for problem in problems
        ],
    }
    print(json.dumps(report, indent=2))
