// Package skip lets a test that needs something of the machine (a compiler, a
// peer, a device) say so, and makes the absence of it a failure where that was
// promised: with RONKMS_NO_SKIP=1, as in CI, nothing is skipped.
package skip

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
)

const (
	// Variable is the environment variable that turns every skip into a
	// failure when it is "1".
	Variable = "RONKMS_NO_SKIP"

	// LogVariable names a file to which each skip adds a line, so that a run
	// over many packages can tell at its end what it did not test.
	LogVariable = "RONKMS_SKIP_LOG"
)

// Skip ends the test: skipped, with "SKIPPED: " and why on its line, or failed
// if RONKMS_NO_SKIP is "1". why says what is missing.
func Skip(t testing.TB, why string) {
	t.Helper()
	if os.Getenv(Variable) == "1" {
		t.Fatalf("would be skipped, and %s=1 forbids it: %s", Variable, why)
	}
	if path := os.Getenv(LogVariable); path != "" {
		if err := note(path, t.Name()+": "+why); err != nil {
			t.Fatalf("skip log: %v", err)
		}
	}
	t.Skip("SKIPPED: " + why)
}

func note(path, line string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(f, line); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// Without skips the test unless every one of the programs is on the PATH.
func Without(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			Skip(t, "no "+p+" on the PATH")
		}
	}
}
