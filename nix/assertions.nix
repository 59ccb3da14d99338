# What types cannot say, refused at build time: each message names the option, the offending value
# and the mend. healer/config/rules.py refuses the same in a config file that came another way.
{
  lib,
  # The value of services.healer.
  cfg,
  # Names of the declared users.
  users,
  # The version of the systemd that will carry all this out.
  systemdVersion,
}:
let
  defaults = import ./defaults.nix;
  inherit (import ./restart.nix) stepsOf;
  lastCrash = import ./last-crash.nix {
    shell = "";
    script = "";
    quote = lib.id;
  };
  show = lib.generators.toPretty { multiline = false; };
  # To be read as: "it must not be that …".
  refuse = wrong: option: message: {
    assertion = !wrong;
    message = "${option} ${message}";
  };

  unitOf = name: agent: if agent.unit == null then "${name}.service" else agent.unit;
  unitStem = "[A-Za-z0-9:_.\\-]+(@[A-Za-z0-9:_.\\@-]+)?";
  unitPattern = "${unitStem}\\.service";
  anyUnitPattern = "${unitStem}\\.(service|socket|target|mount|automount|swap|timer|path|device|slice|scope)";

  # What healer is made of; see ./own-units.nix, and healer/safeswitch/trial.py.
  ownUnitPattern = "healer(-boot|-boot-complete|-trial|-helper@.*)?\\.service";

  # Settings of the unit that options decide.
  reserved = {
    ExecStart = "command";
    Restart = "restart.policy";
    RestartForceExitStatus = "restart.rules";
    RestartMaxDelaySec = "restart.maxDelaySec";
    RestartMode = "restart.policy";
    RestartPreventExitStatus = "restart.rules";
    RestartRandomizedDelaySec = "restart.jitterSec";
    RestartSec = "restart.delaySec";
    RestartSteps = "restart.steps";
    User = "user";
    Group = "group";
    WatchdogSec = "watchdogSec";
  };

  # Options that say what a unit of healer's own is like.
  ownOnly = [
    "command"
    "description"
    "user"
    "group"
    "workingDirectory"
    "stateDirectory"
  ];

  agentAssertions =
    name: agent:
    let
      option = "services.healer.agents.${name}";
      unit = unitOf name agent;
      taken = builtins.filter (other: other != name && unitOf other cfg.agents.${other} == unit) (
        builtins.attrNames cfg.agents
      );
      settings = builtins.attrNames (builtins.intersectAttrs reserved agent.serviceConfig);
      ignored = builtins.filter (key: agent.${key} != null) ownOnly;
      checks = map (check: check.name) agent.health;
    in
    [
      (refuse (builtins.match "[A-Za-z0-9][A-Za-z0-9_.-]{0,63}" name == null) option
        "is no name for an agent: use up to 64 letters, digits, `_', `.' and `-', and begin with a letter or digit."
      )
      (refuse (agent.adopt && agent.command != null) "${option}.command"
        "is ${show agent.command}, but adopt is true: remove the command to supervise the existing ${unit}, or set adopt = false to declare it here."
      )
      (refuse (
        !agent.adopt && agent.command == null
      ) "${option}.command" "is missing: set it, or set adopt = true to supervise an existing ${unit}.")
      (refuse (agent.adopt && lib.remove "command" ignored != [ ]) option
        "has adopt = true and also sets ${toString (lib.remove "command" ignored)}: set this where ${unit} is declared."
      )
      (refuse (builtins.match unitPattern unit == null || builtins.stringLength unit > 230)
        "${option}.unit"
        "is ${show unit}: write the name of a service that ends in .service (an instance, not a template), of at most 230 characters, escaped as by systemd-escape(1)."
      )
      (refuse (
        builtins.match ownUnitPattern unit != null
      ) "${option}.unit" "is ${show unit}, healer's own: systemd looks after it; remove the agent.")
      (refuse (taken != [ ]) "${option}.unit"
        "is ${show unit}, which services.healer.agents.${toString taken} supervises as well: remove one of them."
      )
      (refuse (settings != [ ]) "${option}.serviceConfig"
        "sets ${toString settings}: set ${
          toString (map (setting: "${option}.${reserved.${setting}}") settings)
        } instead."
      )
      (refuse (
        !agent.escalation.enable && builtins.any (rule: rule.action == "escalate") agent.restart.rules
      ) "${option}.escalation.enable"
        "is false, but a rule of ${option}.restart.rules says escalate: set it to true, or write another action."
      )
      (refuse (!lib.allUnique checks) "${option}.health"
        "has two checks of one name (${toString checks}): give each check a name of its own."
      )
      (refuse
        (
          agent.user != null
          && builtins.match "root|[0-9]+" agent.user == null
          && !builtins.elem agent.user users
        )
        "${option}.user"
        "is ${show agent.user}, but there is no users.users.${toString agent.user}: declare it, or leave user unset for a dynamic user."
      )
      (refuse (agent.user == "healer") "${option}.user"
        "is \"healer\", who signs the ledger and is obeyed by root's helper: write another one, or leave user unset for a dynamic user."
      )
      (refuse (agent.stateDirectory != null && builtins.match "[^/].*" agent.stateDirectory == null)
        "${option}.stateDirectory"
        "is ${show agent.stateDirectory}: write a name below /var/lib, not an absolute path."
      )
    ]
    ++ [
      (refuse (agent.lastCrash == true && !agent.adopt && !lastCrash.canWrap agent) "${option}.lastCrash"
        "is true, but nothing can be put in front of this command: write the command as a list (without RootDirectory, RootImage or NoExecPaths in serviceConfig), or set it to false."
      )
      (refuse (
        agent.breadcrumb != null && !agent.adopt && agent.stateDirectory == null && !(agent.serviceConfig ? StateDirectory)
      ) "${option}.breadcrumb" "is ${show agent.breadcrumb}, but the agent has no stateDirectory to keep it in: set stateDirectory.")
    ]
    ++ restartAssertions "${option}.restart" agent
    ++ lib.concatLists (
      lib.imap0 (index: checkAssertions "${option}.health.[${toString index}]") agent.health
    );

  restartAssertions =
    option: agent:
    let
      inherit (agent) restart;
      delaySec =
        if restart.delaySec == null then defaults.restartDelaySec.${restart.policy} else restart.delaySec;
      backsOff =
        restart.policy == "exponential"
        || builtins.elem "backoff" ([ restart.otherwise ] ++ map (rule: rule.action) restart.rules);
      # Each end that a rule is about, with the rule's answer.
      answers = lib.concatMap (
        rule:
        map (end: {
          inherit end;
          answer = "${rule.action}${lib.optionalString (rule.delaySec != null) " after ${show rule.delaySec} s"}";
        }) (map toString rule.exitCodes ++ rule.signals ++ rule.classes)
      ) restart.rules;
      both = lib.unique (
        map (one: one.end) (
          builtins.filter (
            one: builtins.any (other: other.end == one.end && other.answer != one.answer) answers
          ) answers
        )
      );
      delayed = builtins.filter (
        rule: rule.delaySec != null && rule.action != "restart"
      ) restart.rules;
    in
    [
      (refuse (restart.policy == "immediate" && delaySec != 0) "${option}.delaySec"
        "is ${show delaySec}, but the policy is immediate: remove it, or choose the policy exponential or conditional."
      )
      (refuse (restart.policy == "exponential" && delaySec < 0.001) "${option}.delaySec"
        "is ${show delaySec}, and a delay that starts at 0 cannot grow: write at least 0.001, or choose the policy immediate."
      )
      (refuse (backsOff && delaySec > restart.maxDelaySec) "${option}.delaySec"
        "is ${show delaySec}, more than maxDelaySec (${show restart.maxDelaySec}): lower delaySec or raise maxDelaySec."
      )
      (refuse (backsOff && restart.factor != null && stepsOf restart > 1000) "${option}.factor"
        "is ${show restart.factor}, by which the delay takes more than 1000 restarts to maxDelaySec (${show restart.maxDelaySec}): raise it."
      )
      (refuse (restart.jitterSec != null && !lib.versionAtLeast systemdVersion "262")
        "${option}.jitterSec"
        "is ${show restart.jitterSec}, and systemd ${systemdVersion} does not know RestartRandomizedDelaySec=: set it to null, or use systemd 262."
      )
      (refuse (restart.policy == "conditional" && restart.rules == [ ]) "${option}.rules"
        "is empty, but the policy is conditional: add a rule, or choose the policy immediate or never."
      )
      (refuse (restart.policy != "conditional" && restart.rules != [ ]) "${option}.rules"
        "has rules, but the policy is ${restart.policy}: choose the policy conditional, or remove the rules."
      )
      (refuse
        (builtins.any (rule: rule.exitCodes ++ rule.signals ++ rule.classes == [ ]) restart.rules)
        "${option}.rules"
        "has a rule with neither exitCodes nor signals nor classes: add one of them, or remove the rule."
      )
      (refuse (delayed != [ ]) "${option}.rules"
        "has a delaySec (${toString (map (rule: rule.delaySec) delayed)}) with the action ${
          toString (map (rule: rule.action) delayed)
        }: remove it, or write the action restart."
      )
      (refuse (both != [ ]) "${option}.rules"
        "has different answers for ${toString both}: keep one of them."
      )
      (refuse
        (!cfg.safeSwitch.enable && builtins.any (rule: rule.action == "rollback") restart.rules)
        "${option}.rules"
        "has the action rollback, but services.healer.safeSwitch.enable is false: write another action, or set it to true."
      )
      (refuse (
        agent.serviceConfig.Type or null == "oneshot" && restart.on == "always" && restart.policy != "never"
      ) "${option}.on" "is always, which systemd refuses for Type=oneshot: write failure.")
    ];

  # What each type of health check and gate needs, and what it may have besides.
  needed = {
    http = [ "url" ];
    tcp = [ "port" ];
    listen = [ "port" ];
    command = [ "command" ];
    log = [ "pattern" ];
    memory = [ "maxBytes" ];
    file = [
      "path"
      "maxAgeSec"
    ];
    unit = [ "unit" ];
    network = [ ];
  };
  possible = {
    http = [
      "expectStatus"
      "bodyContains"
      "bodyMatches"
      "caFile"
      "insecure"
    ];
    tcp = [ "host" ];
    listen = [ "host" ];
    network = networkOptions;
  };
  networkOptions = [
    "interface"
    "defaultRoute"
    "gateway"
    "addresses"
    "sshd"
  ];

  # Of a health check or a gate: that it has the options of its type, and no others.
  typeAssertions =
    name: check:
    let
      allowed = needed.${check.type} ++ possible.${check.type} or [ ];
      all = lib.unique (lib.concatLists (builtins.attrValues needed ++ builtins.attrValues possible));
      isSet = key: check.${key} or null != null;
      missing = builtins.filter (key: !isSet key) needed.${check.type};
      foreign = builtins.filter isSet (lib.subtractLists allowed all);
      tls = builtins.filter isSet [
        "caFile"
        "insecure"
      ];
    in
    [
      (refuse (missing != [ ] || foreign != [ ]) name (
        if missing != [ ] then
          "has the type ${check.type} and no ${toString missing}: set ${toString missing}."
        else
          "has the type ${check.type} and also sets ${toString foreign}: remove it, or change the type."
      ))
      (refuse (
        check.insecure == true && check.caFile != null
      ) name "sets insecure, and caFile says whom to trust: remove one of the two.")
      (refuse (
        tls != [ ] && check.url != null && !lib.hasPrefix "https:" check.url
      ) name "sets ${toString tls}, but its url is ${show check.url}: remove this, or use https.")
    ];

  gateAssertions =
    index: gate:
    let
      name = "services.healer.safeSwitch.gates.[${toString index}] (${gate.name})";
      unset = [
        null
        false
        [ ]
      ];
    in
    typeAssertions name gate
    ++ [
      (refuse
        (
          gate.type == "network" && builtins.all (key: builtins.elem gate.${key} unset) networkOptions
        )
        name
        "has the type network and nothing to look at: set one of ${toString networkOptions}, or remove the gate."
      )
      (refuse (gate.unit != null && builtins.match anyUnitPattern gate.unit == null) "${name}.unit"
        "is ${show gate.unit}, which is no name of a unit: write it with its suffix, such as sshd.service."
      )
    ];

  checkAssertions =
    option: check:
    let
      name = "${option} (${check.name})";
    in
    typeAssertions name check
    ++ [
      (refuse (check.type == "log" && check.purpose == "startup") name
        "has the purpose startup, but a log without failures does not tell that the agent has started: write liveness or readiness."
      )
    ];

  gateNames = map (gate: gate.name) cfg.safeSwitch.gates;

  groupAssertions =
    name: group:
    let
      option = "services.healer.groups.${name}.agents";
      unknown = lib.subtractLists (builtins.attrNames cfg.agents) group.agents;
      others = builtins.filter (
        other: other != name && lib.intersectLists cfg.groups.${other}.agents group.agents != [ ]
      ) (builtins.attrNames cfg.groups);
    in
    [
      (refuse (unknown != [ ]) option
        "names ${toString unknown}, and there is no such agent: declare it, or remove it."
      )
      (refuse (!lib.allUnique group.agents) option
        "names an agent twice: have each agent once, in one group."
      )
      (refuse (others != [ ]) option
        "names an agent that services.healer.groups.${toString others} names already: have each agent once, in one group."
      )
    ];

  ignoreAssertion =
    index: entry:
    refuse (lib.trim entry.reason == "") "services.healer.drift.ignore.[${toString index}].reason"
      "is empty: say why ${entry.path} may differ from the declaration.";
