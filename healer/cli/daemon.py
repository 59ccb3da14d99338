"""``healer daemon``: what healer.service runs."""

import argparse
from pathlib import Path


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "daemon",
        help="watch the agents, judge deployments, keep the ledger (run by healer.service)",
        description="Runs until SIGTERM. SIGHUP reads the configuration anew; a bad one is "
        "refused and the old one stays in force.",
    )
    parser.add_argument("--config", type=Path, required=True, help="the rendered configuration")
    parser.add_argument(
        "--kept-config",
        type=Path,
        metavar="PATH",
        help="what a start reads where that is gone: after the switch to a system without healer",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the daemon in the foreground, logging to standard error for journald."""
    import asyncio
    import logging

    from healer import daemon

    # The prefix is sd-daemon(3)'s log level.
    for level, prefix in ((10, "<7>"), (20, "<6>"), (30, "<4>"), (40, "<3>"), (50, "<2>")):
        logging.addLevelName(level, prefix)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s%(message)s")
    asyncio.run(daemon.run(args.config, args.kept_config))
    return 0
