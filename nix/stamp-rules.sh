# Read by stamp-stop.sh for an agent with rules that systemd cannot carry out by its own settings: a
# delay for one exit code, a backoff for one signal, and whatever asks for the class of an end.
# $1 is the directory of systemctl and systemd-run, $2 the shell and restart-later.sh, $3 the
# policy's own delay in milliseconds, $4 what systemd does where no rule says anything (restart or
# stop); the rest are the rules in their order, each WHAT=ANSWER or WHAT=ANSWER:MS,MS,…, where WHAT
# is an exit code, a signal or a class. healer/watchdog/policy.py says the same in Python.
systemd=$1 later=$2 policy_ms=$3 otherwise=$4
shift 4

# The first rule about this end, and the first about its exit code or signal: that one systemd obeys
# by itself (RestartPreventExitStatus=, RestartForceExitStatus=).
native= forbid=
for rule; do
  what=${rule%%=*} says=${rule#*=}
  case $what in
    "$EXIT_STATUS") native=${native:-$says} answer=${answer:-$says} ;;
    "$class") answer=${answer:-$says} ;;
  esac
done
delays=${answer#*:}
answer=${answer%%:*}
native=${native%%:*}
follow=${answer:-$otherwise}
# Above these it is healer that acts, if it is alive; the agent itself goes on as otherwise.
case $follow in escalate | rollback) follow=$otherwise ;; esac
case ${native:-escalate} in escalate | rollback) native=$otherwise ;; esac
case $follow in
  restart) [ "$native" = restart ] || delay_ms=$policy_ms ;;
  delay | backoff)
    IFS=,
    set -- $delays
    unset IFS
    nth=$((in_a_row > 0 ? in_a_row : 1))
    shift $((nth < $# ? nth - 1 : $# - 1))
    delay_ms=$1
    ;;
esac
if [ "$follow" != restart ] && [ "$native" = restart ]; then forbid=1; fi

# Run a program without the unit's environment: the agent may have written it, and the program is
# root's. The list may hold lines that only look like a variable's: unsetting those does no harm.
cleanly() (
  set -f
  IFS='
'
  for line in $(export -p); do
    name=${line#export }
    name=${name%%=*}
    case $name in
      '' | [0-9]* | *[!A-Za-z0-9_]*) ;;
      *) unset "$name" ;;
    esac
  done
  unset IFS
  exec "$@"
)

# In patterns and lists of units a backslash, which a unit's name may have, is an escape.
escaped=$unit
case $unit in *\\*) escaped=${unit//\\/\\\\} ;; esac

# A stop or restart that somebody asked for goes before all rules.
if [ -n "$forbid$delay_ms" ]; then
  asked=0
  set -- $(cleanly "$systemd/systemctl" list-jobs --no-legend "$escaped")
  case ${3-} in
    stop | restart | try-restart) asked=1 answer= delay_ms= in_a_row=0 ;;
  esac
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
