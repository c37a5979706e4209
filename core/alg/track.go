package alg

import (
	"crypto/hpke"
	"errors"
	"fmt"

	"github.com/rustyonions/ron-kms/core/secret"
)

var (
	// ErrPublicKey is returned by [Track.ParsePublic] for bytes that are not an
	// acceptable public key of the track.
	ErrPublicKey = errors.New("alg: not an acceptable public key")

	// ErrKind is returned when a track is asked for what its kind does not do.
	ErrKind = errors.New("alg: the algorithm does not serve this operation")

	// ErrOpen is returned for whatever was not sealed with this key, this
	// associated data and this info. It says no more than that.
	ErrOpen = errors.New("alg: open: not authentic")

	// ErrDataKey is returned for a plaintext that is empty or longer than
	// MaxDataKey.
	ErrDataKey = fmt.Errorf("alg: seal: a data key has 1 to %d bytes", MaxDataKey)
)

// MaxDataKey is the largest plaintext that is sealed, in bytes. Keys are
// wrapped, not documents.
const MaxDataKey = 4096

// primitive is what every track does, on raw bytes. Lengths are checked by
// Track. The methods run inside secret.Do.
type primitive interface {
	// expand writes the form of the key that the operations take.
	expand(expanded, seed []byte) error
	// public writes the public key, if there is one.
	public(public, expanded []byte) error
}

// Track is one primitive with fixed parameters. Tracks are compared by pointer.
type Track struct {
	name          string
	kind          Kind
	class         Class
	seedSize      int
	publicSize    int // 0 if keys have no public part
	expandedSize  int
	signatureSize int // KindSign
	encSize       int // KindKEM
	overhead      int // KindKEM, KindAEAD: of a ciphertext over its plaintext
	primitive     primitive
}

// Name returns the track's name, such as "ml-dsa-65".
func (t *Track) Name() string { return t.name }

// Kind returns what the track is for.
func (t *Track) Kind() Kind { return t.kind }

// Class returns whether the track is classical or post-quantum.
func (t *Track) Class() Class { return t.class }

// SeedSize returns the length of a private seed in bytes.
func (t *Track) SeedSize() int { return t.seedSize }

// PublicSize returns the length of a public key in bytes: 0 for tracks of
// KindAEAD and KindKDF.
func (t *Track) PublicSize() int { return t.publicSize }

// ExpandedSize returns the length of an expanded private key in bytes. The
// expanded form is of this program's memory alone and is never stored.
func (t *Track) ExpandedSize() int { return t.expandedSize }

// SignatureSize returns the length of a signature in bytes: 0 for tracks that
// do not sign.
func (t *Track) SignatureSize() int { return t.signatureSize }

// EncSize returns the length in bytes of the encapsulated key that
// [Public.SealTo] makes: 0 for tracks that are not of KindKEM.
func (t *Track) EncSize() int { return t.encSize }

// pairwise is what Generate signs or seals to try a new key. No signature of it
// leaves this package, and no preimage begins like it.
var pairwise = []byte("ron-kms/pairwise-consistency")

// Generate makes a key: a random seed in a, and its public key, which is empty
// if the track has none. A new key pair signs and verifies, or seals and opens,
// once before it is returned (FIPS 140-3, pairwise consistency). a needs room
// for the seed and, meanwhile, for the expanded key.
func (t *Track) Generate(a *secret.Arena) (seed *secret.Bytes, public []byte, err error) {
	seed, err = a.Random(t.seedSize)
	if err != nil {
		return nil, nil, fmt.Errorf("alg: generate %s: %w", t.name, err)
	}
	public, err = t.try(a, seed)
	if err != nil {
		seed.Destroy()
		return nil, nil, fmt.Errorf("alg: generate %s: %w", t.name, err)
	}
	return seed, public, nil
}

// Adopt returns the public key of a seed that was made elsewhere, once the two
// have been used together as Generate does.
func (t *Track) Adopt(a *secret.Arena, seed *secret.Bytes) (public []byte, err error) {
	public, err = t.try(a, seed)
	if err != nil {
		return nil, fmt.Errorf("alg: adopt %s: %w", t.name, err)
	}
	return public, nil
}

