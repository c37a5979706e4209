#!/usr/bin/env bash
# reproducible.sh: builds the program and the library twice, from copies of the
# tree at two places, and compares them byte by byte.
set -euo pipefail
cd "$(dirname "$0")/../.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for copy in one two/and/deeper; do
  mkdir -p "$work/$copy"
  git ls-files -co --exclude-standard | while read -r f; do [ ! -e "$f" ] || echo "$f"; done |
    tar -cf - -T - | tar -xf - -C "$work/$copy"
  make -C "$work/$copy" build VERSION=0 COMMIT=0 >/dev/null
done

bad=0
for name in ron-kms libronkms.so.0; do
  if cmp -s "$work/one/build/$name" "$work/two/and/deeper/build/$name"; then
    echo "$name: $(sha256sum <"$work/one/build/$name" | cut -c1-64)"
  else
    echo "$name: two builds of the same source differ" >&2
    bad=1
  fi
done
exit $bad
