import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from healer.errors import LedgerError, LedgerIOError
from healer.ledger import keys, reader, segments, writer
from healer.ledger.entry import Entry
from healer.ledger.segments import BadEntryError
from healer.ledger.verify import Report, Verdict, verify
from tests.ledger.helpers import check, open_ledger, segment_lines, write


class Sample:
    """A small ledger of two segments, and a copy of it to change."""

    def __init__(self, root: Path) -> None:
        self.original = root / "ledger"
        self.entries: list[Entry] = write(self.original, [1, 2, 3, 1])
        self.key = keys.load_public(self.original / "ledger.pub")
        self.segments = segment_lines(self.original)
        self.bytes = [(path.name, b"".join(lines)) for path, lines in self.segments]
        self.size = sum(len(data) for _, data in self.bytes)
        self.copy = root / "copy"
        self.restore()

    def restore(self) -> None:
        shutil.rmtree(self.copy, ignore_errors=True)
        shutil.copytree(self.original, self.copy)

    def flip(self, offset: int, new: bytes | int) -> tuple[Report, tuple[str, int, int]]:
        """Change one byte; return the report and (file, line, seq) of the entry it belongs to."""
        file = seq = 0
        while offset >= len(self.bytes[file][1]):
            offset -= len(self.bytes[file][1])
            seq += len(self.segments[file][1])
            file += 1
        name, data = self.bytes[file]
        value = bytes([data[offset] ^ new]) if isinstance(new, int) else new
        (self.copy / name).write_bytes(data[:offset] + value + data[offset + 1 :])
        report = verify(self.copy, self.key)
        (self.copy / name).write_bytes(data)
        line = data[:offset].count(b"\n")
        return report, (name, line + 1, seq + line)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "SEGMENT_BYTES", 1_500)
        made = Sample(tmp_path_factory.mktemp("sample"))
    assert [len(lines) for _, lines in made.segments] == [4, 4]
    return made


@pytest.fixture
def sample(made: Sample) -> Sample:
    made.restore()
    return made


def named(report: Report) -> tuple[str, int, int] | None:
    bad = report.bad
    return None if bad is None else (bad.file, bad.line, bad.seq)


def test_an_untouched_ledger_is_intact(sample: Sample) -> None:
    report = verify(sample.original, sample.key)
    assert report.verdict is Verdict.INTACT
    assert (report.entries, report.last) == (8, sample.entries[-1])
    assert list(reader.read(sample.original)) == sample.entries


@pytest.mark.parametrize("new", [0x01, b"\n"], ids=["bit", "newline"])
def test_every_flipped_byte_is_found_and_its_entry_named(sample: Sample, new: bytes | int) -> None:
    original = b"".join(data for _, data in sample.bytes)
    for offset in range(sample.size):
        if new != original[offset : offset + 1]:
            report, place = sample.flip(offset, new)
            assert report.verdict is Verdict.TAMPERED, offset
            assert named(report) == place, offset


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_flip_is_found_and_its_entry_named(made: Sample, data: st.DataObject) -> None:
    made.restore()
    offset = data.draw(st.integers(0, made.size - 1))
    report, place = made.flip(offset, data.draw(st.integers(1, 255)))
    assert report.verdict is Verdict.TAMPERED
    assert named(report) == place


@settings(max_examples=300, deadline=None)
@given(order=st.lists(st.integers(0, 7), max_size=9) | st.permutations(range(8)))
def test_any_other_sequence_of_lines_is_found(made: Sample, order: list[int]) -> None:
    """Whatever is not a beginning of the ledger, its first wrong line is named."""
    made.restore()
    lines = [line for _, lines in made.segments for line in lines]
    first, second = (made.copy / name for name, _ in made.bytes)
    first.write_bytes(b"".join(lines[n] for n in order[:4]))
    if len(order) > 4:
        second.write_bytes(b"".join(lines[n] for n in order[4:]))
    else:
        second.unlink()
    report = verify(made.copy, made.key)
    good = next((i for i, n in enumerate(order) if i != n), len(order))
    if 0 < good == len(order):
        assert (report.verdict, report.entries) == (Verdict.INTACT, good)
    else:
        assert report.verdict is Verdict.TAMPERED
        assert report.bad is not None
        assert (report.entries, report.bad.seq) == (good, good)


