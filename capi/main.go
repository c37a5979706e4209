// Command capi is the C interface of ron-kms: built with -buildmode=c-shared
// it is libronkms.so, whose functions include/ronkms.h declares.
//
// Its layers, from the outside in: shim.c has the public functions and guards
// them against fork; exports.go takes the arguments of each one; call.go turns
// errors, faults and panics into statuses; memory.go is the only place that
// touches the caller's memory; handles.go knows what is open.
//
// Build it with capi/build.sh: without its version script the library exports
// names of the Go runtime.
package main

// #cgo CFLAGS: -I${SRCDIR}/../include
// #cgo LDFLAGS: -lpthread
// #include <stdlib.h>
// #include "ronkms.h"
import "C"

// version is what ronkms_version_string returns; the build sets it.
var version = "0.1.0-dev"

// main is never called: a c-shared library needs a package main.
func main() {}

// cVersion lives as long as the library.
var cVersion = C.CString(version)

//export rkgo_version
func rkgo_version() *C.char { return cVersion }