in
lib.concatLists (lib.mapAttrsToList agentAssertions cfg.agents)
++ lib.concatLists (lib.mapAttrsToList groupAssertions cfg.groups)
++ lib.imap0 ignoreAssertion cfg.drift.ignore
++ lib.concatLists (lib.imap0 gateAssertions cfg.safeSwitch.gates)
++ [
  (refuse (!lib.allUnique gateNames) "services.healer.safeSwitch.gates"
    "has two gates of one name (${toString gateNames}): give each gate a name of its own."
  )
  (refuse (cfg.safeSwitch.enable && cfg.agents == { }) "services.healer.safeSwitch.enable"
    "is true, but services.healer.agents declares no agent whose health could judge a deployment: declare one, or set it to false."
  )
  (refuse (cfg.escalation.reboot && !cfg.safeSwitch.enable) "services.healer.escalation.reboot"
    "is true, but services.healer.safeSwitch.enable is false, so no system is ever known to be good: set it to false, or enable safeSwitch."
  )
  (refuse (builtins.match "[^[:space:]+]+" cfg.ledger.origin == null) "services.healer.ledger.origin"
    "is ${show cfg.ledger.origin}: write a name without spaces and plus signs, such as example.org/host."
  )
  (refuse
    (
      cfg.ledger.keyCredential != null
      && builtins.match "[A-Za-z0-9][A-Za-z0-9_.-]{0,254}" cfg.ledger.keyCredential == null
    )
    "services.healer.ledger.keyCredential"
    "is ${show cfg.ledger.keyCredential}: write the credential's name (letters, digits, `_', `.', `-'), not a path."
  )
]
