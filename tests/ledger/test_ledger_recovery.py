import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from healer.errors import LedgerError
from healer.ledger import keys, recovery, writer
from healer.ledger.verify import Verdict
from tests.ledger.helpers import check, environment, open_ledger, write

FIRST = "0000000000000000.jsonl"


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger whose batches hold 1 (genesis), 3, 2 and 6 entries."""
    directory = tmp_path_factory.mktemp("ledger") / "ledger"
    write(directory, [3, 2, 6])
    return directory


def with_content(ledger: Path, data: bytes, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(ledger, to)
    (to / FIRST).write_bytes(data)
    return to


def test_a_tail_torn_at_any_byte_is_set_aside_and_recorded(ledger: Path, tmp_path: Path) -> None:
    data = (ledger / FIRST).read_bytes()
    lines = data.splitlines(keepends=True)
    acknowledged = len(b"".join(lines[:6]))
    key = keys.load_private(ledger / "ledger.key", owned=True).public_key()
    copy = with_content(ledger, data, tmp_path / "copy")
    for cut in range(acknowledged, len(data)):
        (copy / FIRST).write_bytes(data[:cut])
        whole = data[:cut].count(b"\n")
        end = recovery.find_end(copy, key)
        assert end.seq == whole
        assert b"".join(t.data for t in end.torn) == data[len(b"".join(lines[:whole])) : cut]


@pytest.mark.parametrize("cut", [0, 1, 100, 426, 427, 428, -2, -1])
def test_the_ledger_goes_on_behind_a_torn_tail(ledger: Path, tmp_path: Path, cut: int) -> None:
    data = (ledger / FIRST).read_bytes()
    lines = data.splitlines(keepends=True)
    start = len(b"".join(lines[:6])) if cut >= 0 else len(data)
    torn = data[: start + cut]
    copy = with_content(ledger, torn, tmp_path / "copy")
    whole = torn.count(b"\n")
    rest = torn[len(b"".join(lines[:whole])) :]

    entries = write(copy, [2])
    assert check(copy).verdict is Verdict.INTACT
    assert [e.raw + b"\n" for e in entries[:whole]] == lines[:whole]
    recovered = [e for e in entries if e.type == "ledger.recovered"]
    assert len(entries) == whole + len(recovered) + 2
    assert check(copy).recovered == len(recovered) == bool(rest)
    if rest:
        said = recovered[0].data
        assert (said["file"], said["offset"], said["length"]) == (
            FIRST,
            len(torn) - len(rest),
            len(rest),
        )
        assert (copy / str(said["saved_as"])).read_bytes() == rest


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_lost_sector_of_the_last_write_is_torn_and_an_earlier_one_corrupt(
    ledger: Path, data: st.DataObject
) -> None:
    """A multi-page write that was never acknowledged can lose its middle and keep its end."""
    content = (ledger / FIRST).read_bytes()
    lines = content.splitlines(keepends=True)
    ends = [len(b"".join(lines[:n])) for n in (1, 4, 6, 12)]  # of each batch
    offset = data.draw(st.integers(0, len(content) - 1))
    length = data.draw(st.integers(1, 700))
    damaged = bytearray(content)
    damaged[offset : offset + length] = bytes(len(content[offset : offset + length]))
    copy = with_content(ledger, bytes(damaged), ledger.parent / "damaged")
    key = keys.load_private(ledger / "ledger.key", owned=True).public_key()
    if offset >= ends[2]:
        end = recovery.find_end(copy, key)
        assert 6 <= end.seq < 12
        assert end.batch in {2, 3}
    elif offset < ends[1] and offset + length < len(content) - 450:
        # A whole entry of the last batch follows damage at least two batches before it.
        with pytest.raises(LedgerError, match="CORRUPT"):
            recovery.find_end(copy, key)


def test_a_corrupt_ledger_is_left_as_it_is(tmp_path: Path) -> None:
    directory = tmp_path / "ledger"
    write(directory, [1, 1, 1, 1])
    data = bytearray((directory / FIRST).read_bytes())
    data[data.index(b'"seq":2') + 6] ^= 1
    (directory / FIRST).write_bytes(data)
    for _ in range(2):
        with pytest.raises(LedgerError, match=rf"{FIRST} offset \d+: the ledger is CORRUPT.*mv "):
            open_ledger(directory)
    assert (directory / FIRST).read_bytes() == data
    report = check(directory)
    assert report.bad is not None
    assert report.bad.seq == 2


def test_a_later_entry_is_found_even_where_its_line_does_not_begin(tmp_path: Path) -> None:
    directory = tmp_path / "ledger"
    write(directory, [1, 1, 1])
    data = (directory / FIRST).read_bytes()
    newlines = [i for i, byte in enumerate(data) if byte == 0x0A]
    joined = bytearray(data)
    for at in newlines[1:3]:  # the last three lines become one
        joined[at] = 0x20
    (directory / FIRST).write_bytes(joined)
    with pytest.raises(LedgerError, match="CORRUPT"):
        open_ledger(directory)


def test_an_emptied_or_headless_ledger_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "ledger"
    write(directory, [1])
    data = (directory / FIRST).read_bytes()
    (directory / FIRST).unlink()
    with pytest.raises(LedgerError, match="emptied"):
        open_ledger(directory)
    (directory / FIRST).write_bytes(data[:50])
    with pytest.raises(LedgerError, match="genesis was durable once"):
        open_ledger(directory)
    (directory / FIRST).unlink()
    (directory / "0000000000000001.jsonl").write_bytes(data[data.index(b"\n") + 1 :])
    with pytest.raises(LedgerError, match="begins with entry 1"):
        open_ledger(directory)


@pytest.mark.parametrize("written", [0, 1, 200])
def test_a_first_start_cut_short_is_begun_again(tmp_path: Path, written: int) -> None:
    directory = tmp_path / "ledger"
    write(directory, [])
    data = (directory / FIRST).read_bytes()
    (directory / "ledger.pub").unlink()  # written only when the genesis is durable
    (directory / FIRST).write_bytes(data[:written])
    assert len(write(directory, [1])) == 2
    assert check(directory).verdict is Verdict.INTACT


def test_a_foreign_key_is_one_clear_error(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    write(ours, [2])
    write(theirs, [2])
    before = (ours / FIRST).read_bytes()
    (ours / "ledger.key").unlink()
    shutil.copy(theirs / "ledger.key", ours / "ledger.key")
    with pytest.raises(LedgerError, match="the key does not belong to the ledger"):
        open_ledger(ours)
    assert (ours / FIRST).read_bytes() == before
    (ours / "ledger.key").unlink()
    with pytest.raises(LedgerError, match=r"ledger\.key is missing"):
        open_ledger(ours)
    assert not (ours / "ledger.key").exists()


def test_a_torn_segment_without_any_entry_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SEGMENT_BYTES", 1_000)
    directory = tmp_path / "ledger"
    write(directory, [3])
    for torn in (b"", b'{"batch":'):
        seq = check(directory).entries
        (directory / f"{seq:016d}.jsonl").write_bytes(torn)
        entries = write(directory, [1])
        assert len(entries) == seq + (2 if torn else 1)
        assert check(directory).verdict is Verdict.INTACT


WRITER = """
import os, sys
from pathlib import Path
from healer.ledger.writer import Ledger
ledger = Ledger.open(Path(sys.argv[1]), origin="healer/test", boot="0" * 32)
def acknowledged(future):
    entry = future.result()
    os.write(1, f"{entry.seq} {entry.leaf}\\n".encode())
while True:
    futures = [ledger.append("test.entry", {"text": "x" * 500}) for _ in range(20)]
    for future in futures:
        future.add_done_callback(acknowledged)
    futures[-1].result()
"""


def test_kill_9_loses_no_acknowledged_entry(tmp_path: Path) -> None:
    directory = tmp_path / "ledger"
    randomness = random.Random(9)
    acknowledged: dict[int, str] = {}
    for _ in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(directory)],
            stdout=subprocess.PIPE,
            env=environment(),
        )
        assert child.stdout is not None
        head = child.stdout.readline()
        time.sleep(randomness.uniform(0, 0.15))
        child.send_signal(signal.SIGKILL)
        out = head + child.stdout.read()
        child.wait(10)
        child.stdout.close()
        for line in out.decode().splitlines():
            seq, leaf = line.split()
            acknowledged[int(seq)] = leaf
    ledger = open_ledger(directory)
    leaves = {entry.seq: entry.leaf for entry in ledger.history()}
    ledger.close()
    assert len(acknowledged) > 100
    assert {seq: leaves.get(seq) for seq in acknowledged} == acknowledged
    assert check(directory).verdict is Verdict.INTACT
