# Fill the defaults into a partial services.healer value, as the module system does on NixOS.
# Plain Nix: for machines and tests that have no nixpkgs. A name that is no option is refused.
given:
let
  defaults = import ./defaults.nix;

  fill =
    path: known: value:
    let
      unknown = builtins.attrNames (removeAttrs value (builtins.attrNames known));
    in
    if unknown == [ ] then
      known // value
    else
      throw "${path}: there is no option `${builtins.head unknown}'; there are: ${toString (builtins.attrNames known)}";

  fillAgent =
    name: value:
    let
      path = "services.healer.agents.${name}";
      agent = fill path defaults.agent value;
      restart = fill "${path}.restart" defaults.restart agent.restart;
    in
    if !agent.adopt && agent.command == null then
      throw "${path}.command is missing: set it, or set adopt = true"
    else
      agent
      // {
        restart = restart // {
          rules = map (fill "${path}.restart.rules" defaults.rule) restart.rules;
        };
        crashLoop = fill "${path}.crashLoop" defaults.crashLoop agent.crashLoop;
        escalation = fill "${path}.escalation" defaults.agentEscalation agent.escalation;
        health = map (
          check:
          fill "${path}.health" (
            defaults.health
            // {
              name = null;
              type = null;
            }
          ) check
        ) agent.health;
      };

  fillSafeSwitch =
    value:
    let
      safeSwitch = fill "services.healer.safeSwitch" defaults.safeSwitch value;
      named = defaults.gate // {
        name = null;
        type = null;
      };
    in
    safeSwitch
    // {
      gates = map (fill "services.healer.safeSwitch.gates" named) safeSwitch.gates;
      rebootWindow =
        fill "services.healer.safeSwitch.rebootWindow" defaults.rebootWindow
          safeSwitch.rebootWindow;
    };

  top = fill "services.healer" defaults.top given;
in
top
// {
  agents = builtins.mapAttrs fillAgent top.agents;
  groups = builtins.mapAttrs (
    name: fill "services.healer.groups.${name}" (defaults.group // { agents = [ ]; })
  ) top.groups;
  escalation = fill "services.healer.escalation" defaults.escalation top.escalation;
  safeSwitch = fillSafeSwitch top.safeSwitch;
  drift = fill "services.healer.drift" defaults.drift top.drift;
  ledger = fill "services.healer.ledger" defaults.ledger top.ledger;
}
