"""The dead-man's switch, over everything that can happen to a trial."""

import copy

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from healer.safeswitch import deadman
from healer.safeswitch.deadman import Step, Trial, Word
from tests.safeswitch.on_trial import SOURCE, TARGET, trial

OTHER = "/nix/store/other"
CODES = st.sampled_from([0, 1, 2, 4, 11, 100, None])
RUNNING = st.sampled_from([TARGET, SOURCE, OTHER])
KEEP, BACK, FOREIGN = Word("leaf", True, "a"), Word("leaf", False, "b"), Word("x", True, "c")


def take(going: Trial, step: Step, now_ms: int) -> None:
    """Do what the trial's process does with a step."""
    going.phase = step.phase
    if step.phase == "waiting":
        going.until_ms = now_ms + going.confirm_sec * 1000
    elif step.phase == "returning":
        going.why = step.words


@given(data=st.data(), gates=st.dictionaries(st.sampled_from("ab"), st.just("unknown")))
def test_every_trial_ends_and_is_kept_only_on_a_word(
    data: st.DataObject, gates: dict[str, str]
) -> None:
    going, now_ms = trial(gates=gates), 0
    running, step, kept_on = SOURCE, Step("switching"), None
    attempts = 0
    for _ in range(500):
        before_it = step
        if step.phase == "switching":
            running, code = data.draw(RUNNING), data.draw(CODES)
            step = deadman.switched(going, running, code, "said")
        elif step.phase == "waiting":
            now_ms += 10_000
            running = data.draw(st.sampled_from([TARGET] * 8 + [OTHER]))
            for gate in gates:
                going.gates[gate] = data.draw(st.sampled_from(["unknown", "passed", "failed"]))
            failed = next((g for g, state in going.gates.items() if state == "failed"), None)
            word = data.draw(st.sampled_from([None, None, None, KEEP, BACK, FOREIGN]))
            before = copy.deepcopy(going)
            found = deadman.waited(going, running, word, failed, now_ms)
            assert going == before
            if found is not None:
                step = found
                kept_on = (word, dict(going.gates)) if found.phase == "keeping" else None
        elif step.phase == "keeping":
            step = deadman.kept(going, data.draw(st.none() | st.just("no space")))
        elif step.phase == "returning":
            attempts += 1
            running = data.draw(RUNNING)
            last = attempts == 3
            found = deadman.returned(going, running, None, last=last)
            if found is None:
                running = data.draw(st.sampled_from([running, SOURCE]))
                found = deadman.returned(going, running, "said", last=last)
            step = found or step
        if step is not before_it:
            take(going, step, now_ms)
        if step.phase == "done":
            break
    assert step.phase == "done"
    assert step.words
    if step.ok:
        assert running == TARGET
        assert kept_on is not None
        assert kept_on[0] == KEEP
        assert set(kept_on[1].values()) <= {"passed"}
    else:
        # What it says is what runs; a switch that changed nothing or was superseded says it too.
        assert running in step.words


@pytest.mark.parametrize(
    ("running", "code", "phase"),
    [
        (TARGET, 0, "waiting"),
        (TARGET, 4, "waiting"),
        (TARGET, 2, "returning"),
        (TARGET, None, "returning"),
        (SOURCE, 1, "done"),
        (SOURCE, 11, "done"),
        (SOURCE, 100, "done"),
        (SOURCE, 2, "returning"),
        (SOURCE, 0, "returning"),
        (SOURCE, None, "returning"),
    ],
)
def test_what_a_switch_is_judged_by(running: str, code: int | None, phase: str) -> None:
    assert deadman.switched(trial(), running, code, "said").phase == phase


@pytest.mark.parametrize(
    ("word", "gates", "failed", "now_ms", "phase"),
    [
        (None, {}, None, 59_999, None),
        (None, {}, None, 60_000, "returning"),
        (KEEP, {}, None, 0, "keeping"),
        (KEEP, {}, None, 60_000, "keeping"),
        (KEEP, {"a": "passed"}, None, 0, "keeping"),
        (KEEP, {"a": "passed", "b": "unknown"}, None, 0, None),
        (KEEP, {"b": "unknown"}, None, 60_000, "returning"),
        (KEEP, {"a": "failed"}, "a failed", 0, "returning"),
        (BACK, {}, None, 0, "returning"),
        (FOREIGN, {}, None, 0, None),
    ],
)
def test_what_ends_the_wait(
    word: Word | None, gates: dict[str, str], failed: str | None, now_ms: int, phase: str | None
) -> None:
    waiting = trial(phase="waiting", until_ms=60_000, gates=gates)
    step = deadman.waited(waiting, TARGET, word, failed, now_ms)
    assert (step.phase if step else None) == phase
    superseded = deadman.waited(waiting, OTHER, word, failed, now_ms)
    assert superseded is not None
    assert (superseded.phase, superseded.ok) == ("done", False)


@given(running=RUNNING, profile=RUNNING)
def test_a_boot_ends_it_by_what_runs(running: str, profile: str) -> None:
    step = deadman.booted(trial(), running, profile)
    assert step.phase == "done"
    assert running in step.words
    assert step.ok == (running == profile == TARGET)


def test_another_version_of_healer_can_read_the_file() -> None:
    kept = msgspec.to_builtins(trial()) | {"added_later": 1}
    assert msgspec.convert(kept, Trial) == trial()
