package policy

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/rustyonions/ron-kms/core/alg"
)

// R-311, D-17: raising the percentage never takes a tenant out, and the bucket
// of a tenant and purpose is the same for ever.
func TestRolloutIsMonotone(t *testing.T) {
	label := rapid.StringMatching(`[a-z0-9]{1,8}`)
	rapid.Check(t, func(t *rapid.T) {
		tenant, purpose := label.Draw(t, "tenant"), label.Draw(t, "purpose")
		low := rapid.IntRange(0, 100).Draw(t, "low")
		high := rapid.IntRange(low, 100).Draw(t, "high")
		at := func(percent int) bool {
			return Static{Mode: alg.ModeAnd, RolloutPercent: percent}.Decide(tenant, purpose, time.Time{}).Enforced
		}
		if at(low) && !at(high) {
			t.Fatalf("%s/%s is in at %d%% and out at %d%%", tenant, purpose, low, high)
		}
		if at(0) || !at(100) {
			t.Fatal("0% must reach nobody and 100% everybody")
		}
	})
}

// The bucket is part of the promise: a change would move tenants between
// phases. The values were computed with b3sum and Python's
// integers.
func TestBucketVectors(t *testing.T) {
	for _, v := range bucketVectors {
		if got := Bucket(v.tenant, v.purpose); got != v.want {
			t.Errorf("Bucket(%s, %s) = %d, want %d", v.tenant, v.purpose, got, v.want)
		}
	}
}

var bucketVectors = []struct {
	tenant, purpose string
	want            int
}{
	{"acme", "release", 22}, {"acme", "audit", 98}, {"beta", "release", 48}, {"a", "b", 57},
}

func TestBucketsAreEven(t *testing.T) {
	const n = 20000
	in := 0
	for i := range n {
		if Bucket(fmt.Sprint("tenant", i), "sign") < 25 {
			in++
		}
	}
	if in < n*23/100 || in > n*27/100 {
		t.Fatalf("%d of %d are below 25", in, n)
	}
}

// D-17: production and enforcement move together.
func TestPhases(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, c := range []struct {
		s     Static
		phase string
		want  Decision
	}{
		{Static{Mode: alg.ModeOr, RolloutPercent: 100}, "0", Decision{Allow: true, Mode: alg.ModeOr, Enforced: true}},
		{Static{Mode: alg.ModeOr, ProduceHybrid: true, RolloutPercent: 100}, "1", Decision{Allow: true, Mode: alg.ModeOr, ProduceHybrid: true, Enforced: true}},
		{Static{Mode: alg.ModeAnd, ProduceHybrid: true, RolloutPercent: 100}, "2", Decision{Allow: true, Mode: alg.ModeAnd, ProduceHybrid: true, Enforced: true}},
		{Static{Mode: alg.ModePQOnly, ProduceHybrid: true, RolloutPercent: 100}, "3", Decision{Allow: true, Mode: alg.ModePQOnly, ProduceHybrid: true, Enforced: true}},
		{Static{Mode: alg.ModeAnd, ProduceHybrid: true, RolloutPercent: 0}, "2", Decision{Allow: true, Mode: alg.ModeOr}},
		{Static{Mode: alg.ModeAnd, RolloutPercent: 100, GraceUntil: now.Add(1)}, "2", Decision{Allow: true, Mode: alg.ModeAnd, Enforced: true, LegacyGrace: true}},
		{Static{Mode: alg.ModeAnd, RolloutPercent: 100, GraceUntil: now}, "2", Decision{Allow: true, Mode: alg.ModeAnd, Enforced: true}},
	} {
		if got := c.s.Decide("acme", "release", now); got != c.want {
			t.Errorf("%+v decides %+v, want %+v", c.s, got, c.want)
		}
		if got := c.s.Phase(); got != c.phase {
			t.Errorf("%+v is phase %s, want %s", c.s, got, c.phase)
		}
	}
}
