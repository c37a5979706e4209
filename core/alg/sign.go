package alg

import (
	"errors"
	"fmt"

	"github.com/rustyonions/ron-kms/core/secret"
)

// Scheme says what a signature of a key is made over. It is a property of the
// key that never changes and that no request can choose, so that a signature
// under one scheme cannot be presented as one under another.
type Scheme string

// The schemes. The zero value is none of them.
const (
	// SchemeV1 signs the preimage of a [Statement].
	SchemeV1 Scheme = "ron-kms/v1"
	// SchemeRawB3 signs the 32 bytes of a digest, as they are.
	SchemeRawB3 Scheme = "raw-b3"
	// SchemeRaw signs whatever bytes the caller gives.
	SchemeRaw Scheme = "raw"
)

// ErrScheme is returned for a scheme that does not exist, and for a message
// that the scheme does not sign.
var ErrScheme = errors.New("alg: the scheme does not sign this")

// context returns the context string of FIPS 204 §5.2, and whether msg is one
// that the scheme signs. The raw schemes have the empty context, which is what
// verifiers that know nothing of ron-kms use; SchemeV1 has its name, which
// keeps its ML-DSA signatures apart from those of every other protocol.
func (s Scheme) context(msg []byte) (ctx []byte, ok bool) {
	switch s {
	case SchemeV1:
		return []byte(SchemeV1), true
	case SchemeRawB3:
		return nil, len(msg) == 32
	case SchemeRaw:
		return nil, true
	}
	return nil, false
}

// signer is a primitive that signs. ctx is the context string, which only
// ML-DSA has.
type signer interface {
	primitive
	// sign writes a signature of msg. hedged is false only where an answer is
	// known. It runs inside secret.Do.
	sign(sig, expanded, msg, ctx []byte, hedged bool) error
	parse(public []byte) (verifier, error)
}

// verifier is a parsed public key. It is safe for concurrent use.
type verifier interface {
	verify(msg, ctx, sig []byte) bool
}

// SignScheme signs msg with an expanded private key as scheme demands. Ed25519
// is pure and deterministic (RFC 8032 §5.1). ML-DSA is pure and hedged, so that
// no two signatures of one message agree, with the context string "ron-kms/v1"
// under [SchemeV1] and none under the others (FIPS 204 §5.2). It returns
// [ErrScheme] if the scheme does not sign msg.
func (t *Track) SignScheme(expanded *secret.Bytes, scheme Scheme, msg []byte) ([]byte, error) {
	return t.sign(expanded, scheme, msg, true)
}

// Sign is SignScheme of [SchemeV1].
func (t *Track) Sign(expanded *secret.Bytes, msg []byte) ([]byte, error) {
	return t.sign(expanded, SchemeV1, msg, true)
}

func (t *Track) sign(expanded *secret.Bytes, scheme Scheme, msg []byte, hedged bool) ([]byte, error) {
	s, ok := t.primitive.(signer)
	if !ok {
		return nil, fmt.Errorf("%w: %s does not sign", ErrKind, t.name)
	}
	ctx, ok := scheme.context(msg)
	if !ok {
		return nil, ErrScheme
	}
	if err := t.checkExpanded(expanded); err != nil {
		return nil, fmt.Errorf("alg: sign %s: %w", t.name, err)
	}
	sig := make([]byte, t.signatureSize) // public, so outside of secret.Do
	var signErr error
	err := expanded.Use(func(e []byte) { signErr = s.sign(sig, e, msg, ctx, hedged) })
	if err := firstError(err, signErr); err != nil {
		return nil, fmt.Errorf("alg: sign %s: %w", t.name, err)
	}
	return sig, nil
}

// VerifyScheme reports whether sig is a signature of msg under p and scheme. A
// signature of the wrong length is none, nor is one under no scheme.
//
// For Ed25519 the set of accepted signatures is that of verify_strict of
// ed25519-dalek: the equation without the cofactor (RFC 8032 §5.1.7), S below
// the group order, canonical encodings, and neither A nor R of small order.
func (p Public) VerifyScheme(scheme Scheme, msg, sig []byte) bool {
	ctx, ok := scheme.context(msg)
	return ok && p.verifier != nil && len(sig) == p.track.signatureSize && p.verifier.verify(msg, ctx, sig)
}

// Verify is VerifyScheme of [SchemeV1].
func (p Public) Verify(msg, sig []byte) bool { return p.VerifyScheme(SchemeV1, msg, sig) }
