# What a health check and a gate of the same type look at; see ./health-options.nix and
# ./gate-options.nix.
{
  lib,
  # "check" or "gate".
  what,
  examples,
}:
let
  inherit (lib) mkOption types;
  # Both have the same defaults: null, since each option belongs to some types only.
  defaults = import ./defaults.nix;
in
{
  url = mkOption {
    type = types.nullOr types.nonEmptyStr;
    default = null;
    example = examples.url;
    description = "Address that a ${what} of type `http` asks.";
  };
  expectStatus = mkOption {
    type = types.nullOr (types.ints.between 100 599);
    default = null;
    defaultText = lib.literalExpression (toString defaults.healthExpectStatus);
    description = "Status that a ${what} of type `http` expects.";
  };
  bodyContains = mkOption {
    type = types.nullOr types.nonEmptyStr;
    default = null;
    example = "\"status\":\"ok\"";
    description = "Text that a ${what} of type `http` expects in the first MiB of the body.";
  };
  bodyMatches = mkOption {
    type = types.nullOr types.nonEmptyStr;
    default = null;
    example = "workers: [1-9]";
    description = ''
      Regular expression (of Python's `re`) that a ${what} of type `http` expects somewhere in the
      first MiB of the body.
    '';
  };
  caFile = mkOption {
    type = types.nullOr (types.strMatching "/.*");
    default = null;
    example = "/etc/ssl/internal-ca.pem";
    description = ''
      Certificates (PEM) that a ${what} of type `http` trusts instead of the system's. The user
      `healer` must be able to read it.
    '';
  };
  insecure = mkOption {
    type = types.nullOr types.bool;
    default = null;
    defaultText = lib.literalExpression "false";
    description = "Whether a ${what} of type `http` accepts any certificate of an https server.";
  };
  host = mkOption {
    type = types.nullOr types.nonEmptyStr;
    default = null;
    defaultText = lib.literalMD ''"${defaults.healthHost}" with `tcp`, any with `listen`'';
    description = ''
      Name or address that a ${what} of type `tcp` connects to; address at which a ${what} of type
      `listen` expects the socket, which may also listen at all addresses.
    '';
  };
  port = mkOption {
    type = types.nullOr (types.ints.between 1 65535);
    default = null;
    example = examples.port;
    description = "TCP port that a ${what} of type `tcp` or `listen` is about.";
  };
  command = mkOption {
    type = types.nullOr (types.nonEmptyListOf types.str);
    default = null;
    example = lib.literalExpression examples.command;
    description = ''
      Program and arguments that a ${what} of type `command` runs, without a shell, as the user
      `healer`, with nothing but `PATH` in its environment. It passes with the exit code 0.
    '';
  };
}
