"""Configuration files, right and wrong in every way."""

import contextlib
import copy
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from healer.config import InvalidConfigError, load
from healer.config.decode import MAX_PROBLEMS, decode
from healer.errors import ConfigError

RIGHT: dict[str, Any] = {
    "version": 1,
    "package": "/nix/store/x-healer",
    "stateDir": "/var/lib/healer",
    "runtimeDir": "/run/healer",
    "agents": {
        "worker": {
            "unit": "worker.service",
            "restart": {
                "policy": "conditional",
                "on": "failure",
                "delaySec": 0.5,
                "maxDelaySec": 60,
                "steps": 8,
                "rules": [
                    {"exitCodes": [3], "signals": ["SIGABRT", "SIGRTMIN+3"], "action": "stop"},
                    {"exitCodes": [0], "signals": [], "action": "restart"},
                ],
                "otherwise": "restart",
            },
            "crashLoop": {"maxCrashes": 5, "windowSec": 60, "earlyDeathSec": 10},
            "stableSec": 60,
            "health": [
                {"name": "web", "type": "http", "url": "http://[::1]:8080/", "intervalSec": 3},
                {"name": "port", "type": "tcp", "host": "localhost", "port": 8080},
                {"name": "self", "type": "command", "command": ["/bin/true", ""]},
                {
                    "name": "tls",
                    "type": "http",
                    "url": "https://localhost/",
                    "purpose": "readiness",
                    "bodyContains": "ok",
                    "bodyMatches": "^ok$",
                    "caFile": "/etc/ca.pem",
                    "insecure": False,
                },
                {"name": "bound", "type": "listen", "port": 80, "host": "::1"},
                {"name": "log", "type": "log", "pattern": "FATAL|panic"},
                {"name": "memory", "type": "memory", "maxBytes": 1_000_000},
                {
                    "name": "fresh",
                    "type": "file",
                    "path": "/run/a",
                    "maxAgeSec": 5,
                    "purpose": "startup",
                    "successThreshold": 2,
                },
            ],
            "journalLines": 20,
            "escalation": {"enable": True, "quarantineSec": 1.5, "maxQuarantines": 0},
        },
        "odd-1.x": {"unit": r"foo\x2dbar:1@in\x2dst.service"},
    },
    "escalation": {"reboot": True, "maxRebootsPerDay": 2},
    "safeSwitch": {
        "enable": True,
        "probationSec": 300,
        "profile": "/p",
        "timeoutSec": 900,
        "condemned": "warn",
        "maxRollbacksPerDay": 2,
        "keep": 7,
        "gates": [
            {"name": "front", "type": "http", "url": "https://localhost/", "caFile": "/etc/ca.pem"},
            {"name": "port", "type": "tcp", "port": 443, "failureThreshold": 1},
            {"name": "bound", "type": "listen", "port": 80, "host": "::1"},
            {"name": "own", "type": "command", "command": ["/bin/true"], "timeoutSec": 30},
            {"name": "mounted", "type": "unit", "unit": r"mnt-a\x2db.mount"},
            {
                "name": "net",
                "type": "network",
                "interface": "eth0",
                "defaultRoute": True,
                "gateway": True,
                "addresses": ["192.0.2.1", "2001:db8::1"],
                "sshd": 22,
            },
        ],
    },
    "drift": {
        "enable": True,
        "intervalSec": 30,
        "ignore": [{"path": "/etc/x*", "reason": "because"}],
    },
    "ledger": {"origin": "example.org/a", "keyCredential": "key"},
}

CHECKS = "agents/worker/health"
GATES = "safeSwitch/gates"
RULE_PATH, RULE = "agents/worker/restart/rules/0", "agents.worker.restart.rules[0]"


def change(path: str, value: Any) -> dict[str, Any]:
    """Set one option of RIGHT; `path` is like agents/worker/health/0/port."""
    config = copy.deepcopy(RIGHT)
    *parents, last = path.split("/")
    at: Any = config
    for part in parents:
        at = at[int(part)] if isinstance(at, list) else at[part]
    if isinstance(at, list):
        at[int(last)] = value
    else:
        at[last] = value
    return config


