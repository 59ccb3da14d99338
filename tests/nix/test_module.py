"""module.nix through nixpkgs's module system: the same units, wrong declarations refused."""

import re
from pathlib import Path
from typing import Any

import pytest

from healer.config import load
from tests.nix.conftest import EVERYTHING
from tests.nix.evaluation import (
    CHECKOUT,
    NIXPKGS_LIB,
    EvaluationError,
    evaluate,
    module,
    needs_lib,
    render,
)

pytestmark = needs_lib

OPTION = "services.healer."


@pytest.fixture(scope="module")
def evaluated() -> Any:
    return module(f'{EVERYTHING} // {{ enable = true; ledger.origin = "healer/localhost"; }}')


@pytest.fixture(scope="module")
def rendered(evaluated: Any) -> Any:
    # It is the file that the build checks.
    kept = evaluated["checks"][0].split()[3]
    own = f'shell = "/busybox/bin/sh"; systemd = "systemd/bin"; keptConfigFile = "{kept}";'
    return render(EVERYTHING, own)


def test_the_declarations_are_accepted(evaluated: Any) -> None:
    assert evaluated["refused"] == []


def test_the_units_are_those_of_render_nix(evaluated: Any, rendered: Any) -> None:
    assert evaluated["services"].keys() == rendered["services"].keys()
    for name, expected in rendered["services"].items():
        actual = evaluated["services"][name]
        for part in ("wantedBy", "after", "environment", "unitConfig", "serviceConfig"):
            assert actual[part] == expected[part], f"{name}: {part}"
        for part in ("partOf", "wants"):
            assert actual[part] == expected.get(part, []), f"{name}: {part}"
        assert actual["description"] == (expected["description"] or "")
        assert actual["restartIfChanged"] == expected.get("restartIfChanged", True)
    assert evaluated["tmpfiles"] == rendered["tmpfiles"]
    socket = evaluated["sockets"]["healer-helper"]
    for part, value in rendered["sockets"]["healer-helper"].items():
        assert socket[part] == value


def test_the_config_file_is_that_of_render_nix(
    evaluated: Any, rendered: Any, tmp_path: Path
) -> None:
    text = evaluated["etc"]["healer/config.yaml"]
    assert text == rendered["configText"]
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert load(path).config.agents.keys() == rendered["config"]["agents"].keys()


def test_the_build_checks_the_config_file(evaluated: Any) -> None:
    (script,) = evaluated["checks"]
    assert re.match(r"/healer/bin/healer config check /nix/store/\S+-healer-config.yaml\n", script)


def test_the_user_and_the_program(evaluated: Any) -> None:
    assert evaluated["users"]["users"]["healer"]["isSystemUser"] is True
    assert "healer" in evaluated["users"]["groups"]
    assert evaluated["programs"] == ["/healer"]


def test_only_an_adopted_instance_is_a_drop_in(evaluated: Any) -> None:
    drop_ins = {
        name
        for name, service in evaluated["services"].items()
        if service["overrideStrategy"] == "asDropin"
    }
    assert drop_ins == {r"foo\x2dbar@1"}


def test_nothing_is_set_unless_enabled() -> None:
    off = module('{ agents.a.command = "/a"; }')
    assert off["services"] == {}
    assert off["etc"] == {}
    assert off["users"]["users"] == {}


def test_the_origin_is_named_after_the_host() -> None:
    config = module('{ enable = true; agents.a.command = "/a"; }')["etc"]["healer/config.yaml"]
    assert '"origin":"healer/alpha"' in config


def test_an_adopted_units_own_settings_do_not_conflict() -> None:
    upstream = """{ systemd.services.nginx = {
      description = "a web server";
      unitConfig.StartLimitIntervalSec = 60;
      serviceConfig = {
        ExecStart = "/bin/nginx"; ExecStartPost = [ "/bin/check" ]; ExecStopPost = "/bin/tidy";
        Restart = "on-failure"; RestartSec = "10s"; RestartPreventExitStatus = "1";
      };
    }; }"""
    nginx = module("{ enable = true; agents.nginx.adopt = true; }", upstream)["services"]["nginx"]
    config = nginx["serviceConfig"]
    assert nginx["description"] == "a web server"
    assert nginx["unitConfig"]["StartLimitIntervalSec"] == 0
    assert (config["Restart"], config["RestartSec"]) == ("always", 0)
    assert config["RestartPreventExitStatus"] == [""]
    assert config["ExecStart"] == "/bin/nginx"
    first, second = config["ExecStartPost"]
    assert "stamp-start.sh" in first
    assert second == "/bin/check"
    first, second = config["ExecStopPost"]
    assert "stamp-stop.sh" in first
    assert second == "/bin/tidy"


