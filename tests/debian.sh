#!/usr/bin/env bash
# Installs Debian packages that tests need, where their commands are missing: tests/debian.sh LOG COMMAND=PACKAGE ...
# Needs root. One process at a time: apt refuses a second.
set -euo pipefail
log=$1 && shift
missing=()
for pair in "$@"; do
  command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
done
[ ${#missing[@]} -gt 0 ] || exit 0
export DEBIAN_FRONTEND=noninteractive
exec 9>/tmp/maelift-apt.lock
flock 9
{ apt-get update -q && apt-get install -y -q "${missing[@]}"; } >>"$log" 2>&1 || {
  echo "tests/debian.sh: ${missing[*]} could not be installed; see $log" >&2
  tail -5 "$log" >&2
  exit 1
}
