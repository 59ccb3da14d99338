# ExecStartPre=+sh THIS UNIT: under which system toplevel, and when, this invocation started.
# Shell builtins only: it is on the restart path of every agent.
unit=$1
read -r uptime _ </proc/uptime
toplevel=
if cd -P /run/current-system 2>/dev/null; then toplevel=$PWD; fi
# With healer dead and an agent that dies at once, /run must not fill up: the journal has the rest.
set -- "/run/healer/stamps/$unit".*.start
[ $# -gt 1000 ] && exit 0
printf 'uptime=%s\ntoplevel=%s\n' "$uptime" "$toplevel" \
  >"/run/healer/stamps/$unit.$INVOCATION_ID.start"
# A stamp that cannot be written must never keep an agent from starting.
exit 0
