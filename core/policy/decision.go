package policy

import (
	"errors"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/rustyonions/ron-kms/core/alg"
)

// A Decision is what a decision point says about one question. The zero
// Decision allows nothing, and no signature satisfies its mode.
type Decision struct {
	// Allow says whether the operation may go on at all.
	Allow bool
	// Reason is why, for the operator: at most 200 bytes, may be empty. It is
	// not for the caller.
	Reason string

	// Mode is the least that a bundle must satisfy.
	Mode alg.Mode
	// ProduceHybrid gives new versions of classical keys a post-quantum
	// companion track, and new signatures both.
	ProduceHybrid bool
	// LegacyGrace says that a version without a post-quantum track may still
	// be verified by what it has. It never lets such a version sign.
	LegacyGrace bool
	// Enforced is false for a tenant and purpose that the roll-out has not
	// reached and no other decision point speaks about: Mode is ModeOr then,
	// and nothing hybrid is produced.
	Enforced bool

	// Limits hold besides those of the configuration.
	Limits Limits

	// AttestRequire demands a custodian that attests.
	AttestRequire bool
	// FailOpen lets an operation go on, marked, while attestation is required
	// and cannot be had. It is false where AttestRequire is.
	FailOpen bool
	// AllowSignFallback permits another custodian of the same key to sign.
	AllowSignFallback bool

	// Version names the rules that the decision was made by: at most 64 visible
	// characters. Of several decision points it is all of theirs with commas.
	Version string
	// ID names this one decision in the decision point's own log, if it keeps
	// one: at most 64 visible characters.
	ID string
	// TTL is how long the decision may be used again; 0 if it does not say.
	TTL time.Duration
}

// Limits bound a tenant's use. Zero is no limit.
type Limits struct {
	RPS      int   // operations a second
	Burst    int   // operations at once
	MaxBytes int64 // of one request's body
}

const (
	maxReason = 200
	maxName   = 64
	maxRate   = 1_000_000
	maxBody   = 1 << 20 // as the largest KMS_MAX_PAYLOAD, in bytes
)

// Tighten is the decision that holds when both d and o do: the stronger in each
// part. What either denies is denied, and what must be permitted has to be by
// both.
func (d Decision) Tighten(o Decision) Decision {
	t := Decision{
		Allow:             d.Allow && o.Allow,
		Reason:            d.Reason,
		Mode:              d.Mode.Tighten(o.Mode),
		ProduceHybrid:     d.ProduceHybrid || o.ProduceHybrid,
		LegacyGrace:       d.LegacyGrace && o.LegacyGrace,
		Enforced:          d.Enforced || o.Enforced,
		Limits:            d.Limits.tighten(o.Limits),
		AttestRequire:     d.AttestRequire || o.AttestRequire,
		AllowSignFallback: d.AllowSignFallback && o.AllowSignFallback,
		Version:           d.Version,
		ID:                d.ID,
		TTL:               least(d.TTL, o.TTL),
	}
	// One that requires no attestation has no say in whether it may be missing.
	t.FailOpen = t.AttestRequire && (d.FailOpen || !d.AttestRequire) && (o.FailOpen || !o.AttestRequire)
	if t.Reason == "" || d.Allow && !o.Allow {
		t.Reason = o.Reason
	}
	if t.ID == "" {
		t.ID = o.ID
	}
	switch {
	case t.Version == "":
		t.Version = o.Version
	case o.Version != "":
		t.Version += "," + o.Version
	}
	return t
}

func (l Limits) tighten(o Limits) Limits {
	return Limits{RPS: least(l.RPS, o.RPS), Burst: least(l.Burst, o.Burst), MaxBytes: least(l.MaxBytes, o.MaxBytes)}
}

// least is the smaller of two numbers of which 0 is none.
func least[T int | int64 | time.Duration](a, b T) T {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// errDecision is about decisions that no decision point may make.
var errDecision = errors.New("policy: the decision is out of range")

// check refuses what cannot be honoured. Parsers refuse more.
func (d Decision) check() error {
	if d.Mode.Tighten(d.Mode) == 0 || d.TTL < 0 || d.Limits.check() != nil || !plain(d.Reason) || !name(d.Version) || !name(d.ID) {
		return errDecision
	}
	return nil
}

func (l Limits) check() error {
	if l.RPS < 0 || l.RPS > maxRate || l.Burst < 0 || l.Burst > maxRate || l.MaxBytes < 0 || l.MaxBytes > maxBody || l.Burst > 0 && l.RPS == 0 {
		return errDecision
	}
	return nil
}

// plain reports whether a text may stand on one line of a log.
func plain(s string) bool {
	if len(s) > maxReason || !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}

// name reports whether a text may stand in a header and in a list with commas.
func name(s string) bool {
	if len(s) > maxName {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' || s[i] == ',' || s[i] == '"' {
			return false
		}
	}
	return true
}