def problems(config: Any) -> dict[str, str]:
    _, found = decode(config)
    assert all(problem.mend for problem in found)
    return {problem.option: problem.wrong for problem in found}


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    return path


def test_a_right_file(tmp_path: Path) -> None:
    text = json.dumps(RIGHT).encode()
    loaded = load(write(tmp_path, text))
    assert loaded.sha256 == hashlib.sha256(text).hexdigest()
    agent = loaded.config.agents["worker"]
    assert agent.restart.delay_sec == 0.5
    assert agent.crash_loop.max_crashes == 5
    names = ["web", "port", "self", "tls", "bound", "log", "memory", "fresh"]
    assert [check.name for check in agent.health] == names
    assert [check.purpose for check in agent.health][2:4] == ["liveness", "readiness"]
    assert agent.health[0].failure_threshold == 3
    assert loaded.config.safe_switch.probation_sec == 300


def test_a_file_written_by_hand(tmp_path: Path) -> None:
    text = b"""
version: 1
agents:
  worker:
    unit: worker.service
    restart:
      on: failure        # the boolean true to a YAML 1.1 parser
      policy: exponential
      delaySec: .1
"""
    restart = load(write(tmp_path, text)).config.agents["worker"].restart
    assert (restart.on, restart.policy, restart.delay_sec) == ("failure", "exponential", 0.1)


def test_without_safe_switch_no_rule_asks_for_a_rollback() -> None:
    found = change(f"{RULE_PATH}/action", "rollback")
    found["safeSwitch"]["enable"] = False
    assert f"{RULE}.action" in problems(found)


def test_what_was_read_can_be_written_and_read_again(tmp_path: Path) -> None:
    config = load(write(tmp_path, json.dumps(RIGHT).encode())).config
    again = load(write(tmp_path, msgspec.json.encode(config))).config
    assert again == config