@pytest.mark.parametrize("at", range(8))
def test_a_removed_repeated_or_exchanged_entry_is_named(sample: Sample, at: int) -> None:
    def report(lines: list[list[bytes]]) -> Report:
        for (name, _), part in zip(sample.bytes, lines, strict=True):
            (sample.copy / name).write_bytes(b"".join(part))
        found = verify(sample.copy, sample.key)
        sample.restore()
        return found

    file, place = divmod(at, 4)

    def lines() -> list[list[bytes]]:
        return [list(lines) for _, lines in sample.segments]

    removed = lines()
    del removed[file][place]
    found = report(removed)
    if at == 7:  # the end: nothing inside the ledger can tell
        assert (found.verdict, found.entries) == (Verdict.INTACT, 7)
    else:
        assert found.verdict is Verdict.TAMPERED
        assert found.bad is not None
        assert found.bad.seq == at

    repeated = lines()
    repeated[file].insert(place, repeated[file][place])
    found = report(repeated)
    assert found.verdict is Verdict.TAMPERED
    assert found.bad is not None
    assert found.bad.seq == at + 1

    if place < 3:
        exchanged = lines()
        pair = exchanged[file][place : place + 2]
        exchanged[file][place : place + 2] = reversed(pair)
        found = report(exchanged)
        assert found.verdict is Verdict.TAMPERED
        assert found.bad is not None
        assert found.bad.seq == at


