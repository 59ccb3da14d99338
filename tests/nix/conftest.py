"""One declaration with everything in it, and what nix/render.nix makes of that."""

from typing import Any

import pytest

from tests.nix.evaluation import render

EVERYTHING = """{
  agents.now = { command = [ "/bin/now" ]; };
  agents.later = {
    command = "/bin/later --flag";
    restart = {
      policy = "exponential"; on = "failure"; delaySec = 0.25; maxDelaySec = 30; steps = 5;
    };
    user = "root"; workingDirectory = "/srv"; stateDirectory = "later";
    environment.A = "b";
    health = [
      { name = "web"; type = "http"; url = "http://127.0.0.1:8080/"; }
      { name = "port"; type = "tcp"; port = 8080; intervalSec = 0.5; }
      { name = "self"; type = "command"; command = [ "/bin/true" ]; }
      {
        name = "tls"; type = "http"; url = "https://a/"; caFile = "/ca.pem"; bodyContains = "ok";
        bodyMatches = "o.*k"; purpose = "readiness"; successThreshold = 2;
      }
      { name = "any"; type = "http"; url = "https://a/"; insecure = true; purpose = "startup"; }
      { name = "bound"; type = "listen"; port = 80; }
      { name = "log"; type = "log"; pattern = "FATAL"; }
      { name = "memory"; type = "memory"; maxBytes = 1000000; }
      { name = "fresh"; type = "file"; path = "/run/x"; maxAgeSec = 30; }
    ];
  };
  agents.choosy = {
    command = [ "/bin/choosy" ];
    restart = {
      policy = "conditional"; delaySec = 2;
      rules = [
        { exitCodes = [ 3 4 ]; signals = [ "SIGABRT" ]; action = "stop"; }
        { exitCodes = [ 0 ]; action = "restart"; }
      ];
    };
  };
  agents.ruled = {
    command = [ "/bin/ruled" ]; stableSec = 30;
    restart = {
      policy = "conditional"; delaySec = 0.2; maxDelaySec = 3.2; steps = 2;
      rules = [
        { exitCodes = [ 78 ]; action = "stop"; }
        { exitCodes = [ 7 ]; action = "restart"; delaySec = 30; }
        { signals = [ "SIGKILL" ]; action = "restart"; }
        { classes = [ "oom" ]; signals = [ "SIGRTMAX-2" ]; action = "backoff"; }
        { classes = [ "watchdog" "health" ]; action = "escalate"; }
        { exitCodes = [ 9 ]; action = "rollback"; }
      ];
    };
  };
  agents.gentle = {
    command = [ "/bin/gentle" ];
    restart = {
      policy = "conditional"; otherwise = "backoff"; rules = [ { exitCodes = [ 78 ]; } ];
    };
  };
  agents.strict = {
    command = [ "/bin/strict" ];
    restart = {
      policy = "conditional"; otherwise = "stop";
      rules = [ { exitCodes = [ 75 ]; action = "restart"; } ];
    };
  };
  agents.never-held = { command = [ "/bin/n" ]; escalation.enable = false; };
  agents.once = {
    command = [ "/bin/once" ]; restart.policy = "never"; watchdogSec = 20;
    serviceConfig.Type = "simple";
  };
  agents.nginx = {
    adopt = true; watchdogSec = 0.5; escalation = { quarantineSec = 90.5; maxQuarantines = 0; };
  };
  agents.odd = { adopt = true; unit = "foo\\\\x2dbar@1.service"; };
  escalation = { reboot = true; maxRebootsPerDay = 2; };
  safeSwitch.gates = [
    { name = "front"; type = "http"; url = "https://a/"; insecure = true; }
    { name = "port"; type = "tcp"; port = 443; failureThreshold = 1; }
    { name = "bound"; type = "listen"; port = 80; }
    { name = "own"; type = "command"; command = [ "/bin/true" ]; timeoutSec = 30; }
    { name = "proxy"; type = "unit"; unit = "nginx.service"; intervalSec = 0.5; }
    { name = "net"; type = "network"; gateway = true; addresses = [ "::1" ]; sshd = 22; }
  ];
  drift.ignore = [ { path = "/etc/x*"; reason = "a test"; } ];
}"""


@pytest.fixture(scope="session")
def everything() -> Any:
    return render(EVERYTHING)
