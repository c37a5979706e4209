package secret_test

import (
	"runtime/debug"
	"strings"
	"testing"

	"github.com/rustyonions/ron-kms/core/secret"
)

// Enabled tells the truth about the build, and Do runs its argument once, also
// when nested.
func TestDo(t *testing.T) {
	n := 0
	secret.Do(func() { secret.Do(func() { n++ }) })
	if n != 1 {
		t.Errorf("ran %d times", n)
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		t.Skip("no build information")
	}
	built := false
	for _, s := range info.Settings {
		if s.Key == "GOEXPERIMENT" {
			built = strings.Contains(s.Value, "runtimesecret")
		}
	}
	if secret.Enabled() != built {
		t.Errorf("Enabled = %v in a build with runtimesecret = %v", secret.Enabled(), built)
	}
}

func TestWipe(t *testing.T) {
	p := []byte{1, 2, 3, 4}
	secret.Wipe(p[1:3])
	if string(p) != string([]byte{1, 0, 0, 4}) {
		t.Errorf("%v", p)
	}
	secret.Wipe(nil)
}
