# ExecStart=sh THIS SYSTEMCTL UNIT INVOCATION: a rule's delay is over (stamp-rules.sh). The agent is
# restarted if nothing else has started it meanwhile. With it restart those that are part of it.
[ "$("$1" show --property=InvocationID --value "$2")" = "$3" ] || exit 0
exec "$1" restart --no-block "$2"
