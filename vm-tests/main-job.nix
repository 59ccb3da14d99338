# The main job in a NixOS virtual machine; its script also runs on the local machine.
{ module }:
let
  system = import ./main-job-system.nix;
in
{
  name = "healer-main-job";

  nodes.machine =
    { lib, ... }:
    {
      imports = [ module ];

      services.healer = system.healer;
      specialisation = builtins.mapAttrs (_: deployment: {
        configuration.services.healer = {
          agents = lib.mkForce deployment.healer.agents;
          safeSwitch = lib.mkForce deployment.healer.safeSwitch;
        };
      }) system.specialisation;

      # A test VM has neither by default, and no system profile: the script sets that.
      system.switch.enable = true;
      virtualisation.writableStore = true;
    };

  testScript = builtins.readFile ./main-job.py;
}
