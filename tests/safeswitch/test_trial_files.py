"""Where a trial is written down, and what a person said of it: in two places; one may fail."""

from pathlib import Path

import msgspec
import pytest

from healer.errors import RefusedError
from healer.safeswitch import trial
from healer.safeswitch.deadman import Phase, Trial
from tests.safeswitch import on_trial


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The directories on the disk and in /run."""
    disk, run = tmp_path / "disk", tmp_path / "run"
    monkeypatch.setattr(trial, "PATH", disk / "trial.json")
    monkeypatch.setattr(trial, "_OF_THIS_BOOT", run / "trial.json")
    monkeypatch.setattr(trial, "_WORDS", (disk / "word.json", run / "word.json"))
    for place in (disk, run):
        place.mkdir()
    return disk, run


def going(phase: Phase = "waiting", leaf: str = "a") -> Trial:
    return on_trial.trial(phase=phase, leaf=leaf)


@pytest.mark.parametrize("full", [(), ("disk",), ("run",)], ids=["room", "no disk", "no /run"])
def test_the_last_phase_is_read(places: tuple[Path, Path], full: tuple[str, ...]) -> None:
    trial._write(going("switching"))
    for place in places:
        if place.name in full:
            # Nothing can be written there any more, as root neither.
            place.rename(place.with_name("gone"))
            place.symlink_to(place.with_name("gone") / "no-directory")
    trial._write(going("returning"))
    if "disk" in full:
        places[0].unlink()
        places[0].with_name("gone").rename(places[0])
    found = trial.read()
    assert found is not None
    assert found.phase == "returning"


def test_with_no_room_anywhere_the_phase_before_stays(places: tuple[Path, Path]) -> None:
    trial._write(going("waiting"))
    for place in places:
        (place / "trial.json").rename(place.with_name(f"{place.name}.json"))
        place.rmdir()
    trial._write(going("returning"))
    for place in places:
        place.mkdir()
        place.with_name(f"{place.name}.json").rename(place / "trial.json")
    found = trial.read()
    assert found is not None
    assert found.phase == "waiting"


def test_another_trial_that_an_older_healer_began_since_is_the_last(
    places: tuple[Path, Path],
) -> None:
    trial._write(going("done"))
    (places[0] / "trial.json").write_bytes(msgspec.json.encode(going("waiting", leaf="b")))
    found = trial.read()
    assert found is not None
    assert (found.leaf, found.phase) == ("b", "waiting")


@pytest.mark.parametrize("gone", [0, 1], ids=["no disk", "no /run"])
def test_a_word_is_heard_wherever_there_is_room_for_it(
    places: tuple[Path, Path], gone: int
) -> None:
    trial.say(going(leaf="of a trial before"), keep=False, said="no")
    (places[gone] / "word.json").unlink()
    places[gone].rmdir()
    trial.say(going(), keep=True, said="yes")
    word = trial._word(going())
    assert word is not None
    assert word.keep
    (places[1 - gone] / "word.json").unlink()
    places[1 - gone].rmdir()
    with pytest.raises(RefusedError, match="can be written"):
        trial.say(going(), keep=True, said="yes")
