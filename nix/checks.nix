# What `nix flake check` builds for one system.
{
  lib,
  pkgs,
  # healer's NixOS module, with its package.
  module,
  nixosSystem,
}:
let
  example = nixosSystem {
    modules = [
      module
      {
        nixpkgs.hostPlatform = pkgs.stdenv.hostPlatform.system;
        system.stateVersion = "26.05";
        fileSystems."/".device = "none";
        boot.loader.grub.enable = false;
        services.nginx.enable = true;
        services.healer = {
          enable = true;
          agents.nginx.adopt = true;
          agents.worker = {
            command = [
              "${pkgs.coreutils}/bin/sleep"
              "infinity"
            ];
            restart.policy = "exponential";
          };
        };
      }
    ];
  };
  unit = name: example.config.systemd.units.${name}.unit;
  nixFiles = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.fileFilter (file: file.hasExt "nix") ../.;
  };
in
{
  main-job = pkgs.testers.runNixOSTest (import ../vm-tests/main-job.nix { inherit module; });

  # The units that the module makes next to a real service's, and the config file, which healer
  # itself has checked.
  module = pkgs.runCommandLocal "healer-module" { inherit (example.config.system) checks; } ''
    grep -q '^RestartSteps=8$' ${unit "worker.service"}/worker.service
    test "$(grep -c '^Restart=' ${unit "nginx.service"}/nginx.service)" = 1
    grep -q '^Restart=always$' ${unit "nginx.service"}/nginx.service
    grep -q '^X-StopOnRemoval=false$' ${unit "healer.service"}/healer.service
    touch $out
  '';

  options = pkgs.runCommandLocal "healer-options" { } ''
    diff -u ${../docs/options.md} ${
      pkgs.writeText "options.md" (import ./options-doc.nix { inherit lib; })
    }
    touch $out
  '';

  format = pkgs.runCommandLocal "healer-format" { nativeBuildInputs = [ pkgs.nixfmt ]; } ''
    find ${nixFiles} -name '*.nix' -exec nixfmt --check {} +
    touch $out
  '';
}
