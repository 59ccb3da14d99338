# The options of one agent; see ./options.nix.
{ lib }:
let
  inherit (lib) mkOption types;
  defaults = import ./defaults.nix;

  # Seconds may have a fraction.
  seconds = types.numbers.nonnegative;
  positiveSeconds = types.numbers.positive;

  restart.options = {
    policy = mkOption {
      type = types.enum [
        "immediate"
        "exponential"
        "conditional"
        "never"
      ];
      default = defaults.restart.policy;
      description = ''
        How a run that ended is followed by the next. The policy is rendered into the unit, so
        systemd carries it out even when healer is dead.

        - `immediate`: at once.
        - `exponential`: after {option}`delaySec`, which grows over {option}`steps` restarts to
          {option}`maxDelaySec`.
        - `conditional`: as the first of {option}`rules` says that is about the exit code, signal
          or class, and as {option}`otherwise` says for the rest.
        - `never`: the agent stays down.
      '';
    };
    on = mkOption {
      type = types.enum [
        "always"
        "failure"
      ];
      default = defaults.restart.on;
      description = ''
        Whether a clean exit is followed by a restart as well (`always`), or only a failure
        (`failure`). A failed health check is one, however cleanly the agent then leaves.
      '';
    };
    delaySec = mkOption {
      type = types.nullOr seconds;
      default = defaults.restart.delaySec;
      defaultText = lib.literalMD "0.1 if the policy is `exponential`, else 0";
      example = 0.5;
      description = "Seconds before a restart; with `exponential`, before the first one.";
    };
    maxDelaySec = mkOption {
      type = positiveSeconds;
      default = defaults.restart.maxDelaySec;
      description = "Seconds that the delay of `exponential` grows to.";
    };
    steps = mkOption {
      type = types.ints.between 1 1000;
      default = defaults.restart.steps;
      description = ''
        Number of restarts over which the delay of `exponential` grows, each time by the same
        factor.
      '';
    };
    factor = mkOption {
      type = types.nullOr (
        types.addCheck types.numbers.positive (value: value > 1) // {
          description = "number of more than 1";
        }
      );
      default = defaults.restart.factor;
      example = 2;
      description = ''
        By what the delay of `exponential` grows with each restart, instead of {option}`steps`:
        as many of these are rendered as it takes to {option}`maxDelaySec`, so the last of them
        may be smaller.
      '';
    };
    jitterSec = mkOption {
      type = types.nullOr positiveSeconds;
      default = defaults.restart.jitterSec;
      example = 1;
      description = ''
        Seconds up to which each of systemd's own delays is longer by chance, so that agents that
        died together do not start together (`RestartRandomizedDelaySec=` in
        {manpage}`systemd.service(5)`). Needs systemd 262.
      '';
    };
    rules = mkOption {
      type = types.listOf (types.submodule rule);
      default = defaults.restart.rules;
      example = [
        {
          exitCodes = [ 78 ];
          action = "stop";
        }
        {
          classes = [ "oom" ];
          action = "restart";
          delaySec = 30;
        }
      ];
      description = ''
        What the policy `conditional` does after which exit code, signal or class of crash. The
        first rule that is about the end counts. All of them hold with healer dead: systemd carries
        out what it can by its own settings, and a stop command of PID 1's does the rest.
      '';
    };
    otherwise = mkOption {
      type = types.enum [
        "restart"
        "backoff"
        "stop"
      ];
      default = defaults.restart.otherwise;
      description = ''
        What the policy `conditional` does where no rule says anything: restart after
        {option}`delaySec`, after a delay that grows as with `exponential`, or not at all.
      '';
    };
  };

  rule.options = {
    exitCodes = mkOption {
      type = types.listOf (types.ints.between 0 255);
      default = defaults.rule.exitCodes;
      example = [ 78 ];
      description = "Exit codes that the rule is about.";
    };
    signals = mkOption {
      type = types.listOf (types.strMatching "SIG[A-Z0-9]+([+-][0-9]+)?");
      default = defaults.rule.signals;
      example = [ "SIGABRT" ];
      description = "Signals that the rule is about, by their names in {manpage}`signal(7)`.";
    };
    classes = mkOption {
      type = types.listOf (
        types.enum [
          "oom"
          "watchdog"
          "core-dump"
          "timeout"
          "health"
        ]
      );
      default = defaults.rule.classes;
      example = [ "oom" ];
      description = ''
        Classes of crash that the rule is about: killed because memory ran out, a missed
        {option}`watchdogSec`, a core dump, a start or stop that took too long, killed because a
        health check failed.
      '';
    };
    action = mkOption {
      type = types.enum [
        "restart"
        "backoff"
        "stop"
        "escalate"
        "rollback"
      ];
      default = defaults.rule.action;
      description = ''
        What follows such an end.

        - `restart`: the next run, after {option}`delaySec`.
        - `backoff`: the next run, after a delay that grows from {option}`restart.delaySec` (or
          0.1 s, if that is 0) to {option}`restart.maxDelaySec` with each crash in a row. A run of
          {option}`stableSec` begins it anew.
        - `stop`: the agent stays down.
        - `escalate`: as {option}`otherwise`, and healer takes its next step at once.
        - `rollback`: as {option}`otherwise`, and the crash-loop budget is spent at once: if the
          running deployment is in its probation, it is rolled back.
      '';
    };
    delaySec = mkOption {
      type = types.nullOr seconds;
      default = defaults.rule.delaySec;
      defaultText = lib.literalMD "{option}`restart.delaySec`";
      example = 30;
      description = "Seconds before the restart, with the action `restart`.";
    };
  };

  crashLoop.options = {
    maxCrashes = mkOption {
      type = types.ints.between 1 1000;
      default = defaults.crashLoop.maxCrashes;
      description = ''
        This many crashes within {option}`windowSec`, or early deaths in a row, are a crash loop.
        In a deployment's probation, a crash loop is the reason to roll back.
      '';
    };
    windowSec = mkOption {
      type = positiveSeconds;
      default = defaults.crashLoop.windowSec;
      description = "Seconds within which crashes are counted.";
    };
    earlyDeathSec = mkOption {
      type = seconds;
      default = defaults.crashLoop.earlyDeathSec;
      description = ''
        A run that crashed before this many seconds was an early death. A growing delay between
        restarts hides a loop from the window; early deaths in a row still show it.
      '';
    };
  };

  escalation.options = {
    enable = mkOption {
      type = types.bool;
      default = defaults.agentEscalation.enable;
      description = ''
        Whether healer takes further steps when the budget of {option}`crashLoop` is spent and the
        deployment is not to blame: quarantine, a reboot where
        {option}`services.healer.escalation.reboot` allows it, and giving up. Without it, systemd
        restarts the agent for ever. Write `false` for what must never be held back, such as the
        service that you log in by.
      '';
    };
    quarantineSec = mkOption {
      type = types.numbers.between 1 31536000 // {
        description = "number of at least 1";
      };
      default = defaults.agentEscalation.quarantineSec;
      description = ''
        Seconds for which the agent is held back in quarantine. systemd starts it again afterwards,
        also when healer is dead; its restarts and its budget begin anew.
      '';
    };
    maxQuarantines = mkOption {
      type = types.ints.between 0 1000000;
      default = defaults.agentEscalation.maxQuarantines;
      description = ''
        Number of quarantines without a recovery in between after which healer gives the agent up:
        it stays stopped, also over a reboot, until somebody releases it
        (`healer agent NAME release`).
      '';
    };
  };
