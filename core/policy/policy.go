// Package policy says what holds for a request before a key is looked at:
// whether it is allowed at all, which signatures must be there, and what is
// produced. Decisions come from decision points (the configuration, a file, a
// service), and an [Engine] asks them all. What one of them says, the next one,
// the key and the request may only tighten: docs/spec/policy.md.
package policy

import (
	"fmt"
	"time"

	"lukechampine.com/blake3"

	"github.com/rustyonions/ron-kms/core/alg"
)

// Static is the decision point that knows nothing but the configuration: the
// phases of docs/PQ_MIGRATION.md.
//
//	phase 0  classical only    Mode or,      ProduceHybrid false
//	phase 1  hybrid or         Mode or,      ProduceHybrid true
//	phase 2  hybrid and        Mode and,     ProduceHybrid true
//	phase 3  post-quantum only Mode pq_only, ProduceHybrid true
type Static struct {
	Mode          alg.Mode
	ProduceHybrid bool
	// RolloutPercent is how much of the tenants and purposes Mode and
	// ProduceHybrid hold for: 0 to 100. The others are in phase 0.
	RolloutPercent int
	// GraceUntil is when versions without a post-quantum track stop being
	// verified under ModeAnd and ModePQOnly; the zero time is at once.
	GraceUntil time.Time

	// AttestRequire and FailOpen are those of every decision, in any phase.
	AttestRequire, FailOpen bool
	// AllowSignFallback permits what other decision points permit too.
	AllowSignFallback bool
}

// Decide gives the decision for one tenant and purpose. It allows everything:
// the configuration knows no other tenants than those with tokens.
func (s Static) Decide(tenant, purpose string, now time.Time) Decision {
	d := Decision{
		Allow: true, Mode: alg.ModeOr,
		AttestRequire: s.AttestRequire, FailOpen: s.FailOpen && s.AttestRequire, AllowSignFallback: s.AllowSignFallback,
	}
	if Bucket(tenant, purpose) >= s.RolloutPercent {
		return d
	}
	d.Mode, d.ProduceHybrid, d.Enforced, d.LegacyGrace = s.Mode, s.ProduceHybrid, true, now.Before(s.GraceUntil)
	return d
}

// Bucket places a tenant and purpose between 0 and 99, always at the same
// place, so that raising the percentage only ever adds. It is
// BLAKE3(tenant "/" purpose), its first eight bytes as a big-endian number,
// modulo 100. Labels hold no "/".
func Bucket(tenant, purpose string) int {
	sum := blake3.Sum256([]byte(tenant + "/" + purpose))
	n := uint64(0)
	for _, b := range sum[:8] {
		n = n<<8 | uint64(b)
	}
	return int(n % 100)
}

// Phase names the migration phase that the settings amount to, for people and
// the metric kms_pq_mode.
func (s Static) Phase() string {
	switch {
	case s.Mode == alg.ModePQOnly:
		return "3"
	case s.Mode == alg.ModeAnd:
		return "2"
	case s.ProduceHybrid:
		return "1"
	}
	return "0"
}

// Validate checks the range of the percentage.
func (s Static) Validate() error {
	if s.RolloutPercent < 0 || s.RolloutPercent > 100 {
		return fmt.Errorf("policy: roll-out is 0 to 100 percent")
	}
	return nil
}
