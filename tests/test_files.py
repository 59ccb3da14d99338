"""Files that are there completely, or not at all."""

import multiprocessing
from pathlib import Path

import pytest

from healer.files import write_atomically


def write_often(path: Path, letter: bytes) -> None:
    for _ in range(200):
        write_atomically(path, letter * 4096, 0o640, durable=False)


def test_two_processes_may_write_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_often, args=(path, letter)) for letter in (b"a", b"b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert path.read_bytes() in {b"a" * 4096, b"b" * 4096}
    assert path.stat().st_mode & 0o777 == 0o640
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_what_cannot_be_put_in_place_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "taken", b"x", 0o600)
    assert [each.name for each in tmp_path.iterdir()] == ["taken"]
