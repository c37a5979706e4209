// Package backends defines the contract between the engine and whatever keeps
// its keys. Two questions are separate: where records live ([Records]) and who
// holds the secrets ([Custodian]); a [Backend] answers both.
//
// A contract test, package backendtest, runs against every backend and proves
// both directions of [Backend.Caps]: what is listed works, and what is not
// listed is ErrUnsupported.
package backends

import (
	"context"
	"errors"
	"slices"

	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/secret"
)

// Errors of a backend. Others mean that it is out of order: the engine answers
// StoreUnavailable.
var (
	ErrUnsupported = errors.New("backend cannot do this")
	ErrConflict    = errors.New("records changed since they were read")
	ErrTampered    = errors.New("stored value was changed from outside or damaged")
	ErrArenaFull   = errors.New("locked memory for secrets is full")
	ErrClosed      = errors.New("backend is closed")
	ErrUnwrap      = errors.New("what was wrapped does not open")

	ErrBusy       = errors.New("store is open in another process")
	ErrMissing    = errors.New("there is no store here")
	ErrExists     = errors.New("there is a store here already")
	ErrPassphrase = errors.New("passphrase does not open this store")
)

// An Operation is something that a custodian does with a private key.
type Operation string

// Operations of custodians.
const (
	OpGenerate Operation = "generate"
	OpSign     Operation = "sign"
	OpWrap     Operation = "wrap" // with a secret key; a KEM wraps without its custodian
	OpUnwrap   Operation = "unwrap"
	OpDerive   Operation = "derive"
)

// Serves reports whether a key of an algorithm can have a track: one of its own,
// or, for a classical signing key, a post-quantum companion.
func Serves(a *alg.Alg, t *alg.Track) bool {
	if slices.Contains(a.Tracks(), t) {
		return true
	}
	_, ok := alg.Lookup(a.Name() + "+" + t.Name())
	return ok && t.Kind() == alg.KindSign
}

// Attestation classes: who can vouch for where a private key lives.
const (
	ClassSoftware = "software" // sealed at rest, plain in locked memory while in use
)

// A Cap says that a backend can do one operation with one track, and how its
// keys are attested.
type Cap struct {
	Track     string
	Operation Operation
	Class     string
}

// A Ref names the private part of one track of one key version.
type Ref struct {
	KID   api.KID // with its version
	Track string
}

// Material is what remains outside after a key was generated: the public key,
// and an opaque sealed form of the private key (or a handle to it) that only
// this custodian can use. Sealed is safe to store and worthless elsewhere.
type Material struct {
	Public []byte
	Sealed []byte
}

// A Custodian keeps private keys: they are generated, used and forgotten
// inside it and never come out.
type Custodian interface {
	// Generate makes the private key for ref. Nothing is stored: the caller
	// stores Material.Sealed.
	Generate(ctx context.Context, ref Ref) (Material, error)

	// Sign signs msg under a scheme with the private key in sealed, which must
	// be the one that Generate returned for this very ref: else ErrTampered.
	Sign(ctx context.Context, ref Ref, scheme alg.Scheme, sealed, msg []byte) ([]byte, error)

	// Wrap seals a data key with the secret key in sealed, bound to aad, and
	// returns the body of its envelope. It is for AEAD keys only.
	Wrap(ctx context.Context, ref Ref, sealed, aad, plaintext []byte) (body []byte, err error)

	// Unwrap opens an envelope and lends the data key to use, for the call
	// only. Whatever the reason that it does not open: ErrUnwrap.
	Unwrap(ctx context.Context, ref Ref, sealed, aad []byte, e alg.Envelope, use func(plaintext []byte)) error

	// Derive makes the private key for child from the one in sealed and info.
	// The same key and info always give the same child.
	Derive(ctx context.Context, ref Ref, sealed []byte, info string, child Ref) (Material, error)

	// Forget drops and wipes whatever is cached for ref.
	Forget(ref Ref)

	// Caps lists what this custodian can do.
	Caps() []Cap
}

// A Put sets one record; a nil Value deletes it.
type Put struct {
	Key   string
	Value []byte
}

// Records is an ordered set of small records under one monotonic revision.
// One process owns it.
type Records interface {
	// Load calls fn with each record in key order, and returns the revision.
	// fn may keep the value.
	Load(ctx context.Context, fn func(key string, value []byte) error) (revision uint64, err error)

	// Get returns the value of key, nil if there is none.
	Get(ctx context.Context, key string) ([]byte, error)

	// Commit applies all puts or none, if the revision is still the given one
	// (else ErrConflict), and returns the next revision, larger by one. When
	// it returns without an error the change is durable.
	Commit(ctx context.Context, revision uint64, puts ...Put) (uint64, error)
}

// A Backend is a record store with a custodian.
type Backend interface {
	Records
	Custodian

	// Name is the word that KMS_BACKEND selects it by.
	Name() string

	// Arena is the locked memory that StoreKey's keys live in.
	Arena() *secret.Arena

	// Scratch gives a zeroed slot of n bytes of the arena for a secret on its
	// way through, making room if it must. The caller destroys it.
	Scratch(n int) (*secret.Bytes, error)

	// StoreKey gives the store's own n-byte key for a purpose, the same each
	// time the store is opened. The caller destroys it.
	StoreKey(label string, n int) (*secret.Bytes, error)

	// Close forgets all secrets and releases the store.
	Close() error
}