@pytest.mark.parametrize(
    ("path", "value", "option"),
    [
        ("version", 2, "version"),
        ("version", "1", "version"),
        ("package", 5, "package"),
        ("package", "healer", "package"),
        ("stateDir", "var", "stateDir"),
        ("runtimeDir", "/run/../etc", "runtimeDir"),
        ("agents", None, "agents"),
        ("agents", [], "agents"),
        ("agents/worker", "x", "agents.worker"),
        ("agents/worker/unit", "worker", "agents.worker.unit"),
        ("agents/worker/unit", "worker.timer", "agents.worker.unit"),
        ("agents/worker/unit", "@a.service", "agents.worker.unit"),
        ("agents/worker/unit", "a@.service", "agents.worker.unit"),
        ("agents/worker/unit", "a b.service", "agents.worker.unit"),
        ("agents/worker/unit", "a/b.service", "agents.worker.unit"),
        ("agents/worker/unit", ".service", "agents.worker.unit"),
        ("agents/worker/unit", "a.service\n", "agents.worker.unit"),
        ("agents/worker/unit", "é.service", "agents.worker.unit"),
        ("agents/worker/unit", "a" * 225 + ".service", "agents.worker.unit"),
        ("agents/worker/unit", "healer.service", "agents.worker.unit"),
        ("agents/worker/unit", "healer-helper@1.service", "agents.worker.unit"),
        ("agents/worker/unit", "healer-boot.service", "agents.worker.unit"),
        ("agents/worker/unit", "healer-trial.service", "agents.worker.unit"),
        ("agents/other", {"unit": "worker.service"}, "agents.other.unit"),
        ("agents/a b", {"unit": "ab.service"}, 'agents."a b"'),
        ("groups", {"g": {"agents": []}}, "groups.g.agents"),
        ("groups", {"g": {"agents": ["nobody"]}}, "groups.g.agents"),
        ("groups", {"g": {"agents": ["worker", "worker"]}}, "groups.g.agents"),
        ("groups", {"g": {"strategy": "all", "agents": ["worker"]}}, "groups.g.strategy"),
        ("agents/worker/breadcrumb", "../x", "agents.worker.breadcrumb"),
        ("agents/worker/breadcrumb", "", "agents.worker.breadcrumb"),
        ("agents/worker/stableSec", 0, "agents.worker.stableSec"),
        ("agents/worker/stableSec", 1e12, "agents.worker.stableSec"),
        ("agents/worker/stableSec", float("inf"), "agents.worker.stableSec"),
        ("agents/worker/stableSec", float("nan"), "agents.worker.stableSec"),
        ("agents/worker/stableSec", True, "agents.worker.stableSec"),
        ("agents/worker/journalLines", -1, "agents.worker.journalLines"),
        ("agents/worker/journalLines", 2.5, "agents.worker.journalLines"),
        ("agents/worker/crashLoop/maxCrashes", 0, "agents.worker.crashLoop.maxCrashes"),
        ("agents/worker/crashLoop/windowSec", -1, "agents.worker.crashLoop.windowSec"),
        ("agents/worker/crashLoop/maxCrash", 5, "agents.worker.crashLoop.maxCrash"),
        ("agents/worker/restart/policy", "allways", "agents.worker.restart.policy"),
        ("agents/worker/restart/policy", "never", "agents.worker.restart.rules"),
        ("agents/worker/restart/on", True, "agents.worker.restart.on"),
        ("agents/worker/restart/delaySec", -0.1, "agents.worker.restart.delaySec"),
        ("agents/worker/restart/steps", 0, "agents.worker.restart.steps"),
        ("agents/worker/restart/rules", [], "agents.worker.restart.rules"),
        ("agents/worker/restart/rules/0", {}, "agents.worker.restart.rules[0]"),
        ("agents/worker/restart/rules/0/classes", ["hang"], f"{RULE}.classes[0]"),
        ("agents/worker/restart/rules/0/delaySec", 3, f"{RULE}.delaySec"),
        (
            "agents/worker/restart/rules/0",
            {"exitCodes": [0], "action": "restart", "delaySec": 1},
            "agents.worker.restart.rules[1]",
        ),
        ("agents/worker/restart/otherwise", "escalate", "agents.worker.restart.otherwise"),
        ("agents/worker/restart/rules/1/exitCodes", [3], "agents.worker.restart.rules[1]"),
        (f"{RULE_PATH}/exitCodes", [256], f"{RULE}.exitCodes[0]"),
        (f"{RULE_PATH}/signals", ["KILL"], f"{RULE}.signals[0]"),
        (f"{RULE_PATH}/signals", ["SIGINT", "SIGRTMIN+31"], f"{RULE}.signals[1]"),
        ("agents/worker/restart/rules/0/action", "stpo", "agents.worker.restart.rules[0].action"),
        ("agents/worker/health", {}, "agents.worker.health"),
        ("agents/worker/health/0", "http", "agents.worker.health[0]"),
        ("agents/worker/health/0/type", "htpp", "agents.worker.health[0].type"),
        ("agents/worker/health/0/type", ["http"], "agents.worker.health[0].type"),
        ("agents/worker/health/0/name", "self", "agents.worker.health[2].name"),
        ("agents/worker/health/0/name", " ", "agents.worker.health[0].name"),
        ("agents/worker/health/0/intervalSec", 0.05, "agents.worker.health[0].intervalSec"),
        ("agents/worker/health/0/timeoutSec", 0, "agents.worker.health[0].timeoutSec"),
        ("agents/worker/health/0/failureThreshold", 0, "agents.worker.health[0].failureThreshold"),
        ("agents/worker/health/0/expectStatus", 99, "agents.worker.health[0].expectStatus"),
        ("agents/worker/health/0/url", "ftp://a/", "agents.worker.health[0].url"),
        ("agents/worker/health/0/url", "http://", "agents.worker.health[0].url"),
        ("agents/worker/health/0/url", "http://a:99999/", "agents.worker.health[0].url"),
        ("agents/worker/health/0/url", "http://[::1/", "agents.worker.health[0].url"),
        ("agents/worker/health/0/url", "http://a/\nX: y", "agents.worker.health[0].url"),
        ("agents/worker/health/1/port", 0, "agents.worker.health[1].port"),
        ("agents/worker/health/1/port", "80", "agents.worker.health[1].port"),
        ("agents/worker/health/1/host", "", "agents.worker.health[1].host"),
        ("agents/worker/health/2/command", [], "agents.worker.health[2].command"),
        ("agents/worker/health/2/command", ["true"], "agents.worker.health[2].command"),
        ("agents/worker/health/2/command", "true", "agents.worker.health[2].command"),
        ("agents/worker/health/2/command", ["/bin/a", "\0"], "agents.worker.health[2].command"),
        ("agents/worker/health/2/command", ["/bin/a", 1], "agents.worker.health[2].command[1]"),
        (f"{CHECKS}/0/purpose", "live", "agents.worker.health[0].purpose"),
        (f"{CHECKS}/0/successThreshold", 0, "agents.worker.health[0].successThreshold"),
        (f"{CHECKS}/0/insecure", True, "agents.worker.health[0].insecure"),
        (f"{CHECKS}/0/caFile", "/a", "agents.worker.health[0].caFile"),
        (f"{CHECKS}/3/insecure", True, "agents.worker.health[3].insecure"),
        (f"{CHECKS}/3/insecure", "yes", "agents.worker.health[3].insecure"),
        (f"{CHECKS}/3/caFile", "a", "agents.worker.health[3].caFile"),
        (f"{CHECKS}/3/bodyContains", "", "agents.worker.health[3].bodyContains"),
        (f"{CHECKS}/3/bodyMatches", "(", "agents.worker.health[3].bodyMatches"),
        (f"{CHECKS}/3/bodyMatches", "", "agents.worker.health[3].bodyMatches"),
        (f"{CHECKS}/3/bodyMatches", "a" * 1001, "agents.worker.health[3].bodyMatches"),
        (f"{CHECKS}/4/host", "localhost", "agents.worker.health[4].host"),
        (f"{CHECKS}/4/port", 65536, "agents.worker.health[4].port"),
        (f"{CHECKS}/5/pattern", "[a", "agents.worker.health[5].pattern"),
        (f"{CHECKS}/5/pattern", "(" * 999, "agents.worker.health[5].pattern"),
        (f"{CHECKS}/5/purpose", "startup", "agents.worker.health[5].purpose"),
        (f"{CHECKS}/6/maxBytes", 0, "agents.worker.health[6].maxBytes"),
        (f"{CHECKS}/6/maxBytes", 2**63, "agents.worker.health[6].maxBytes"),
        (f"{CHECKS}/7/path", "a", "agents.worker.health[7].path"),
        (f"{CHECKS}/7/maxAgeSec", 0, "agents.worker.health[7].maxAgeSec"),
        ("agents", {}, "safeSwitch.enable"),
        ("agents/worker/escalation/quarantineSec", 0.9, "agents.worker.escalation.quarantineSec"),
        ("agents/worker/escalation/maxQuarantines", -1, "agents.worker.escalation.maxQuarantines"),
        ("escalation/maxRebootsPerDay", 0, "escalation.maxRebootsPerDay"),
        ("safeSwitch/enable", False, "escalation.reboot"),
        ("safeSwitch/probationSec", 0, "safeSwitch.probationSec"),
        ("safeSwitch/profile", "system", "safeSwitch.profile"),
        ("safeSwitch/condemned", "ignore", "safeSwitch.condemned"),
        ("safeSwitch/maxRollbacksPerDay", 0, "safeSwitch.maxRollbacksPerDay"),
        ("safeSwitch/keep", 0, "safeSwitch.keep"),
        (f"{GATES}/0/type", "log", "safeSwitch.gates[0].type"),
        (f"{GATES}/0/url", "https://", "safeSwitch.gates[0].url"),
        (f"{GATES}/0/purpose", "liveness", "safeSwitch.gates[0].purpose"),
        (f"{GATES}/0", {"name": "a", "type": "http"}, "safeSwitch.gates[0].url"),
        (f"{GATES}/1/name", "front", "safeSwitch.gates[1].name"),
        (f"{GATES}/1/name", " ", "safeSwitch.gates[1].name"),
        (f"{GATES}/2/host", "localhost", "safeSwitch.gates[2].host"),
        (f"{GATES}/3/command", [], "safeSwitch.gates[3].command"),
        (f"{GATES}/4/unit", "sshd", "safeSwitch.gates[4].unit"),
        (f"{GATES}/4/unit", "a@.service", "safeSwitch.gates[4].unit"),
        (f"{GATES}/5", {"name": "a", "type": "network"}, "safeSwitch.gates[5]"),
        (f"{GATES}/5/interface", "eth 0", "safeSwitch.gates[5].interface"),
        (f"{GATES}/5/interface", "sixteen-letters-", "safeSwitch.gates[5].interface"),
        (f"{GATES}/5/addresses", ["192.0.2.1/24"], "safeSwitch.gates[5].addresses[0]"),
        (f"{GATES}/5/sshd", 0, "safeSwitch.gates[5].sshd"),
        ("drift/intervalSec", 0, "drift.intervalSec"),
        ("drift/ignore/0/reason", "\t", "drift.ignore[0].reason"),
        ("drift/ignore/0", {"path": "/x"}, "drift.ignore[0].reason"),
        ("drift/ignore/0/path", "etc", "drift.ignore[0].path"),
        ("ledger/origin", "", "ledger.origin"),
        ("ledger/origin", "a b", "ledger.origin"),
        ("ledger/origin", "a\u2003b", "ledger.origin"),
        ("ledger/origin", "a+b", "ledger.origin"),
        ("ledger/keyCredential", "../key", "ledger.keyCredential"),
        ("extra", 1, "extra"),
    ],
)  # fmt: skip
def test_each_error_names_its_option(path: str, value: Any, option: str) -> None:
    assert list(problems(change(path, value))) == [option]


