import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from pathlib import Path

import pytest

from healer import __version__
from healer.errors import AlreadyRunningError, LedgerError, LedgerIOError
from healer.ledger import keys, reader, segments, writer
from healer.ledger.canonical import NotCanonicalError
from healer.ledger.verify import Verdict
from healer.ledger.writer import Ledger, LedgerHealth
from tests.ledger.helpers import BOOT, ORIGIN, check, environment, needs_root, open_ledger, write


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "RETRY_SEC", 0.05)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=256k", "tmpfs") as path:
        yield path


@contextmanager
def mounted(path: Path, *options: str) -> Iterator[Path]:
    """Mount a file system, or skip the test saying why it cannot be mounted here."""
    path.mkdir()
    command = ["mount", *options, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file:
        for size in (65_536, 4_096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def wait_until_failing(ledger: Ledger) -> LedgerHealth:
    for _ in range(500):
        if not ledger.health().ok:
            break
        time.sleep(0.01)
    return ledger.health()


def test_a_new_ledger_has_key_genesis_and_public_key(tmp_path: Path) -> None:
    directory = tmp_path / "ledger"
    ledger = open_ledger(directory)
    (genesis,) = ledger.history()
    assert (genesis.seq, genesis.batch, genesis.epoch, genesis.prev) == (0, 0, 0, "0" * 64)
    assert genesis.type == "ledger.genesis"
    assert genesis.data == {
        "healer": __version__,
        "origin": ORIGIN,
        "public_key": keys.encode_public(ledger.public_key),
    }
    modes = {p.name: oct(stat.S_IMODE(p.stat().st_mode)) for p in directory.iterdir()}
    assert modes == {
        "0000000000000000.jsonl": "0o640",
        "ledger.key": "0o400",
        "ledger.lock": "0o600",
        "ledger.pub": "0o644",
    }
    assert keys.load_public(directory / "ledger.pub") == keys.raw_public(ledger.public_key)
    ledger.close()


def test_entries_are_durable_in_order_and_chained(tmp_path: Path) -> None:
    before = time.time_ns() // 1000
    written = write(tmp_path / "ledger", [3, 1])
    assert [e.seq for e in written] == [0, 1, 2, 3, 4]
    assert [e.batch for e in written] == [0, 1, 1, 1, 2]
    assert [e.prev for e in written[1:]] == [e.leaf for e in written[:-1]]
    assert {e.boot for e in written} == {BOOT}
    assert before <= written[0].time_us <= written[-1].time_us <= time.time_ns() // 1000
    assert written[1].data == {"n": 0, "text": "é\n"}
    again = write(tmp_path / "ledger", [1])
    assert again[:-1] == written
    assert again[-1].batch == 3
    assert check(tmp_path / "ledger").verdict is Verdict.INTACT


def test_the_key_comes_from_a_credential(tmp_path: Path) -> None:
    credential = tmp_path / "credential"
    key = keys.generate(credential)
    for _ in range(2):
        ledger = Ledger.open(tmp_path / "l", origin=ORIGIN, boot=BOOT, credential=credential)
        ledger.close()
        assert not (tmp_path / "l" / "ledger.key").exists()
    assert keys.load_public(tmp_path / "l" / "ledger.pub") == keys.raw_public(key.public_key())
    assert check(tmp_path / "l").verdict is Verdict.INTACT


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path / "ledger")
    with pytest.raises(AlreadyRunningError, match=str(tmp_path / "ledger")):
        open_ledger(tmp_path / "ledger")
    program = (
        "import sys; from pathlib import Path; from healer.ledger.writer import Ledger\n"
        "Ledger.open(Path(sys.argv[1]), origin='o', boot='b')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "ledger")],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    assert "AlreadyRunningError" in done.stderr
    ledger.close()
    open_ledger(tmp_path / "ledger").close()


def test_appending_from_many_threads(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path / "ledger")

    def work(name: int) -> None:
        for n in range(50):
            ledger.append("test.entry", {"thread": name, "n": n})

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger.close()
    entries = list(reader.read(tmp_path / "ledger"))[1:]
    assert len(entries) == 400
    for name in range(8):
        assert [e.data["n"] for e in entries if e.data["thread"] == name] == list(range(50))
    assert check(tmp_path / "ledger").verdict is Verdict.INTACT


def test_segments_follow_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "SEGMENT_BYTES", 2_000)
    written = write(tmp_path / "ledger", [1] * 20)
    found = segments.find(tmp_path / "ledger")
    assert len(found) > 3
    assert list(reader.read(tmp_path / "ledger")) == written
    assert len(write(tmp_path / "ledger", [1])) == 22
    assert check(tmp_path / "ledger").verdict is Verdict.INTACT


def test_a_huge_entry_is_recorded_shortened(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path / "ledger")
    data = {"agent": "w", "journal": ["\udcff" * 1_000_000], "peak": 2**64 - 1}
    entry = ledger.append("agent.crash", data, incident="i" * 1_000).result(10)
    ledger.close()
    assert entry.data["agent"] == "w"
    assert entry.data["peak"] == str(2**64 - 1)
    assert "characters cut]" in entry.data["journal"][0]
    assert check(tmp_path / "ledger").verdict is Verdict.INTACT


def test_what_only_a_bug_produces_is_refused_at_once(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path / "ledger")
    with pytest.raises(NotCanonicalError, match="float"):
        ledger.append("test.entry", {"seconds": 1.5})
    with pytest.raises(NotCanonicalError, match="not the type"):
        ledger.append("Not A Type", {})
    future = ledger.append("test.entry", {})
    assert not future.cancel()
    assert future.result(5).seq == 1
    ledger.close()


def test_a_clock_set_back_is_harmless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "ledger", [1])
    monkeypatch.setattr(time, "time_ns", lambda: -86_400 * 10**9)
    entries = write(tmp_path / "ledger", [1])
    assert entries[-1].time_us == -86_400 * 10**6
    monkeypatch.undo()
    assert len(write(tmp_path / "ledger", [1])) == 4
    assert check(tmp_path / "ledger").verdict is Verdict.INTACT


