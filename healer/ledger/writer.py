"""Writing the ledger: one thread, one write and one fdatasync for each batch.

The caller hands entries in and never waits; each gets a future that resolves when the entry is
durable. While the disk does not take them, entries stay in memory, up to a limit, and are tried
again; what does not fit is counted in a ``ledger.gap`` entry.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from healer import __version__, files
from healer.errors import AlreadyRunningError, LedgerError, LedgerIOError
from healer.ledger import keys, reader, recovery, segments
from healer.ledger.canonical import NotCanonicalError
from healer.ledger.chain import GENESIS
from healer.ledger.entry import TYPE, Body, Entry, seal
from healer.ledger.segment_file import SegmentFile, io_message
from healer.ledger.shrink import fit, text

BATCH = 256
"""Most entries of one batch."""
SEGMENT_BYTES = 2 * 1024 * 1024
"""A segment that has reached this size is followed by a new one."""
SPOOL_ENTRIES = 10_000
SPOOL_BYTES = 32 * 1024 * 1024
"""Most entries, and most bytes of their data, kept in memory while the disk takes none."""
RETRY_SEC = 1.0
"""Pause in seconds between two attempts on a disk that does not take entries."""


@dataclass(frozen=True, slots=True)
class LedgerHealth:
    """Whether entries become durable.

    ``reason`` is the last error while they do not, ``spooled`` the number of entries not yet
    durable, ``lost`` the number that had no room in memory since the last ``ledger.gap``;
    ``size`` is the number of durable entries and ``head`` the leaf hash of the last, in hex.
    """

    ok: bool
    reason: str | None
    spooled: int
    lost: int
    size: int
    head: str


@dataclass(frozen=True, slots=True)
class _Pending:
    type: str
    data: dict[str, object]
    incident: str | None
    time_us: int
    boottime_us: int
    size: int
    future: Future[Entry]


class Ledger:
    """The one writer of a ledger. ``append`` and ``health`` may be called from any thread."""

    def __init__(self, directory: Path, lock: int, key: Ed25519PrivateKey, boot: str) -> None:
        """Use ``open``."""
        self._directory = directory
        self._lock_fd = lock
        self._key = key
        self._boot = boot
        self.public_key: Ed25519PublicKey = key.public_key()
        self._changed = threading.Condition()
        self._queue: deque[_Pending] = deque()
        self._closing = False
        self._reason: str | None = None
        self._queued_bytes = 0
        self._lost = 0
        self._lost_reason = ""
        end = recovery.find_end(directory, self.public_key)
        self._seq, self._prev, self._batch = end.seq, end.prev, end.batch
        self._torn = list(end.torn)
        self._segment: SegmentFile | None = None
        self._last_path = end.segment
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)

    @classmethod
    def open(
        cls, directory: Path, *, origin: str, boot: str, credential: Path | None = None
    ) -> "Ledger":
        """Open the ledger for writing; make it, its key and its genesis where there is none.

        ``origin`` is the ledger's C2SP origin name, ``boot`` the kernel's boot id, ``credential``
        a file with a PEM private key to use instead of a generated one. A torn tail is set aside
        and recorded. Errors: AlreadyRunningError (another process writes it), LedgerIOError (the
        directory or the disk), LedgerError (foreign key, corrupt ledger).
        """
        lock = _lock(directory)
        try:
            key = _key(directory, credential)
            ledger = cls(directory, lock, key, boot)
            ledger._begin(origin)
        except OSError as error:
            os.close(lock)
            raise LedgerIOError(io_message(directory, error)) from error
        except BaseException:
            os.close(lock)
            raise
        return ledger

    def history(self) -> Iterator[Entry]:
        """Yield what was durable when the ledger was opened; errors as in ``reader.read``."""
        return islice(reader.read(self._directory), self._seq_at_open)

    def append(
        self,
        kind: str,
        data: Mapping[str, object],
        *,
        incident: str | None = None,
    ) -> Future[Entry]:
        """Hand in an entry of type ``kind``; the future resolves when it is durable.

        Returns at once. Data that is too long is shortened, with a marker (``shrink.fit``). The
        future fails with LedgerIOError only when the entry was lost: no room in memory while the
        disk fails, or the ledger closed. It cannot be cancelled: an entry handed in is written.
        NotCanonicalError: the data holds a float or a foreign object.
        """
        future: Future[Entry] = Future()
        future.set_running_or_notify_cancel()
        pending = self._pending(kind, data, incident, future)
        with self._changed:
            if self._closing:
                future.set_exception(LedgerIOError("the ledger is closed"))
            elif self._full():
                self._lost += 1
                self._lost_reason = self._reason or "entries come faster than the disk takes them"
                message = f"entry {kind} lost, no room in memory: {self._lost_reason}"
                future.set_exception(LedgerIOError(message))
            else:
                self._flush_gap()
                self._put(pending)
                self._changed.notify()
        return future

    def health(self) -> LedgerHealth:
        """Return whether entries become durable at present."""
        with self._changed:
            return LedgerHealth(
                ok=self._reason is None,
                reason=self._reason,
                spooled=len(self._queue),
                lost=self._lost,
                size=self._seq,
                head=self._prev,
            )

    def close(self) -> None:
        """Write what is waiting, end the thread and release the lock.

        Where the disk fails, one last attempt is made, and the futures of the entries that stay
        unwritten fail.
        """
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify()
        self._thread.join()
        if self._segment is not None:
            self._segment.close()
        os.close(self._lock_fd)

    def _begin(self, origin: str) -> None:
        if self._seq == 0:
            data = {
                "healer": __version__,
                "origin": origin,
                "public_key": keys.encode_public(self.public_key),
            }
            self._put(self._pending(GENESIS, data, None, Future()))
        genesis = self._seq == 0
        while self._queue or self._torn:
            if error := self._attempt():
                if genesis:
                    raise error
                break  # the entries wait in memory: healing does not wait for the disk
        self._seq_at_open = self._seq
        if self._seq:
            with contextlib.suppress(OSError):  # a full disk: the next start writes it
                keys.export_public(self._directory, self.public_key)
        self._thread.start()

    def _pending(
        self, kind: str, data: Mapping[str, object], incident: str | None, future: Future[Entry]
    ) -> _Pending:
        if not re.match(TYPE, kind):
            raise NotCanonicalError(f"{kind!r} is not the type of an entry")
        fitted, size = fit(data)
        return _Pending(
            type=kind,
            data=fitted,
            incident=text(incident, 256) if incident else None,
            time_us=time.time_ns() // 1000,
            boottime_us=time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000,
            size=size,
            future=future,
        )

    def _put(self, pending: _Pending) -> None:
        self._queue.append(pending)
        self._queued_bytes += pending.size

    def _full(self) -> bool:
        return len(self._queue) >= SPOOL_ENTRIES or self._queued_bytes >= SPOOL_BYTES

    def _flush_gap(self) -> None:
        """Say how many entries were lost, in the place where they are missing."""
        if self._lost:
            data = {"lost": self._lost, "reason": self._lost_reason}
            self._put(self._pending("ledger.gap", data, None, Future()))
            self._lost = 0

    def _run(self) -> None:
        failures = 0
        try:
            while self._wait():
                failures = failures + 1 if self._attempt() else 0
                with self._changed:
                    if failures and self._closing:
                        return
                    if failures > 1:
                        self._changed.wait_for(lambda: self._closing, RETRY_SEC)
        finally:
            self._end()

    def _wait(self) -> bool:
        """Wait for something to write; False when there will be nothing any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._torn or self._closing)
            return not self._closing or bool(self._queue)

    def _attempt(self) -> OSError | None:
        """Write one batch; return the error where the disk did not take it."""
        try:
            segment = self._ready()
            with self._changed:
                batch = list(islice(self._queue, BATCH))
            if not batch:
                return None  # there were only bytes to set aside
            entries = self._seal(batch)
            segment.append(b"".join(entry.raw + b"\n" for entry in entries))
        except OSError as error:
            with self._changed:
                self._reason = io_message(self._directory, error)
            return error
        last = entries[-1]
        with self._changed:
            self._seq, self._prev, self._batch = last.seq + 1, last.leaf, last.batch
            for _ in batch:
                self._queued_bytes -= self._queue.popleft().size
            if not self._full():
                self._flush_gap()
            self._reason = None
        for pending, entry in zip(batch, entries, strict=True):
            pending.future.set_result(entry)
        return None

    def _seal(self, batch: list[_Pending]) -> list[Entry]:
        seq, prev = self._seq, self._prev
        number = self._batch + 1 if seq else 0
        entries: list[Entry] = []
        for pending in batch:
            body = Body(
                batch=number,
                boot=self._boot,
                boottime_us=pending.boottime_us,
                data=pending.data,
                epoch=0,
                incident=pending.incident,
                prev=prev,
                seq=seq,
                time_us=pending.time_us,
                type=pending.type,
            )
            entry = seal(body, self._key)
            entries.append(entry)
            seq, prev = seq + 1, entry.leaf
        return entries

    def _ready(self) -> SegmentFile:
        """Return a segment to write to, after setting aside what must not stay in its way."""
        while self._torn:
            self._set_aside(self._torn[-1])
            self._torn.pop()
        segment = self._segment
        if segment is not None and segment.bad is not None:
            self._give_up(segment)
            segment = None
        elif segment is not None and segment.size >= SEGMENT_BYTES:
            segment.close()
            segment = self._segment = None
        if segment is None:
            path = self._last_path or self._directory / segments.name(self._seq)
            size = path.stat().st_size if path.exists() else 0
            segment = self._segment = SegmentFile(path, int(path.stem), size)
            self._last_path = None
        return segment

    def _set_aside(self, torn: recovery.Torn) -> None:
        if torn.data:
            files.write_atomically(torn.saved_as, torn.data, 0o440)
        if torn.offset == 0:
            torn.path.unlink(missing_ok=True)
        else:
            os.truncate(torn.path, torn.offset)
        files.sync_directory(self._directory)
        if torn.data and self._seq:
            data = {
                "file": torn.path.name,
                "offset": torn.offset,
                "length": len(torn.data),
                "sha256": hashlib.sha256(torn.data).hexdigest(),
                "saved_as": torn.saved_as.name,
            }
            self._put_first("ledger.recovered", data)

    def _give_up(self, bad: SegmentFile) -> None:
        """Leave a bad file behind; the entry that says so comes first in the next one."""
        if bad.size == 0:  # nothing in it was acknowledged, and the next one has the same name
            bad.path.unlink(missing_ok=True)
        bad.close()
        self._segment = None
        if not (self._queue and self._queue[0].type == segments.IO_ERROR):
            data = {"file": bad.path.name, "offset": bad.size, "error": bad.bad}
            self._put_first(segments.IO_ERROR, data)

    def _put_first(self, kind: str, data: Mapping[str, object]) -> None:
        pending = self._pending(kind, data, None, Future())
        with self._changed:
            self._queue.appendleft(pending)
            self._queued_bytes += pending.size

    def _end(self) -> None:
        """Fail what will not be written any more; the thread has no other way out than here."""
        with self._changed:
            self._closing = True
            self._reason = self._reason or "the ledger is closed"
            while self._queue:
                lost = self._queue.popleft()
                lost.future.set_exception(LedgerIOError(f"entry {lost.type} lost: {self._reason}"))


def _lock(directory: Path) -> int:
    try:
        directory.mkdir(mode=0o750, exist_ok=True)
        fd = os.open(directory / "ledger.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LedgerIOError(io_message(directory, error)) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise AlreadyRunningError(
            f"another healer writes the ledger at {directory}; stop it first "
            "(systemctl stop healer)"
        ) from error
    return fd


def _key(directory: Path, credential: Path | None) -> Ed25519PrivateKey:
    if credential is not None:
        return keys.load_private(credential, owned=False)
    path = directory / keys.KEY_FILE
    if path.exists():
        return keys.load_private(path, owned=True)
    if segments.find(directory):
        raise LedgerError(
            f"{path} is missing, and the ledger beside it was signed with it; put it back, name "
            "the credential that holds it (ledger.keyCredential), or keep the ledger as evidence "
            f"and let healer begin a new one: mv {directory} {directory}.old; "
            "rm -f /var/lib/healer-helper/ledger.pub"
        )
    return keys.generate(path)
