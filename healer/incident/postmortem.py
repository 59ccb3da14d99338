"""One incident as a post-mortem: for a person as plain text, for a program as JSON values."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from healer.incident import words
from healer.incident.fold import Incident, timeline
from healer.ledger.entry import Entry

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INDENT = " " * 36


def render(incident: Incident) -> str:
    """Return the post-mortem as text in the manner of Markdown, without a newline at its end."""
    parts = [_head(incident)]
    if incident.crashes:
        parts += [_doing(incident.crashes[0]), _endings(incident)]
    parts.append(_story(incident))
    return "\n\n".join(parts)


def as_json(incident: Incident) -> dict[str, Any]:
    """Return the incident as JSON values; times are microseconds, and ``leaf`` is the evidence."""
    return {
        **headline(incident),
        "entries": [
            {
                "seq": entry.seq,
                "leaf": entry.leaf,
                "type": entry.type,
                "happened_us": happened,
                "offset_us": offset,
                "text": words.line(entry.type, entry.data),
                "data": entry.data,
            }
            for entry, happened, offset in timeline(incident)
        ],
    }


def headline(incident: Incident) -> dict[str, Any]:
    """Return what a list of incidents shows of one, as JSON values."""
    return {
        "id": incident.id,
        "agent": incident.agent,
        "state": str(incident.state),
        "opened_us": incident.opened,
        "closed_us": incident.closed,
        "crashes": len(incident.crashes),
        "summary": incident.summary,
    }


def wall_time(microseconds: int) -> str:
    """Return CLOCK_REALTIME microseconds as UTC, to the millisecond."""
    try:
        moment = _EPOCH + timedelta(microseconds=microseconds)
    except OverflowError:
        return f"{microseconds} µs after 1970"
    return f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03d} UTC"


def _head(incident: Incident) -> str:
    sequences = [entry.seq for entry in incident.entries]
    closed = "still open"
    if incident.closed is not None:
        lasted = words.duration(max(0, incident.closed - incident.opened))
        closed = f"{wall_time(incident.closed)}, after {lasted}"
    rows = [
        ("State", str(incident.state)),
        ("Opened", wall_time(incident.opened)),
        ("Closed", closed),
        *_deployment(incident),
        (
            "Evidence",
            f"ledger entries {min(sequences)} to {max(sequences)}, numbered in [brackets]",
        ),
    ]
    table = "\n".join(f"{name:<10}{value}" for name, value in rows)
    title = words.printable(incident.id)
    return f"# Incident {title}\n\n{incident.summary}\n\n{table}"


def _deployment(incident: Incident) -> Iterator[tuple[str, str]]:
    entry = incident.deployment
    if entry is not None:
        age = words.duration(max(0, incident.opened - entry.time_us))
        name = words.toplevel(entry.data.get("toplevel"))
        yield "Running", f"{name}, active for {age} [{entry.seq}]"


def _doing(crash: Entry) -> str:
    status = words.text(crash.data, "status_text")
    lines = [
        "## What it was doing",
        "",
        f"Its last status: {status}" if status else "It had told systemd no status.",
    ]
    if crumb := words.text(crash.data, "breadcrumb"):
        lines.append(f"The breadcrumb that it left: {crumb}")
    journal = crash.data.get("journal")
    if isinstance(journal, list) and journal:
        lines.append(f"Its last lines in the journal [{crash.seq}]:")
        lines += [f"    {words.printable(str(text))}" for text in journal]
    else:
        lines.append("It had written nothing to the journal.")
    return "\n".join(lines)


def _endings(incident: Incident) -> str:
    lines = ["## How it ended", ""]
    for crash in incident.crashes:
        runtime = words.milliseconds(crash.data, "runtime_ms")
        after = f" after {runtime}" if runtime else ""
        lines.append(f"[{crash.seq}] {words.ending(crash.data)}{after}")
        memory = words.memory(crash.data)
        lines.append(f"    memory: {memory or 'not known'}")
        lines.append(f"    invocation {words.text(crash.data, 'invocation') or 'not known'}")
        unit_file = words.text(crash.data, "unit_file")
        lines += [f"    started from {unit_file}"] if unit_file else []
        lines += _changed_status(crash, incident.crashes[0])
        lines += _stack(crash, incident)
    return "\n".join(lines)


def _stack(crash: Entry, incident: Incident) -> Iterator[str]:
    """Yield the frames of the core dump that a crash left."""
    for entry in incident.entries:
        frames = entry.data.get("stack")
        same = entry.data.get("invocation") == crash.data.get("invocation")
        if entry.type == "agent.coredump" and same and isinstance(frames, list) and frames:
            yield f"    stack of the thread that died [{entry.seq}]:"
            yield from (f"        {words.printable(str(frame))}" for frame in frames)


def _changed_status(crash: Entry, first: Entry) -> Iterator[str]:
    status = words.text(crash.data, "status_text")
    if crash is not first and status and status != words.text(first.data, "status_text"):
        yield f"    its last status: {status}"


def _story(incident: Incident) -> str:
    lines = ["## What happened", ""]
    told = timeline(incident)
    for entry, happened, offset in told:
        since = f"+{words.duration(offset)}" if offset >= 0 else words.duration(offset)
        clock = wall_time(happened)[11:23]
        told_line = words.line(entry.type, entry.data)
        lines.append(f"{since:>12}  {clock:<12}  {f'[{entry.seq}]':>7} {told_line}")
        lines += _notes(entry, happened, incident)
    return "\n".join(lines)


def _notes(entry: Entry, happened: int, incident: Incident) -> Iterator[str]:
    """Yield what belongs below a line: late evidence, the steps of an action, a missing outcome."""
    late = entry.time_us - happened
    if entry.type == "agent.crash" and late >= 1_000_000:
        source = words.text(entry.data, "source")
        yield f"{_INDENT}recorded {words.duration(late)} later, from its {source}"
    steps = entry.data.get("steps")
    if entry.type == "action.outcome" and isinstance(steps, dict):
        for name in steps:
            yield f"{_INDENT}{words.printable(name)}: {words.milliseconds(steps, name)}"
    if entry.type == "action.intent":
        answered = any(
            other.type == "action.outcome" and other.data.get("intent") == entry.seq
            for other in incident.entries
        )
        if not answered:
            yield f"{_INDENT}no outcome is recorded: under way, or healer was interrupted"
