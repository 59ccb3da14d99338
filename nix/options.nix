# What a person may declare. Defaults come from ./defaults.nix; what types cannot say is in
# ./assertions.nix.
{
  config,
  lib,
  ...
}:
let
  inherit (lib) mkOption types;
  defaults = import ./defaults.nix;

  # Seconds may have a fraction.
  positiveSeconds = types.numbers.positive;

  timeOfDay = types.strMatching "([01][0-9]|2[0-3]):[0-5][0-9]" // {
    description = "time of day, HH:MM";
  };

  rebootWindow.options = {
    lower = mkOption {
      type = timeOfDay;
      default = defaults.rebootWindow.lower;
      description = "Not before this.";
    };
    upper = mkOption {
      type = timeOfDay;
      default = defaults.rebootWindow.upper;
      description = "Not from this on.";
    };
  };

  ignore.options = {
    path = mkOption {
      type = types.strMatching "/.*" // {
        description = "pattern of absolute paths";
      };
      example = "/etc/foo/*";
      description = "Paths, as a pattern of {manpage}`fnmatch(3)`.";
    };
    reason = mkOption {
      type = types.str;
      example = "rewritten by its own daemon";
      description = "Why these may differ from the declaration. Obligatory.";
    };
  };

  group.options = {
    strategy = mkOption {
      type = types.enum [
        "one-for-one"
        "rest-for-one"
        "one-for-all"
      ];
      default = defaults.group.strategy;
      description = ''
        Which agents are restarted when one of them crashes and is restarted, as in the supervisors
        of Erlang's OTP. Agents that are up go on until that restart.

        - `one-for-one`: only that one.
        - `rest-for-one`: that one and those behind it in {option}`agents`.
        - `one-for-all`: all of them.

        Stopping an agent stops those that are restarted with it, and starting it starts them:
        that goes for a quarantine, too.
      '';
    };
    agents = mkOption {
      type = types.nonEmptyListOf types.str;
      description = "Names of the agents, in the order in which they start.";
    };
  };
