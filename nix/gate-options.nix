# The options of one gate of SafeSwitch; see ./options.nix.
{ lib }:
let
  inherit (lib) mkOption types;
  defaults = import ./defaults.nix;
  positiveSeconds = types.numbers.positive;
  look = import ./look-options.nix {
    inherit lib;
    what = "gate";
    examples = {
      url = "https://example.org/";
      port = 443;
      command = "[ (lib.getExe pkgs.smoke-test) ]";
    };
  };
in
{
  options = look // {
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
