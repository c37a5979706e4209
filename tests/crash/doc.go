// Package crash proves that killing the process at any moment loses nothing
// that was acknowledged: its test kills a working store with SIGKILL, again
// and again, and never closes it.
package crash
