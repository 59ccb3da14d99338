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
  # The directory of systemctl and systemd-run, for the stop stamp of an agent with rules.
  systemd ? "/usr/bin",
}:
let
  inherit (builtins)
    attrNames
    concatMap
    concatStringsSep
    elem
    filter
    floor
    isList
    isString
    listToAttrs
    mapAttrs
    replaceStrings
    stringLength
    substring
    toJSON
    ;

  defaults = import ./defaults.nix;
  inherit (import ./restart.nix)
    adoptedRestartConfig
    delayOf
    duration
    milliseconds
    restartConfig
    rulesOf
    stepsOf
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
        systemd
        "${shell} ${restartLater}"
      ]
      ++ rules;
      stop = [
        "+${shell} ${stopStamp} %n ${milliseconds agent.stableSec}"
      ]
      ++ (if rules == [ ] then [ ] else map quote carryOut);
    in
    {
      ExecStartPost = [ "+${shell} ${startStamp} %n" ] ++ toList (extra.ExecStartPost or [ ]);
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

  # A switch must neither stop nor restart healer: it would kill what judges the switch. The daemon
  # sees that its package changed and exits, and Restart=always starts the new one.
  survivesSwitch = {
    restartIfChanged = false;
    adopted = false;
  };

  healerService = survivesSwitch // {
    description = "healer: watches the agents, judges deployments, keeps the ledger";
    wantedBy = [ "multi-user.target" ];
    after = [
      "dbus.socket"
      "systemd-journald.socket"
    ];
    environment = { };
    unitConfig = {
      StartLimitIntervalSec = 0;
      X-StopOnRemoval = false;
    };
    serviceConfig = {
      Type = "notify";
      User = "healer";
      Group = "healer";
      SupplementaryGroups = "systemd-journal";
      ExecStart = "${package}/bin/healer daemon --config ${configFile}";
      # PID 1 sends the signal; there is no kill(1) to find on the way.
      ExecReload = "${shell} -c 'kill -HUP $MAINPID'";
      WatchdogSec = "10s";
      Restart = "always";
      # What only a person can mend (a corrupt ledger, say) is tried again, but not in a frenzy.
      RestartSec = "100ms";
      RestartSteps = 8;
      RestartMaxDelaySec = "30s";
      StateDirectory = "healer";
      StateDirectoryMode = "0750";
      OOMScoreAdjust = -900;
      # On a host that is overloaded (a fork storm, say) it has to look all the same.
      Nice = -10;
      # A descriptor for each agent's main process, and one for each check under way.
      LimitNOFILE = 65536;
      # It must still see other processes, the cgroups, the journal, the bus and inet sockets.
      CapabilityBoundingSet = "";
      LockPersonality = true;
      NoNewPrivileges = true;
      PrivateDevices = true;
      PrivateTmp = true;
      ProtectClock = true;
      ProtectControlGroups = true;
      ProtectHome = true;
      ProtectHostname = true;
      ProtectKernelLogs = true;
      ProtectKernelModules = true;
      ProtectKernelTunables = true;
      ProtectSystem = "strict";
      ReadWritePaths = defaults.runtimeDir;
      RestrictAddressFamilies = "AF_UNIX AF_INET AF_INET6 AF_NETLINK";
      RestrictNamespaces = true;
      RestrictRealtime = true;
      RestrictSUIDSGID = true;
      SystemCallArchitectures = "native";
    }
    // optional (cfg.ledger.keyCredential != null) { ImportCredential = cfg.ledger.keyCredential; };
  };

  # Root's side: one request on standard input, a fixed set of verbs, gone afterwards.
  helperService = survivesSwitch // {
    description = "healer: one privileged request";
    wantedBy = [ ];
    after = [ ];
    environment = { };
    unitConfig = {
      CollectMode = "inactive-or-failed";
      X-StopOnRemoval = false;
    };
    serviceConfig = {
      ExecStart = "${package}/bin/healer helper --config ${configFile}";
      StandardInput = "socket";
      StandardOutput = "socket";
      StandardError = "journal";
      # As healer.service: who mends an overloaded host comes before what overloads it.
      OOMScoreAdjust = -900;
      Nice = -10;
      LockPersonality = true;
      NoNewPrivileges = true;
      RestrictAddressFamilies = "AF_UNIX";
      RestrictRealtime = true;
      SystemCallArchitectures = "native";
    };
  };

  # Of a shell, early in the boot and with nothing of healer's own: it has to work where a generation
  # has broken all of that.
  bootService = survivesSwitch // {
    description = "healer: go back from a system that does not come up";
    wantedBy = [ "sysinit.target" ];
    after = [
      "local-fs.target"
      "systemd-journald.socket"
    ];
    before = [ "sysinit.target" ];
    environment = { };
    unitConfig = {
      DefaultDependencies = false;
      X-StopOnRemoval = false;
    };
    serviceConfig = {
      Type = "oneshot";
      RemainAfterExit = true;
      ExecStart =
        "${shell} ${bootScript} ${defaults.helperDir} ${toString cfg.safeSwitch.bootTries} "
        + "${cfg.safeSwitch.profile} ${defaults.knownGood}";
      TimeoutStartSec = duration cfg.safeSwitch.timeoutSec;
    };
  };

  # With a boot loader that counts boots (systemd-boot, lanzaboote) a boot is complete, and the entry
  # blessed, only once every agent is up. Without one nothing asks for this target.
  bootCompleteService = survivesSwitch // {
    description = "healer: wait until every agent is up";
    wantedBy = [ ];
    requiredBy = [ "boot-complete.target" ];
    after = [ "healer.service" ];
    before = [ "boot-complete.target" ];
    environment = { };
    unitConfig.X-StopOnRemoval = false;
    serviceConfig = {
      Type = "oneshot";
      RemainAfterExit = true;
      ExecStart = "${shell} -c 'until [ -e ${defaults.runtimeDir}/up ]; do sleep 1; done'";
      TimeoutStartSec = "10min";
    };
  };

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
    adopted = agent.adopt;
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

  config = {
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
  };
in
{
  inherit config;
  # JSON is YAML, and quotes every key.
  configText = toJSON config;

  services = agentServices // {
    healer = healerService;
    "healer-helper@" = helperService;
  }
  // optional cfg.safeSwitch.enable { healer-boot-complete = bootCompleteService; }
  // optional (cfg.safeSwitch.enable && cfg.safeSwitch.bootTries != null) {
    healer-boot = bootService;
  };

  sockets.healer-helper = {
    description = "healer: privileged requests";
    wantedBy = [ "sockets.target" ];
    socketConfig = {
      ListenStream = "${defaults.runtimeDir}/helper.sock";
      Accept = true;
      SocketUser = "healer";
      SocketMode = "0600";
    };
  };

  # Root writes and removes the stamps: the healer user must not be able to put a link in their
  # place. The outer directory is sticky, so that the healer user replaces its own files there only.
  tmpfiles = [
    "d ${defaults.runtimeDir} 1775 root healer -"
    "d ${defaults.runtimeDir}/stamps 0755 root root -"
    "d ${defaults.runtimeDir}/holds 0755 root root -"
    "d ${defaults.runtimeDir}/last 0755 root root -"
    "d /run/healer-agents 0755 root root -"
  ]
  ++ concatMap (name: lastCrash.tmpfiles name cfg.agents.${name}) (attrNames cfg.agents);
}
