# boot.sh BOOTED STATE TRIES PROFILE KNOWN-GOOD ROOTS [AGENT...], as root and early in the boot, before
# anything that a generation may have broken: count the boots of a system that is not known to be
# good, or is so of a live switch only and has come up in no boot yet. After TRIES in which it did not
# come up go back to a known-good one, unless there is an AGENT that is not safe to roll back. A
# daemon of this boot that finds every agent up has root remove the count, and write down what has
# come up; one that finds what is down to be no fault of the system has root excuse the boot
# (healer/safeswitch/booting.py). It needs sh, nix-env and systemctl, and no healer.
set -u
booted=$(cd -P "$1" && pwd) || exit 0
state=$2 tries=$3 profile=$4 known_good=$5 roots=$6
shift 6

# Whether a system has come up in a boot, as far as that was written down.
came_up() {
  if ! [ -r "$state/came-up" ]; then return 1; fi
  while read -r line; do
    if [ "$line" = "$1" ]; then return 0; fi
  done <"$state/came-up"
  return 1
}

# Where it would go back to is the newest one that has come up, or else the newest: nothing may have
# been written down yet. From one that is known-good itself it goes to what has come up only, and
# not where it has come up as well. A garbage collection leaves the newest generation and ROOTS.
newest=$(cd -P "$known_good" 2>/dev/null && pwd) || exit 0
known='' good='' generation=0 own='' own_roots=''
for link in "$known_good"-*-link "$roots"-*-link; do
  base=$(cd -P "$link" 2>/dev/null && pwd) || continue
  for system in "$base" "$base"/specialisation/*; do
    if [ "$(cd -P "$system" 2>/dev/null && pwd)" = "$booted" ]; then known=1; fi
  done
  number=${link%-link}
  number=${number##*-}
  if [ "$base" = "$booted" ]; then
    case $link in
      "$known_good"-*) own="$own $number" ;;
      *) own_roots="$own_roots $link" ;;
    esac
  fi
  if [ "$number" -gt "$generation" ] && came_up "$base"; then
    good=$base generation=$number
  fi
done
if [ -n "$known" ]; then
  if [ -z "$good" ] || came_up "$booted"; then
    rm -f "$state/boots" "$state/excused"
    exit 0
  fi
fi
good=${good:-$newest}

# One line: the system, how often it was booted, and the last of these boots.
read -r boot </proc/sys/kernel/random/boot_id
toplevel='' count=0 last=''
if [ -r "$state/boots" ]; then read -r toplevel count last <"$state/boots"; fi
if [ "$last" = "$boot" ]; then exit 0; fi
case $toplevel:$count in
  "$booted":*[!0-9]* | "$booted":) count=0 ;;
  "$booted":*) ;;
  *) count=0 ;;
esac
count=$((count + 1))
# One line: the system, how many of its boots were excused, and the last of these.
whose='' excused=0
if [ -r "$state/excused" ]; then read -r whose excused last <"$state/excused"; fi
case $whose:$excused in
  "$booted":*[!0-9]* | "$booted":) excused=0 ;;
  "$booted":*) ;;
  *) excused=0 ;;
esac
tries=$((tries + excused))
mkdir -p "$state"
# Durable before the boot goes on: it may be a short one.
echo "$booted $count $boot" >"$state/.boots.new" && sync && mv "$state/.boots.new" "$state/boots"
sync
if [ "$count" -le "$tries" ]; then exit 0; fi
if [ $# -gt 0 ]; then
  echo "healer: $booted did not come up in $tries boots; not going back:" \
    "rollbackSafe is false for $*" >&2
  exit 0
fi

echo "healer: $booted did not come up in $tries boots; going back to $good" >&2
# Written down first, so that a power cut leaves no system that changed and nobody knows why. healer
# believes it in a boot of where it went back to only.
echo "$booted $good $tries $boot" >"$state/.boot-rollback.new" &&
  mv "$state/.boot-rollback.new" "$state/boot-rollback"
sync
if ! nix-env --profile "$profile" --set "$good" ||
  ! "$good/bin/switch-to-configuration" boot; then
  rm -f "$state/boot-rollback"
  exit 1
fi
rm -f "$state/boots" "$state/excused"
# It is condemned now, and known-good no more: neither for a later boot nor for a rollback.
if [ -n "$own_roots" ]; then rm -f $own_roots; fi
if [ -n "$own" ]; then
  nix-env --profile "$known_good" --set "$good" &&
    nix-env --profile "$known_good" --delete-generations $own # one argument each
fi
sync
systemctl reboot --no-block
