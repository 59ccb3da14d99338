# ExecStopPost=+sh THIS UNIT STABLE_MS SYSTEMD [RULES LATER DELAYS_MS OTHERWISE RULE…]: how this
# invocation ended, while its cgroup can still be read, and what its restart rules say about that.
# PID 1 runs it even when healer is dead. Shell builtins only, but for what is rare: it is on the
# restart path. SYSTEMD is the directory of systemctl and systemd-run.
unit=$1 stable_ms=$2 systemd=$3
shift 3
# healer reads this as a user of its own, and the agent as its: the unit's UMask= is not for it.
umask 022
case $INVOCATION_ID in '' | *[!0-9a-f]*) exit 0 ;; esac
# Where the agent can write an EnvironmentFile= of its unit, these are what it says there. It may
# lie about itself in them, but not break a line and begin another field.
case $SERVICE_RESULT in *[!a-z-]*) SERVICE_RESULT= ;; esac
case $EXIT_CODE in *[!a-z]*) EXIT_CODE= ;; esac
case $EXIT_STATUS in *[!A-Z0-9+]*) EXIT_STATUS= ;; esac
case $EPOCHREALTIME in *[!0-9.]*) EPOCHREALTIME= ;; esac
stamps=/run/healer/stamps
stamp=$stamps/$unit.$INVOCATION_ID
last=/run/healer/last/$unit
peak= current= oom= oom_kill= pressure= start_uptime= stop_uptime=
# `read` makes two system calls for each byte, and reads no more than it needs.
read -r stop_uptime _ </proc/uptime
cgroup=/sys/fs/cgroup
[ -e $cgroup/cgroup.controllers ] || cgroup=/sys/fs/cgroup/unified
if [ -e "$cgroup/system.slice/$unit/cgroup.procs" ]; then
  cgroup=$cgroup/system.slice/$unit
else
  while IFS=: read -r id _ path; do
    [ "$id" = 0 ] && break
  done </proc/self/cgroup
  cgroup=$cgroup${path%/.control}
fi
if [ -r "$cgroup/memory.peak" ]; then read -r peak <"$cgroup/memory.peak"; fi
if [ -r "$cgroup/memory.current" ]; then read -r current <"$cgroup/memory.current"; fi
if [ -r "$cgroup/memory.pressure" ]; then read -r pressure <"$cgroup/memory.pressure"; fi
if [ -r "$cgroup/memory.events" ]; then
  while read -r key value; do
    case $key in
      oom) oom=$value ;;
      oom_kill)
        oom_kill=$value
        break
        ;;
    esac
  done <"$cgroup/memory.events"
fi
if [ -r "$stamp.start" ]; then IFS='=' read -r _ start_uptime <"$stamp.start"; fi

# The class of the end, as healer/watchdog/classify.py has it; empty where it was clean.
class=$SERVICE_RESULT
case $class in
  success | exec-condition) class= ;;
  exit-code) if [ -n "$EXIT_CODE" ]; then class=exit; else class=start-failed; fi ;;
  oom-kill) class=oom ;;
esac
if [ "$EXIT_CODE $EXIT_STATUS" = "killed KILL" ] && [ "${oom_kill:-0}" != 0 ]; then class=oom; fi
# healer's helper killed it because a check failed.
if [ -e "$stamp.health" ]; then class=health; fi

# How many crashes in a row, none of them after a stable run. The hundredths of a second of
# /proc/uptime may have a leading zero, which must not make them octal.
in_a_row=0 runtime_ms=
if [ -n "$start_uptime" ]; then
  runtime_ms=$(((${stop_uptime%.*} - ${start_uptime%.*}) * 1000))
  runtime_ms=$((runtime_ms + (1${stop_uptime#*.} - 1${start_uptime#*.}) * 10))
fi
if [ -n "$class" ]; then
  if [ -r "$last" ] && [ "${runtime_ms:-0}" -lt "$stable_ms" ]; then
    IFS='=' read -r _ in_a_row <"$last"
  fi
  in_a_row=$((${in_a_row:-0} + 1))
fi

# In patterns and lists of units a backslash, which a unit's name may have, is an escape.
escaped=$unit
case $unit in *\\*) escaped=${unit//\\/\\\\} ;; esac

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

# See whether somebody asked for this end: PID 1 has a job for that until all ExecStopPost= is over.
ask() {
  [ -z "$asked" ] || return 0
  jobs=$(cleanly "$systemd/systemctl" list-jobs --no-legend "$escaped") || return 0
  case $jobs in
    *' stop '* | *' restart '* | *' try-restart '*) asked=1 in_a_row=0 ;;
    *) asked=0 ;;
  esac
}

answer= delay_ms= forbid= asked=
# In the middle of a start nobody else says so in time: PID 1 itself does when all this is over.
if [ -n "$class" ] && [ -z "$start_uptime" ]; then ask; fi
if [ $# -gt 0 ] && [ "$asked" != 1 ]; then
  rules=$1
  shift
  . "$rules"
fi

# With healer dead and an agent that dies at once, /run must not fill up: behind the first thousand
# stamps the journal has to serve. Whoever removes stamps removes the count.
count=0
if [ -r "$stamps/$unit.count" ]; then read -r count <"$stamps/$unit.count"; fi
if [ "${count:-0}" -lt 1000 ]; then
  echo $((${count:-0} + 1)) >"$stamps/$unit.count"
  printf '%s=%s\n' \
    unit "$unit" invocation "$INVOCATION_ID" \
    result "$SERVICE_RESULT" code "$EXIT_CODE" status "$EXIT_STATUS" \
    start_uptime "$start_uptime" stop_uptime "$stop_uptime" \
    memory_peak "$peak" memory_current "$current" oom "$oom" oom_kill "$oom_kill" \
    memory_pressure "$pressure" in_a_row "$in_a_row" answer "$answer" delay_ms "$delay_ms" \
    asked "$asked" end 1 >"$stamp.stop"
fi
# What the agent's next run is told of this one, by last-crash.sh: a script of assignments, so that
# nothing may be in it that a shell would see as anything else.
if [ $in_a_row -gt 0 ]; then
  printf '%s=%s\n' \
    in_a_row "$in_a_row" invocation "$INVOCATION_ID" \
    class "$class" code "$EXIT_CODE" status "$EXIT_STATUS" \
    start "${start_uptime%.*}${start_uptime#*.}" stop "${stop_uptime%.*}${stop_uptime#*.}" \
    time "$EPOCHREALTIME" runtime_ms "$runtime_ms" >"$last"
elif [ -s "$last" ]; then
  : >"$last"
fi
[ -z "$forbid$delay_ms" ] || carry_out
exit 0
