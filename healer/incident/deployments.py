"""Ledger entries become deployments: what each changed, what was said of it, and its end. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from healer.incident import words
from healer.ledger.entry import Entry

_TOLD = frozenset(
    {
        "agent.crash-loop",
        "boot.excused",
        "deployment.closure",
        "deployment.condemned",
        "deployment.forgiven",
        "deployment.known-good",
        "deployment.recovered",
        "deployment.refuted",
        "gate.failed",
        "gate.held",
        "gate.passed",
        "host.trouble",
        "safeswitch.verdict",
    }
)
_ACTIONS = frozenset({"rollback", "promote", "condemn", "forgive", "try", "confirm", "abandon"})
_STATES = {
    "deployment.known-good": "known-good",
    "deployment.condemned": "condemned",
    "deployment.forgiven": "forgiven",
    "deployment.refuted": "acquitted",
}


@dataclass(frozen=True, slots=True)
class Deployment:
    """One time that a system became active, and all that was told of it from then on."""

    toplevel: str
    activated: Entry
    entries: tuple[Entry, ...]
    state: str = "provisional"

    @property
    def summary(self) -> str:
        """One line: what was last said of it, and why."""
        verdicts = [entry for entry in self.entries if entry.type == "safeswitch.verdict"]
        if not verdicts:
            return "nothing was said of it"
        data = verdicts[-1].data
        return f"{words.text(data, 'verdict')}; {words.text(data, 'reason')}"

    def headline(self) -> dict[str, Any]:
        """Return what a list shows of it."""
        data = self.activated.data
        return {
            "toplevel": self.toplevel,
            "state": self.state,
            "activated_us": self.activated.time_us,
            "seq": self.activated.seq,
            "kind": data.get("kind"),
            "generation": data.get("generation"),
            "previous": data.get("previous"),
            "changes": data.get("changes"),
            "summary": self.summary,
        }

    def as_json(self) -> dict[str, Any]:
        """Return all of it."""
        entries = [
            {
                "seq": entry.seq,
                "time_us": entry.time_us,
                "type": entry.type,
                "words": words.line(entry.type, entry.data),
                "data": entry.data,
            }
            for entry in self.entries
        ]
        return {**self.headline(), "entries": entries}


def fold(entries: Iterable[Entry]) -> tuple[Deployment, ...]:
    """Return the deployments of a ledger, the newest last; a reboot is none."""
    found: list[Deployment] = []
    newest: dict[str, int] = {}
    for entry in entries:
        toplevel = entry.data.get("toplevel")
        if entry.type == "deployment.activated" and isinstance(toplevel, str):
            if found and found[-1].toplevel == toplevel == entry.data.get("previous"):
                found[-1] = _add(found[-1], entry)
                continue
            before = newest.get(toplevel)
            state = "provisional" if before is None else found[before].state
            if state not in {"known-good", "condemned"}:
                state = "provisional"
            newest[toplevel] = len(found)
            found.append(Deployment(toplevel, entry, (entry,), state))
        elif (index := _index(entry, found, newest)) is not None:
            found[index] = _add(found[index], entry)
    return tuple(found)


def _index(entry: Entry, found: list[Deployment], newest: dict[str, int]) -> int | None:
    """Return which deployment an entry tells of; None for one that tells of none."""
    if not found:
        return None
    data = entry.data
    if entry.type in {"action.intent", "action.outcome"}:
        return len(found) - 1 if data.get("action") in _ACTIONS else None
    if entry.type not in _TOLD:
        return None
    # A rollback that helped tells of what was left.
    about = data.get("from") if entry.type == "deployment.recovered" else data.get("toplevel")
    return newest.get(about) if isinstance(about, str) else len(found) - 1


def _add(deployment: Deployment, entry: Entry) -> Deployment:
    state = _STATES.get(entry.type, deployment.state)
    return replace(deployment, entries=(*deployment.entries, entry), state=state)
