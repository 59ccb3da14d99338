# Every default of services.healer, once. options.nix declares its options with these, render.nix
# fills them in where no module system does, and a test holds healer/config/schema.py to them.
# Durations are seconds.
{
  top = {
    enable = false;
    package = null;
    agents = { };
    groups = { };
    escalation = { };
    safeSwitch = { };
    drift = { };
    ledger = { };
  };

  group.strategy = "one-for-one";

  agent = {
    unit = null; # null: "<name>.service"
    adopt = false;
    command = null;
    description = null;
    environment = { };
    user = null; # null: a dynamic user
    group = null;
    workingDirectory = null;
    stateDirectory = null;
    restart = { };
    crashLoop = { };
    escalation = { };
    stableSec = 60;
    lastCrash = null; # null: where ./last-crash.nix can
    breadcrumb = null;
    health = [ ];
    journalLines = 20;
    watchdogSec = null;
    rollbackSafe = true;
    snapshot = null;
    beforeRollback = null;
    beforeRollbackTimeoutSec = 60;
    serviceConfig = { };
  };

  restart = {
    policy = "immediate";
    on = "always";
    delaySec = null; # null: see restartDelaySec
    maxDelaySec = 60;
    steps = 8;
    factor = null; # null: see steps
    jitterSec = null;
    rules = [ ];
    otherwise = "restart";
  };

  # What restart.delaySec = null means. systemd grows no delay that starts at 0.
  restartDelaySec = {
    immediate = 0;
    exponential = 0.1;
    conditional = 0;
    never = 0;
  };

  # What a backoff begins with where restart.delaySec is 0: a delay of 0 cannot grow.
  backoffSec = 0.1;

  rule = {
    exitCodes = [ ];
    signals = [ ];
    classes = [ ];
    action = "stop";
    delaySec = null; # null: restart.delaySec
  };

  crashLoop = {
    maxCrashes = 5;
    windowSec = 60;
    earlyDeathSec = 10;
  };

  agentEscalation = {
    enable = true;
    quarantineSec = 300;
    maxQuarantines = 3;
  };

  health = {
    purpose = "liveness";
    intervalSec = 3;
    timeoutSec = 2;
    failureThreshold = 3;
    successThreshold = 1;
    startGraceSec = 10;
    # Each belongs to some types of check and must stay null in the others.
    url = null;
    expectStatus = null; # null: healthExpectStatus
    bodyContains = null;
    bodyMatches = null;
    caFile = null;
    insecure = null; # null: false
    host = null; # null: healthHost with tcp, any with listen
    port = null;
    command = null;
    pattern = null;
    maxBytes = null;
    path = null;
    maxAgeSec = null;
  };
  healthExpectStatus = 200;
  healthHost = "127.0.0.1";

  escalation = {
    reboot = false;
    maxRebootsPerDay = 1;
  };

  safeSwitch = {
    enable = true;
    probationSec = 300;
    profile = "/nix/var/nix/profiles/system";
    timeoutSec = 900;
    condemned = "zero-tolerance";
    maxRollbacksPerDay = 3;
    keep = 5;
    gates = [ ];
    lockTimeoutSec = 900;
    reboot = "never";
    rebootWindow = { };
    bootTries = 3;
  };

  rebootWindow = {
    lower = "01:00";
    upper = "05:00";
  };

  gate = {
    intervalSec = 3;
    timeoutSec = 2;
    failureThreshold = 3;
    # Each belongs to some types of gate and must stay null in the others.
    url = null;
    expectStatus = null; # null: healthExpectStatus
    bodyContains = null;
    bodyMatches = null;
    caFile = null;
    insecure = null; # null: false
    host = null; # null: healthHost with tcp, any with listen
    port = null;
    command = null;
    unit = null;
    interface = null;
    defaultRoute = null; # null: false
    gateway = null; # null: false
    addresses = null; # null: none
    sshd = null;
  };

  drift = {
    enable = true;
    intervalSec = 30;
    ignore = [ ];
  };

  ledger = {
    origin = "healer/localhost";
    keyCredential = null;
  };

  # Not options: the stamp scripts, the units and the daemon all have to agree on them.
  stateDir = "/var/lib/healer";
  runtimeDir = "/run/healer";
  knownGood = "/nix/var/nix/profiles/system-profiles/healer-known-good";
  knownGoodRoots = "/nix/var/nix/gcroots/healer/known-good";
  helperDir = "/var/lib/healer-helper";
}
