"""``healer ledger verify|show|export``: what a person or an auditor asks of a ledger."""

import argparse
import contextlib
import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from healer.errors import HealerError

if TYPE_CHECKING:
    from healer.ledger.entry import Entry
    from healer.ledger.verify import Report

DIRECTORY = Path("/var/lib/healer/ledger")
USAGE = 4

_VERIFY = """\
exit codes:
  0  intact
  1  intact, but --require-anchor is not met
  2  tampered with, or damaged: the first bad entry is named
  3  truncated: the entry of --at-least is missing
  4  wrong usage, no ledger there, or no key to check it with
"""


class _Parser(argparse.ArgumentParser):
    """argparse leaves with 2 on wrong usage; here 2 means that the ledger was tampered with."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")

    def parse_known_args(self, *args: Any, **keywords: Any) -> Any:
        """Refuse unknown options here: the parser above would leave with 2."""
        found, extra = super().parse_known_args(*args, **keywords)
        if extra:
            self.error(f"unrecognized arguments: {' '.join(extra)}")
        return found, extra


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command group to healer's parser."""
    parser = subparsers.add_parser("ledger", help="verify, show or export the ledger")
    group = parser.add_subparsers(required=True, metavar="ACTION", parser_class=_Parser)
    _add_verify(group)
    show = group.add_parser("show", help="show entries")
    _add_common(show)
    show.add_argument("--seq", type=int, metavar="N", help="only entry N, completely")
    show.add_argument("--last", type=_count, metavar="N", help="only the last N entries")
    show.add_argument("--type", metavar="T", help="only entries of this type")
    show.add_argument("--incident", metavar="ID", help="only entries of this incident")
    show.add_argument("--follow", action="store_true", help="go on with new entries as they come")
    show.set_defaults(run=run_show)
    export = group.add_parser("export", help="write all entries to standard output")
    _add_common(export)
    export.add_argument(
        "--format",
        choices=("jsonl", "ecs"),
        default="jsonl",
        help="jsonl: the lines as they are on disk, which verify again; "
        "ecs: Elastic Common Schema, the line in event.original",
    )
    export.set_defaults(run=run_export)


def run_verify(args: argparse.Namespace) -> int:
    """Verify a ledger and say what is proved."""
    from healer.ledger import keys, segments
    from healer.ledger.verify import verify

    key_file: Path = args.public_key or args.directory / keys.PUBLIC_KEY_FILE
    try:
        segments.find(args.directory)  # first of all: a directory that is not there has no key
        report = verify(
            args.directory,
            keys.load_public(key_file),
            args.at_least,
            require_anchor=args.require_anchor,
        )
    except HealerError as error:
        print(f"healer: {error}", file=sys.stderr)
        return USAGE
    if args.json:
        print(json.dumps(_report(report, args.directory, key_file)))
    else:
        print("\n".join(_words(report, args, key_file)))
    return int(report.verdict)


def run_show(args: argparse.Namespace) -> int:
    """Show entries, one a line."""
    from healer.ledger import reader

    seen = -1

    def wanted(entries: "Iterable[Entry]") -> "Iterator[Entry]":
        nonlocal seen
        for entry in entries:
            seen = entry.seq
            if (
                args.seq in {None, entry.seq}
                and args.type in {None, entry.type}
                and args.incident in {None, entry.incident}
            ):
                yield entry

    entries = wanted(reader.read(args.directory))
    if args.last is not None:
        entries = iter(deque(entries, args.last))
    found = False
    for entry in entries:
        found = True
        _show(entry, args)
    if args.seq is not None and not found:
        print(f"healer: there is no entry {args.seq} in {args.directory}", file=sys.stderr)
        return 1
    if args.follow:
        with contextlib.suppress(KeyboardInterrupt):
            for entry in wanted(reader.tail(args.directory, after=seen)):
                _show(entry, args)
    return 0


