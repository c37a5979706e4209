#!/usr/bin/env bash
# test.sh: every test of the project. What this machine lacks is skipped and
# said; RONKMS_NO_SKIP=1 makes that a failure, as in CI.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/scripts/steps.sh

RONKMS_SKIP_LOG=$(mktemp)
export RONKMS_SKIP_LOG
trap 'rm -f "$RONKMS_SKIP_LOG"' EXIT

have() { command -v "$1" >/dev/null 2>&1; }

# The peers that tests speak with: program and the Debian package that has it.
install_peers() {
  local missing=() pair
  for pair in openssl:openssl python3:python3 gcc:gcc g++:g++ nm:binutils curl:curl swtpm:swtpm cargo:cargo; do
    have "${pair%%:*}" || missing+=("${pair##*:}")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" = 0 ] && have apt-get; then
    echo "== installing ${missing[*]}"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" && return 0
  fi
  echo "SKIPPED: not installed, so what needs them is skipped: ${missing[*]}" >&2
}

packages() { go list ./... | grep -E "$@"; }

# The race detector costs a factor of ten. It cannot be loaded as a shared
# library from C, and the crash loop and the benchmark are about time.
slow='/tests/(abi|crash|bench|arch)$'

race() { go test -race -timeout 10m $(packages -v "$slow"); }
fast() { go test -timeout 10m $(packages -v "$slow"); }
plain() { go test -timeout 5m $(packages "$slow"); }
crash_race() { RONKMS_KILLS=25 go test -race -timeout 5m ./tests/crash; }

# The build that erases what cryptographic code leaves behind.
experiment() { GOEXPERIMENT=runtimesecret go test -timeout 5m ./core/... ./backends/... ./audit; }

# An implementation that shares no code with ours checks the vectors.
offline() { python3 docs/vectors/verify_offline.py docs/vectors/preimage.json; }

# Vectors and libraries of others, in a module of their own.
oracles() {
	(
		cd tests/oracles
		go vet ./...
		go test -timeout 5m -v -run '^TestVectors$' . # prints how many vectors of each file ran
		go test -timeout 5m ./...
	)
}

install_peers
step "vet and build" bash -c 'go vet ./... && go build ./...'
if have gcc; then
  step "tests, race detector" race
  step "crash loop, race detector" crash_race
else
  skip "tests, race detector" "no gcc"
  step "tests without race detector" fast
fi
step "tests that do not run under the race detector" plain
step "oracles: vectors and libraries of others" oracles
if GOEXPERIMENT=runtimesecret go list runtime/secret >/dev/null 2>&1; then
  step "tests, runtimesecret" experiment
else
  skip "tests, runtimesecret" "this toolchain has no GOEXPERIMENT=runtimesecret"
fi
if have python3 && have openssl; then
  step "vectors, by openssl" offline
else
  skip "vectors, by openssl" "no python3 or openssl"
fi
step "checks" bash tests/scripts/check.sh --quick

while read -r line; do skipped+=("$line"); done < <(sort -u "$RONKMS_SKIP_LOG")
summary
