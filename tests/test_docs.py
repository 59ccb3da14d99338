"""The examples of docs/agents.md, as whoever copies them runs them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

AGENTS = Path(__file__).parents[1] / "docs/agents.md"


def examples(language: str) -> list[str]:
    """Return the blocks of code in this language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", AGENTS.read_text(), re.DOTALL | re.MULTILINE)


def told() -> dict[str, Any]:
    """Return the crash that the page shows."""
    (shown,) = examples("json")
    crash: dict[str, Any] = json.loads(shown)
    return crash


@pytest.mark.parametrize(("in_a_row", "skipped"), [(2, None), (3, "/data/shard-7.parquet")])
def test_an_agent_that_reads_its_last_crash(
    in_a_row: int, skipped: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last-crash.json"
    path.write_text(json.dumps({**told(), "in_a_row": in_a_row}))
    monkeypatch.setenv("HEALER_LAST_CRASH", str(path))
    names: dict[str, Any] = {}
    exec(examples("python")[0], names)
    assert names["crash"]["class"] == "oom"
    assert names.get("skip") == skipped


def test_an_agent_that_did_not_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (None, tmp_path / "none", Path("/dev/null")):
        monkeypatch.delenv("HEALER_LAST_CRASH", raising=False)
        if path is not None:
            monkeypatch.setenv("HEALER_LAST_CRASH", str(path))
        names: dict[str, Any] = {}
        exec(examples("python")[0], names)
        assert names["crash"] is None


def test_an_agent_that_leaves_a_breadcrumb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    seen: list[str] = []
    chew = {"pages": ["a", "b"], "chew": lambda _: seen.append((tmp_path / "doing").read_text())}
    exec(examples("python")[1], chew)
    assert seen == ["a", "b"]
