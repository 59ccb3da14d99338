# A system toplevel like NixOS's, built offline from builtins only: what the local machine boots
# and switches to. healer's units come from the same nix/render.nix that NixOS uses.
#
#   nix-build toplevel.nix -A toplevel --arg system '{ services.web.serviceConfig.ExecStart = …; }'
#
# `system` is what a test declares; every attribute may be left out:
#   healer            services.healer, partial; null or absent: a system without healer
#   healerTag         a text that goes into healer's store path, for "another version of healer"
#   healerSource      a path to take healer's package from instead of the checkout
#   services, sockets, timers, targets
#                     units as NixOS's systemd.services declares them
#   etc               { "name/below/etc" = "text"; }
#   tmpfiles          lines of tmpfiles.d(5)
#   users             names of system users to create, each with a group of its own
#   activationScript  sh, run by `activate`; a failing one makes the switch exit 2
#   preSwitchCheck    sh, run before anything is changed; a failing one makes it exit 1
#   bootLoaderScript  sh, run by the boot loader step; a failing one makes it exit 1
#   switchInhibitors  { key = "value"; }, as system.switch.inhibitors
#   kernel, initrd, kernelModules, systemd
#                     texts that stand for the real things: two systems differ if these differ
#   initInterfaceVersion
#                     another one than the running system's makes the switch exit 100
#   label             goes into nixos-version; the easy way to make two systems differ
#   specialisation    { name = { …the same attributes, laid over the system's… }; }
{
  system ? { },
}:
let
  checkout = ../..;

  # A derivation whose builder is one Python script. Without a sandbox, for want of a nixpkgs.
  build =
    name: script: attributes:
    derivation (
      {
        inherit name;
        # The builder reads its attributes from a JSON file.
        __structuredAttrs = true;
        system = builtins.currentSystem;
        builder = "/usr/bin/python3";
        args = [
          "-I"
          "${script}"
        ];
      }
      // attributes
    );

  packageOf =
    system:
    build "healer" ./build_package.py {
      source = builtins.path {
        name = "healer-source";
        path = system.healerSource or (checkout + "/healer");
        filter = path: _type: baseNameOf path != "__pycache__";
      };
      tag = system.healerTag or "";
    };

  upstream = build "systemd-units" ./build_upstream.py { };

  none = {
    services = { };
    sockets = { };
    tmpfiles = [ ];
  };

  rendered =
    system:
    if system.healer or null == null then
      none
    else
      import (checkout + "/nix/render.nix") {
        cfg = import (checkout + "/nix/complete.nix") system.healer;
        package = packageOf system;
        # As NixOS does: statically linked.
        shell = "/usr/bin/busybox sh";
        keptConfigFile = builtins.toFile "healer-config.yaml" (
          # It names the package, which the system refers to anyway.
          builtins.unsafeDiscardStringContext (rendered system).configText
        );
      };

  toplevelOf =
    system:
    let
      ours = rendered system;
      withHealer = ours != none;
      adopts = name: ours.services.${name}.adopted or false;
      byAdoption =
        wanted:
        removeAttrs ours.services (
          builtins.filter (name: adopts name != wanted) (builtins.attrNames ours.services)
        );
    in
    build "nixos-system-local" ./build_toplevel.py {
      spec = {
        services = (system.services or { }) // byAdoption false;
        # A unit that somebody else brings is not written anew, only added to.
        adopted = byAdoption true;
        sockets = (system.sockets or { }) // ours.sockets;
        timers = system.timers or { };
        targets = system.targets or { };
        upstream = "${upstream}";
        tmpfiles = ours.tmpfiles ++ (system.tmpfiles or [ ]);
        users = (if withHealer then [ "healer" ] else [ ]) ++ (system.users or [ ]);
        etc = (if withHealer then { "healer/config.yaml" = ours.configText; } else { }) // (system.etc or { });
        package = if withHealer then "${packageOf system}" else null;
        activationScript = system.activationScript or "";
        preSwitchCheck = system.preSwitchCheck or "";
        bootLoaderScript = system.bootLoaderScript or "";
        switchInhibitors = system.switchInhibitors or { };
        initInterfaceVersion = system.initInterfaceVersion or "systemd 3";
        label = system.label or "local";
        # Store files of their own, as on NixOS: a reboot is needed when such a link differs.
        parts = {
          kernel = builtins.toFile "kernel" (system.kernel or "6.12");
          initrd = builtins.toFile "initrd" (system.initrd or "6.12");
          kernel-modules = builtins.toFile "kernel-modules" (system.kernelModules or "6.12");
          systemd = builtins.toFile "systemd" (system.systemd or "257");
        };
        programs = {
          "bin/switch-to-configuration" = "${./switch_to_configuration.py}";
          "activate" = "${./activate.py}";
        };
        specialisation = builtins.mapAttrs (
          _name: changes: "${toplevelOf (removeAttrs system [ "specialisation" ] // changes)}"
        ) (system.specialisation or { });
      };
    };
in
{
  toplevel = toplevelOf system;
  package = packageOf system;
}