def test_a_closed_ledger_refuses_entries(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path / "ledger")
    waiting = [ledger.append("test.entry", {"n": n}) for n in range(1_000)]
    ledger.close()
    ledger.close()
    assert all(future.done() for future in waiting)
    assert waiting[-1].result().seq == 1_000
    with pytest.raises(LedgerIOError, match="closed"):
        ledger.append("test.entry", {}).result(1)
    assert not ledger.health().ok


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(LedgerIOError, match=f"{tmp_path}/no/ledger.*make its parent directory"):
        open_ledger(tmp_path / "no" / "ledger")
    (tmp_path / "file").write_text("")
    with pytest.raises(
        LedgerIOError, match=f"{tmp_path}/file: File exists; a file is in its place"
    ):
        open_ledger(tmp_path / "file")
    with pytest.raises(LedgerIOError, match="/proc/ledger"):
        open_ledger(Path("/proc/ledger"))


@needs_root
def test_a_read_only_file_system_is_named(tmp_path: Path) -> None:
    with (
        mounted(tmp_path / "ro", "-t", "tmpfs", "-o", "ro", "tmpfs") as path,
        pytest.raises(LedgerIOError, match="mount the file system read-write"),
    ):
        open_ledger(path / "ledger")


@needs_root
def test_another_users_directory_is_named(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from healer.ledger.writer import Ledger\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "Ledger.open(Path(sys.argv[1]), origin='o', boot='b')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "/root/ledger"],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    assert "must belong to the user that healer runs as" in done.stderr


@needs_root
def test_a_full_disk_loses_nothing(small: Path) -> None:
    ledger = open_ledger(small / "ledger")
    ledger.append("test.entry", {"n": -1}).result(5)
    fill(small / "ballast")
    futures = [ledger.append("test.entry", {"n": n, "text": "x" * 500}) for n in range(50)]
    health = wait_until_failing(ledger)
    assert not health.ok
    assert health.reason is not None
    assert "No space left on device; free space" in health.reason
    assert 0 < health.spooled <= 50
    (small / "ballast").unlink()
    wait(futures, 10)
    assert [f.result().data["n"] for f in futures] == list(range(50))
    assert ledger.health() == LedgerHealth(
        ok=True, reason=None, spooled=0, lost=0, size=52, head=futures[-1].result().leaf
    )
    ledger.close()
    report = check(small / "ledger")
    assert (report.verdict, report.entries, report.lost) == (Verdict.INTACT, 52, 0)


@needs_root
def test_what_finds_no_room_in_memory_is_counted(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SPOOL_ENTRIES", 10)
    ledger = open_ledger(small / "ledger")
    fill(small / "ballast")
    futures = [ledger.append("test.entry", {"n": n, "t": "x" * 5_000}) for n in range(25)]
    wait_until_failing(ledger)
    lost = [f for f in futures if f.done() and f.exception()]
    assert ledger.health().lost == len(lost) == 15
    assert "no room in memory" in str(lost[0].exception())
    (small / "ballast").unlink()
    assert futures[9].result(10).data["n"] == 9
    last = ledger.append("test.entry", {"n": 99}).result(10)
    ledger.close()
    entries = list(reader.read(small / "ledger"))
    assert entries[-2].type == "ledger.gap"
    assert entries[-2].data["lost"] == 15
    assert entries[-1] == last
    report = check(small / "ledger")
    assert (report.verdict, report.lost) == (Verdict.INTACT, 15)


@needs_root
def test_closing_on_a_full_disk_says_what_is_lost(small: Path) -> None:
    ledger = open_ledger(small / "ledger")
    fill(small / "ballast")
    futures = [ledger.append("test.entry", {"t": "x" * 9_000}) for _ in range(5)]
    ledger.close()
    for future in futures:
        with pytest.raises(LedgerIOError, match="No space left"):
            future.result(0)
    assert check(small / "ledger").verdict is Verdict.INTACT


@needs_root
def test_a_first_start_on_a_full_disk_is_one_clear_error(small: Path) -> None:
    (small / "ledger").mkdir()
    fill(small / "ballast")
    with pytest.raises(LedgerIOError, match=f"{small}/ledger: No space left on device; free"):
        open_ledger(small / "ledger")
    (small / "ballast").unlink()
    open_ledger(small / "ledger").close()
    assert check(small / "ledger").entries == 1


@needs_root
def test_a_torn_tail_on_a_full_disk_waits_and_is_not_lost(small: Path) -> None:
    directory = small / "ledger"
    write(directory, [2])
    segment = directory / "0000000000000000.jsonl"
    torn = b'{"batch":2,' + b"x" * 5_000
    with segment.open("ab") as file:
        file.write(torn)
    fill(small / "ballast")
    ledger = open_ledger(directory)  # healing does not wait for the disk
    assert not ledger.health().ok
    assert len(list(ledger.history())) == 3
    future = ledger.append("test.entry", {"n": 1})
    time.sleep(0.2)
    assert not future.done()
    assert segment.read_bytes().endswith(torn)
    (small / "ballast").unlink()
    assert future.result(10).seq == 4
    ledger.close()
    recovered = list(reader.read(directory))[3]
    assert recovered.type == "ledger.recovered"
    assert (directory / str(recovered.data["saved_as"])).read_bytes() == torn
    assert check(directory).verdict is Verdict.INTACT


@needs_root
def test_a_failed_fdatasync_is_never_retried(tmp_path: Path) -> None:
    """A real one: ext4 on a loop device whose sparse image lies on a disk that is full."""
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=512k", "tmpfs") as disk:
        image = disk / "image"
        with image.open("wb") as file:
            file.truncate(8 * 1024 * 1024)
        subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-O", "^has_journal", str(image)], check=True)
        with mounted(tmp_path / "fs", "-o", "loop", str(image)) as path:
            ledger = open_ledger(path / "ledger")
            first = ledger.append("test.entry", {"n": 0}).result(5)
            fill(disk / "ballast")
            futures = [
                ledger.append("test.entry", {"n": n, "t": os.urandom(6_000)}) for n in range(40)
            ]
            health = wait_until_failing(ledger)
            assert not health.ok, health
            (disk / "ballast").unlink()
            wait(futures, 20)
            entries = [f.result() for f in futures]
            ledger.close()
            assert [e.data["n"] for e in entries] == list(range(40))
            read = list(reader.read(path / "ledger"))
            assert read[1] == first
            errors = [e for e in read if e.type == "ledger.io_error"]
            assert errors
            assert errors[0].data["file"] == "0000000000000000.jsonl"
            assert "fdatasync" in errors[0].data["error"]
            # The error comes first in a file of its own.
            assert (path / "ledger" / segments.name(errors[0].seq)).exists()
            report = check(path / "ledger")
            assert report.verdict is Verdict.INTACT
            assert report.void_bytes > 0
            assert len(write(path / "ledger", [1])) == len(read) + 1


def test_a_segment_changed_by_another_hand_is_left_behind(tmp_path: Path) -> None:
    directory = tmp_path / "ledger"
    ledger = open_ledger(directory)
    ledger.append("test.entry", {"n": 0}).result(5)
    with (directory / "0000000000000000.jsonl").open("ab") as file:
        file.write(b"garbage\n")
    ledger.append("test.entry", {"n": 1}).result(5)
    ledger.close()
    entries = list(reader.read(directory))
    assert [e.type for e in entries[2:]] == ["ledger.io_error", "test.entry"]
    report = check(directory)
    assert (report.verdict, report.void_bytes) == (Verdict.INTACT, 8)
    assert len(write(directory, [1])) == 5


def test_void_bytes_are_accepted_only_where_an_entry_declares_them(tmp_path: Path) -> None:
    directory = tmp_path / "ledger"
    ledger = open_ledger(directory)
    first = directory / "0000000000000000.jsonl"
    with first.open("ab") as file:
        file.write(b"garbage\n")
    ledger.append("test.entry", {"n": 1}).result(5)
    ledger.close()
    data = first.read_bytes()
    declared = directory / segments.name(1)
    assert check(directory).verdict is Verdict.INTACT
    lines = declared.read_bytes().splitlines(keepends=True)
    declared.write_bytes(b"".join(lines[1:]))
    assert check(directory).verdict is Verdict.TAMPERED
    declared.write_bytes(b"".join(lines))
    genesis = data.splitlines(keepends=True)[0]
    first.write_bytes(genesis[:-1] + b" \n")
    report = check(directory)
    assert report.bad is not None
    assert (report.verdict, report.bad.seq) == (Verdict.TAMPERED, 0)


def test_errors_at_open_release_the_lock(tmp_path: Path) -> None:
    directory = tmp_path / "ledger"
    write(directory, [])
    key = (directory / "ledger.key").read_bytes()
    (directory / "ledger.key").unlink()
    with pytest.raises(LedgerError, match="missing"):
        open_ledger(directory)
    (directory / "ledger.key").write_bytes(key)
    (directory / "ledger.key").chmod(0o400)
    open_ledger(directory).close()
