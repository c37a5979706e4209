#!/bin/sh
# Builds libronkms.so.0 and the link libronkms.so.
#
#   capi/build.sh [folder]      default: build
#
# VERSION sets what ronkms_version_string returns. GOEXPERIMENT may be given;
# by default it is runtimesecret (erasure of registers and stacks that held
# secrets) wherever the Go toolchain has it.
set -eu
mkdir -p "${1:-build}"
out=$(cd "${1:-build}" && pwd)
cd "$(dirname "$0")/.."

if [ -z "${GOEXPERIMENT+set}" ]; then
	case "$(go env GOOS)/$(go env GOARCH)" in
	linux/amd64 | linux/arm64)
		if GOEXPERIMENT=runtimesecret go list runtime/secret >/dev/null 2>&1; then
			export GOEXPERIMENT=runtimesecret
		fi
		;;
	esac
fi

# The go command does not see the version script's content: without the old
# file it must link again.
rm -f "$out/libronkms.so.0"
CGO_ENABLED=1 go build -trimpath -buildmode=c-shared -ldflags "-s -w -buildid= -X main.version=${VERSION:-0.1.0-dev} -extldflags '-Wl,--version-script=$(pwd)/capi/ronkms.map -Wl,-soname,libronkms.so.0 -Wl,-z,nodelete -Wl,-z,now'" -o "$out/libronkms.so.0" ./capi
# The generated header repeats the Go side; the only header is include/ronkms.h.
rm -f "$out/libronkms.so.h" "$out/libronkms.so.0.h" "$out/libronkms.h"
ln -sfn libronkms.so.0 "$out/libronkms.so"
