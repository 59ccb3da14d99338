# The restart policy of an agent: as systemd's own settings, and what of it the stop stamp has to
# carry out because systemd has no setting for it. Either way it holds with healer dead.
let
  inherit (builtins)
    concatMap
    concatStringsSep
    elemAt
    filter
    floor
    fromJSON
    genList
    map
    match
    toString
    ;

  defaults = import ./defaults.nix;

  optional = condition: set: if condition then set else { };

  # Seconds, as systemd.time(7) writes them without a fraction: 0, 5 -> "5s", 0.1 -> "100ms".
  duration =
    seconds:
    let
      us = floor (seconds * 1000000 + 0.5);
      divides = unit: us - (us / unit) * unit == 0;
    in
    if us == 0 then
      "0"
    else if divides 1000000 then
      "${toString (us / 1000000)}s"
    else if divides 1000 then
      "${toString (us / 1000)}ms"
    else
      "${toString us}us";

  milliseconds = seconds: toString (floor (seconds * 1000 + 0.5));

  delayOf =
    restart:
    if restart.delaySec == null then defaults.restartDelaySec.${restart.policy} else restart.delaySec;

  # A delay of 0 cannot grow.
  backoffSec =
    restart: if delayOf restart < 0.001 then defaults.backoffSec else delayOf restart;

  # How many restarts it takes the delay to its maximum.
  stepsOf =
    restart:
    let
      count =
        delay: steps:
        if delay >= restart.maxDelaySec || steps > 1000 then steps else count (delay * restart.factor) (steps + 1);
      counted = count (backoffSec restart * 1.0) 0;
    in
    if restart.factor == null then
      restart.steps
    else if counted == 0 then
      1
    else
      counted;

  # x to the n; far above any delay it need not be exact.
  power =
    x: n:
    let
      half = power x (n / 2);
      square = half * half;
      whole = if n - (n / 2) * 2 == 1 then square * x else square;
    in
    if n == 0 then
      1.0
    else if whole > 1.0e100 then
      1.0e100
    else
      whole;

  # By what a delay grows with each of `steps` restarts so that it is `times` as long at the end.
  ratio =
    times: steps:
    let
      search =
        low: high: rounds:
        let
          middle = (low + high) / 2;
        in
        if rounds == 0 then
          high
        else if power middle steps < times then
          search middle high (rounds - 1)
        else
          search low middle (rounds - 1);
    in
    search 1.0 (times * 1.0) 100;

  # The delays of a backoff in milliseconds, as systemd's RestartSteps= counts them.
  backoff =
    restart:
    let
      first = backoffSec restart;
      steps = stepsOf restart;
      grow = ratio (restart.maxDelaySec / (first * 1.0)) steps;
      nth = n: if n == steps then restart.maxDelaySec else first * power grow n;
    in
    concatStringsSep "," (genList (n: milliseconds (nth n)) (steps + 1));

  # Whether systemd's own restart, after the policy's delay, is what a rule asks for.
  isNative =
    restart: rule:
    rule.action == "restart"
    && restart.otherwise != "backoff"
    && (rule.delaySec == null || rule.delaySec == delayOf restart);

  answer =
    restart: rule:
    if rule.action == "restart" then
      if isNative restart rule then
        "restart"
      else
        "delay:${milliseconds (if rule.delaySec == null then delayOf restart else rule.delaySec)}"
    else if rule.action == "backoff" then
      "backoff:${backoff restart}"
    else
      rule.action;

  # $EXIT_STATUS of a signal: systemd counts the realtime signals from the first of them.
  signalStatus =
    name:
    let
      up = match "SIGRTMIN(\\+([0-9]+))?" name;
      down = match "SIGRTMAX(-([0-9]+))?" name;
      number = found: if elemAt found 1 == null then 0 else fromJSON (elemAt found 1);
    in
    if up != null then
      "RTMIN+${toString (number up)}"
    else if down != null then
      "RTMIN+${toString (30 - number down)}"
    else
      elemAt (match "SIG(.*)" name) 0;

  prevented = [
    "stop"
    "backoff"
  ];
  statuses =
    wanted: restart:
    concatStringsSep " " (
      concatMap (rule: map toString rule.exitCodes ++ rule.signals) (filter wanted restart.rules)
    );

  growing = restart: {
    RestartSec = duration (backoffSec restart);
    RestartSteps = stepsOf restart;
    RestartMaxDelaySec = duration restart.maxDelaySec;
  };

  restartConfig =
    restart:
    let
      prevent = statuses (
        rule: builtins.elem rule.action prevented || (rule.action == "restart" && !isNative restart rule)
      ) restart;
      force = statuses (isNative restart) restart;
      onExit = if restart.on == "always" then "always" else "on-failure";
    in
    optional (restart.jitterSec != null) { RestartRandomizedDelaySec = duration restart.jitterSec; }
    // {
      immediate = {
        Restart = onExit;
        RestartSec = 0;
      };
      exponential = {
        Restart = onExit;
      }
      // growing restart;
      conditional = {
        Restart = if restart.otherwise == "stop" then "no" else onExit;
        RestartSec = duration (delayOf restart);
      }
      // optional (restart.otherwise == "backoff") (growing restart)
      // optional (prevent != "") { RestartPreventExitStatus = prevent; }
      // optional (force != "") { RestartForceExitStatus = force; };
      never = {
        Restart = "no";
      };
    }
    .${restart.policy};
in
{
  inherit
    delayOf
    duration
    milliseconds
    restartConfig
    stepsOf
    ;

  # An adopted unit brings restart settings of its own: each one is set, or set back.
  adoptedRestartConfig =
    restart:
    let
      wanted = restartConfig restart;
      # An empty assignment clears the list that the unit came with.
      cleared = status: [ "" ] ++ (if status == null then [ ] else [ status ]);
    in
    {
      RestartSec = 0;
      RestartSteps = 0;
      RestartMaxDelaySec = "infinity";
      RestartMode = "normal";
    }
    // wanted
    // {
      RestartPreventExitStatus = cleared (wanted.RestartPreventExitStatus or null);
      RestartForceExitStatus = cleared (wanted.RestartForceExitStatus or null);
    };

  # What stamp-rules.sh is told, in order; nothing where systemd's own settings say it all.
  rulesOf =
    restart:
    let
      rule =
        each:
        map (what: "${what}=${answer restart each}") (
          map toString each.exitCodes ++ map signalStatus each.signals ++ each.classes
        );
      native =
        each:
        each.classes == [ ]
        && each.action != "backoff"
        && (each.action != "restart" || isNative restart each);
      conditional = restart.policy == "conditional";
      rest =
        if restart.policy == "never" || (conditional && restart.otherwise == "stop") then
          "stop"
        else if restart.on == "failure" then
          "failures"
        else
          "restart";
      growsNatively = restart.policy == "exponential" || (conditional && restart.otherwise == "backoff");
      rules = if conditional then restart.rules else [ ];
    in
    if rest != "failures" && builtins.all native rules then
      [ ]
    else
      [
        (if growsNatively then backoff restart else milliseconds (delayOf restart))
        rest
      ]
      ++ concatMap rule rules;
}