in
{
  options.services.healer = {
    enable = lib.mkEnableOption "healer, which restarts agents, rolls bad deployments back, notices drift and keeps a signed ledger of it all";

    package = mkOption {
      type = types.package;
      defaultText = lib.literalMD "the package of healer's flake";
      description = "The healer package.";
    };

    agents = mkOption {
      type = types.attrsOf (types.submodule (import ./agent-options.nix { inherit lib; }));
      default = defaults.top.agents;
      example = lib.literalExpression ''
        {
          worker = {
            command = [ (lib.getExe pkgs.worker) ];
            stateDirectory = "worker";
            restart.policy = "exponential";
          };
          nginx.adopt = true;
        }
      '';
      description = "The services to supervise, by name.";
    };

    escalation = {
      reboot = mkOption {
        type = types.bool;
        default = defaults.escalation.reboot;
        description = ''
          Whether healer may reboot the host into the last known-good system when an agent has
          been through all its quarantines and still crashes. Every agent goes down with it. Where
          another system runs, it is not done under an agent with `rollbackSafe = false` or hooks.
        '';
      };
      maxRebootsPerDay = mkOption {
        type = types.ints.between 1 1000;
        default = defaults.escalation.maxRebootsPerDay;
        description = "Number of such reboots in any 24 hours, for all agents together; one that root refuses counts.";
      };
    };

    groups = mkOption {
      type = types.attrsOf (types.submodule group);
      default = defaults.top.groups;
      example = {
        pipeline = {
          strategy = "rest-for-one";
          agents = [
            "source"
            "filter"
            "sink"
          ];
        };
      };
      description = ''
        Agents that belong together. A group is rendered into dependencies of the units, so systemd
        carries it out even when healer is dead. An agent is in one group at most.
      '';
    };

    safeSwitch = {
      enable = mkOption {
        type = types.bool;
        default = defaults.safeSwitch.enable;
        description = ''
          Whether to judge every deployment by the health of the agents, and to roll back to the
          last known-good one when they crash.
        '';
      };
      probationSec = mkOption {
        type = positiveSeconds;
        default = defaults.safeSwitch.probationSec;
        description = "Seconds that a deployment must stand to be known-good.";
      };
      profile = mkOption {
        type = types.strMatching "/.*" // {
          description = "absolute path";
        };
        default = defaults.safeSwitch.profile;
        description = "The profile whose generations are the deployments.";
      };
      timeoutSec = mkOption {
        type = positiveSeconds;
        default = defaults.safeSwitch.timeoutSec;
        description = "Seconds after which a rollback that is still running is ended.";
      };
      condemned = mkOption {
        type = types.enum [
          "warn"
          "zero-tolerance"
          "rollback"
        ];
        default = defaults.safeSwitch.condemned;
        description = ''
          What to do when a system is deployed again that was rolled back from, or that somebody
          condemned. It is recorded in any case. `warn` judges it like any other, `zero-tolerance`
          rolls it back after a single crash of an agent that it changed, `rollback` at once.
        '';
      };
      maxRollbacksPerDay = mkOption {
        type = types.ints.between 1 1000;
        default = defaults.safeSwitch.maxRollbacksPerDay;
        description = ''
          How many automatic rollbacks there may be in 24 hours of the host's running time. What is
          more than that is recorded, and left to a person.
        '';
      };
      keep = mkOption {
        type = types.ints.between 1 1000;
        default = defaults.safeSwitch.keep;
        description = ''
          How many known-good systems are kept from garbage collection, the newest, also from
          `nix-collect-garbage -d`; and the newest that has come up in a boot.
        '';
      };
      gates = mkOption {
        type = types.listOf (types.submodule (import ./gate-options.nix { inherit lib; }));
        default = defaults.safeSwitch.gates;
        example = [
          {
            name = "reachable";
            type = "network";
            defaultRoute = true;
            gateway = true;
            sshd = 22;
          }
          {
            name = "proxy";
            type = "unit";
            unit = "nginx.service";
          }
        ];
        description = ''
          What must hold on the host, beside the agents' own health, for a deployment to stand its
          probation. `healer safeswitch run` judges by them as well.
        '';
      };
      lockTimeoutSec = mkOption {
        type = positiveSeconds;
        default = defaults.safeSwitch.lockTimeoutSec;
        description = ''
          Seconds that a switch-to-configuration may hold its lock before healer says so, and that a
          rollback waits for it before it is given up.
        '';
      };
      reboot = mkOption {
        type = types.enum [
          "never"
          "at-once"
          "window"
        ];
        default = defaults.safeSwitch.reboot;
        description = ''
          Whether healer may reboot the host for a rollback that no live switch can do: across a
          switch inhibitor or another kernel, or where switch-to-configuration asks for it. The
          known-good system is made the one that boots in any case; with `never` somebody else has
          to reboot, with `window` healer waits for {option}`safeSwitch.rebootWindow`.
        '';
      };
      rebootWindow = mkOption {
        type = types.submodule rebootWindow;
        default = defaults.safeSwitch.rebootWindow;
        description = "When healer may reboot the host, in local time; may go over midnight.";
      };
      bootTries = mkOption {
        type = types.nullOr (types.ints.between 1 100);
        default = defaults.safeSwitch.bootTries;
        description = ''
          How many boots a system has to come up in, with every agent running and ready, that is not
          known to be good, or is so but has never come up in a boot. After so many that failed, the
          next one goes back to a known-good system, before anything else is started, by a reboot.
          `null`: never. What fails before that (boot loader, kernel, initrd) takes the boot counting
          of the boot loader.
        '';
      };
    };

    drift = {
      enable = mkOption {
        type = types.bool;
        default = defaults.drift.enable;
        description = "Whether to compare the machine with its declaration.";
      };
      intervalSec = mkOption {
        type = types.addCheck positiveSeconds (value: value >= 0.1) // {
          description = "number of at least 0.1";
        };
        default = defaults.drift.intervalSec;
        description = "Seconds from one full comparison to the next. Events make it faster.";
      };
      ignore = mkOption {
        type = types.listOf (types.submodule ignore);
        default = defaults.drift.ignore;
        description = "What may differ, and why.";
      };
    };

    ledger = {
      origin = mkOption {
        type = types.str;
        default =
          if config.networking.hostName == "" then
            defaults.ledger.origin
          else
            "healer/${config.networking.hostName}";
        defaultText = lib.literalExpression ''"healer/''${config.networking.hostName}"'';
        example = "example.org/hosts/alpha";
        description = ''
          Name of the ledger in its signatures (a key name of C2SP signed-note). Make it unique
          among all ledgers that an auditor sees.
        '';
      };
      keyCredential = mkOption {
        type = types.nullOr types.str;
        default = defaults.ledger.keyCredential;
        example = "healer-ledger-key";
        description = ''
          Name of the system credential that holds the signing key, such as a file below
          {file}`/etc/credstore.encrypted`; see `ImportCredential=` in {manpage}`systemd.exec(5)`.
          `null` has healer make a key at its first start.
        '';
      };
    };
  };
}
