# Sourced by the scripts beside it: how they say what they do, and how they fail.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
logs=$root/build/logs

say() { printf '\n== %s\n' "$*"; }

fail() {
  printf '\n%s: %s\n' "scripts/$(basename "$0")" "$*" >&2
  exit 1
}

# logged NAME COMMAND...: runs it with its output in build/logs/NAME.log; on failure shows the end of that.
logged() {
  local log=$logs/$1.log
  shift
  mkdir -p "$logs"
  "$@" >"$log" 2>&1 && return
  tail -n 20 "$log" >&2
  return 1
}

# Prints the comment at the top of the script that runs, from its second line, as its help.
help() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }

usage() {
  help >&2
  exit 2
}