def run_export(args: argparse.Namespace) -> int:
    """Write all entries as they are, or mapped to the Elastic Common Schema."""
    from healer.ledger import reader

    for entry in reader.read(args.directory):
        line = entry.raw if args.format == "jsonl" else json.dumps(_ecs(entry)).encode()
        sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()
    return 0


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "directory",
        nargs="?",
        type=Path,
        default=DIRECTORY,
        metavar="DIR",
        help=f"the ledger's directory or a copy of it (default: {DIRECTORY})",
    )
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def _add_verify(group: "argparse._SubParsersAction[_Parser]") -> None:
    verify = group.add_parser(
        "verify",
        help="check every entry with the public key alone",
        epilog=_VERIFY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_common(verify)
    verify.add_argument(
        "--public-key",
        type=Path,
        metavar="FILE",
        help="PEM file of the ledger's public key, kept elsewhere (default: DIR/ledger.pub, "
        "which whoever can replace the ledger can replace too)",
    )
    verify.add_argument(
        "--at-least",
        type=_known_entry,
        metavar="SEQ:HASH",
        help="an entry known from elsewhere to have been durable",
    )
    verify.add_argument(
        "--require-anchor",
        action="store_true",
        help="leave with 1 when entries stand behind that of --at-least, or it is not given",
    )
    verify.set_defaults(run=run_verify)


def _count(text: str) -> int:
    count = int(text)
    if count < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return count


def _known_entry(text: str) -> tuple[int, str]:
    seq, _, digest = text.partition(":")
    if (
        not seq.isdecimal()
        or len(digest) != 64
        or not set(digest.lower()) <= set("0123456789abcdef")
    ):
        raise argparse.ArgumentTypeError(f"{text!r} is not SEQ:HASH (a number, 64 hex digits)")
    return int(seq), digest.lower()


def _words(report: "Report", args: argparse.Namespace, key_file: Path) -> Iterator[str]:
    last, unfinished = report.last, report.unfinished
    if report.bad is not None:
        bad = report.bad
        yield f"TAMPERED: {bad.file} line {bad.line} (entry {bad.seq}): {bad.reason}"
        yield f"  {report.entries} entries before it hold"
    elif last is None or (args.at_least is not None and report.anchor is None):
        yield f"TRUNCATED: entry {args.at_least[0]} was acknowledged and is missing"
        yield f"  {report.entries} entries are there and hold"
    else:
        yield f"INTACT: {report.entries} entries, the last of {_time(last.time_us)}"
    if last is not None:
        yield f"  last entry that holds: {last.seq}:{last.leaf}"
    if unfinished is not None:
        yield (
            f"  {unfinished.length} bytes behind it in {unfinished.file} are no entry: a write "
            "under way, or a power cut; they are not counted"
        )
    if report.recovered or report.lost:
        yield (
            f"  the ledger itself records {report.recovered} torn tails set aside, and "
            f"{report.lost} entries lost"
        )
    if report.void_bytes:
        yield f"  {report.void_bytes} bytes of failed writes are declared void"
    if report.bad is None:
        yield from _not_proved(report)
    if args.public_key is None:
        yield (
            f"NOT PROVED: the key itself; {key_file} lies beside the ledger, and who can replace "
            "one can replace both (--public-key)"
        )


def _not_proved(report: "Report") -> Iterator[str]:
    entries, span_us = report.unproved
    if not entries:
        yield "NOT PROVED: that nothing was written behind the acknowledged entry"
    elif report.anchor is None:
        yield (
            "NOT PROVED: the tail. Entries removed from the end leave no trace, unless you keep "
            "the line above elsewhere and give it to --at-least next time"
        )
    else:
        yield (
            f"NOT PROVED: the tail. {entries} entries / {span_us / 1e6:.0f} s behind entry "
            f"{report.anchor.seq} could be removed without trace"
        )


def _report(report: "Report", directory: Path, key_file: Path) -> dict[str, object]:
    last, bad, unfinished = report.last, report.bad, report.unfinished
    return {
        "verdict": report.verdict.name.lower(),
        "directory": str(directory),
        "public_key": str(key_file),
        "entries": report.entries,
        "last": None if last is None else {"seq": last.seq, "hash": last.leaf},
        "anchor": None if report.anchor is None else report.anchor.seq,
        "unproved_entries": report.unproved[0],
        "first_bad": None if bad is None else asdict(bad),
        "unfinished": None if unfinished is None else asdict(unfinished),
        "recovered": report.recovered,
        "lost": report.lost,
        "void_bytes": report.void_bytes,
    }


def _show(entry: "Entry", args: argparse.Namespace) -> None:
    if args.json:
        print(json.dumps(_plain(entry)), flush=True)
    elif args.seq is not None:
        print(json.dumps(_plain(entry), indent=2), flush=True)
    else:
        incident = f" [{entry.incident}]" if entry.incident else ""
        # JSON's escapes also keep an agent's terminal sequences from the reader's terminal.
        details = " ".join(f"{key}={json.dumps(value)}" for key, value in entry.data.items())
        print(f"{entry.seq:>6} {_time(entry.time_us)} {entry.type}{incident} {details}", flush=True)


def _plain(entry: "Entry") -> dict[str, object]:
    plain = asdict(entry)
    del plain["raw"]
    return {**plain, "time": _time(entry.time_us), "signature": entry.signature.hex()}


def _ecs(entry: "Entry") -> dict[str, object]:
    agent = entry.data.get("agent")
    return {
        "@timestamp": _time(entry.time_us),
        "ecs": {"version": "8.11.0"},
        "event": {
            "kind": "event",
            "provider": "healer",
            "dataset": "healer.ledger",
            "action": entry.type,
            "sequence": entry.seq,
            "id": entry.leaf,
            "original": entry.raw.decode(),
        },
        "host": {"boot": {"id": entry.boot}},
        "service": {"name": agent if isinstance(agent, str) else "healer"},
        "labels": {"incident": entry.incident} if entry.incident else {},
        "message": f"{entry.type} {agent}" if isinstance(agent, str) else entry.type,
        "healer": {"data": entry.data},
    }


def _time(time_us: int) -> str:
    """Return UTC in ISO 8601; the bare number where a clock was set out of all range."""
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)
    except OverflowError:
        return f"{time_us}us"
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond:06d}Z"
