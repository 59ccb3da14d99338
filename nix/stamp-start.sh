# ExecStartPre=+sh THIS UNIT: under which system toplevel, and when, this invocation started.
# Shell builtins only: it is on the restart path of every agent.
# The invocation in the name cannot be guessed and noclobber never writes through a link, so the
# directory may belong to the unprivileged healer, who removes what it has recorded.
set -C
unit=$1
read -r uptime _ </proc/uptime
toplevel=
if cd -P /run/current-system 2>/dev/null; then toplevel=$PWD; fi
printf 'uptime=%s\ntoplevel=%s\n' "$uptime" "$toplevel" \
  >"/run/healer/stamps/$unit.$INVOCATION_ID.start"
# A stamp that cannot be written must never keep an agent from starting.
exit 0
