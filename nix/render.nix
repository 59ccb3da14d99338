# From a complete services.healer value to the config file and the systemd units. Builtins only, so
# that NixOS (through module.nix) and the local test machine run the very same units.
#
# Values of unitConfig, serviceConfig and socketConfig are strings, integers, booleans, or lists of
# these, which stand for one assignment each, in order.
{
  # services.healer with every default filled in: by the module system, or by ./complete.nix.
  cfg,
  # healer's installation prefix: ${package}/bin/healer is the program.
  package,
  # A POSIX sh for the stamps. Small is fast: it is on the restart path of every agent.
  shell ? "/bin/sh",
  startStamp ? "${./stamp-start.sh}",
  stopStamp ? "${./stamp-stop.sh}",
  bootScript ? "${./boot.sh}",
  stampRules ? "${./stamp-rules.sh}",
  restartLater ? "${./restart-later.sh}",
  lastCrashScript ? "${./last-crash.sh}",
  # A file with the text of the configuration that stays where it is whatever system runs.
  keptConfigFile ? "/etc/healer/config.yaml",
  # The directory of systemctl and systemd-run, for the stop stamp of an agent with rules.
  systemd ? "/usr/bin",
}:
let
  inherit (builtins)
    attrNames
    concatMap
    concatStringsSep
    elem
    isList
    isString
    listToAttrs
    replaceStrings
    stringLength
    substring
    toJSON
    ;

  defaults = import ./defaults.nix;
  inherit (import ./restart.nix)
    adoptedRestartConfig
    duration
    milliseconds
    restartConfig
    rulesOf
    ;
  configFile = "/etc/healer/config.yaml";

  optional = condition: set: if condition then set else { };
  toList = value: if isList value then value else [ value ];

  # One argument of systemd.service(5)'s command lines: quoted, and safe from % and $ expansion.
  quote = argument: replaceStrings [ "%" "$" ] [ "%%" "$$" ] (toJSON (toString argument));
  commandLine =
    command: if isString command then command else concatStringsSep " " (map quote command);

  lastCrash = import ./last-crash.nix {
    inherit shell quote;
    script = lastCrashScript;
  };

  unitOf = name: agent: if agent.unit == null then "${name}.service" else agent.unit;
  serviceOf =
    name: agent:
    let
      unit = unitOf name agent;
    in
    substring 0 (stringLength unit - stringLength ".service") unit;

  # What PID 1 runs after each start and each end, as root whatever the agent's user is.
  stamps =
    agent:
    let
      extra = agent.serviceConfig;
      rules = rulesOf agent.restart;
      carryOut = [
        stampRules
        "${shell} ${restartLater}"
      ]
      ++ rules;
      stop = [
        "+${shell} ${stopStamp} %n ${milliseconds agent.stableSec}"
        (quote systemd)
      ]
      ++ (if rules == [ ] then [ ] else map quote carryOut);
    in
    {
      # A stop in the middle of a start ends the stamp as well: that must not fail the unit ("-").
      ExecStartPost = [ "-+${shell} ${startStamp} %n" ] ++ toList (extra.ExecStartPost or [ ]);
      ExecStopPost = [
        (concatStringsSep " " stop)
      ]
      ++ lastCrash.atStop agent
      ++ toList (extra.ExecStopPost or [ ]);
    };

  # The heartbeat is systemd's own watchdog, so that it beats with healer dead.
  heartbeat =
    agent: optional (agent.watchdogSec != null) { WatchdogSec = duration agent.watchdogSec; };

  supervisedUnitConfig = {
    # Giving up is healer's explicit decision, never a rate limit's.
    StartLimitIntervalSec = 0;
    # Held back: for a time, which PID 1's own timer ends, or given up, until somebody releases it.
    # A condition costs no process.
    ConditionPathExists = [
      "!${defaults.runtimeDir}/holds/%n"
      "!${defaults.helperDir}/holds/%n"
    ];
  };

  dependenciesOf = import ./groups.nix {
    inherit (cfg) groups;
    # A name that is no agent is refused by assertions.nix or by healer itself.
    unitOf = name: unitOf name (cfg.agents.${name} or defaults.agent);
  };

  ownService = name: agent: {
    description =
      if agent.description == null then "Agent ${name}, supervised by healer" else agent.description;
    wantedBy = [ "multi-user.target" ];
    after = [ "network.target" ];
    environment = agent.environment;
    unitConfig = supervisedUnitConfig;
    serviceConfig =
      # A missing command is refused by assertions.nix or complete.nix, which know its name.
      optional (agent.command != null) (lastCrash.own name agent (commandLine agent.command))
      // optional (agent.user == null) { DynamicUser = true; }
      // optional (agent.user != null) { User = agent.user; }
      // optional (agent.group != null) { Group = agent.group; }
      // optional (agent.workingDirectory != null) { WorkingDirectory = agent.workingDirectory; }
      // optional (agent.stateDirectory != null) { StateDirectory = agent.stateDirectory; }
      # Any process of the agent may say what it is doing (STATUS=); Type=notify keeps its own rule.
      //
        optional
          (
            !elem (agent.serviceConfig.Type or "exec") [
              "notify"
              "notify-reload"
            ]
          )
          {
            NotifyAccess = "all";
          }
      // agent.serviceConfig
      // stamps agent
      // heartbeat agent
      // restartConfig agent.restart;
    adopted = false;
  };

  adoptedService =
    name: agent:
    let
      told = lastCrash.adopted name agent;
    in
    {
      description = null;
      wantedBy = [ ];
      after = [ ];
      environment = told.environment // agent.environment;
      unitConfig = supervisedUnitConfig;
      serviceConfig =
        agent.serviceConfig
        // told.serviceConfig
        // stamps agent
        // heartbeat agent
        // adoptedRestartConfig agent.restart;
      adopted = true;
    };

  withGroup =
    name: service:
    let
      dependencies = dependenciesOf name;
    in
    service // dependencies // { after = service.after ++ dependencies.after; };

  agentServices = listToAttrs (
    map (
      name:
      let
        agent = cfg.agents.${name};
      in
      {
        name = serviceOf name agent;
        value = withGroup name ((if agent.adopt then adoptedService else ownService) name agent);
      }
    ) (attrNames cfg.agents)
  );

  own = import ./own-units.nix {
    inherit
      cfg
      package
      shell
      bootScript
      configFile
      keptConfigFile
      ;
  };

  config = import ./config.nix {
    inherit
      cfg
      package
      unitOf
      lastCrash
      ;
  };
in
{
  inherit config;
  # JSON is YAML, and quotes every key.
  configText = toJSON config;

  services = agentServices // own.services;
  inherit (own) sockets;
  tmpfiles =
    own.tmpfiles ++ concatMap (name: lastCrash.tmpfiles name cfg.agents.${name}) (attrNames cfg.agents);
}