@pytest.mark.parametrize(
    "unit", [r"a\x2db.service", "a@b.service", "a@b@c.service", "A:1_2.x.service"]
)
def test_names_of_services(unit: str) -> None:
    assert problems(change("agents/worker/unit", unit)) == {}


@pytest.mark.parametrize(
    ("restart", "wrong"),
    [
        ({"policy": "exponential", "delaySec": 0}, "cannot grow"),
        ({"policy": "exponential"}, "cannot grow"),
        ({"policy": "exponential", "delaySec": 61}, "more than maxDelaySec (60)"),
        ({"policy": "immediate", "delaySec": 1}, "immediate"),
    ],
)
def test_delays_that_contradict_the_policy(restart: dict[str, Any], wrong: str) -> None:
    found = problems(change("agents/worker/restart", restart))
    assert wrong in found["agents.worker.restart.delaySec"]


def test_all_errors_are_reported_at_once() -> None:
    config = change("version", 2)
    config["agnets"] = {}
    config["agents"]["worker"]["restart"] = {"polcy": "never", "delaySec": -1}
    config["agents"]["worker"]["health"][1]["port"] = "x"
    config["agents"]["odd-1.x"]["unit"] = "nothing"
    config["drift"]["ignore"][0]["reason"] = ""
    found, mends = problems(config), {p.option: p.mend for p in decode(config)[1]}
    assert set(found) == {
        "version",
        "agnets",
        "agents.worker.restart.polcy",
        "agents.worker.restart.delaySec",
        "agents.worker.health[1].port",
        'agents."odd-1.x".unit',
        "drift.ignore[0].reason",
    }
    assert mends["agnets"] == "did you mean agents?"
    assert mends["agents.worker.restart.polcy"] == "did you mean policy?"


