# healer's own units, of a complete services.healer value; see ./render.nix.
{
  cfg,
  package,
  shell,
  bootScript,
  configFile,
  keptConfigFile,
}:
let
  inherit (builtins) attrNames concatStringsSep filter;
  defaults = import ./defaults.nix;
  inherit (import ./restart.nix) duration;

  optional = condition: set: if condition then set else { };

  config = "--config ${configFile} --kept-config ${keptConfigFile}";

  # A switch to a system without healer takes the files of its units away, and at the daemon-reload
  # PID 1 forgets a socket without a file, with its descriptor, and takes no more word from a service
  # without one, which it then ends for its watchdog. The daemon lives on, and has to find root's
  # helper: so there are copies where the system does not put any. A healer that dies is started by
  # these, too, and reads the configuration that is kept in the store.
  keep = unit: [
    "r /run/systemd/system/${unit} - - - - -"
    "C /run/systemd/system/${unit} - - - - /etc/systemd/system/${unit}"
  ];

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
      ExecStart = "${package}/bin/healer daemon ${config}";
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
      # With a thousand agents it needs an eighth of this. What leaks takes itself down, not the host.
      MemoryMax = "512M";
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
      ExecStart = "${package}/bin/healer helper ${config}";
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

  helperSocket = {
    description = "healer: privileged requests";
    wantedBy = [ "sockets.target" ];
    unitConfig.X-StopOnRemoval = false;
    socketConfig = {
      ListenStream = "${defaults.runtimeDir}/helper.sock";
      Accept = true;
      SocketUser = "healer";
      SocketMode = "0600";
    };
  };

  # NixOS runs systemd-tmpfiles in a switch only where its rules have changed: so they do whenever
  # the units do, and no copy is out of date.
  version = builtins.hashString "sha256" (
    builtins.toJSON [
      healerService
      helperService
      helperSocket
    ]
  );

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
      ExecStart = concatStringsSep " " (
        [
          shell
          bootScript
          "/run/booted-system"
          defaults.helperDir
          (toString cfg.safeSwitch.bootTries)
          cfg.safeSwitch.profile
          defaults.knownGood
          defaults.knownGoodRoots
        ]
        ++ filter (name: !cfg.agents.${name}.rollbackSafe) (attrNames cfg.agents)
      );
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
in
{
  services = {
    healer = healerService;
    "healer-helper@" = helperService;
  }
  // optional cfg.safeSwitch.enable { healer-boot-complete = bootCompleteService; }
  // optional (cfg.safeSwitch.enable && cfg.safeSwitch.bootTries != null) {
    healer-boot = bootService;
  };

  sockets.healer-helper = helperSocket;

  # Root writes and removes the stamps: the healer user must not be able to put a link in their
  # place. The outer directory is sticky, so that the healer user replaces its own files there only.
  tmpfiles = [
    "d ${defaults.runtimeDir} 1775 root healer -"
    "d ${defaults.runtimeDir}/stamps 0755 root root -"
    "d ${defaults.runtimeDir}/holds 0755 root root -"
    "d ${defaults.runtimeDir}/last 0755 root root -"
    "d /run/healer-agents 0755 root root -"
  ]
  ++ keep "healer.service"
  ++ keep "healer-helper.socket"
  ++ keep "healer-helper@.service"
  ++ [ "# The units above: ${version}" ];
}
