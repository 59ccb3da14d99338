"""``healer incidents`` and ``healer incident ID``: the stories in the ledger."""

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from healer.cli import stories
from healer.errors import HealerError

if TYPE_CHECKING:
    from healer.incident.fold import Incident


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add both commands to healer's parser."""
    listing = subparsers.add_parser("incidents", help="list the incidents in the ledger")
    stories.add_options(listing)
    listing.add_argument("--agent", metavar="A", help="only incidents of this agent")
    listing.add_argument("--open", action="store_true", help="only incidents that still go on")
    listing.set_defaults(run=run_list)
    one = subparsers.add_parser("incident", help="tell the whole story of one incident")
    one.add_argument("id", metavar="ID", help="its id, or as much of it as is unique")
    stories.add_options(one)
    one.set_defaults(run=run_one)


def run_list(args: argparse.Namespace) -> int:
    """List incidents, the oldest first."""
    from healer.incident.fold import State, fold
    from healer.incident.postmortem import headline, wall_time

    chosen = [
        incident
        for incident in stories.fold(args.ledger, fold)
        if (args.agent is None or incident.agent == args.agent)
        and not (args.open and incident.closed is not None)
    ]
    if args.json:
        print(json.dumps([headline(incident) for incident in chosen], indent=2))
        return 0
    for incident in chosen:
        goes_on = incident.closed is None and incident.state is not State.OPEN
        end = " (open)" if goes_on else ""
        print(f"{incident.id}  {wall_time(incident.opened)}  {incident.state}{end}")
        print(f"    {incident.summary}")
    if not chosen:
        print("no incidents")
    return 0


def run_one(args: argparse.Namespace) -> int:
    """Tell one incident."""
    from healer.incident.fold import fold
    from healer.incident.postmortem import as_json, render

    incident = find(stories.fold(args.ledger, fold), args.id)
    print(json.dumps(as_json(incident), indent=2) if args.json else render(incident))
    return 0


def find(incidents: Sequence["Incident"], prefix: str) -> "Incident":
    """Return the incident with this id, or the only one whose id begins so; else HealerError."""
    exact = [incident for incident in incidents if incident.id == prefix]
    found = exact or [incident for incident in incidents if incident.id.startswith(prefix)]
    if not found:
        raise HealerError(f"there is no incident {prefix}; `healer incidents` lists them")
    if len(found) > 1:
        ids = ", ".join(incident.id for incident in found[:8])
        more = f" and {len(found) - 8} more" if len(found) > 8 else ""
        raise HealerError(f"{prefix!r} is not unique: {ids}{more}; give more of the id")
    return found[0]
