# module.nix in the real module system, with a small stand-in for each NixOS option that it sets.
{
  lib,
  # NixOS modules: what a user declares.
  modules,
}:
let
  # As NixOS merges the settings of a unit: lists are joined, anything else must agree.
  unitOption = lib.mkOptionType {
    name = "systemd option";
    merge =
      loc: defs:
      if builtins.any (def: builtins.isList def.value) defs then
        lib.concatMap (def: lib.toList def.value) defs
      else
        lib.mergeEqualOption loc defs;
  };
  section = lib.mkOption {
    type = lib.types.attrsOf unitOption;
    default = { };
  };
  some =
    type: default:
    lib.mkOption {
      inherit type default;
    };
  inherit (lib) types;
  unit.options = {
    description = some types.str "";
    wantedBy = some (types.listOf types.str) [ ];
    requiredBy = some (types.listOf types.str) [ ];
    after = some (types.listOf types.str) [ ];
    before = some (types.listOf types.str) [ ];
    partOf = some (types.listOf types.str) [ ];
    wants = some (types.listOf types.str) [ ];
    environment = some (types.attrsOf types.str) { };
    unitConfig = section;
    serviceConfig = section;
    socketConfig = section;
    path = some (types.listOf types.raw) [ ];
    restartIfChanged = some types.bool true;
    overrideStrategy = some types.str "asDropinIfExists";
  };
  units = some (types.attrsOf (types.submodule unit)) { };

  standIns.options = {
    assertions = some (types.listOf types.raw) [ ];
    environment.etc = some (types.attrsOf types.raw) { };
    environment.systemPackages = some (types.listOf types.raw) [ ];
    networking.hostName = some types.str "alpha";
    nix.enable = some types.bool true;
    nix.package = some types.raw "nix";
    system.checks = some (types.listOf types.raw) [ ];
    systemd.package = some types.raw "systemd";
    systemd.services = units;
    systemd.sockets = units;
    systemd.tmpfiles.rules = some (types.listOf types.str) [ ];
    users.users = some (types.attrsOf types.raw) { };
    users.groups = some (types.attrsOf types.raw) { };
  };

  pkgs = {
    busybox-sandbox-shell = {
      type = "derivation";
      name = "busybox-sandbox-shell";
      outPath = "/busybox";
    };
    writeText = builtins.toFile;
    runCommandLocal = name: _: script: { inherit name script; };
    stdenv.buildPlatform.canExecute = _: true;
    stdenv.hostPlatform = { };
  };

  package = {
    type = "derivation";
    name = "healer";
    outPath = "/healer";
  };

  inherit
    (lib.evalModules {
      specialArgs = { inherit pkgs; };
      modules = [
        ../../module.nix
        standIns
        { services.healer.package = lib.mkDefault package; }
      ]
      ++ modules;
    })
    config
    ;
in
{
  inherit (config.systemd) services sockets;
  inherit (config) users;
  tmpfiles = config.systemd.tmpfiles.rules;
  # The text that pkgs.writeText was given.
  etc = builtins.mapAttrs (_: file: builtins.readFile file.source) config.environment.etc;
  checks = map (check: check.script) config.system.checks;
  programs = map (program: "${program}") config.environment.systemPackages;
  refused = map (assertion: assertion.message) (
    builtins.filter (assertion: !assertion.assertion) config.assertions
  );
}
