# ExecStopPost=+sh THIS UNIT: how this invocation ended, while its cgroup can still be read.
# PID 1 runs it even when healer is dead. Shell builtins only: it is on the restart path.
unit=$1
stamp=/run/healer/stamps/$unit.$INVOCATION_ID
# An invocation whose start stamp was left out (stamp-start.sh) has no stop stamp either.
set -- "/run/healer/stamps/$unit".*.stop
[ $# -gt 1000 ] && exit 0
boot= peak= current= oom_kill= pressure= start_uptime= toplevel= stop_uptime=
read -r stop_uptime _ </proc/uptime
read -r boot </proc/sys/kernel/random/boot_id
while IFS=: read -r id _ path; do
  [ "$id" = 0 ] && break
done </proc/self/cgroup
cgroup=/sys/fs/cgroup
[ -e $cgroup/cgroup.controllers ] || cgroup=/sys/fs/cgroup/unified
cgroup=$cgroup${path%/.control}
if [ -r "$cgroup/memory.peak" ]; then read -r peak <"$cgroup/memory.peak"; fi
if [ -r "$cgroup/memory.current" ]; then read -r current <"$cgroup/memory.current"; fi
if [ -r "$cgroup/memory.pressure" ]; then read -r pressure <"$cgroup/memory.pressure"; fi
if [ -r "$cgroup/memory.events" ]; then
  while read -r key value; do
    [ "$key" = oom_kill ] && oom_kill=$value
  done <"$cgroup/memory.events"
fi
if [ -r "$stamp.start" ]; then
  while IFS='=' read -r key value; do
    case $key in
      uptime) start_uptime=$value ;;
      toplevel) toplevel=$value ;;
    esac
  done <"$stamp.start"
fi
printf '%s=%s\n' \
  unit "$unit" invocation "$INVOCATION_ID" boot "$boot" \
  result "$SERVICE_RESULT" code "$EXIT_CODE" status "$EXIT_STATUS" \
  start_uptime "$start_uptime" stop_uptime "$stop_uptime" toplevel "$toplevel" \
  memory_peak "$peak" memory_current "$current" oom_kill "$oom_kill" \
  memory_pressure "$pressure" end 1 >"$stamp.stop"
exit 0
