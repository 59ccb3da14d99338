# services.healer on NixOS: the options of ./nix/options.nix, wired to what ./nix/render.nix makes
# of them.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.healer;

  rendered = import ./nix/render.nix {
    inherit cfg;
    package = "${cfg.package}";
    # Statically linked: it runs as root with the environment of the unit, and a dynamic linker
    # would obey the LD_PRELOAD= of an EnvironmentFile=. It starts faster, too.
    shell = "${pkgs.busybox-sandbox-shell}/bin/sh";
    systemd = "${config.systemd.package}/bin";
    keptConfigFile = "${configFile}";
  };

  configFile = pkgs.writeText "healer-config.yaml" rendered.configText;

  # A unit declared elsewhere has restart settings of its own: the declared policy replaces them.
  # The stamps come first, so that they see the cgroup before the unit's own commands do.
  adopt = name: service: {
    inherit (service) environment;
    unitConfig = builtins.mapAttrs (
      _: value: if builtins.isList value then lib.mkBefore value else lib.mkForce value
    ) service.unitConfig;
    serviceConfig = builtins.mapAttrs (
      setting:
      if lib.hasPrefix "Restart" setting then
        lib.mkForce
      # The unit's own stays the first of them.
      else if setting == "RuntimeDirectory" then
        lib.mkAfter
      else if builtins.isList service.serviceConfig.${setting} then
        lib.mkBefore
      else
        lib.id
    ) service.serviceConfig;
    # An instance has no unit file of its own, only its template's.
    overrideStrategy = lib.mkIf (lib.hasInfix "@" name) "asDropin";
    inherit (service) after partOf wants;
  };

  declare =
    service:
    {
      inherit (service)
        description
        wantedBy
        after
        environment
        unitConfig
        serviceConfig
        ;
    }
    // lib.optionalAttrs (service ? before) { inherit (service) before; }
    // lib.optionalAttrs (service ? requiredBy) { inherit (service) requiredBy; }
    // lib.optionalAttrs (service ? partOf) {
      inherit (service) partOf wants;
    }
    // lib.optionalAttrs (service ? restartIfChanged) {
      inherit (service) restartIfChanged;
      # Only healer's own two: they look at deployments, and change them.
      path = [ config.systemd.package ] ++ lib.optional config.nix.enable config.nix.package;
    };
in
{
  imports = [ ./nix/options.nix ];

  config = lib.mkIf cfg.enable {
    assertions = import ./nix/assertions.nix {
      inherit lib cfg;
      users = builtins.attrNames config.users.users;
      systemdVersion = config.systemd.package.version or "";
    };

    systemd.services = builtins.mapAttrs (
      name: service: if service.adopted then adopt name service else declare service
    ) rendered.services;
    systemd.sockets = rendered.sockets;
    systemd.tmpfiles.rules = rendered.tmpfiles;

    users.users.healer = {
      isSystemUser = true;
      group = "healer";
      description = "healer's watcher";
    };
    users.groups.healer = { };

    environment.etc."healer/config.yaml".source = configFile;
    environment.systemPackages = [ cfg.package ];

    # healer judges the file it will read, before anything is deployed.
    system.checks = lib.optional (pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform) (
      pkgs.runCommandLocal "healer-config-check" { } ''
        ${cfg.package}/bin/healer config check ${configFile}
        touch $out
      ''
    );
  };
}
