package alg

import (
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/secret"
)

// MaxDerived is how many bytes can be derived at most (RFC 5869 §2.3).
const MaxDerived = 255 * sha256.Size

// ErrDerive is returned for labels that make no info, for an info that is empty
// and for a length out of range.
var ErrDerive = errors.New("alg: derive: invalid input")

// deriveSalt is the salt of every derivation. It is public:
// 1b47fdbc77d36c5e30409ca31c1aee0335c06365685ec2db32ff3009175377d0.
var deriveSalt = sha256.Sum256([]byte("ron-kms/derive/v1"))

// hkdfSHA256 is a key to derive others from with HKDF-SHA256 (RFC 5869).
type hkdfSHA256 struct{ symmetric }

// derive runs inside secret.Do.
func (hkdfSHA256) derive(key, salt []byte, info string, n int) ([]byte, error) {
	return hkdf.Key(sha256.New, key, salt, info, n)
}

// DeriveInfo returns "ron-kms::<tenant>::<purpose>::<ctx>". All three are
// labels: 1 to 255 of the characters A-Z, a-z, 0-9, ".", "_", ":" and "-",
// beginning with a letter or digit, without "::" and not ending in ":". So two
// different triples never have the same info. It returns [ErrDerive] for
// anything else, an empty ctx too. It never adds anything of its own.
func DeriveInfo(tenant, purpose, ctx string) (string, error) {
	switch {
	case !api.ValidLabel(tenant):
		return "", fmt.Errorf("%w: tenant is not a label", ErrDerive)
	case !api.ValidLabel(purpose):
		return "", fmt.Errorf("%w: purpose is not a label", ErrDerive)
	case !api.ValidLabel(ctx):
		return "", fmt.Errorf("%w: context is not a label", ErrDerive)
	}
	return "ron-kms::" + tenant + "::" + purpose + "::" + ctx, nil
}

// DeriveSeed derives n bytes, 1 to [MaxDerived], from an expanded key of KindKDF
// into a slot of a: HKDF-SHA256 with the fixed salt SHA-256("ron-kms/derive/v1")
// and info, which [DeriveInfo] makes and which may not be empty (RFC 5869 §2).
// The same key and info give the same bytes, and fewer of them give a prefix:
// one info must serve one child key of one algorithm.
func (t *Track) DeriveSeed(expanded *secret.Bytes, a *secret.Arena, info string, n int) (*secret.Bytes, error) {
	k, ok := t.primitive.(hkdfSHA256)
	switch {
	case !ok:
		return nil, fmt.Errorf("%w: %s does not derive", ErrKind, t.name)
	case info == "":
		return nil, fmt.Errorf("%w: info is empty", ErrDerive)
	case n < 1 || n > MaxDerived:
		return nil, fmt.Errorf("%w: length %d is out of range", ErrDerive, n)
	}
	if err := t.checkExpanded(expanded); err != nil {
		return nil, fmt.Errorf("alg: derive with %s: %w", t.name, err)
	}
	seed, err := a.New(n)
	if err != nil {
		return nil, fmt.Errorf("alg: derive with %s: %w", t.name, err)
	}
	var lent, deriveErr error
	err = expanded.Use(func(key []byte) {
		lent = seed.Use(func(p []byte) {
			var out []byte
			if out, deriveErr = k.derive(key, deriveSalt[:], info, n); deriveErr == nil {
				copy(p, out)
				secret.Wipe(out)
			}
		})
	})
	if err := firstError(err, lent, deriveErr); err != nil {
		seed.Destroy()
		return nil, fmt.Errorf("alg: derive with %s: %w", t.name, err)
	}
	return seed, nil
}
