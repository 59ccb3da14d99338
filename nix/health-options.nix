# The options of one health check of an agent; see ./agent-options.nix.
{ lib }:
let
  inherit (lib) mkOption types;
  defaults = import ./defaults.nix;

  # Seconds may have a fraction.
  seconds = types.numbers.nonnegative;
  positiveSeconds = types.numbers.positive;

  look = import ./look-options.nix {
    inherit lib;
    what = "check";
    examples = {
      url = "http://127.0.0.1:8080/health";
      port = 8080;
      command = ''[ "''${pkgs.coreutils}/bin/test" "-e" "/run/worker/ready" ]'';
    };
  };
in
{
  options = look // {
    name = mkOption {
      type = types.nonEmptyStr;
      example = "web";
      description = "Name of the check, which failures are recorded under.";
    };
    type = mkOption {
      type = types.enum [
        "http"
        "tcp"
        "listen"
        "command"
        "log"
        "memory"
        "file"
      ];
      description = ''
        What the check looks at. healer's own inability to look is never a failure of the agent.

        - `http`: {option}`url` answers a GET with {option}`expectStatus`, and with a body that has
          {option}`bodyContains` and {option}`bodyMatches`. Redirects are not followed.
        - `tcp`: {option}`host` and {option}`port` accept a connection.
        - `listen`: a TCP socket listens on {option}`port`, as the kernel knows it; nothing
          connects. Sockets in another network namespace (`PrivateNetwork=`) are not seen.
        - `command`: {option}`command` exits with 0.
        - `log`: no line that the agent wrote to the journal since its start matches
          {option}`pattern`.
        - `memory`: the agent's cgroup holds at most {option}`maxBytes`; where there is no memory
          controller, its main process does.
        - `file`: {option}`path` was written less than {option}`maxAgeSec` ago; once healer has
          looked at it, a clock that is set, or a suspend, does not age it.

        A heartbeat is not among them: it is systemd's own, see {option}`watchdogSec`.
      '';
    };
    purpose = mkOption {
      type = types.enum [
        "liveness"
        "readiness"
        "startup"
      ];
      default = defaults.health.purpose;
      description = ''
        What follows from the check.

        - `liveness`: an agent that fails it is killed, and restarted by its policy. Ask only what
          a restart can mend, so of the agent itself: never whether a database or another service
          that it depends on is up. That is what readiness is for.
        - `readiness`: nothing is ever killed for it. What it finds is recorded, and a deployment
          whose agents are not ready does not become known-good. A dependency that is down belongs
          here.
        - `startup`: it must succeed once after each start; until then failures of liveness do not
          count. An agent that still fails when {option}`startGraceSec` is over is killed. Where the
          check itself cannot be made nothing is killed, and an incident ends after
          {option}`stableSec` all the same.
      '';
    };
    intervalSec = mkOption {
      type = types.addCheck positiveSeconds (value: value >= 0.1) // {
        description = "number of at least 0.1";
      };
      default = defaults.health.intervalSec;
      description = ''
        Seconds from one check to the next. Checks of one interval are spread over it, by the names
        of agent and check.
      '';
    };
    timeoutSec = mkOption {
      type = positiveSeconds;
      default = defaults.health.timeoutSec;
      description = ''
        Seconds after which a check without an answer has failed, where it is the agent that should
        answer (`http`, `tcp`, `command`); of the other types it could not be made then.
      '';
    };
    failureThreshold = mkOption {
      type = types.ints.between 1 1000000;
      default = defaults.health.failureThreshold;
      description = "Failures in a row from which {option}`purpose` draws its conclusion.";
    };
    successThreshold = mkOption {
      type = types.ints.between 1 1000000;
      default = defaults.health.successThreshold;
      description = ''
        Successes in a row after which earlier failures are forgotten, and a startup or readiness
        check has succeeded.
      '';
    };
    startGraceSec = mkOption {
      type = seconds;
      default = defaults.health.startGraceSec;
      description = ''
        Seconds after a start in which failures do not count; with the purpose `startup`, the time
        that the agent has to start.
      '';
    };
    pattern = mkOption {
      type = types.nullOr types.nonEmptyStr;
      default = defaults.health.pattern;
      example = "^FATAL|out of file descriptors";
      description = ''
        Regular expression (of Python's `re`) that a check of type `log` looks for in the first
        4096 characters of each line. A line that matches is a failure for as long as the agent
        runs on.
      '';
    };
    maxBytes = mkOption {
      type = types.nullOr types.ints.positive;
      default = defaults.health.maxBytes;
      example = 536870912;
      description = ''
        Most bytes that a check of type `memory` allows. The page cache of a cgroup counts, as it
        does for `MemoryMax=` in {manpage}`systemd.resource-control(5)`.
      '';
    };
    path = mkOption {
      type = types.nullOr (types.strMatching "/.*");
      default = defaults.health.path;
      example = "/run/worker/heartbeat";
      description = ''
        File that a check of type `file` looks at. The user `healer` must be able to reach it, which
        it is not in a directory of an agent whose {option}`user` is `null`.
      '';
    };
    maxAgeSec = mkOption {
      type = types.nullOr positiveSeconds;
      default = defaults.health.maxAgeSec;
      example = 30;
      description = "Seconds after which a check of type `file` finds the file too old.";
    };
  };
}
