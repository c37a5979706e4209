package policy

import (
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/rustyonions/ron-kms/core/alg"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// neutral is the decision that has nothing to say.
func neutral() Decision {
	return Decision{Allow: true, Mode: alg.ModeOr, LegacyGrace: true, AllowSignFallback: true}
}

// drawDecision draws any decision that a decision point may make.
func drawDecision(t *rapid.T, label string) Decision {
	flag := func(name string) bool { return rapid.Bool().Draw(t, label+"."+name) }
	limit := func(name string) int { return rapid.SampledFrom([]int{0, 0, 1, 2, 50, 1000}).Draw(t, label+"."+name) }
	d := Decision{
		Allow: rapid.SampledFrom([]bool{true, true, true, false}).Draw(t, label+".allow"),
		Mode:  alg.Mode(rapid.IntRange(1, 3).Draw(t, label+".mode")), ProduceHybrid: flag("hybrid"), LegacyGrace: flag("grace"),
		Enforced: flag("enforced"), Limits: Limits{RPS: limit("rps"), MaxBytes: int64(limit("max"))},
		AttestRequire: flag("attest"), AllowSignFallback: flag("fallback"),
		TTL: time.Duration(rapid.IntRange(0, 8).Draw(t, label+".ttl")) * time.Second,
	}
	if d.Limits.RPS > 0 {
		d.Limits.Burst = limit("burst")
	}
	d.FailOpen = d.AttestRequire && flag("open")
	return d
}

// looser names the parts in which a allows what b does not.
func looser(a, b Decision) (parts []string) {
	exceeds := func(x, y int64) bool { return y != 0 && (x == 0 || x > y) }
	attest := func(d Decision) int {
		switch {
		case !d.AttestRequire:
			return 0
		case d.FailOpen:
			return 1
		}
		return 2
	}
	for part, is := range map[string]bool{
		"allow": a.Allow && !b.Allow, "mode": a.Mode != 0 && a.Mode < b.Mode || b.Mode == 0 && a.Mode != 0,
		"hybrid": !a.ProduceHybrid && b.ProduceHybrid, "grace": a.LegacyGrace && !b.LegacyGrace,
		"fallback": a.AllowSignFallback && !b.AllowSignFallback, "attest": attest(a) < attest(b),
		"rps": exceeds(int64(a.Limits.RPS), int64(b.Limits.RPS)), "burst": exceeds(int64(a.Limits.Burst), int64(b.Limits.Burst)),
		"max_bytes": exceeds(a.Limits.MaxBytes, b.Limits.MaxBytes), "ttl": exceeds(int64(a.TTL), int64(b.TTL)),
	} {
		if is {
			parts = append(parts, part)
		}
	}
	return parts
}

// R-030, D-16: what two decisions say together is not looser than either, and
// does not depend on which comes first.
func TestTightenNeverLoosens(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawDecision(t, "a"), drawDecision(t, "b")
		both, other := a.Tighten(b), b.Tighten(a)
		if both != other {
			t.Fatalf("%+v one way and %+v the other", both, other)
		}
		for _, d := range []Decision{a, b} {
			if parts := looser(both, d); parts != nil {
				t.Fatalf("%v of %+v are looser than of %+v", parts, both, d)
			}
		}
		// Nor is it tighter than it must be: what both allow stays.
		if got := a.Tighten(a); got != a {
			t.Fatalf("%+v with itself is %+v", a, got)
		}
		if got := a.Tighten(neutral()); got != a {
			t.Fatalf("%+v with one that says nothing is %+v", a, got)
		}
		if d := a.Tighten(Decision{}); d.Allow || d.Mode != 0 || d.Mode.Satisfied(alg.OK, alg.OK) {
			t.Fatalf("the zero decision leaves %+v", d)
		}
	})
}

func TestTightenNames(t *testing.T) {
	t.Parallel()
	yes := Decision{Allow: true, Mode: alg.ModeOr, Reason: "fine", Version: "1"}
	no := Decision{Mode: alg.ModeOr, Reason: "not here", Version: "2", ID: "x"}
	if d := yes.Tighten(no); d.Reason != "not here" || d.Version != "1,2" || d.ID != "x" {
		t.Errorf("%+v", d)
	}
	if d := no.Tighten(yes); d.Reason != "not here" || d.Version != "2,1" || d.ID != "x" {
		t.Errorf("%+v", d)
	}
}

// What configuration says of attestation and fallback holds in every phase.
func TestStaticBesidesPhases(t *testing.T) {
	t.Parallel()
	for _, percent := range []int{0, 100} {
		s := Static{Mode: alg.ModeAnd, RolloutPercent: percent, AttestRequire: true, FailOpen: true, AllowSignFallback: true}
		if d := s.Decide("acme", "release", time.Time{}); !d.Allow || !d.AttestRequire || !d.FailOpen || !d.AllowSignFallback {
			t.Errorf("at %d%%: %+v", percent, d)
		}
	}
	if d := (Static{FailOpen: true}).Decide("acme", "release", time.Time{}); d.FailOpen {
		t.Error("fail_open without attest_require")
	}
}