def test_a_line_moved_in_from_another_ledger_of_the_same_key_is_found(tmp_path: Path) -> None:
    """Same key, same seq: only prev tells."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    keys.generate(first / "ledger.key")
    shutil.copytree(first, second)
    write(first, [1] * 4)
    write(second, [1] * 4)
    file = "0000000000000000.jsonl"
    ours = (first / file).read_bytes().splitlines(keepends=True)
    theirs = (second / file).read_bytes().splitlines(keepends=True)
    for at in range(5):
        (first / file).write_bytes(b"".join([*ours[:at], theirs[at], *ours[at + 1 :]]))
        report = check(first)
        assert report.verdict is Verdict.TAMPERED
        # A foreign first or middle entry shows in the one behind it, which names another prev.
        assert report.bad is not None
        assert report.bad.seq == (1 if at == 0 else at)


def test_removed_and_renamed_segments_are_found(sample: Sample) -> None:
    first, second = (sample.copy / name for name, _ in sample.bytes)
    first.unlink()
    report = verify(sample.copy, sample.key)
    assert named(report) == (second.name, 1, 0)
    sample.restore()
    second.rename(second.with_name("0000000000000003.jsonl"))
    assert verify(sample.copy, sample.key).verdict is Verdict.TAMPERED
    sample.restore()
    shutil.copy(second, second.with_name("0000000000000008.jsonl"))
    report = verify(sample.copy, sample.key)
    assert named(report) == ("0000000000000008.jsonl", 1, 8)


def test_an_emptied_ledger_is_not_intact(sample: Sample) -> None:
    for name, _ in sample.bytes:
        (sample.copy / name).write_bytes(b"")
    assert verify(sample.copy, sample.key).verdict is Verdict.TAMPERED
    for name, _ in sample.bytes:
        (sample.copy / name).unlink()
    assert verify(sample.copy, sample.key).verdict is Verdict.TAMPERED
    assert verify(sample.copy, sample.key, (3, "0" * 64)).verdict is Verdict.TRUNCATED


def test_truncation_below_a_known_entry_is_found(sample: Sample) -> None:
    known = sample.entries[6]
    name, data = sample.bytes[1]
    lines = data.splitlines(keepends=True)
    for kept, expected in ((4, 0), (3, 0), (2, 3), (1, 3), (0, 3)):
        (sample.copy / name).write_bytes(b"".join(lines[:kept]))
        report = verify(sample.copy, sample.key, (known.seq, known.leaf))
        assert report.verdict == expected
        assert report.entries == 4 + kept


def test_a_rewritten_entry_contradicts_what_is_known(sample: Sample) -> None:
    report = verify(sample.original, sample.key, (6, sample.entries[5].leaf))
    assert report.verdict is Verdict.TAMPERED
    assert named(report) == (sample.bytes[1][0], 3, 6)


def test_the_unproved_tail_is_counted(sample: Sample) -> None:
    known, last = sample.entries[5], sample.entries[-1]
    report = verify(sample.original, sample.key, (5, known.leaf), require_anchor=True)
    assert report.verdict is Verdict.UNANCHORED
    assert report.unproved == (2, last.time_us - known.time_us)
    report = verify(sample.original, sample.key, (7, last.leaf), require_anchor=True)
    assert report.verdict is Verdict.INTACT
    assert verify(sample.original, sample.key, require_anchor=True).verdict is Verdict.UNANCHORED


def test_another_key_is_called_a_foreign_key(sample: Sample, tmp_path: Path) -> None:
    write(tmp_path / "other", [1])
    report = verify(sample.original, keys.load_public(tmp_path / "other" / "ledger.pub"))
    assert report.verdict is Verdict.TAMPERED
    assert report.bad is not None
    assert "foreign key" in report.bad.reason
    assert report.bad.seq == 0


def test_an_unfinished_last_line_is_no_entry_and_no_error(sample: Sample) -> None:
    name, data = sample.bytes[1]
    last = len(data.splitlines(keepends=True)[-1])
    for cut in range(1, last):
        (sample.copy / name).write_bytes(data[:-cut])
        report = verify(sample.copy, sample.key)
        assert report.verdict is Verdict.INTACT
        assert report.entries == 7
        assert report.unfinished is not None
        assert report.unfinished.length == last - cut
    (sample.copy / name).write_bytes(data[:-1])
    assert len(list(reader.read(sample.copy))) == 7


def test_hostile_files_are_refused_quickly(sample: Sample) -> None:
    first = sample.copy / sample.bytes[0][0]
    for content in (b"\n", b"\0" * 1_000_000, b"{" * 1_000_000 + b"\n", b"\xff\n", b"null\n"):
        first.write_bytes(content)
        report = verify(sample.copy, sample.key)
        assert report.verdict is Verdict.TAMPERED
        assert named(report) == (first.name, 1, 0)


@pytest.mark.parametrize("beginning", [b"", b'{"batch":2'])
def test_a_change_is_not_hidden_by_a_file_that_was_begun(sample: Sample, beginning: bytes) -> None:
    """Behind what seems to be a power cut there are entries that were acknowledged."""
    (first, data), (second, _) = sample.bytes
    (sample.copy / second).unlink()
    (sample.copy / first).write_bytes(data.replace(b'"n":0', b'"n":9', 1))
    (sample.copy / segments.name(1)).write_bytes(beginning)
    report = verify(sample.copy, sample.key)
    assert report.verdict is Verdict.TAMPERED
    assert named(report) == (first, 2, 1)
    assert report.bad is not None
    assert "a later entry stands behind it" in report.bad.reason


@pytest.mark.parametrize("kind", ["pipe", "device", "directory"])
def test_what_is_no_file_is_not_waited_for(sample: Sample, kind: str) -> None:
    path = sample.copy / sample.bytes[1][0]
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(LedgerIOError, match="it is not a regular file"):
        verify(sample.copy, sample.key)


@pytest.mark.parametrize("digits", [17, 400, 5000])
def test_a_number_of_any_size_is_named(sample: Sample, digits: int) -> None:
    first, content = sample.copy / sample.bytes[0][0], sample.bytes[0][1]
    number = b"9" * digits
    first.write_bytes(content.replace(b'"n":0', b'"n":' + number, 1))
    report = verify(sample.copy, sample.key)
    assert report.verdict is Verdict.TAMPERED
    assert named(report) == (first.name, 2, 1)


def test_the_reader_names_file_and_line(sample: Sample) -> None:
    name, data = sample.bytes[0]
    lines = data.splitlines(keepends=True)
    (sample.copy / name).write_bytes(b"".join([lines[0], lines[2], lines[3]]))
    read = reader.read(sample.copy)
    assert next(read) == sample.entries[0]
    with pytest.raises(BadEntryError, match=rf"{name} line 2 \(entry 1\): seq 2 stands where 1"):
        next(read)


def test_a_missing_directory_is_named(tmp_path: Path, sample: Sample) -> None:
    with pytest.raises(LedgerIOError, match=r"no ledger at .*missing"):
        verify(tmp_path / "missing", sample.key)
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerIOError, match=r"Not a directory; name the directory of a ledger"):
        verify(tmp_path / "file", sample.key)
    with pytest.raises(LedgerError, match="32 bytes"):
        verify(sample.original, b"short")


def test_tail_yields_new_entries_across_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SEGMENT_BYTES", 1_000)
    ledger = open_ledger(tmp_path / "ledger")
    deadline = time.monotonic() + 20
    followed = reader.tail(
        tmp_path / "ledger", after=0, stop=lambda: time.monotonic() > deadline, poll_sec=0.01
    )
    written = []
    for n in range(12):
        written.append(ledger.append("test.entry", {"n": n}).result(5))
        assert next(followed) == written[-1]
    ledger.close()
    ended = reader.tail(tmp_path / "ledger", after=5, stop=lambda: True, poll_sec=0.01)
    assert [entry.seq for entry in ended] == list(range(6, 13))


def test_verify_needs_nothing_but_cryptography_and_msgspec(sample: Sample) -> None:
    program = """
import sys
from pathlib import Path
before = set(sys.modules)
from healer.ledger.keys import load_public
from healer.ledger.verify import verify
report = verify(Path(sys.argv[1]), load_public(Path(sys.argv[1]) / "ledger.pub"))
used = {name.partition(".")[0] for name in set(sys.modules) - before}
ours = {"healer", "cryptography", "msgspec"}
theirs = {"_cffi_backend", "_openssl", "typing_extensions"}  # what cryptography itself imports
foreign = used - sys.stdlib_module_names - ours - theirs
print(int(report.verdict), report.entries, sorted(foreign))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(sample.original)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.split(maxsplit=2) == ["0", "8", "[]\n"]
