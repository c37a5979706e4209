package alg_test

import (
	"testing"

	"github.com/rustyonions/ron-kms/core/alg"
)

var (
	modes    = []alg.Mode{alg.ModeOr, alg.ModePQOnly, alg.ModeAnd}
	verdicts = []alg.Verdict{alg.Absent, alg.Bad, alg.OK}
)

// every mode with every pair of verdicts.
func TestSatisfied(t *testing.T) {
	t.Parallel()
	const (
		no, bad, ok = alg.Absent, alg.Bad, alg.OK
	)
	for _, row := range []struct {
		classical, pq   alg.Verdict
		or, pqOnly, and bool
	}{
		{no, no, false, false, false},
		{no, bad, false, false, false},
		{no, ok, true, true, false},
		{bad, no, false, false, false},
		{bad, bad, false, false, false},
		{bad, ok, true, true, false},
		{ok, no, true, false, false},
		{ok, bad, true, false, false},
		{ok, ok, true, true, true},
	} {
		for mode, want := range map[alg.Mode]bool{
			alg.ModeOr: row.or, alg.ModePQOnly: row.pqOnly, alg.ModeAnd: row.and, 0: false, 4: false, 255: false,
		} {
			if got := mode.Satisfied(row.classical, row.pq); got != want {
				t.Errorf("%v with classical %v, pq %v = %v", mode, row.classical, row.pq, got)
			}
		}
	}
	if alg.ModeOr.Satisfied(3, 255) || alg.ModeAnd.Satisfied(3, 3) {
		t.Error("an invalid verdict satisfies")
	}
}

// Tighten is conjunction, so it never loosens: checked by what it is satisfied
// with.
func TestTighten(t *testing.T) {
	t.Parallel()
	for _, m := range modes {
		for _, o := range modes {
			both := m.Tighten(o)
			if both != o.Tighten(m) {
				t.Errorf("%v and %v: order matters", m, o)
			}
			for _, c := range verdicts {
				for _, p := range verdicts {
					if both.Satisfied(c, p) != (m.Satisfied(c, p) && o.Satisfied(c, p)) {
						t.Errorf("%v tightened by %v is %v, wrong for classical %v, pq %v", m, o, both, c, p)
					}
				}
			}
		}
		for _, invalid := range []alg.Mode{0, 4, 255} {
			if m.Tighten(invalid) != 0 || invalid.Tighten(m) != 0 {
				t.Errorf("%v tightened by an invalid mode is valid", m)
			}
		}
	}
	if alg.ModeOr.Tighten(alg.ModePQOnly) != alg.ModePQOnly || alg.ModePQOnly.Tighten(alg.ModeAnd) != alg.ModeAnd {
		t.Error("or and pq_only, pq_only and and")
	}
}

func TestModeNames(t *testing.T) {
	t.Parallel()
	for name, mode := range map[string]alg.Mode{"or": alg.ModeOr, "pq_only": alg.ModePQOnly, "and": alg.ModeAnd} {
		got, err := alg.ParseMode(name)
		if err != nil || got != mode || mode.String() != name {
			t.Errorf("%q = %v, %v", name, got, err)
		}
	}
	for _, name := range []string{"", "OR", "off", "pq-only", "and ", "invalid"} {
		if got, err := alg.ParseMode(name); err == nil || got != 0 {
			t.Errorf("%q = %v", name, got)
		}
	}
	if s := alg.Mode(0).String() + alg.Mode(9).String() + alg.Verdict(9).String() + alg.Class(0).String() + alg.Kind(0).String(); s != "invalidinvalidinvalidinvalidinvalid" {
		t.Error(s)
	}
}
