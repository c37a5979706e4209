// Package alg is the closed list of algorithms of ron-kms and the operations on
// their keys: generate, expand, sign, verify, together with the byte formats
// that signatures are made over (Statement) and carried in (bundles), and the
// rules by which a hybrid's two verdicts become one answer (Mode).
//
// An algorithm consists of one or more tracks. A track is one primitive with
// fixed parameters and a key pair of its own; "ed25519+ml-dsa-65" has two. The
// list is the variable algs and cannot be changed from outside: what is not in
// it does not exist, wherever a name comes from.
//
// The primitives are those of github.com/cloudflare/circl: Ed25519 (RFC 8032)
// and ML-DSA (FIPS 204). circl works on keys outside the Go heap, which
// crypto/ed25519 does not, so private keys stay in a locked [secret.Arena].
package alg

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cloudflare/circl/sign/ed25519"
	"github.com/cloudflare/circl/sign/mldsa/mldsa65"
	"github.com/rustyonions/ron-kms/core/secret"
)

// Class says what kind of attacker a track is meant to withstand.
type Class uint8

// The zero Class is invalid.
const (
	Classical   Class = 1
	PostQuantum Class = 2
)

// String returns "classical", "post-quantum" or "invalid".
func (c Class) String() string {
	switch c {
	case Classical:
		return "classical"
	case PostQuantum:
		return "post-quantum"
	}
	return "invalid"
}

// Kind says what an algorithm is for.
type Kind uint8

// The zero Kind is invalid.
const (
	KindSign Kind = 1
)

// String returns "sign" or "invalid".
func (k Kind) String() string {
	if k == KindSign {
		return "sign"
	}
	return "invalid"
}

// ErrPublicKey is returned by [Track.ParsePublic] for bytes that are not an
// acceptable public key of the track.
var ErrPublicKey = errors.New("alg: not an acceptable public key")

// primitive is what a track does, on raw bytes. Lengths are checked by Track.
// The methods that get private bytes run inside secret.Do.
type primitive interface {
	// expand writes the form of the key that sign takes.
	expand(expanded, seed []byte) error
	// public writes the public key.
	public(public, expanded []byte)
	// sign writes a signature of msg. hedged is false in tests only.
	sign(sig, expanded, msg []byte, hedged bool) error
	parse(public []byte) (verifier, error)
}

// verifier is a parsed public key. It is safe for concurrent use.
type verifier interface {
	verify(msg, sig []byte) bool
}

// Track is one primitive with fixed parameters. Tracks are compared by pointer.
type Track struct {
	name          string
	class         Class
	seedSize      int
	publicSize    int
	signatureSize int
	expandedSize  int
	primitive     primitive
}

// Alg is an algorithm that a key can have. Algs are compared by pointer.
type Alg struct {
	name    string
	family  string
	kind    Kind
	aliases []string
	tracks  []*Track
}

var (
	trackEd25519 = &Track{
		name: "ed25519", class: Classical,
		seedSize: ed25519.SeedSize, publicSize: ed25519.PublicKeySize,
		signatureSize: ed25519.SignatureSize, expandedSize: ed25519.PrivateKeySize,
		primitive: pureEd25519{},
	}
	trackMLDSA65 = &Track{
		name: "ml-dsa-65", class: PostQuantum,
		seedSize: mldsa65.SeedSize, publicSize: mldsa65.PublicKeySize,
		signatureSize: mldsa65.SignatureSize, expandedSize: structSize[mldsa65.PrivateKey](),
		primitive: newMLDSA(mldsaContext, mldsa65.NewKeyFromSeed, mldsa65.SignTo, mldsa65.Verify),
	}
)

// algs is the allow-list. Names on it stand in stored keys and signed
// preimages: they are never renamed, and never used again for something else.
var algs = []*Alg{
	{name: "ed25519", family: "ed25519", kind: KindSign, tracks: []*Track{trackEd25519}, aliases: []string{"Ed25519"}},
	{name: "ml-dsa-65", family: "ml-dsa", kind: KindSign, tracks: []*Track{trackMLDSA65}, aliases: []string{"ml-dsa", "dilithium3"}},
	{name: "ed25519+ml-dsa-65", family: "hybrid", kind: KindSign, tracks: []*Track{trackEd25519, trackMLDSA65}, aliases: []string{"hybrid"}},
}

// Lookup returns the algorithm of that name or alias. It is for names that
// people and requests give; store and sign [Alg.Name], never the alias.
func Lookup(name string) (*Alg, bool) {
	for _, a := range algs {
		if a.name == name || slices.Contains(a.aliases, name) {
			return a, true
		}
	}
	return nil, false
}

// LookupTrack returns the track of that name. Tracks have no aliases.
func LookupTrack(name string) (*Track, bool) {
	for _, a := range algs {
		for _, t := range a.tracks {
			if t.name == name {
				return t, true
			}
		}
	}
	return nil, false
}

// All returns every algorithm, in a fixed order.
func All() []*Alg { return slices.Clone(algs) }

// canonical reports whether name is the name, not an alias, of an algorithm.
func canonical(name string) bool {
	a, ok := Lookup(name)
	return ok && a.name == name
}

// Name returns the canonical name, such as "ed25519+ml-dsa-65". For a hybrid
// it is the names of its tracks joined by "+".
func (a *Alg) Name() string { return a.name }

// Family returns the name used in metrics and logs: "ed25519", "ml-dsa" or
// "hybrid".
func (a *Alg) Family() string { return a.family }