// try returns the public key of seed, once the two have been used together.
func (t *Track) try(a *secret.Arena, seed *secret.Bytes) ([]byte, error) {
	expanded, err := t.Expand(a, seed)
	if err != nil {
		return nil, err
	}
	defer expanded.Destroy()
	public, err := t.Public(expanded)
	if err != nil {
		return nil, err
	}
	key, err := t.ParsePublic(public)
	if err != nil {
		return nil, err
	}
	ok := true
	switch t.kind {
	case KindSign:
		var sig []byte
		if sig, err = t.Sign(expanded, pairwise); err == nil {
			ok = key.Verify(pairwise, sig)
		}
	case KindKEM:
		var enc, ct []byte
		if enc, ct, err = key.SealTo(pairwise, nil, pairwise); err == nil {
			opened := t.OpenFrom(expanded, pairwise, nil, enc, ct, func(p []byte) { ok = string(p) == string(pairwise) })
			ok = ok && opened == nil
		}
	}
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, errors.New("new key fails its pairwise consistency test")
	}
	return public, nil
}

// Expand computes from a seed the form of the private key that the operations
// of the track take, into a slot of a of ExpandedSize bytes.
func (t *Track) Expand(a *secret.Arena, seed *secret.Bytes) (*secret.Bytes, error) {
	if seed.Len() != t.seedSize {
		return nil, fmt.Errorf("alg: expand %s: seed has %d bytes, not %d", t.name, seed.Len(), t.seedSize)
	}
	expanded, err := a.New(t.expandedSize)
	if err != nil {
		return nil, fmt.Errorf("alg: expand %s: %w", t.name, err)
	}
	var lent, expandErr error
	err = seed.Use(func(s []byte) {
		lent = expanded.Use(func(e []byte) { expandErr = t.primitive.expand(e, s) })
	})
	if err := firstError(err, lent, expandErr); err != nil {
		expanded.Destroy()
		return nil, fmt.Errorf("alg: expand %s: %w", t.name, err)
	}
	return expanded, nil
}

// Public returns the public key of an expanded private key: no bytes if the
// track has none.
func (t *Track) Public(expanded *secret.Bytes) ([]byte, error) {
	if err := t.checkExpanded(expanded); err != nil {
		return nil, fmt.Errorf("alg: public key of %s: %w", t.name, err)
	}
	public := make([]byte, t.publicSize)
	var publicErr error
	err := expanded.Use(func(e []byte) { publicErr = t.primitive.public(public, e) })
	if err := firstError(err, publicErr); err != nil {
		return nil, fmt.Errorf("alg: public key of %s: %w", t.name, err)
	}
	return public, nil
}

func (t *Track) checkExpanded(expanded *secret.Bytes) error {
	if n := expanded.Len(); n != t.expandedSize {
		return fmt.Errorf("expanded key has %d bytes, not %d", n, t.expandedSize)
	}
	return nil
}

// Public is a parsed public key. It is immutable and safe for concurrent use.
// The zero value, like the public key of a track that has none, verifies
// nothing, and nothing can be sealed to it.
type Public struct {
	track     *Track
	raw       string
	verifier  verifier       // KindSign
	recipient hpke.PublicKey // KindKEM
}

// ParsePublic returns the public key with that encoding, ready to verify with
// or to seal to. Parsing an ML-DSA key takes longer than verifying: parse once
// and keep it. For a track without public keys the encoding has no bytes.
//
// An Ed25519 key is refused if its encoding is not canonical or its point has
// small order; one that is no point of the curve verifies nothing. An ML-KEM
// key is refused if a coefficient is not below the modulus (FIPS 203 §7.2), and
// an X25519 key, alone or in X-Wing, if it makes the shared secret zero
// (RFC 7748 §6.1).
func (t *Track) ParsePublic(raw []byte) (Public, error) {
	if len(raw) != t.publicSize {
		return Public{}, fmt.Errorf("%w: %s: %d bytes, not %d", ErrPublicKey, t.name, len(raw), t.publicSize)
	}
	p := Public{track: t, raw: string(raw)}
	var err error
	switch prim := t.primitive.(type) {
	case signer:
		p.verifier, err = prim.parse(raw)
	case kem:
		p.recipient, err = prim.parse(raw)
	}
	if err != nil {
		return Public{}, fmt.Errorf("%w: %s: %w", ErrPublicKey, t.name, err)
	}
	return p, nil
}

// Track returns the track the key is of, nil for the zero value.
func (p Public) Track() *Track { return p.track }

// Bytes returns the key's encoding.
func (p Public) Bytes() []byte { return []byte(p.raw) }

// firstError returns the first error that is not nil.
func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// symmetric is the part of a primitive whose private key is its seed, and that
// has no public one.
type symmetric struct{}

func (symmetric) expand(expanded, seed []byte) error {
	copy(expanded, seed)
	return nil
}

func (symmetric) public(_, _ []byte) error { return nil }
