#!/usr/bin/env bash
# The main job, end to end: a C program signs every file of this repository
# through the library; others verify what it signed, and what it recorded.
# Called by `make demo`, which builds first.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
kms=$root/build/ron-kms

work=$(mktemp -d)
pids=()
cleanup() {
	for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
	rm -rf "$work"
}
trap cleanup EXIT

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'demo: FAILED: %s\n' "$*" >&2; exit 1; }
# wait_for FILE PATTERN PID: until a line of FILE matches or the process ends.
wait_for() {
	for _ in $(seq 600); do
		grep -q "$2" "$1" && return
		kill -0 "$3" 2>/dev/null || { cat "$1" >&2; fail "the process ended early"; }
		sleep 0.1
	done
	cat "$1" >&2
	fail "no '$2' within a minute"
}

umask 077
say "A new store, sealed by a passphrase"
head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$work/passphrase"
export KMS_DIR=$work/store KMS_PASSPHRASE_FILE=$work/passphrase
"$kms" init | tee "$work/init"
vkey=$(sed -n 's/^verifier key *//p' "$work/init")
"$kms" token mint --tenant demo --scope kms:create,kms:rotate,kms:sign,kms:verify,kms:read --ttl 1h >"$work/token"
"$kms" token attenuate --scope kms:verify,kms:read "$work/token" >"$work/token.verify"

say "A C program links libronkms, creates a hybrid key and signs every file of the repository"
git ls-files -z >"$work/files" 2>/dev/null && [ -s "$work/files" ] ||
	find . -path ./build -prune -o -path ./.git -prune -o -type f -print0 | sed -z 's|^\./||' >"$work/files"
xargs -0 "$kms" digest <"$work/files" >"$work/digests"
total=$(wc -l <"$work/digests")
gcc -std=gnu99 -Wall -Wextra -O2 -Iinclude tests/demo/sign_tree.c -o "$work/sign_tree" \
	-Lbuild -lronkms -Wl,-rpath,"$root/build"
printf '{"backend":"file","dir":"%s","passphrase_file":"%s","bind":"127.0.0.1:0"}' "$KMS_DIR" "$KMS_PASSPHRASE_FILE" >"$work/config.json"
"$work/sign_tree" "$work/config.json" "$work/token" <"$work/digests" >"$work/signatures" 2>"$work/sign_tree.log" &
signer=$!
pids+=("$signer")
wait_for "$work/sign_tree.log" '^serving ' "$signer"
cat "$work/sign_tree.log"
address=$(awk '/^serving/ {print $2}' "$work/sign_tree.log")
created=$(awk '/^created/ {print $2}' "$work/sign_tree.log")
rotated=$(awk '/^rotated/ {print $3}' "$work/sign_tree.log")
[ "$(wc -l <"$work/signatures")" = "$total" ] || fail "not every file was signed"

say "The same process serves REST: another program verifies all $total, with a narrower token"
export KMS_TOKEN_FILE=$work/token.verify
"$kms" verify --endpoint "$address" "$work/signatures"
echo "and one changed digest is refused:"
sed 's/"payload_b3":"[0-9a-f]\{64\}"/"payload_b3":"'"$(printf '0%.0s' $(seq 64))"'"/;1q' "$work/signatures" >"$work/forged"
if "$kms" verify --no-files --endpoint "$address" "$work/forged" 2>&1; then fail "a wrong digest verified"; fi
if command -v curl >/dev/null; then
	echo "ready, says curl: $(curl -fsS "$address/readyz")"
	# The token goes in by a file: arguments can be read by others.
	printf 'header = "Authorization: Bearer %s"\n' "$(cat "$work/token.verify")" >"$work/curlrc"
	kid=${created%%#*}
	curl -fsS -K "$work/curlrc" "$address/v1/kms/keys/$kid" | grep -q '"ed25519+ml-dsa-65"' || fail "curl could not read the key"
fi

say "OpenSSL checks one Ed25519 half over the published preimage"
if command -v openssl >/dev/null; then
	first=$(head -n 1 "$work/signatures")
	digest=$(sed 's/.*"payload_b3":"\([0-9a-f]*\)".*/\1/' <<<"$first")
	bundle=$(sed 's/.*"bundle_hex":"\([0-9a-f]*\)".*/\1/' <<<"$first")
	# docs/spec/bundle.md: 01, count, then per signature LP(kid) LP(alg) LP(value).
	at=4
	lp() { len=$((16#${bundle:at:4})); field=${bundle:at+4:2*len}; at=$((at + 4 + 2 * len)); }
	unhex() { printf '%b' "$(sed 's/../\\x&/g' <<<"$1")"; }
	lp
	lp
	[ "$(unhex "$field")" = ed25519 ] || fail "the first signature of the bundle is not Ed25519"
	lp
	unhex "$field" >"$work/sig"
	"$kms" preimage --kid "$created" --digest "$digest" >"$work/preimage"
	public=$("$kms" keys get --endpoint "$address" "$created" |
		sed -n 's/.*"pubkey_b64": "\([A-Za-z0-9+/=]*\)".*/\1/p' | head -n 1)
	# RFC 8410: an Ed25519 public key in DER is this prefix and 32 bytes.
	{
		unhex 302a300506032b6570032100
		openssl base64 -d -A <<<"$public"
	} >"$work/public.der"
	openssl pkeyutl -verify -pubin -keyform DER -inkey "$work/public.der" -rawin -in "$work/preimage" -sigfile "$work/sig"
else
	echo "SKIPPED: there is no openssl on this machine (apt-get install openssl)"
fi

say "SIGKILL, and a daemon opens the same store: nothing is lost"
kill -9 "$signer"
wait "$signer" 2>/dev/null || true
"$kms" serve --bind "unix://$work/kms.sock" 2>"$work/serve.log" &
server=$!
pids+=("$server")
wait_for "$work/serve.log" '"msg":"serving"' "$server"
"$kms" verify --endpoint "unix://$work/kms.sock" "$work/signatures"
"$kms" keys list --endpoint "unix://$work/kms.sock"
[ "$("$kms" keys list --endpoint "unix://$work/kms.sock" | awk '{print $1}')" = "$rotated" ] || fail "the head is not the rotated version"
kill -TERM "$server"
wait "$server" || fail "the daemon did not stop cleanly"

say "The audit log, checked with nothing but its public key, counts the same"
"$kms" audit verify --key "$vkey" --expect "create=1,rotate=1,sign=$total"

printf '\ndemo: ok\n'
