# ExecStopPost=+sh THIS UNIT: how this invocation ended, while its cgroup can still be read.
# PID 1 runs it even when healer is dead. Shell builtins only: it is on the restart path.
unit=$1
case $INVOCATION_ID in '' | *[!0-9a-f]*) exit 0 ;; esac
stamps=/run/healer/stamps
stamp=$stamps/$unit.$INVOCATION_ID
# With healer dead and an agent that dies at once, /run must not fill up: behind the first thousand
# stamps the journal has to serve. Whoever removes stamps removes the count.
count=0
if [ -r "$stamps/$unit.count" ]; then read -r count <"$stamps/$unit.count"; fi
[ "${count:-0}" -lt 1000 ] || exit 0
echo $((${count:-0} + 1)) >"$stamps/$unit.count"
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