// Kind returns what the algorithm is for.
func (a *Alg) Kind() Kind { return a.kind }

// Tracks returns the tracks, classical ones first. A key of this algorithm has
// a key pair for each.
func (a *Alg) Tracks() []*Track { return slices.Clone(a.tracks) }

// Name returns the track's name, such as "ml-dsa-65".
func (t *Track) Name() string { return t.name }

// Class returns whether the track is classical or post-quantum.
func (t *Track) Class() Class { return t.class }

// SeedSize returns the length of a private seed in bytes.
func (t *Track) SeedSize() int { return t.seedSize }

// PublicSize returns the length of a public key in bytes.
func (t *Track) PublicSize() int { return t.publicSize }

// SignatureSize returns the length of a signature in bytes.
func (t *Track) SignatureSize() int { return t.signatureSize }

// ExpandedSize returns the length of an expanded private key in bytes. The
// expanded form is of this program's memory alone and is never stored.
func (t *Track) ExpandedSize() int { return t.expandedSize }

// pairwise is what Generate signs to try a new key. No signature of it leaves
// this package, and no preimage begins like it.
var pairwise = []byte("ron-kms/pairwise-consistency")

// Generate makes a key pair: a random seed in a, and its public key. It signs
// and verifies once with the new pair before it returns it (FIPS 140-3,
// pairwise consistency). a needs room for the seed and, meanwhile, for the
// expanded key.
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

// try returns the public key of seed, once a signature has verified under it.
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
	sig, err := t.Sign(expanded, pairwise)
	if err != nil {
		return nil, err
	}
	key, err := t.ParsePublic(public)
	if err != nil {
		return nil, err
	}
	if !key.Verify(pairwise, sig) {
		return nil, errors.New("new key fails its pairwise consistency test")
	}
	return public, nil
}

// Expand computes from a seed the form of the private key that [Track.Sign] and
// [Track.Public] take, into a slot of a of ExpandedSize bytes.
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

// Public returns the public key of an expanded private key.
func (t *Track) Public(expanded *secret.Bytes) ([]byte, error) {
	if err := t.checkExpanded(expanded); err != nil {
		return nil, fmt.Errorf("alg: public key of %s: %w", t.name, err)
	}
	public := make([]byte, t.publicSize)
	if err := expanded.Use(func(e []byte) { t.primitive.public(public, e) }); err != nil {
		return nil, fmt.Errorf("alg: public key of %s: %w", t.name, err)
	}
	return public, nil
}

// Sign signs msg with an expanded private key. Ed25519 is pure and
// deterministic (RFC 8032 §5.1). ML-DSA is pure and hedged, with the context
// string "ron-kms/v1" (FIPS 204 §5.2): no two signatures of one message agree.
func (t *Track) Sign(expanded *secret.Bytes, msg []byte) ([]byte, error) {
	return t.sign(expanded, msg, true)
}

func (t *Track) sign(expanded *secret.Bytes, msg []byte, hedged bool) ([]byte, error) {
	if err := t.checkExpanded(expanded); err != nil {
		return nil, fmt.Errorf("alg: sign %s: %w", t.name, err)
	}
	sig := make([]byte, t.signatureSize) // public, so outside of secret.Do
	var signErr error
	err := expanded.Use(func(e []byte) { signErr = t.primitive.sign(sig, e, msg, hedged) })
	if err := firstError(err, signErr); err != nil {
		return nil, fmt.Errorf("alg: sign %s: %w", t.name, err)
	}
	return sig, nil
}

func (t *Track) checkExpanded(expanded *secret.Bytes) error {
	if n := expanded.Len(); n != t.expandedSize {
		return fmt.Errorf("expanded key has %d bytes, not %d", n, t.expandedSize)
	}
	return nil
}

// ParsePublic returns the public key with that encoding, ready to verify with.
// Parsing an ML-DSA key takes longer than verifying: parse once and keep it.
//
// An Ed25519 key is refused if its encoding is not canonical or its point has
// small order; one that is no point of the curve verifies nothing.
func (t *Track) ParsePublic(raw []byte) (Public, error) {
	if len(raw) != t.publicSize {
		return Public{}, fmt.Errorf("%w: %s: %d bytes, not %d", ErrPublicKey, t.name, len(raw), t.publicSize)
	}
	key, err := t.primitive.parse(raw)
	if err != nil {
		return Public{}, fmt.Errorf("%w: %s: %w", ErrPublicKey, t.name, err)
	}
	return Public{track: t, raw: string(raw), key: key}, nil
}

// Public is a parsed public key. It is immutable and safe for concurrent use.
// The zero value verifies nothing.
type Public struct {
	track *Track
	raw   string
	key   verifier
}

// Track returns the track the key is of, nil for the zero value.
func (p Public) Track() *Track { return p.track }

// Bytes returns the key's encoding.
func (p Public) Bytes() []byte { return []byte(p.raw) }

// Verify reports whether sig is a signature of msg under p. A signature of the
// wrong length is none.
//
// For Ed25519 the set of accepted signatures is that of verify_strict of
// ed25519-dalek: the equation without the cofactor (RFC 8032 §5.1.7), S below
// the group order, canonical encodings, and neither A nor R of small order.
func (p Public) Verify(msg, sig []byte) bool {
	return p.key != nil && len(sig) == p.track.signatureSize && p.key.verify(msg, sig)
}

// firstError returns the first error that is not nil.
func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
