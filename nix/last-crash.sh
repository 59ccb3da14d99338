# sh THIS UNIT FILE BREADCRUMB [COMMAND…], as the agent's own user, in its sandbox: tell the
# agent how its last run ended, if that was a crash, and become COMMAND with $HEALER_LAST_CRASH. For
# an adopted unit there is no command: the file alone. PID 1 starts it, also while healer is dead.
# Without a FILE it is the end of a run, and the breadcrumb goes into the agent's journal, where
# healer finds it: nobody but the agent may open that file, which it can make a link to anything.
# Shell builtins only, of busybox, and no subshell: it is on the restart path. The variables are the
# agent's: this script's own are local.

# Read text from standard input into $json, as JSON has it: at most 4096 bytes, and none that is not
# printable ASCII or \n, so that what a crash left half-written is JSON all the same.
quote() {
  json= total=0
  while [ $total -lt 4096 ]; do
    chunk=
    IFS= read -r -d '' -n 128 chunk
    [ -n "$chunk" ] || break
    total=$((total + 128))
    case $chunk in
      *[!A-Za-z0-9\ _.:,/-]*)
        chunk=${chunk//\\/\\\\}
        chunk=${chunk//\"/\\\"}
        chunk=${chunk//$newline/\\n}
        chunk=${chunk//[! -~]/?}
        ;;
    esac
    json=$json$chunk
  done
  json=\"$json\"
}

# The file that the agent may have left in its state directory. Never a pipe, which could hang.
breadcrumb() {
  json=null
  if [ -n "$1" ] && [ -n "$STATE_DIRECTORY" ] && [ -f "${STATE_DIRECTORY%%:*}/$1" ]; then
    quote <"${STATE_DIRECTORY%%:*}/$1"
  fi
}

# The last STATUS= of that run which healer saw; it notes when, in hundredths of a second since boot.
status_text() {
  json=null
  if [ -n "$start" ] && [ -f "$1" ]; then
    {
      IFS= read -r -n 24 at
      case $at in
        '' | *[!0-9]*) ;;
        *) if [ "$at" -ge "$start" ] && [ "$at" -le "$stop" ]; then quote; fi ;;
      esac
    } <"$1"
  fi
}

leave() {
  local newline json total chunk
  newline='
'
  breadcrumb "$1"
  printf 'healer-breadcrumb: %s %s\n' "$INVOCATION_ID" "$json"
}

tell() {
  local newline json total chunk at key mask crumb how when failed=
  local in_a_row invocation class code status start stop time runtime_ms
  newline='
'
  # The second line is the umask (proc_pid_status(5)). Without it, it could not be given back.
  { read -r key && read -r key mask; } </proc/self/status || return
  # Assignments, of nothing but letters, digits and signs: stamp-stop.sh has seen to that. `command`
  # has a shell go on if they are gone by now.
  command . "/run/healer/last/$1" || return
  breadcrumb "$3"
  crumb=$json
  status_text "/run/healer/status-texts/$1"
  how="\"class\":\"$class\",\"code\":\"$code\",\"status\":\"$status\""
  when="\"time\":${time:-null},\"runtime_ms\":${runtime_ms:-null},\"in_a_row\":$in_a_row"
  umask 077
  printf '{%s,%s,"status_text":%s,"breadcrumb":%s,"invocation":"%s"}\n' \
    "$how" "$when" "$json" "$crumb" "$invocation" >"$2" || failed=1
  umask "$mask"
  [ -z "$failed" ]
}

if [ -z "$2" ]; then
  [ "$SERVICE_RESULT" = success ] || leave "$3"
  exit 0
fi
if [ -s "/run/healer/last/$1" ] && tell "$1" "$2" "$3"; then
  HEALER_LAST_CRASH=$2
  export HEALER_LAST_CRASH
else
  unset HEALER_LAST_CRASH
fi
shift 3
# A shell adds these to the environment that systemd made.
unset PWD OLDPWD SHLVL
[ $# = 0 ] || exec "$@"
