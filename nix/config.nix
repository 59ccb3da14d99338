# The config file's content, of a complete services.healer value; see ./render.nix.
{
  cfg,
  package,
  unitOf,
  lastCrash,
}:
let
  inherit (builtins) mapAttrs;
  defaults = import ./defaults.nix;
  inherit (import ./restart.nix) delayOf stepsOf;

  # What a health check and a gate of the same type look at.
  lookConfig = check: {
    http = {
      inherit (check)
        url
        bodyContains
        bodyMatches
        caFile
        ;
      expectStatus =
        if check.expectStatus == null then defaults.healthExpectStatus else check.expectStatus;
      insecure = check.insecure == true;
    };
    tcp = {
      host = if check.host == null then defaults.healthHost else check.host;
      inherit (check) port;
    };
    listen = {
      inherit (check) host port;
    };
    command = {
      inherit (check) command;
    };
  };

  gateConfig =
    gate:
    {
      inherit (gate)
        name
        type
        intervalSec
        timeoutSec
        failureThreshold
        ;
    }
    // (
      lookConfig gate
      // {
        unit = {
          inherit (gate) unit;
        };
        network = {
          inherit (gate) interface sshd;
          defaultRoute = gate.defaultRoute == true;
          gateway = gate.gateway == true;
          addresses = if gate.addresses == null then [ ] else gate.addresses;
        };
      }
    ).${gate.type};

  checkConfig =
    check:
    let
      common = {
        inherit (check)
          name
          type
          purpose
          intervalSec
          timeoutSec
          failureThreshold
          successThreshold
          startGraceSec
          ;
      };
    in
    common
    // (
      lookConfig check
      // {
        log = {
          inherit (check) pattern;
        };
        memory = {
          inherit (check) maxBytes;
        };
        file = {
          inherit (check) path maxAgeSec;
        };
      }
    ).${check.type};

  agentConfig = name: agent: {
    unit = unitOf name agent;
    restart = {
      inherit (agent.restart)
        policy
        on
        maxDelaySec
        otherwise
        ;
      steps = stepsOf agent.restart;
      delaySec = delayOf agent.restart;
      rules = map (rule: {
        inherit (rule)
          exitCodes
          signals
          classes
          action
          delaySec
          ;
      }) agent.restart.rules;
    };
    crashLoop = {
      inherit (agent.crashLoop) maxCrashes windowSec earlyDeathSec;
    };
    escalation = {
      inherit (agent.escalation) enable quarantineSec maxQuarantines;
    };
    inherit (agent)
      stableSec
      journalLines
      breadcrumb
      rollbackSafe
      snapshot
      beforeRollback
      beforeRollbackTimeoutSec
      ;
    lastCrash = lastCrash.tells agent;
    health = map checkConfig agent.health;
  };
in
{
  version = 1;
  package = "${package}";
  inherit (defaults) stateDir runtimeDir;
  agents = mapAttrs agentConfig cfg.agents;
  groups = mapAttrs (_name: group: { inherit (group) strategy agents; }) cfg.groups;
  escalation = {
    inherit (cfg.escalation) reboot maxRebootsPerDay;
  };
  safeSwitch = {
    inherit (cfg.safeSwitch)
      enable
      probationSec
      profile
      timeoutSec
      condemned
      maxRollbacksPerDay
      keep
      lockTimeoutSec
      reboot
      bootTries
      ;
    rebootWindow = { inherit (cfg.safeSwitch.rebootWindow) lower upper; };
    gates = map gateConfig cfg.safeSwitch.gates;
  };
  drift = {
    inherit (cfg.drift) enable intervalSec;
    ignore = map (entry: { inherit (entry) path reason; }) cfg.drift.ignore;
  };
  ledger = {
    inherit (cfg.ledger) origin keyCredential;
  };
}
