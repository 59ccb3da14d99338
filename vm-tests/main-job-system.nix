# The machine of main-job.py, in plain values: NixOS gets them through main-job.nix, the local
# machine as they are. Two agents that keep state, a good deployment, and one that crashes.
let
  counter = {
    # One more every 0.1 s, in a file that outlives each run.
    command = [
      "/bin/sh"
      "-c"
      ''
        read -r n <"$STATE_DIRECTORY/count" || n=0
        while :; do
          n=$((n + 1))
          echo "$n" >"$STATE_DIRECTORY/count"
          sleep 0.1
        done
      ''
    ];
    stateDirectory = "counter";
    crashLoop = {
      maxCrashes = 3;
      windowSec = 60;
    };
    stableSec = 2;
  };

  # Ends with 3 when told to by SIGUSR1: what it works on is wrong, and a restart cannot mend that.
  choosy = {
    command = [
      "/bin/sh"
      "-c"
      ''
        trap 'echo "this cannot work" >&2; exit 3' USR1
        while :; do sleep 0.1; done
      ''
    ];
    restart = {
      policy = "conditional";
      rules = [
        {
          exitCodes = [ 3 ];
          action = "stop";
        }
      ];
    };
    stableSec = 2;
  };

  healer = {
    enable = true;
    agents = { inherit counter choosy; };
    safeSwitch.probationSec = 5;
    drift.intervalSec = 1;
  };

  # A slow machine must not take a new program for stable before it had the time to crash.
  deployment = changes: {
    healer = healer // {
      safeSwitch.probationSec = if changes ? command then 300 else 5;
      agents = healer.agents // {
        counter = counter // changes;
      };
    };
  };
in
{
  inherit healer;
  specialisation = {
    good = deployment { environment.VERSION = "2"; };
    bad = deployment {
      command = [
        "/bin/sh"
        "-c"
        "echo 'the new version does not work' >&2; exit 1"
      ];
    };
  };
}
