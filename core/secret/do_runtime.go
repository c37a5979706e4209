//go:build goexperiment.runtimesecret

package secret

import "runtime/secret"

// Do calls f and then erases the registers and the stack that f used; what f
// allocated on the heap is erased when it is collected. f must be small, must
// not start goroutines, and must not call cgo, which ends the process (Go issue
// 78999). Calls may nest.
func Do(f func()) { secret.Do(f) }

// Enabled reports whether [Do] erases: whether the program was built with
// GOEXPERIMENT=runtimesecret.
func Enabled() bool { return true }
