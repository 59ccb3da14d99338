"""``healer deployment list`` and ``healer deployment show``: each deployment's story."""

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from healer.cli import stories
from healer.errors import HealerError

if TYPE_CHECKING:
    from healer.incident.deployments import Deployment


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands to healer's parser."""
    parser = subparsers.add_parser(
        "deployment", help="tell what became of each deployment, and why"
    )
    verbs = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    listing = verbs.add_parser("list", help="list the deployments in the ledger, the newest last")
    stories.add_options(listing)
    listing.set_defaults(run=run_list)
    one = verbs.add_parser("show", help="tell the story of one deployment, with its verdicts")
    one.add_argument(
        "toplevel",
        metavar="TOPLEVEL",
        nargs="?",
        default="current",
        help="its store path, a part of it that is unique, or `current` (the default)",
    )
    stories.add_options(one)
    one.set_defaults(run=run_show)


def run_list(args: argparse.Namespace) -> int:
    """List the deployments."""
    from healer.incident import words
    from healer.incident.deployments import fold
    from healer.incident.postmortem import wall_time

    deployments = stories.fold(args.ledger, fold)
    if args.json:
        print(json.dumps([deployment.headline() for deployment in deployments], indent=2))
        return 0
    for deployment in deployments:
        print(f"{wall_time(deployment.activated.time_us)}  {words.toplevel(deployment.toplevel)}")
        print(f"    {deployment.state}: {deployment.summary}")
    if not deployments:
        print("no deployments")
    return 0


def run_show(args: argparse.Namespace) -> int:
    """Tell the story of a deployment, and of each time that it was deployed."""
    from healer.incident.deployments import fold

    chosen = find(stories.fold(args.ledger, fold), args.toplevel)
    if args.json:
        print(json.dumps([deployment.as_json() for deployment in chosen], indent=2))
        return 0
    for number, deployment in enumerate(chosen):
        if number:
            print()
        print("\n".join(_story(deployment)))
    return 0


def find(deployments: "Sequence[Deployment]", name: str) -> "list[Deployment]":
    """Return each time that the one system with this name was deployed; else HealerError.

    ``current`` is the last deployment of all.
    """
    if name == "current" and deployments:
        return [deployments[-1]]
    toplevels = list(dict.fromkeys(deployment.toplevel for deployment in deployments))
    exact = [toplevel for toplevel in toplevels if toplevel == name]
    found = exact or [toplevel for toplevel in toplevels if name in toplevel]
    if not found:
        raise HealerError(f"{name} was never deployed; `healer deployment list` lists what was")
    if len(found) > 1:
        raise HealerError(f"{name!r} is not unique: {', '.join(found[:8])}; give more of the path")
    return [deployment for deployment in deployments if deployment.toplevel == found[0]]


def _story(deployment: "Deployment") -> Iterator[str]:
    import textwrap

    from healer.incident import words
    from healer.incident.postmortem import wall_time

    yield f"{deployment.toplevel}"
    yield f"{deployment.state}: {deployment.summary}"
    yield ""
    for entry in deployment.entries:
        line = f"{wall_time(entry.time_us)}  {words.line(entry.type, entry.data)}  [{entry.seq}]"
        yield from textwrap.wrap(line, 100, subsequent_indent=" " * 6)
        for evidence in words.texts(entry.data, "evidence"):
            yield from textwrap.wrap(
                evidence, 100, initial_indent="      - ", subsequent_indent=" " * 8
            )
