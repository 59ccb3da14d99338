# ExecStartPost=-+sh THIS UNIT: under which system toplevel, from which directory of unit files, and
# when, this invocation started.
# It runs beside the agent, not before it, so it delays no restart. Shell builtins only.
unit=$1
# See stamp-stop.sh.
umask 022
case $INVOCATION_ID in '' | *[!0-9a-f]*) exit 0 ;; esac
stamps=/run/healer/stamps
# Enough is enough: see stamp-stop.sh.
count=0
if [ -r "$stamps/$unit.count" ]; then read -r count <"$stamps/$unit.count"; fi
[ "${count:-0}" -lt 1000 ] || exit 0
read -r uptime _ </proc/uptime
toplevel= unit_dir=
if cd -P /run/current-system 2>/dev/null; then toplevel=$PWD; fi
if cd -P /etc/systemd/system 2>/dev/null; then unit_dir=$PWD; fi
# The uptime first: stamp-stop.sh reads no further.
printf '%s=%s\n' uptime "$uptime" toplevel "$toplevel" unit_dir "$unit_dir" \
  >"$stamps/$unit.$INVOCATION_ID.start"
# A stamp that cannot be written must never keep an agent from starting.
exit 0
