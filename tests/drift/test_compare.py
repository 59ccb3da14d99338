"""Properties of the comparison and of what is remembered between scans."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from healer.config import Ignore
from healer.drift.compare import (
    ABSENT,
    OBSERVE_TWICE,
    DriftClass,
    DriftState,
    Finding,
    Kind,
    Node,
    Snapshot,
    UnitFile,
    compare,
)

PATHS = st.sampled_from(["/etc/a", "/etc/a/b", "/etc/a/b/c", "/etc/d", "/etc/e", "/run/f.service"])
NODES = st.builds(
    Node,
    kind=st.sampled_from(Kind),
    target=st.none() | st.sampled_from(["/x", "/y"]),
    mode=st.none() | st.integers(0, 0o7777),
    size=st.none() | st.integers(0, 3),
    sha256=st.none() | st.sampled_from(["aa", "bb"]),
    error=st.none() | st.just("EIO"),
)
TREES = st.dictionaries(PATHS, NODES)
FINDINGS = st.dictionaries(
    st.tuples(st.sampled_from(DriftClass), PATHS), st.sampled_from(["x", "y", "z"])
).map(
    lambda seen: frozenset(
        Finding(drift_class, subject, "declared", observed)
        for (drift_class, subject), observed in seen.items()
    )
)
HISTORIES = st.lists(st.tuples(FINDINGS, st.booleans()), max_size=12)


@given(TREES)
def test_what_is_as_declared_is_no_drift(declared: dict[str, Node]) -> None:
    assert compare(Snapshot(declared, declared)) == frozenset()


@given(TREES, TREES)
def test_a_finding_is_a_declared_path_that_differs(
    declared: dict[str, Node], actual: dict[str, Node]
) -> None:
    findings = compare(Snapshot(declared, actual))
    subjects = {finding.subject for finding in findings}
    assert len(subjects) == len(findings)
    for subject in subjects:
        assert not declared[subject].agrees(actual.get(subject, ABSENT))
    for subject in declared.keys() - subjects:
        explained = any(subject.startswith(f"{other}/") for other in subjects)
        assert explained or declared[subject].agrees(actual.get(subject, ABSENT))


@given(TREES, TREES, PATHS)
def test_an_ignored_path_is_never_a_finding(
    declared: dict[str, Node], actual: dict[str, Node], path: str
) -> None:
    units = {path: UnitFile(DriftClass.UNIT, ABSENT, "no such unit file")}
    ignore = Ignore(path=path, reason="a test")
    findings = compare(Snapshot(declared, actual, units), [ignore])
    assert path not in {finding.subject for finding in findings}


@given(NODES, NODES)
def test_agreeing_is_symmetric(one: Node, other: Node) -> None:
    assert one.agrees(other) == other.agrees(one)
    assert one.agrees(one)


@given(FINDINGS)
def test_the_same_scan_again_reports_nothing(findings: frozenset[Finding]) -> None:
    state = DriftState()
    reported: list[Finding] = []
    for _ in range(4):
        state, found, resolved = state.update(findings)
        reported += found
        assert not resolved
    assert sorted(reported, key=str) == sorted(findings, key=str)


@given(FINDINGS)
def test_a_class_that_changes_by_itself_is_observed_twice(findings: frozenset[Finding]) -> None:
    state, found, _ = DriftState().update(findings)
    assert {finding.drift_class for finding in found}.isdisjoint(OBSERVE_TWICE)
    _, found, _ = state.update(findings)
    assert {finding.drift_class for finding in found} <= OBSERVE_TWICE


@given(HISTORIES)
def test_found_and_resolved_alternate_for_each_subject(
    history: list[tuple[frozenset[Finding], bool]],
) -> None:
    state = DriftState()
    open_now: dict[tuple[DriftClass, str], str] = {}
    for findings, paused in history:
        state, found, resolved = state.update(findings, paused=paused)
        if paused:
            assert (found, resolved) == ((), ())
        for finding in resolved:
            key = (finding.drift_class, finding.subject)
            del open_now[key]
            assert key not in {(f.drift_class, f.subject) for f in findings}
        for finding in found:
            assert finding in findings
            key = (finding.drift_class, finding.subject)
            assert open_now.get(key) != finding.observed
            open_now[key] = finding.observed
    assert {(f.drift_class, f.subject): f.observed for f in state.known} == open_now
    state, _, resolved = state.update(frozenset())
    assert {(f.drift_class, f.subject) for f in resolved} == set(open_now)


@dataclass(frozen=True)
class Recorded:
    type: str
    data: Mapping[str, Any]


@given(HISTORIES)
def test_a_restart_knows_what_was_recorded(
    history: list[tuple[frozenset[Finding], bool]],
) -> None:
    state, entries = DriftState(), [Recorded("agent.crash", {})]
    for findings, paused in history:
        state, found, resolved = state.update(findings, paused=paused)
        entries += [Recorded("drift.resolved", finding.resolved()) for finding in resolved]
        entries += [Recorded("drift.found", finding.found()) for finding in found]
    restored = functools.reduce(DriftState.replay, entries, DriftState())
    assert restored.known == state.known


def test_a_toplevel_that_moved_does_not_make_an_old_finding_new() -> None:
    before = Finding(DriftClass.ETC, "/etc/static", "link to /nix/store/1", "link to /tmp")
    after = Finding(DriftClass.ETC, "/etc/static", "link to /nix/store/2", "link to /tmp")
    _, found, resolved = DriftState(frozenset({before})).update(frozenset({after}))
    assert (found, resolved) == ((), ())
