# Read by stamp-stop.sh for an agent with rules that systemd cannot carry out by its own settings: a
# delay for one exit code, a backoff for one signal, and whatever asks for the class of an end; and
# for one that systemd restarts after failures only: a failed check is one, however cleanly the agent
# left when healer's helper ended it.
# $1 is the shell and restart-later.sh, $2 the policy's own delays in milliseconds, $3 what systemd
# does where no rule says anything (restart, stop, or failures); the rest are the rules in their
# order, each WHAT=ANSWER or WHAT=ANSWER:MS,MS,…, where WHAT is an exit code, a signal or a class.
# healer/watchdog/policy.py says the same in Python.
later=$1 delays=$2 otherwise=$3
shift 3
by_itself=$otherwise
if [ "$otherwise" = failures ]; then
  otherwise=restart by_itself=restart
  if [ "$SERVICE_RESULT" = success ]; then by_itself=stop; fi
  if [ -z "$class" ]; then otherwise=stop; fi
fi

# The first rule about this end, and the first about its exit code or signal: that one systemd obeys
# by itself (RestartPreventExitStatus=, RestartForceExitStatus=).
native=
for rule; do
  what=${rule%%=*} says=${rule#*=}
  case $what in
    "$EXIT_STATUS") native=${native:-$says} answer=${answer:-$says} ;;
    "$class") answer=${answer:-$says} ;;
  esac
done
case $answer in *:*) delays=${answer#*:} ;; esac
answer=${answer%%:*}
native=${native%%:*}
follow=${answer:-$otherwise}
# Above these it is healer that acts, if it is alive; the agent itself goes on as otherwise.
case $follow in escalate | rollback) follow=$otherwise ;; esac
case ${native:-escalate} in escalate | rollback) native=$by_itself ;; esac
if [ "$follow" != stop ] && [ "$follow $native" != "restart restart" ]; then
  IFS=,
  set -- $delays
  unset IFS
  nth=$((in_a_row > 0 ? in_a_row : 1))
  shift $((nth < $# ? nth - 1 : $# - 1))
  delay_ms=$1
fi
if [ "$follow" != restart ] && [ "$native" = restart ]; then forbid=1; fi

# A stop or restart that somebody asked for goes before all rules.
if [ -n "$forbid$delay_ms" ]; then
  ask
  if [ "$asked" = 1 ]; then answer= delay_ms= forbid=; fi
fi

carry_out() {
  if [ -n "$forbid" ]; then
    # Without what depends on the unit: to them it is as if it failed.
    cleanly "$systemd/systemctl" stop --no-block --job-mode=ignore-dependencies "$unit"
  fi
  [ -n "$delay_ms" ] || return 0
  timer=healer-restart-${unit%.service}
  # A timer of PID 1's. Stopping the agent stops it too; a restart must not begin it anew.
  set -- --quiet --collect --unit="$timer" --on-active="${delay_ms}ms" \
    --description="Restart of $unit by its rules" \
    --timer-property=AccuracySec=1ms --timer-property=StopPropagatedFrom="$escaped" \
    $later "$systemd/systemctl" "$unit" "$INVOCATION_ID"
  if ! cleanly "$systemd/systemd-run" "$@" 2>/dev/null; then
    # It is there from a run before this one.
    cleanly "$systemd/systemctl" stop "$timer.timer"
    cleanly "$systemd/systemd-run" "$@"
  fi
}
