#!/usr/bin/env bash
# check.sh [--quick]: what a change must pass besides its tests. With --quick,
# only what needs no other program than Go, gcc and git, and no network.
#
# RONKMS_VULNDB names a copy of the Go vulnerability database: a folder, or a
# URL. Without it govulncheck asks vuln.go.dev, and is skipped where that cannot
# be reached.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/scripts/steps.sh

quick=0
[ "${1:-}" = --quick ] && quick=1

have() { command -v "$1" >/dev/null 2>&1; }

# Every file that is or may become part of the repository.
files() { git ls-files -co --exclude-standard -- "$@" | while read -r f; do [ ! -f "$f" ] || echo "$f"; done; }

# none WHAT: fails, and shows them, if there are any lines on standard input.
none() {
  local found
  found=$(cat)
  if [ -n "$found" ]; then
    echo "$1:" >&2
    echo "$found" >&2
    return 1
  fi
}

# matches PATTERN: the lines with it in the text files named on standard input.
# That there are none is no error.
matches() { xargs grep -nIE -- "$1" || [ $? = 123 ] || [ $? = 1 ]; }

format() { files '*.go' | xargs gofmt -l | none "not formatted; run make fmt"; }
vet() { go vet ./...; }
modules() { go mod verify && go mod tidy -diff && (cd tests/oracles && go mod verify && go mod tidy -diff); }
architecture() { go test -count=1 ./tests/arch; }
# SA9005 would forbid the tests that marshal what must not be marshalled, to see that nothing comes out.
analysis() { go tool -modfile=tests/tools/go.mod staticcheck -checks inherit,-SA9005 ./...; }
licences() { (cd tests/tools && go test ./licences && go run ./licences ../.. && go run ./licences ../oracles); }

shell_scripts() {
  local f bad=0
  while read -r f; do
    bash -n "$f" || bad=1
    if [[ $f != tests/scripts/steps.sh ]] && ! grep -qE '^set -euo? ?' "$f"; then
      echo "$f: goes on after an error: set -euo pipefail" >&2
      bad=1
    fi
  done < <(files '*.sh' '.ci/run')
  return $bad
}

header() {
  gcc -std=c99 -pedantic -Wall -Wextra -Werror -fsyntax-only -x c include/ronkms.h &&
    g++ -std=c++11 -pedantic -Wall -Wextra -Werror -fsyntax-only -x c++ include/ronkms.h
}

# The library exports what the header declares, and nothing else.
exports() {
  bash capi/build.sh >/dev/null &&
    diff <(grep -oE '\bronkms_[a-z0-9_]+ *\(' include/ronkms.h | tr -d ' (' | sort -u) \
      <(nm -D --defined-only build/libronkms.so.0 | awk '$2 ~ /[TDBR]/ { sub(/@.*/, "", $3); print $3 }' | sort -u) |
    none "header (<) and library (>) differ"
}

# The repository speaks of the project alone, and its main path is finished.
hygiene() {
  local bad=0
  files | grep -vE '^(tests/(tools|oracles)/)?go\.sum$' |
    matches '(^|[^A-Za-z0-9_.<-])/(wor[k]|roo[t]|hom[e])/' | none "paths of a machine" || bad=1
  files '*.go' '*.c' '*.h' '*.py' '*.sh' Makefile | grep -vE '_test\.go$' |
    matches '\b(TOD[O]|FIXM[E]|XX[X])\b' | none "unfinished work on the main path" || bad=1
  # Exceptions to the length of files would be named here, with their reason.
  files '*.go' | xargs wc -l | awk '$2 != "total" && $1 > 700 { print $2 ": " $1 " lines" }' | none "Go files longer than 700 lines" || bad=1
  return $bad
}

# Each direct dependency says what it is for: a comment on its line in go.mod,
# or on the line above.
dependencies() {
  awk '
    /^require \(/ { inside = 1; above = 0; next }
    /^\)/ { inside = 0 }
    inside && /^[ \t]*\/\// { above = 1; next }
    inside && /\/\/ indirect/ { above = 0; next }
    inside && NF > 0 { if (!above && $0 !~ /\/\/ *[a-zA-Z]/) print $1; above = 0 }
    inside && NF == 0 { above = 0 }
    /^require [^(]/ && $0 !~ /\/\/ *[a-zA-Z]/ { print $2 }
  ' go.mod tests/oracles/go.mod | none "direct dependencies in go.mod that do not say what they are for"
}

vulnerabilities() {
  local db=()
  case ${RONKMS_VULNDB:-} in
    "") ;;
    *://*) db=(-db "$RONKMS_VULNDB") ;;
    *) db=(-db "file://$(cd "$RONKMS_VULNDB" && pwd)") ;;
  esac
  go tool -modfile=tests/tools/go.mod govulncheck ${db[@]+"${db[@]}"} ./...
}

step "format (gofmt)" format
step "vet" vet
step "architecture and acceptance tables" architecture
step "shell scripts" shell_scripts
step "hygiene" hygiene
step "dependencies say what they are for" dependencies
if have gcc && have g++; then
  step "header alone, C99 and C++" header
else
  skip "header alone, C99 and C++" "no gcc or g++"
fi
if [ $quick = 0 ]; then
  step "modules (verify, tidy)" modules
  step "licences" licences
  step "static analysis (staticcheck)" analysis
  if [ -n "${RONKMS_VULNDB:-}" ] || { have curl && curl -sfo /dev/null --max-time 5 https://vuln.go.dev/index/db.json; }; then
    step "known vulnerabilities (govulncheck)" vulnerabilities
  else
    skip "known vulnerabilities (govulncheck)" "vuln.go.dev cannot be reached, and RONKMS_VULNDB names no copy of its database"
  fi
  if have gcc && have nm; then
    step "exported symbols" exports
    step "reproducible build" bash tests/scripts/reproducible.sh
  else
    skip "exported symbols, reproducible build" "no gcc or nm"
  fi
fi
summary