def test_an_agent_that_is_wrong_does_not_look_like_none() -> None:
    config = change("agents", {"a": {"unit": 5}})
    assert list(problems(config)) == ["agents.a.unit"]


def test_errors_without_end_are_cut(tmp_path: Path) -> None:
    agents = {f"a{index}": {"x": 1} for index in range(5000)}
    with pytest.raises(InvalidConfigError) as caught:
        load(write(tmp_path, json.dumps(change("agents", agents)).encode()))
    assert len(caught.value.problems) == MAX_PROBLEMS + 1
    assert "more than these" in caught.value.problems[-1].wrong


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (b"", "it is empty"),
        (b"# only a comment\n", "it is empty"),
        (b"null", "it is empty"),
        (b"[]", "is a list"),
        (b"5", "is 5"),
        (b"\xff\xfe", "not UTF-8 (byte 0)"),
        (b"version: 1\n# \xe9\n", "not UTF-8 (byte 13)"),
        (b"\0", "not YAML"),
        (b"a: &a [*a]", "anchor"),
        (b"#" * (4 * 1024 * 1024 + 1), "larger than 4 MiB"),
        (b"[" * 100_000, "levels of nesting"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, content: bytes, wrong: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert wrong in message
    assert message.count("\n") == 0
    assert caught.value.exit_code == os.EX_CONFIG


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for name, wrong in {
        "missing": "No such file",
        "loop": "symbolic links",
        "fifo": "not a regular file",
        ".": "not a regular file",
        "a" * 300: "name too long",
        "nul\0": "null",
    }.items():
        with pytest.raises(ConfigError, match=wrong):
            load(tmp_path / name)


def paths_of(value: Any, path: str = "") -> list[str]:
    if isinstance(value, list):
        return [f"{path}{key}" for key in range(len(value))]
    parts = value.items() if isinstance(value, dict) else ()
    return [f"{path}{key}" for key, _ in parts] + [
        deeper for key, part in parts for deeper in paths_of(part, f"{path}{key}/")
    ]


ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["http", "tcp", "listen", "log", "memory", "file", "/x", "a.service", "SIGKILL"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.lists(st.tuples(st.sampled_from(paths_of(RIGHT)), ANYTHING), min_size=1, max_size=3))
def test_any_change_is_accepted_or_explained(changes: list[tuple[str, Any]]) -> None:
    config: Any = copy.deepcopy(RIGHT)
    for path, value in changes:
        *parents, last = path.split("/")
        at = config
        for part in parents:
            at = at.get(part) if isinstance(at, dict) else None
        if isinstance(at, dict):
            at[last] = value
    decoded, found = decode(config)
    assert found or decoded is not None
    for problem in found:
        assert problem.wrong
        assert problem.mend
        assert str(problem).isprintable() or "…" in str(problem)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 1000), st.integers(1, 40), st.binary(max_size=20))
def test_any_bytes_are_accepted_or_refused(
    tmp_path: Path, start: int, length: int, inserted: bytes
) -> None:
    text = json.dumps(RIGHT).encode()
    path = write(tmp_path, text[:start] + inserted + text[start + length :])
    with contextlib.suppress(ConfigError):
        assert len(load(path).sha256) == 64


def test_a_rule_that_escalates_needs_the_ladder() -> None:
    rule = {"exitCodes": [5], "action": "escalate"}
    agent = {"unit": "a.service", "restart": {"policy": "conditional", "rules": [rule]}}
    config: dict[str, Any] = {"version": 1, "agents": {"a": agent}}
    assert problems(config) == {}
    agent["escalation"] = {"enable": False}
    assert list(problems(config)) == ["agents.a.escalation.enable"]
