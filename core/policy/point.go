package policy

import (
	"context"
	"errors"
	"slices"
	"time"
)

// An Input is the question put to a decision point: who wants to do what, on
// which kind of key. It has neither secrets nor payloads nor tokens.
type Input struct {
	Tenant  string
	Purpose string // empty where the request names none
	// Verb is the name in the verb table. Method is what rules are about:
	// "KMS:" and the verb's own scope in capitals, so that a batch is not a way
	// round a rule about its items. See [Methods].
	Verb, Method string
	Alg          string // the key's algorithm; empty where no key is named
	KID          string // the key, without a version; empty where none is named
	ActorID      string // name of the capability, as in the audit log
	Attested     bool   // the key's custodian attests
	BodyBytes    int64  // size of the request's body
	Now          time.Time
}

// Methods is what Input.Method may be, and what a rule may be about.
func Methods() []string { return slices.Clone(methods) }

var methods = []string{
	"KMS:ATTEST", "KMS:AUDIT", "KMS:CREATE", "KMS:DERIVE", "KMS:DESTROY", "KMS:READ", "KMS:ROTATE", "KMS:SIGN", "KMS:UNWRAP",
	"KMS:VERIFY", "KMS:WRAP",
}

// A Point is a decision point. Decide may be called concurrently and ends when
// the context does. An error is no decision: the [Engine] says what follows
// from that.
type Point interface {
	Decide(ctx context.Context, in Input) (Decision, error)
}

// ErrUndefined is the error of a decision point that is in order and has no
// decision for the question. It denies what would be refused in an outage.
var ErrUndefined = errors.New("policy: the decision is undefined")

// A Breaker stops questions to a decision point that is out of order. Allow
// returns an error if the question must not be put, and otherwise a function
// that is called once with how it went.
type Breaker interface {
	Allow() (done func(error), err error)
}

// A Kind says what becomes of an operation while no decision can be had.
type Kind uint8

const (
	// Private operations use or change a private key. They are refused. It is
	// the zero value.
	Private Kind = iota
	// Verify goes on by the last decision that is known, or else by the
	// configuration alone.
	Verify
	// Read goes on by the last decision that is known, or else is refused.
	Read
)
