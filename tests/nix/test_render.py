"""nix/render.nix: from declarations to units and the config file, with builtins alone."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from healer.config import (
    Agent,
    AgentEscalation,
    CommandCheck,
    CommandGate,
    Config,
    Escalation,
    FileCheck,
    HttpCheck,
    HttpGate,
    ListenCheck,
    ListenGate,
    LogCheck,
    MemoryCheck,
    NetworkGate,
    TcpCheck,
    TcpGate,
    UnitGate,
    load,
)
from healer.config.schema import CrashLoop, Drift, LedgerConfig, Restart, Rule, SafeSwitch
from healer.host import holds
from tests.nix.evaluation import CHECKOUT, EvaluationError, evaluate, needs_nix, render

pytestmark = needs_nix

OWN = {"healer", "healer-helper@", "healer-boot", "healer-boot-complete"}


def test_a_heartbeat_is_systemds_own_and_leaves_the_type(everything: Any) -> None:
    services = everything["services"]
    assert services["nginx"]["serviceConfig"]["WatchdogSec"] == "500ms"
    once = services["once"]["serviceConfig"]
    assert (once["WatchdogSec"], once["Type"], once["NotifyAccess"]) == ("20s", "simple", "all")
    assert "Type" not in services["nginx"]["serviceConfig"]
    assert "WatchdogSec" not in services["now"]["serviceConfig"]


def test_every_agent_is_stamped_by_pid_1(everything: Any) -> None:
    for name, service in everything["services"].items():
        if name in OWN:
            continue
        (start,) = service["serviceConfig"]["ExecStartPost"]
        (stop,) = service["serviceConfig"]["ExecStopPost"]
        assert re.fullmatch(r"-\+/bin/sh /nix/store/\S+-stamp-start\.sh %n", start)
        stop, _, rules = stop.partition(' "/usr/bin"')
        assert re.fullmatch(r"\+/bin/sh /nix/store/\S+-stamp-stop\.sh %n \d+", stop)
        only_failures = service["serviceConfig"]["Restart"] == "on-failure"
        assert (rules != "") == (name == "ruled" or only_failures)


WRAPPED = 'shell = "/dash"; lastCrashScript = "/tell"; '


@pytest.mark.parametrize(
    ("agent", "started"),
    [
        (
            'command = [ "/bin/x" "a b" ];',
            ('/dash /tell %n "/tmp/last-crash.json" "" "/bin/x" "a b"', "x", None),
        ),
        (
            'command = "/bin/x --flag"; breadcrumb = "doing"; stateDirectory = "a";',
            (
                '/dash /tell %n "/tmp/last-crash.json" "doing" /bin/x --flag',
                "x",
                None,
            ),
        ),
        (
            'command = "-+/bin/x ;x"; serviceConfig.RuntimeDirectory = [ "r:l s" "t" ];',
            ('-+/dash /tell %n "/run/r/last-crash.json" "" /bin/x ;x', "x", ["r:l s", "t"]),
        ),
        (
            'command = "/bin/x"; serviceConfig.SyslogIdentifier = "me";',
            ('/dash /tell %n "/tmp/last-crash.json" "" /bin/x', "me", None),
        ),
        (
            'command = "/bin/x"; user = "root";',
            ('/dash /tell %n "/run/healer-agents/a/last-crash.json" "" /bin/x', "x", None),
        ),
        (
            'command = "/bin/x"; user = "root"; serviceConfig.ProtectSystem = "strict";',
            (
                '/dash /tell %n "/run/healer-agents/a/last-crash.json" "" /bin/x',
                "x",
                "healer-agents/a",
            ),
        ),
        # Nothing can be put in front of these.
        ('command = "@x y";', ("@x y", None, None)),
        ('command = "/bin/x ; /bin/y";', ("/bin/x ; /bin/y", None, None)),
        (
            'command = [ "/bin/x" ]; serviceConfig.RootDirectory = "/r";',
            ('"/bin/x"', None, None),
        ),
        ('command = [ "/bin/x" ]; lastCrash = false;', ('"/bin/x"', None, None)),
    ],
)
def test_an_agent_is_told_of_its_last_crash(agent: str, started: Any) -> None:
    service = render(f"{{ agents.a = {{ {agent} }}; }}", WRAPPED)["services"]["a"]["serviceConfig"]
    settings = ("ExecStart", "SyslogIdentifier", "RuntimeDirectory")
    assert tuple(service.get(setting) for setting in settings) == started


def test_an_adopted_agent_is_told_if_it_is_asked_for() -> None:
    text = "{ agents.a = { adopt = true; lastCrash = %s; breadcrumb = %s; }; }"
    told = render(text % ("true", '"doing"'), WRAPPED)["services"]["a"]
    assert told["serviceConfig"]["ExecStartPre"] == [
        '/dash /tell %n "/run/healer-agents/a/last-crash.json" "doing"'
    ]
    assert told["serviceConfig"]["RuntimeDirectory"] == ["healer-agents/a"]
    assert told["serviceConfig"]["ExecStopPost"][1] == '-/dash /tell %n "" "doing"'
    assert told["environment"] == {"HEALER_LAST_CRASH": "/run/healer-agents/a/last-crash.json"}
    rendered = render(text % ("null", "null"), WRAPPED)
    assert "ExecStartPre" not in rendered["services"]["a"]["serviceConfig"]
    assert rendered["config"]["agents"]["a"]["lastCrash"] is False


def test_stamps_come_before_the_agents_own_commands() -> None:
    rendered = render(
        """{ agents.a = {
          command = [ "/bin/a" ];
          serviceConfig = { ExecStartPost = "/bin/own"; ExecStopPost = [ "/bin/x" "/bin/y" ]; };
        }; }""",
        'shell = "/dash"; startStamp = "/start"; stopStamp = "/stop";',
    )
    config = rendered["services"]["a"]["serviceConfig"]
    assert config["ExecStartPost"] == ["-+/dash /start %n", "/bin/own"]
    assert config["ExecStopPost"] == ['+/dash /stop %n 60000 "/usr/bin"', "/bin/x", "/bin/y"]


def test_an_agent_without_a_user_gets_one_of_its_own(everything: Any) -> None:
    services = everything["services"]
    assert services["now"]["serviceConfig"]["DynamicUser"] is True
    assert "DynamicUser" not in services["later"]["serviceConfig"]
    assert services["later"]["serviceConfig"]["User"] == "root"


@pytest.mark.parametrize(
    ("service_config", "access"),
    [("{ }", "all"), ('{ Type = "notify"; }', None), ('{ NotifyAccess = "exec"; }', "exec")],
)
def test_status_messages_are_let_through(service_config: str, access: str | None) -> None:
    rendered = render(f'{{ agents.a = {{ command = "/a"; serviceConfig = {service_config}; }}; }}')
    assert rendered["services"]["a"]["serviceConfig"].get("NotifyAccess") == access


def test_arguments_are_taken_literally() -> None:
    rendered = render(
        r"""{ agents.a = {
          lastCrash = false;
          command = [ "/bin/sh" "-c" "echo $HOME 50% \"q\" 'r' \\n" "" "a\nb" ];
        }; }"""
    )
    assert rendered["services"]["a"]["serviceConfig"]["ExecStart"] == (
        r'''"/bin/sh" "-c" "echo $$HOME 50%% \"q\" 'r' \\n" "" "a\nb"'''
    )


def test_healer_survives_a_switch(everything: Any) -> None:
    for name in ("healer", "healer-helper@"):
        service = everything["services"][name]
        assert service["restartIfChanged"] is False
        assert service["unitConfig"]["X-StopOnRemoval"] is False
    assert everything["sockets"]["healer-helper"]["unitConfig"]["X-StopOnRemoval"] is False


def test_a_hold_keeps_a_unit_from_starting(everything: Any) -> None:
    for name in ("now", "nginx"):
        assert everything["services"][name]["unitConfig"]["ConditionPathExists"] == [
            "!/run/healer/holds/%n",
            f"!{holds.LASTING}/%n",
        ]


def test_healer_cannot_replace_the_directory_that_root_writes_to(everything: Any) -> None:
    owners = {line.split()[1]: line.split()[2:5] for line in everything["tmpfiles"]}
    mode, owner, group = owners["/run/healer"]
    assert (mode, owner, group) == ("1775", "root", "healer")
    assert owners["/run/healer/stamps"][1] == "root"


def test_the_key_credential_is_imported() -> None:
    rendered = render('{ ledger.keyCredential = "key"; }')
    assert rendered["services"]["healer"]["serviceConfig"]["ImportCredential"] == "key"


def test_the_config_file_is_valid_and_says_what_was_declared(
    everything: Any, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(everything["configText"])
    config = load(path).config
    assert msgspec.to_builtins(config) == msgspec.to_builtins(
        msgspec.convert(everything["config"], Config)
    )
    assert set(config.agents) == {
        "now", "later", "choosy", "ruled", "gentle", "strict", "never-held", "once", "nginx", "odd",
    }  # fmt: skip
    assert config.agents["odd"].unit == r"foo\x2dbar@1.service"
    assert config.agents["later"].restart == Restart(
        policy="exponential", on="failure", delay_sec=0.25, max_delay_sec=30, steps=5
    )
    assert config.agents["choosy"].restart.rules == (
        Rule(exit_codes=(3, 4), signals=("SIGABRT",), action="stop"),
        Rule(exit_codes=(0,), action="restart"),
    )
    assert not config.agents["never-held"].escalation.enable
    assert config.agents["nginx"].escalation == AgentEscalation(
        quarantine_sec=90.5, max_quarantines=0
    )
    assert config.escalation == Escalation(reboot=True, max_reboots_per_day=2)
    assert config.agents["ruled"].restart.rules[1:4] == (
        Rule(exit_codes=(7,), action="restart", delay_sec=30),
        Rule(signals=("SIGKILL",), action="restart"),
        Rule(classes=("oom",), signals=("SIGRTMAX-2",), action="backoff"),
    )
    assert config.agents["later"].health == (
        HttpCheck(name="web", url="http://127.0.0.1:8080/"),
        TcpCheck(name="port", port=8080, interval_sec=0.5),
        CommandCheck(name="self", command=("/bin/true",)),
        HttpCheck(
            name="tls",
            url="https://a/",
            ca_file="/ca.pem",
            body_contains="ok",
            body_matches="o.*k",
            purpose="readiness",
            success_threshold=2,
        ),
        HttpCheck(name="any", url="https://a/", insecure=True, purpose="startup"),
        ListenCheck(name="bound", port=80),
        LogCheck(name="log", pattern="FATAL"),
        MemoryCheck(name="memory", max_bytes=1_000_000),
        FileCheck(name="fresh", path="/run/x", max_age_sec=30),
    )
    assert config.safe_switch.gates == (
        HttpGate(name="front", url="https://a/", insecure=True),
        TcpGate(name="port", port=443, failure_threshold=1),
        ListenGate(name="bound", port=80),
        CommandGate(name="own", command=("/bin/true",), timeout_sec=30),
        UnitGate(name="proxy", unit="nginx.service", interval_sec=0.5),
        NetworkGate(name="net", gateway=True, addresses=("::1",), sshd=22),
    )


def test_services_are_named_by_their_units(everything: Any) -> None:
    assert set(everything["services"]) == {
        "now", "later", "choosy", "ruled", "gentle", "strict", "never-held", "once", "nginx",
        r"foo\x2dbar@1",
        *OWN,
    }  # fmt: skip


def test_boots_are_counted_where_they_are_to_be_judged() -> None:
    assert "healer-boot" in render('{ agents.a.command = [ "/a" ]; }')["services"]
    for off in ("bootTries = null", "enable = false"):
        declared = f'{{ agents.a.command = [ "/a" ]; safeSwitch.{off}; }}'
        assert "healer-boot" not in render(declared)["services"]


def test_who_is_not_safe_to_roll_back_is_told_to_the_boot() -> None:
    declared = render(
        '{ agents = { a.command = [ "/a" ]; b = { command = [ "/b" ]; rollbackSafe = false; }; }; }'
    )
    command = declared["services"]["healer-boot"]["serviceConfig"]["ExecStart"]
    assert command.endswith("/healer-known-good /nix/var/nix/gcroots/healer/known-good b")


@pytest.mark.parametrize(
    ("strategy", "part_of", "wants"),
    [
        ("one-for-one", ["", "", ""], ["", "", ""]),
        ("rest-for-one", ["", "a", "a q"], ["q c", "c", ""]),
        ("one-for-all", ["q c", "a c", "a q"], ["q c", "a c", "a q"]),
    ],
)
def test_a_group_is_dependencies_of_its_units(
    strategy: str, part_of: list[str], wants: list[str]
) -> None:
    rendered = render(
        f"""{{
          agents = {{ a.command = "/a"; b = {{ adopt = true; unit = "q.service"; }}; }};
          agents.c.command = "/c"; agents.alone.command = "/d";
          groups.g = {{ strategy = "{strategy}"; agents = [ "a" "b" "c" ]; }};
        }}"""
    )
    services = rendered["services"]

    def units(part: str) -> list[str]:
        each = (services[name][part] for name in ("a", "q", "c"))
        return [" ".join(unit.removesuffix(".service") for unit in found) for found in each]

    assert units("partOf") == part_of
    assert units("wants") == wants
    assert units("after") == ["network.target", "a", "network.target a q"]
    assert services["alone"]["partOf"] == services["alone"]["wants"] == []
    assert rendered["config"]["groups"] == {"g": {"strategy": strategy, "agents": ["a", "b", "c"]}}


@pytest.mark.parametrize(
    ("declaration", "path"),
    [
        ("{ agnets = { }; }", "services.healer: there is no option `agnets'"),
        ("{ agents.a.comand = 1; }", "services.healer.agents.a: there is no option `comand'"),
        (
            "{ agents.a = { adopt = true; restart.x = 1; }; }",
            "services.healer.agents.a.restart: there",
        ),
        ("{ agents.a = { }; }", "services.healer.agents.a.command is missing"),
        ("{ drift.interval = 1; }", "services.healer.drift: there is no option `interval'"),
        (
            "{ safeSwitch.gates = [ { purpose = 1; } ]; }",
            "services.healer.safeSwitch.gates: there is no option `purpose'",
        ),
    ],
)
def test_a_declaration_that_cannot_be_completed_is_refused(declaration: str, path: str) -> None:
    with pytest.raises(EvaluationError, match=re.escape(path)):
        render(declaration)


def test_python_and_nix_have_the_same_defaults() -> None:
    nix = evaluate("import @/nix/defaults.nix")

    def camel(struct: msgspec.Struct) -> Any:
        return json.loads(msgspec.json.encode(struct))

    restart = camel(Restart())
    assert restart.pop("delaySec") == nix["restartDelaySec"][nix["restart"].pop("policy")]
    assert restart.pop("policy") == "immediate"
    for only_pid_1_knows in ("delaySec", "factor", "jitterSec"):
        del nix["restart"][only_pid_1_knows]
    assert restart == nix["restart"]
    assert camel(Rule()) == nix["rule"]
    assert camel(CrashLoop()) == nix["crashLoop"]
    assert camel(AgentEscalation()) == nix["agentEscalation"]
    assert camel(Escalation()) == nix["escalation"]
    safe_switch = camel(SafeSwitch())
    assert safe_switch.pop("rebootWindow") == nix["rebootWindow"]
    del nix["safeSwitch"]["rebootWindow"]
    assert safe_switch == nix["safeSwitch"]
    assert camel(Drift()) == nix["drift"]
    assert camel(LedgerConfig()) == nix["ledger"]
    agent = camel(Agent(unit="a.service"))
    assert agent["stableSec"] == nix["agent"]["stableSec"]
    assert agent["journalLines"] == nix["agent"]["journalLines"]
    for option in ("rollbackSafe", "snapshot", "beforeRollback", "beforeRollbackTimeoutSec"):
        assert agent[option] == nix["agent"][option]
    http, tcp = camel(HttpCheck(name="a", url="b")), camel(TcpCheck(name="a", port=1))
    common = {*tcp} - {"type", "name", "host", "port"}
    assert common == {key for key, value in nix["health"].items() if value is not None}
    for key in common:
        assert http[key] == nix["health"][key]
    assert http["expectStatus"] == nix["healthExpectStatus"]
    assert tcp["host"] == nix["healthHost"]
    gate = camel(TcpGate(name="a", port=1))
    assert {key: value for key, value in nix["gate"].items() if value is not None} == {
        key: gate[key] for key in {*gate} - {"type", "name", "host", "port"}
    }
    config = Config(version=1)
    assert (config.state_dir, config.runtime_dir) == (nix["stateDir"], nix["runtimeDir"])
    assert str(holds.LASTING.parent) == nix["helperDir"]


def test_the_stamps_and_the_tmpfiles_mean_the_same_directory(everything: Any) -> None:
    directory = everything["tmpfiles"][1].split()[1]
    for script in ("stamp-start.sh", "stamp-stop.sh"):
        assert f"\nstamps={directory}\n" in (CHECKOUT / "nix" / script).read_text()
    last = everything["tmpfiles"][3].split()[1]
    assert f"\nlast={last}/$unit\n" in (CHECKOUT / "nix/stamp-stop.sh").read_text()
