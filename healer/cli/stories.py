"""What the commands that tell stories out of the ledger have in common."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from healer.errors import LedgerIOError, RefusedError

if TYPE_CHECKING:
    from healer.ledger.entry import Entry

_DIRECTORY = Path("/var/lib/healer/ledger")
T = TypeVar("T")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--ledger`` and ``--json``."""
    parser.add_argument(
        "--ledger", type=Path, metavar="DIR", default=_DIRECTORY, help=f"default: {_DIRECTORY}"
    )
    parser.add_argument("--json", action="store_true", help="write JSON")


def fold(directory: Path, folding: "Callable[[Iterable[Entry]], T]") -> T:
    """Fold all entries of a ledger; errors as in ``reader.read``, RefusedError without the right
    to read it.
    """
    from healer.ledger.reader import read

    try:
        return folding(read(directory))
    except LedgerIOError as error:
        if isinstance(error.__cause__, PermissionError):
            raise RefusedError(
                f"no permission to read {directory}: run as root or as a member of group healer"
            ) from error
        raise
