#!/usr/bin/env bash
# fuzz.sh TIME: runs each fuzz target of the module for TIME (as in 10s or 2m).
# A target that is found must be run: no list to keep, none to forget.
set -euo pipefail
cd "$(dirname "$0")/../.."

time=${1:-10s}
count=0
while IFS=: read -r file target; do
  package=./$(dirname "$file")
  echo "== $package $target ($time)"
  go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$package"
  count=$((count + 1))
done < <(grep -rHoE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' . | sed -E 's|^\./||; s/:func /:/' | sort)

if [ "$count" = 0 ]; then
  echo "no fuzz target found" >&2
  exit 1
fi
echo "$count fuzz targets, nothing found"