in
{
  options = {
    unit = mkOption {
      type = types.nullOr types.str;
      default = defaults.agent.unit;
      defaultText = lib.literalMD "the agent's name with `.service`";
      example = "nginx.service";
      description = "The systemd service that is the agent.";
    };
    adopt = mkOption {
      type = types.bool;
      default = defaults.agent.adopt;
      description = ''
        Supervise a service that is declared elsewhere, instead of declaring one. Its restart
        settings are replaced by {option}`restart`.
      '';
    };
    command = mkOption {
      type = types.nullOr (types.either (types.nonEmptyListOf types.str) types.nonEmptyStr);
      default = defaults.agent.command;
      example = lib.literalExpression ''[ (lib.getExe pkgs.hello) "--greeting" "hi" ]'';
      description = ''
        What the agent runs: a list of the program and its arguments, taken literally, or a string
        in the syntax of `ExecStart=` in {manpage}`systemd.service(5)`.
      '';
    };
    description = mkOption {
      type = types.nullOr types.singleLineStr;
      default = defaults.agent.description;
      description = "Description of the unit.";
    };
    environment = mkOption {
      type = types.attrsOf types.str;
      default = defaults.agent.environment;
      example = {
        MODEL = "small";
      };
      description = "Environment of the agent. Readable by everybody: no secrets.";
    };
    user = mkOption {
      type = types.nullOr types.nonEmptyStr;
      default = defaults.agent.user;
      example = "worker";
      description = ''
        User that the agent runs as. `null` gives it a user of its own for as long as it runs
        (`DynamicUser=` in {manpage}`systemd.exec(5)`), which also makes the file system read-only
        to it outside of {option}`stateDirectory` and the like. Write `"root"` if it must be root.
      '';
    };
    group = mkOption {
      type = types.nullOr types.nonEmptyStr;
      default = defaults.agent.group;
      description = "Group that the agent runs as, if it is not its user's own.";
    };
    workingDirectory = mkOption {
      type = types.nullOr types.nonEmptyStr;
      default = defaults.agent.workingDirectory;
      example = "/var/lib/worker";
      description = "Directory that the agent starts in.";
    };
    stateDirectory = mkOption {
      type = types.nullOr types.nonEmptyStr;
      default = defaults.agent.stateDirectory;
      example = "worker";
      description = ''
        Name of a directory below {file}`/var/lib` that is made for the agent and kept between
        runs; the agent finds it in `$STATE_DIRECTORY`.
      '';
    };
    restart = mkOption {
      type = types.submodule restart;
      default = defaults.agent.restart;
      description = "Restart policy.";
    };
    crashLoop = mkOption {
      type = types.submodule crashLoop;
      default = defaults.agent.crashLoop;
      description = "How many crashes are a crash loop.";
    };
    escalation = mkOption {
      type = types.submodule escalation;
      default = defaults.agent.escalation;
      description = "What follows when the agent is in a crash loop.";
    };
    stableSec = mkOption {
      type = positiveSeconds;
      default = defaults.agent.stableSec;
      description = "Seconds that the agent must stay up after a crash to have recovered from it.";
    };
    lastCrash = mkOption {
      type = types.nullOr types.bool;
      default = defaults.agent.lastCrash;
      defaultText = lib.literalMD "true, but false with {option}`adopt` or a root directory of its own";
      description = ''
        Whether the agent finds, after a crash, how its last run ended: in the JSON file that
        `$HEALER_LAST_CRASH` names; see docs/agents.md. An adopted unit gets the file, in one more
        directory of its `RuntimeDirectory=`, and the variable at every start.
      '';
    };
    breadcrumb = mkOption {
      type = types.nullOr (types.strMatching "[A-Za-z0-9_][A-Za-z0-9_.-]*");
      default = defaults.agent.breadcrumb;
      example = "doing";
      description = ''
        Name of a file in the agent's state directory in which it writes down what it is doing. Its
        first 4096 bytes are part of the record of a crash, and of what its next run is told. After
        a crash this costs the start of a process before the restart.
      '';
    };
    health = mkOption {
      type = types.listOf (types.submodule (import ./health-options.nix { inherit lib; }));
      default = defaults.agent.health;
      example = [
        {
          name = "web";
          type = "http";
          url = "http://127.0.0.1:8080/health";
        }
      ];
      description = "Checks that the agent still does its work.";
    };
    journalLines = mkOption {
      type = types.ints.between 0 1000;
      default = defaults.agent.journalLines;
      description = "Number of last journal lines that the record of a crash keeps.";
    };
    watchdogSec = mkOption {
      type = types.nullOr positiveSeconds;
      default = defaults.agent.watchdogSec;
      example = 30;
      description = ''
        Heartbeat: seconds within which the agent must send `WATCHDOG=1` by {manpage}`sd_notify(3)`
        again and again, or systemd ends it and restarts it by its policy (`WatchdogSec=` in
        {manpage}`systemd.service(5)`). It holds with healer dead. The unit's `Type=` stays as it
        is: an agent that is not of the type `notify` can send heartbeats too.
      '';
    };
    rollbackSafe = mkOption {
      type = types.bool;
      default = defaults.agent.rollbackSafe;
      description = ''
        Whether a rollback may take the agent back to an older version by itself. `false` for one
        whose older version cannot read what the newer one has written: healer then says what it
        would do and why it does not, and leaves the rollback to you. With one such agent a boot that
        fails is not gone back from either.
      '';
    };
    snapshot = mkOption {
      type = types.nullOr (types.nonEmptyListOf types.str);
      default = defaults.agent.snapshot;
      example = lib.literalExpression ''
        [ (lib.getExe' pkgs.btrfs-progs "btrfs") "subvolume" "snapshot" "-r" "/var/lib/db" "/snapshots/db" ]
      '';
      description = ''
        Command that keeps a copy of the agent's state, run as root before a rollback that changes
        the agent. If it fails there is no rollback.
      '';
    };
    beforeRollback = mkOption {
      type = types.nullOr (types.nonEmptyListOf types.str);
      default = defaults.agent.beforeRollback;
      example = [
        "/run/current-system/sw/bin/my-indexer"
        "migrate"
        "down"
      ];
      description = ''
        Command that prepares the agent's state for its older version, run as the agent's user
        after all snapshots and before a rollback that changes the agent. The agent may be running.
        If it fails there is no rollback.
      '';
    };
    beforeRollbackTimeoutSec = mkOption {
      type = positiveSeconds;
      default = defaults.agent.beforeRollbackTimeoutSec;
      description = "Seconds that `snapshot` and `beforeRollback` may take each.";
    };
    serviceConfig = mkOption {
      type = types.attrsOf types.anything;
      default = defaults.agent.serviceConfig;
      example = {
        MemoryMax = "512M";
      };
      description = "More settings of the unit's `[Service]` section.";
    };
  };
}
