#!/usr/bin/env bash
# install.sh install|uninstall BUILD DESTDIR PREFIX VERSION
#
# Puts the library (with the name that programs ask the loader for, and the one
# that they link with), the header, the pkg-config file, the program and the
# licences under DESTDIR/PREFIX, or takes exactly these away again.
set -euo pipefail
cd "$(dirname "$0")/../.."

action=$1 build=$2 root=$3$4 prefix=$4 version=${5#v}

lib=$root/lib
files=(
  "$lib/libronkms.so.0"
  "$lib/libronkms.so"
  "$lib/pkgconfig/ronkms.pc"
  "$root/include/ronkms.h"
  "$root/bin/ron-kms"
  "$root/share/doc/ron-kms/LICENSE"
  "$root/share/doc/ron-kms/NOTICE"
)
for f in LICENSES/*; do files+=("$root/share/doc/ron-kms/$f"); done

case $action in
install)
  install -d "$lib/pkgconfig" "$root/include" "$root/bin" "$root/share/doc/ron-kms/LICENSES"
  install -m 755 "$build/libronkms.so.0" "$lib/libronkms.so.0"
  ln -sf libronkms.so.0 "$lib/libronkms.so"
  install -m 644 include/ronkms.h "$root/include/ronkms.h"
  install -m 755 "$build/ron-kms" "$root/bin/ron-kms"
  install -m 644 LICENSE NOTICE "$root/share/doc/ron-kms/"
  install -m 644 LICENSES/* "$root/share/doc/ron-kms/LICENSES/"
  sed -e "s|@prefix@|$prefix|g" -e "s|@version@|$version|g" bindings/c/ronkms.pc.in > "$lib/pkgconfig/ronkms.pc"
  chmod 644 "$lib/pkgconfig/ronkms.pc"
  if [ -z "$3" ] && [ "$(id -u)" = 0 ] && command -v ldconfig >/dev/null; then ldconfig; fi
  ;;
uninstall)
  rm -f "${files[@]}"
  rmdir "$root/share/doc/ron-kms/LICENSES" "$root/share/doc/ron-kms" 2>/dev/null || true
  ;;
*)
  echo "usage: install.sh install|uninstall BUILD DESTDIR PREFIX VERSION" >&2
  exit 2
  ;;
esac
