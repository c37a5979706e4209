//go:build !goexperiment.runtimesecret

package secret

// Do calls f. In builds with GOEXPERIMENT=runtimesecret it then erases what f
// left in registers, on the stack and on the heap; this build does not. f must
// keep to the rules of the other build: small, no goroutines, no cgo.
func Do(f func()) { f() }

// Enabled reports whether [Do] erases: whether the program was built with
// GOEXPERIMENT=runtimesecret.
func Enabled() bool { return false }
