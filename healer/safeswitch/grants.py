"""Grants: root's own word, beside the ledger's, that root itself asked for something.

The daemon signs every intent, also one that says that root asked. So for what the daemon must not
be able to do alone (run a system that was never deployed, or go back to one that is not known to be
good) the command that root types leaves a grant, in a directory that only root reads. It names the
action and the target, is good for one intent and for a short time, and ends with the boot.
"""

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from healer.errors import LedgerIOError, RefusedError
from healer.files import write_atomically
from healer.host import clock
from healer.ledger.entry import Entry
from healer.safeswitch.rollback import PROGRESS_DIR

DIRECTORY = PROGRESS_DIR / "grants"
_LASTS_MS = 10 * 60_000
_ID = re.compile(r"[0-9a-f]{32}")


class Grant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What root asked for; ``intent`` is the hash of the one entry that it was used for."""

    action: str
    target: str
    boot: str
    until_ms: int
    intent: str | None = None


def make(action: str, target: str) -> str | None:
    """Write a grant and return its id; None where that is not root's to give.

    Raises LedgerIOError where the disk does not take it.
    """
    if os.geteuid() != 0:
        return None
    with _on_disk():
        DIRECTORY.parent.mkdir(mode=0o755, exist_ok=True)
        DIRECTORY.mkdir(mode=0o700, exist_ok=True)
    for old in DIRECTORY.iterdir():
        if not _is_good(_read(old)):
            old.unlink(missing_ok=True)
    name = secrets.token_hex(16)
    _write(name, Grant(action, target, clock.boot_id(), clock.uptime_ms() + _LASTS_MS))
    return name


def redeem(intent: Entry) -> None:
    """Use the grant that an intent names; the same intent may do so again. Needs root.

    Raises RefusedError without one that fits.
    """
    name, action, target = (intent.data.get(key) for key in ("grant", "action", "target"))
    grant = _read(DIRECTORY / name) if isinstance(name, str) and _ID.fullmatch(name) else None
    if grant is None or not _is_good(grant) or (grant.action, grant.target) != (action, target):
        raise RefusedError(f"only root may ask for {action} to {target}, and did not")
    if grant.intent is None:
        _write(str(name), msgspec.structs.replace(grant, intent=intent.leaf))
    elif grant.intent != intent.leaf:
        raise RefusedError(f"what root asked for was done already: {action} to {target}")


def _is_good(grant: Grant | None) -> bool:
    if grant is None or grant.boot != clock.boot_id():
        return False
    # Once it is used it serves what it was used for, however long that takes.
    return grant.intent is not None or clock.uptime_ms() < grant.until_ms


def _read(path: Path) -> Grant | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Grant)
    except (OSError, msgspec.MsgspecError):
        return None


def _write(name: str, grant: Grant) -> None:
    with _on_disk():
        write_atomically(DIRECTORY / name, msgspec.json.encode(grant), 0o600)


@contextmanager
def _on_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        mend = "free space on its file system" if error.errno == errno.ENOSPC else "mend that"
        raise LedgerIOError(f"cannot write to {DIRECTORY}: {error.strerror}; {mend}") from error
