package trustedtime

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rustyonions/ron-kms/tests/skip"
)

// what counts as synchronised, and the bound in milliseconds, rounded up.
func TestDiscipline(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		state    int
		status   int32
		maxError int64
		ok       bool
		ms       int64
	}{
		{"kept by ntp", unix.TIME_OK, unix.STA_PLL, 1500, true, 2},
		{"exact millisecond", unix.TIME_OK, unix.STA_PLL, 2000, true, 2},
		{"no error known", unix.TIME_OK, 0, 0, true, 0},
		{"one microsecond", unix.TIME_OK, 0, 1, true, 1},
		{"leap second ahead", unix.TIME_INS, unix.STA_PLL | unix.STA_INS, 10, true, 1},
		{"never synchronised", unix.TIME_ERROR, unix.STA_UNSYNC, 16_000_000, false, 16_000},
		{"flag without state", unix.TIME_OK, unix.STA_UNSYNC | unix.STA_PLL, 10, false, 1},
		{"state without flag", unix.TIME_ERROR, unix.STA_CLOCKERR, 10, false, 1},
	} {
		tx := unix.Timex{Status: c.status}
		tx.Maxerror = c.maxError
		if ok, ms := discipline(c.state, &tx); ok != c.ok || ms != c.ms {
			t.Errorf("%s: %v, %d ms, want %v, %d ms", c.name, ok, ms, c.ok, c.ms)
		}
	}
}

// The kernel answers without privilege, or not at all where a sandbox forbids it.
func TestKernelSync(t *testing.T) {
	t.Parallel()
	ok, ms, err := kernelSync()
	if err != nil {
		if ok || ms != 0 {
			t.Errorf("%v, %d with %v", ok, ms, err)
		}
		skip.Skip(t, "the kernel does not tell: "+err.Error())
	}
	if ms < 0 || ms > 16_000 {
		t.Errorf("bound of the error is %d ms", ms)
	}
}
