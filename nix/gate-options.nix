# The options of one gate of SafeSwitch; see ./options.nix.
{ lib }:
let
  inherit (lib) mkOption types;
  defaults = import ./defaults.nix;
  positiveSeconds = types.numbers.positive;
in
{
  options = {
    name = mkOption {
      type = types.nonEmptyStr;
      example = "reachable";
      description = "Name of the gate, under which it is recorded.";
    };
    type = mkOption {
      type = types.enum [
        "http"
        "tcp"
        "listen"
        "command"
        "unit"
        "network"
      ];
      description = ''
        What the gate looks at. healer's own inability to look neither passes a gate nor fails it.

        - `http`, `tcp`, `listen`, `command`: as the health check of this type, with the same
          options.
        - `unit`: the systemd unit {option}`unit` is active.
        - `network`: the host can still be reached. What is set of {option}`interface`,
          {option}`defaultRoute`, {option}`gateway`, {option}`addresses` and {option}`sshd` must all
          hold. The kernel is asked, so that nothing beyond the gateway is needed.
      '';
    };
    intervalSec = mkOption {
      type = types.addCheck positiveSeconds (value: value >= 0.1) // {
        description = "number of at least 0.1";
      };
      default = defaults.gate.intervalSec;
      description = "Seconds from one look to the next. Gates are looked at in probations only.";
    };
    timeoutSec = mkOption {
      type = positiveSeconds;
      default = defaults.gate.timeoutSec;
      description = "Seconds that a look may take.";
    };
    failureThreshold = mkOption {
      type = types.ints.between 1 1000000;
      default = defaults.gate.failureThreshold;
      description = "Looks in a row that must fail for the gate to fail. It passes at the first.";
    };
    url = mkOption {
      type = types.nullOr types.nonEmptyStr;
      default = defaults.gate.url;
      example = "https://example.org/";
      description = "Address that a gate of type `http` asks.";
    };
    expectStatus = mkOption {
      type = types.nullOr (types.ints.between 100 599);
      default = defaults.gate.expectStatus;
      defaultText = lib.literalExpression (toString defaults.healthExpectStatus);
      description = "Status that a gate of type `http` expects.";
    };
    bodyContains = mkOption {
      type = types.nullOr types.nonEmptyStr;
      default = defaults.gate.bodyContains;
      description = "Text that a gate of type `http` expects in the first MiB of the body.";
    };
    bodyMatches = mkOption {
      type = types.nullOr types.nonEmptyStr;
      default = defaults.gate.bodyMatches;
      description = ''
        Regular expression (of Python's `re`) that a gate of type `http` expects in the first MiB of
        the body.
      '';
    };
    caFile = mkOption {
      type = types.nullOr (types.strMatching "/.*");
      default = defaults.gate.caFile;
      description = "Certificates (PEM) that a gate of type `http` trusts instead of the system's.";
    };
    insecure = mkOption {
      type = types.nullOr types.bool;
      default = defaults.gate.insecure;
      defaultText = lib.literalExpression "false";
      description = "Whether a gate of type `http` accepts any certificate of an https server.";
    };
    host = mkOption {
      type = types.nullOr types.nonEmptyStr;
      default = defaults.gate.host;
      defaultText = lib.literalMD ''"${defaults.healthHost}" with `tcp`, any with `listen`'';
      description = ''
        Name or address that a gate of type `tcp` connects to; address at which a gate of type
        `listen` expects the socket.
      '';
    };
    port = mkOption {
      type = types.nullOr (types.ints.between 1 65535);
      default = defaults.gate.port;
      example = 443;
      description = "TCP port that a gate of type `tcp` or `listen` is about.";
    };
    command = mkOption {
      type = types.nullOr (types.nonEmptyListOf types.str);
      default = defaults.gate.command;
      example = lib.literalExpression ''[ (lib.getExe pkgs.smoke-test) ]'';
      description = ''
        Program and arguments that a gate of type `command` runs, without a shell, as the user
        `healer`, with nothing but `PATH` in its environment. It passes with the exit code 0.
      '';
    };
    unit = mkOption {
      type = types.nullOr types.nonEmptyStr;
      default = defaults.gate.unit;
      example = "network-online.target";
      description = "Unit, of any type, that a gate of type `unit` is about.";
    };
    interface = mkOption {
      type = types.nullOr types.nonEmptyStr;
      default = defaults.gate.interface;
      example = "eth0";
      description = ''
        Interface that a gate of type `network` expects to be up, and on which it looks for the
        rest; `null` looks on all.
      '';
    };
    defaultRoute = mkOption {
      type = types.nullOr types.bool;
      default = defaults.gate.defaultRoute;
      defaultText = lib.literalExpression "false";
      description = "Whether a gate of type `network` expects a default route, of IPv4 or IPv6.";
    };
    gateway = mkOption {
      type = types.nullOr types.bool;
      default = defaults.gate.gateway;
      defaultText = lib.literalExpression "false";
      description = ''
        Whether a gate of type `network` expects the gateway of a default route to answer, to ARP or
        to neighbour discovery. It need not answer to ping.
      '';
    };
    addresses = mkOption {
      type = types.nullOr (types.listOf types.nonEmptyStr);
      default = defaults.gate.addresses;
      defaultText = lib.literalExpression "[ ]";
      example = [ "192.0.2.10" ];
      description = ''
        Addresses, without prefix lengths, that a gate of type `network` expects to be assigned.
      '';
    };
    sshd = mkOption {
      type = types.nullOr (types.ints.between 1 65535);
      default = defaults.gate.sshd;
      example = 22;
      description = ''
        TCP port on which a gate of type `network` expects somebody to listen, so that a person can
        still log in.
      '';
    };
  };
}
