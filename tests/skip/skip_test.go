package skip

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// recorder is a testing.TB that notes how it was ended.
type recorder struct {
	testing.TB
	skipped, failed bool
}

func (r *recorder) Helper()               {}
func (r *recorder) Name() string          { return "TestNeedy" }
func (r *recorder) Skip(...any)           { r.skipped = true; runtime.Goexit() }
func (r *recorder) Fatalf(string, ...any) { r.failed = true; runtime.Goexit() }

func run(fn func(testing.TB)) *recorder {
	r := new(recorder)
	done := make(chan struct{})
	go func() { defer close(done); fn(r) }()
	<-done
	return r
}

func TestSkipIsAFailureWherePromised(t *testing.T) {
	absent := func(tb testing.TB) { Without(tb, "no-such-program-anywhere") }
	log := filepath.Join(t.TempDir(), "skips")
	t.Setenv(LogVariable, log)

	t.Setenv(Variable, "1")
	if r := run(absent); r.skipped || !r.failed {
		t.Errorf("with the variable: skipped %t, failed %t", r.skipped, r.failed)
	}
	t.Setenv(Variable, "")
	if r := run(absent); !r.skipped || r.failed {
		t.Errorf("without the variable: skipped %t, failed %t", r.skipped, r.failed)
	}
	want := "TestNeedy: no no-such-program-anywhere on the PATH\n"
	if got, err := os.ReadFile(log); err != nil || string(got) != want {
		t.Errorf("skip log: %q, %v; want %q", got, err, want)
	}
	if r := run(func(tb testing.TB) { Without(tb, "go") }); r.skipped || r.failed {
		t.Error("a program that is there was not found")
	}
}
