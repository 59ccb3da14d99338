"""The bench runs and writes what it documents. Its figures are judged by people, not here."""

import json
from pathlib import Path

import pytest

from bench import evidence, report
from bench.report import Report, Target, percentile
from tests.conftest import Boot


def test_a_suite_measures_and_writes_documented_rows(
    container: Boot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "OUT", tmp_path)
    path = evidence.run(kills=2, others=1).write()
    assert path == tmp_path / "evidence.json"
    found = json.loads(path.read_text())
    assert found["suite"] == "evidence"
    for row in found["rows"]:
        assert set(row) == {"name", "value", "unit", "peer", "ratio", "samples"}
        assert row["value"] > 0
        assert row["unit"] == "ms"
        assert row["samples"] == 2
    values = {row["name"]: row["value"] for row in found["rows"]}
    # Who sees the stamp is another process than who decides: on a busy machine it may come later.
    # It sees the entry in the file, too, and never before.
    assert values["to the stop stamp"] < values["to the entry in the file"]
    assert (
        values["to the decided entry"]
        < values["to the entry in the file"]
        < values["to the durable entry"]
    )
    assert [target["met"] for target in found["targets"]] == [
        target["value"] <= target["limit"] for target in found["targets"]
    ]


def test_a_ratio_is_the_value_by_its_peers() -> None:
    suite = Report("example")
    suite.add_times("bare", [2_000_000, 4_000_000, 6_000_000])
    suite.add_times("healer", [10_000_000] * 3, "bare")
    ratios = {row.name: (row.value, row.ratio) for row in suite.rows}
    assert ratios["bare"] == (4, None)
    assert ratios["healer"] == (10, 2.5)
    assert ratios["healer p95"][1] == pytest.approx(10 / 6)


def test_a_missed_target_is_printed_as_missed_with_its_reason() -> None:
    suite = Report("example")
    suite.add("healer", 10, "ms")
    suite.targets += [
        Target("fast", 10, 4, "ms", "the stamps took 6 ms"),
        Target("small", 4, 4, "MB", "never shown"),
    ]
    text = suite.text()
    assert "target MISSED: fast, 10.00 of at most 4 ms: the stamps took 6 ms" in text
    assert "target met: small, 4.00 of at most 4 MB" in text
    assert "never shown" not in text


def test_percentile_by_nearest_rank() -> None:
    assert percentile([3, 1, 2], 95) == 3
    assert percentile(list(range(1, 101)), 95) == 95
    assert percentile([7], 50) == 7