def test_jitter_is_for_a_systemd_that_knows_it() -> None:
    newer = '{ systemd.package = { outPath = "systemd"; version = "262.1"; }; }'
    a = module('{ enable = true; agents.a = { command = "/a"; restart.jitterSec = 1; }; }', newer)
    assert a["refused"] == []
    assert a["services"]["a"]["serviceConfig"]["RestartRandomizedDelaySec"] == "1s"


def refusal(declaration: str) -> str:
    """What is said against a declaration: by the assertions, or by a type."""
    try:
        refused: list[str] = module(f"{{ enable = true; }} // {declaration}")["refused"]
    except EvaluationError as error:
        return str(error)
    return "\n".join(refused)


def agent(options: str) -> str:
    return f'{{ agents.a = {{ command = "/a"; }} // {options}; }}'


def restart(options: str) -> str:
    return agent(f"{{ restart = {options}; }}")


GATE = "safeSwitch.gates.[0]"


def gate(options: str) -> str:
    return f'{{ safeSwitch.gates = [ {{ name = "g"; {options} }} ]; }}'


def check(options: str) -> str:
    return agent(f'{{ health = [ ({{ name = "web"; type = "tcp"; }} // {options}) ]; }}')


@pytest.mark.parametrize(
    ("declaration", "option", "value"),
    [
        (agent("{ adopt = true; }"), "agents.a.command", '"/a"'),
        ("{ agents.a = { }; }", "agents.a.command", "is missing"),
        ('{ agents.a = { adopt = true; user = "x"; }; }', "agents.a", "user"),
        ('{ agents."a b".command = "/a"; }', "agents.a b", "no name for an agent"),
        (agent('{ unit = "a.socket"; }'), "agents.a.unit", '"a.socket"'),
        (agent('{ unit = "a@.service"; }'), "agents.a.unit", '"a@.service"'),
        (agent('{ unit = "healer.service"; }'), "agents.a.unit", "healer's own"),
        (agent('{ unit = "healer-helper@1.service"; }'), "agents.a.unit", "healer's own"),
        ('{ agents.healer-boot.command = "/a"; }', "agents.healer-boot.unit", "healer's own"),
        (agent('{ user = "healer"; }'), "agents.a.user", "signs the ledger"),
        (
            '{ agents.a.command = "/a"; agents.b = { adopt = true; unit = "a.service"; }; }',
            "agents.b.unit",
            '"a.service"',
        ),
        (agent("{ serviceConfig.RestartSec = 5; }"), "agents.a.serviceConfig", "restart.delaySec"),
        (agent('{ user = "nobody-knows"; }'), "agents.a.user", '"nobody-knows"'),
        (agent('{ stateDirectory = "/var/lib/a"; }'), "agents.a.stateDirectory", '"/var/lib/a"'),
        (agent('{ breadcrumb = "../x"; stateDirectory = "a"; }'), "agents.a.breadcrumb", "../x"),
        (agent('{ breadcrumb = "x"; }'), "agents.a.breadcrumb", "no stateDirectory"),
        (agent('{ command = "@a b"; lastCrash = true; }'), "agents.a.lastCrash", "as a list"),
        (agent("{ stableSec = 0; }"), "agents.a.stableSec", "positive"),
        (agent("{ crashLoop.maxCrashes = 0; }"), "agents.a.crashLoop.maxCrashes", "between 1"),
        (agent('{ serviceConfig.Type = "oneshot"; }'), "agents.a.restart.on", "oneshot"),
        (agent("{ comand = 1; }"), "agents.a.comand", "does not exist"),
        (restart('{ policy = "allways"; }'), "agents.a.restart.policy", "allways"),
        (restart("{ delaySec = -1; }"), "agents.a.restart.delaySec", "nonnegative"),
        (restart("{ delaySec = 3; }"), "agents.a.restart.delaySec", "is 3"),
        (
            restart('{ policy = "exponential"; delaySec = 0; }'),
            "agents.a.restart.delaySec",
            "cannot grow",
        ),
        (
            restart('{ policy = "exponential"; delaySec = 90; }'),
            "agents.a.restart.delaySec",
            "is 90, more than maxDelaySec (60)",
        ),
        (
            restart('{ policy = "exponential"; factor = 1.001; }'),
            "agents.a.restart.factor",
            "more than 1000",
        ),
        (restart('{ policy = "exponential"; factor = 1; }'), "restart.factor", "more than 1"),
        (restart("{ jitterSec = 1; }"), "agents.a.restart.jitterSec", "use systemd 262"),
        (restart('{ policy = "conditional"; }'), "agents.a.restart.rules", "is empty"),
        (restart("{ rules = [ { exitCodes = [ 1 ]; } ]; }"), "agents.a.restart.rules", "immediate"),
        (
            restart('{ policy = "conditional"; rules = [ { } ]; }'),
            "agents.a.restart.rules",
            "neither exitCodes nor signals nor classes",
        ),
        (
            restart(
                """{ policy = "conditional"; rules = [
                  { classes = [ "oom" ]; action = "restart"; delaySec = 1; }
                  { classes = [ "oom" ]; action = "restart"; }
                ]; }"""
            ),
            "agents.a.restart.rules",
            "different answers for oom",
        ),
        (
            restart(
                '{ policy = "conditional"; rules = [ { exitCodes = [ 1 ]; delaySec = 3; } ]; }'
            ),
            "agents.a.restart.rules",
            "with the action stop",
        ),
        (
            restart('{ policy = "conditional"; rules = [ { classes = [ "hang" ]; } ]; }'),
            "classes",
            "hang",
        ),
        (
            restart(
                """{ policy = "conditional"; delaySec = 90; otherwise = "backoff";
                  rules = [ { exitCodes = [ 1 ]; } ]; }"""
            ),
            "agents.a.restart.delaySec",
            "is 90, more than maxDelaySec (60)",
        ),
        (
            """{ safeSwitch.enable = false; agents.a = { command = "/a"; restart = {
              policy = "conditional"; rules = [ { exitCodes = [ 1 ]; action = "rollback"; } ];
            }; }; }""",
            "agents.a.restart.rules",
            "safeSwitch.enable is false",
        ),
        (
            restart(
                """{ policy = "conditional"; rules = [
                  { exitCodes = [ 1 2 ]; }
                  { exitCodes = [ 2 ]; action = "restart"; }
                ]; }"""
            ),
            "agents.a.restart.rules",
            "for 2",
        ),
        (
            restart('{ policy = "conditional"; rules = [ { exitCodes = [ 256 ]; } ]; }'),
            "exitCodes",
            "between 0 and 255",
        ),
        (
            restart('{ policy = "conditional"; rules = [ { signals = [ "KILL" ]; } ]; }'),
            "signals",
            "SIG",
        ),
        (check("{ }"), "agents.a.health.[0] (web)", "no port"),
        (check('{ port = 1; url = "http://x"; }'), "agents.a.health.[0] (web)", "url"),
        (check("{ port = 1; intervalSec = 0; }"), "intervalSec", "at least 0.1"),
        (check('{ port = 1; purpose = "life"; }'), "purpose", "life"),
        (check('{ type = "listen"; }'), "agents.a.health.[0] (web)", "no port"),
        (check('{ type = "file"; path = "/x"; }'), "agents.a.health.[0] (web)", "no maxAgeSec"),
        (check('{ type = "file"; path = "x"; maxAgeSec = 1; }'), "path", "/.*"),
        (check('{ type = "log"; }'), "agents.a.health.[0] (web)", "no pattern"),
        (
            check('{ type = "log"; pattern = "x"; purpose = "startup"; }'),
            "agents.a.health.[0] (web)",
            "purpose startup",
        ),
        (check('{ type = "memory"; maxBytes = 0; }'), "maxBytes", "positive"),
        (
            check('{ type = "http"; url = "http://a"; insecure = true; }'),
            "agents.a.health.[0] (web)",
            "use https",
        ),
        (
            check('{ type = "http"; url = "https://a"; insecure = true; caFile = "/a"; }'),
            "agents.a.health.[0] (web)",
            "whom to trust",
        ),
        (agent("{ serviceConfig.WatchdogSec = 5; }"), "agents.a.serviceConfig", "a.watchdogSec"),
        (agent("{ watchdogSec = 0; }"), "agents.a.watchdogSec", "positive"),
        (
            agent('{ health = let c = { name = "x"; type = "tcp"; port = 1; }; in [ c c ]; }'),
            "agents.a.health",
            "two checks of one name",
        ),
        (
            '{ agents.a.command = "/a"; groups.g.agents = [ "a" "b" ]; }',
            "groups.g.agents",
            "names b",
        ),
        ('{ agents.a.command = "/a"; groups.g.agents = [ "a" "a" ]; }', "groups.g.agents", "once"),
        (
            '{ agents.a.command = "/a"; groups.g.agents = [ "a" ]; groups.h.agents = [ "a" ]; }',
            "groups.g.agents",
            "groups.h names already",
        ),
        ('{ agents.a.command = "/a"; groups.g.agents = [ ]; }', "groups.g.agents", "non-empty"),
        ("{ }", "safeSwitch.enable", "no agent"),
        ("{ safeSwitch.probationSec = 0; }", "safeSwitch.probationSec", "positive"),
        (gate('type = "network";'), f"{GATE} (g)", "nothing to look at"),
        (gate('type = "network"; addresses = [ ]; gateway = false;'), f"{GATE} (g)", "nothing to"),
        (gate('type = "network"; sshd = 0;'), "sshd", "1 and 65535"),
        (gate('type = "command";'), f"{GATE} (g)", "no command"),
        (gate('type = "command"; command = [ ];'), ".command' is not", "non-empty"),
        (gate('type = "unit"; unit = "sshd";'), f"{GATE} (g).unit", '"sshd"'),
        (gate('type = "unit"; unit = "a.service"; port = 1;'), f"{GATE} (g)", "also sets port"),
        (gate('type = "tcp"; port = 1; sshd = 22;'), f"{GATE} (g)", "also sets sshd"),
        (gate('type = "log";'), ".type' is not", "one of"),
        (
            '{ safeSwitch.gates = map (unit: { name = "g"; type = "unit"; inherit unit; }) '
            '[ "a.service" "b.service" ]; }',
            "safeSwitch.gates",
            "g g",
        ),
        ("{ safeSwitch.probationSec = -5; }", "safeSwitch.probationSec", "positive"),
        (
            '{ drift.ignore = [ { path = "/x"; reason = " "; } ]; }',
            "drift.ignore.[0].reason",
            "/x",
        ),
        ('{ drift.ignore = [ { path = "/x"; } ]; }', "reason", "no value defined"),
        ("{ escalation.maxRebootsPerDay = 0; }", "escalation.maxRebootsPerDay", "1 and 1000"),
        (
            "{ escalation.reboot = true; safeSwitch.enable = false; }",
            "escalation.reboot",
            "enable safeSwitch",
        ),
        (
            agent(
                """{
                  escalation.enable = false;
                  restart = {
                    policy = "conditional";
                    rules = [ { exitCodes = [ 1 ]; action = "escalate"; } ];
                  };
                }"""
            ),
            "escalation.enable",
            "another action",
        ),
        (agent("{ escalation.quarantineSec = 0.5; }"), "escalation.quarantineSec", "at least 1"),
        (agent("{ escalation.maxQuarantines = -1; }"), "escalation.maxQuarantines", "between"),
        ('{ ledger.origin = "my host"; }', "ledger.origin", '"my host"'),
        ('{ ledger.origin = "a+b"; }', "ledger.origin", '"a+b"'),
        ('{ ledger.origin = ""; }', "ledger.origin", '""'),
        ('{ ledger.keyCredential = "/run/key"; }', "ledger.keyCredential", '"/run/key"'),
    ],
)
def test_wrong_declarations_are_refused_by_name(declaration: str, option: str, value: str) -> None:
    said = refusal(declaration)
    line = next((line for line in said.splitlines() if option in line), None)
    assert line is not None, said
    assert OPTION in said
    assert value in said


def test_the_option_reference_is_current() -> None:
    text = evaluate(f"import @/nix/options-doc.nix {{ lib = import {NIXPKGS_LIB}/lib; }}")
    assert (CHECKOUT / "docs/options.md").read_text() == text
