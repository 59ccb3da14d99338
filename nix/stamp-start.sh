# ExecStartPost=+sh THIS UNIT: under which system toplevel, and when, this invocation started.
# It runs beside the agent, not before it, so it delays no restart. Shell builtins only.
unit=$1
case $INVOCATION_ID in '' | *[!0-9a-f]*) exit 0 ;; esac
stamps=/run/healer/stamps
# See stamp-stop.sh.
count=0
if [ -r "$stamps/$unit.count" ]; then read -r count <"$stamps/$unit.count"; fi
[ "${count:-0}" -lt 1000 ] || exit 0
read -r uptime _ </proc/uptime
toplevel=
if cd -P /run/current-system 2>/dev/null; then toplevel=$PWD; fi
printf 'uptime=%s\ntoplevel=%s\n' "$uptime" "$toplevel" >"$stamps/$unit.$INVOCATION_ID.start"
# A stamp that cannot be written must never keep an agent from starting.
exit 0
