# Sourced by test.sh and check.sh: runs named steps, goes on after a failure,
# and tells at the end what ran, what failed and what was skipped.

passed=() failed=() skipped=()

# step NAME COMMAND...: runs the command, its output where it belongs.
step() {
  local name=$1 start=$SECONDS
  shift
  echo "== $name"
  if "$@"; then
    passed+=("$name ($((SECONDS - start)) s)")
  else
    failed+=("$name")
    echo "FAILED: $name" >&2
  fi
}

# skip NAME WHY: a step that this machine cannot do. RONKMS_NO_SKIP=1 makes it
# a failure.
skip() {
  if [ "${RONKMS_NO_SKIP:-}" = 1 ]; then
    failed+=("$1: $2")
    echo "FAILED: $1: $2 (and RONKMS_NO_SKIP=1)" >&2
  else
    skipped+=("$1: $2")
    echo "SKIPPED: $1: $2" >&2
  fi
}

# summary: prints all and is false if anything failed.
summary() {
  local line
  echo
  echo "== summary"
  for line in ${passed[@]+"${passed[@]}"}; do echo "  ran      $line"; done
  for line in ${skipped[@]+"${skipped[@]}"}; do echo "  SKIPPED  $line"; done
  for line in ${failed[@]+"${failed[@]}"}; do echo "  FAILED   $line"; done
  echo "  ${#passed[@]} ran, ${#skipped[@]} skipped, ${#failed[@]} failed"
  [ ${#failed[@]} = 0 ]
}
