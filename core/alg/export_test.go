package alg

import (
	"reflect"

	"github.com/cloudflare/circl/sign/mldsa/mldsa65"
	"github.com/rustyonions/ron-kms/core/secret"
)

// SignDeterministic signs without hedging, which only known answers need.
func (t *Track) SignDeterministic(expanded *secret.Bytes, msg []byte) ([]byte, error) {
	return t.sign(expanded, msg, false)
}

// WithoutContext returns a track of ML-DSA-65 with the empty context string,
// which published vectors use.
func WithoutContext() *Track {
	t := *trackMLDSA65
	t.primitive = newMLDSA("", mldsa65.NewKeyFromSeed, mldsa65.SignTo, mldsa65.Verify)
	return &t
}

// Faulty returns a track that works like t but flips a bit of each signature.
func Faulty(t *Track) *Track {
	f := *t
	f.primitive = faulty{t.primitive}
	return &f
}

type faulty struct{ primitive }

func (f faulty) sign(sig, expanded, msg []byte, hedged bool) error {
	err := f.primitive.sign(sig, expanded, msg, hedged)
	sig[0] ^= 1
	return err
}

// Pointered returns a track of ML-DSA-65 as if circl's keys held pointers.
func Pointered() *Track {
	t := *trackMLDSA65
	p := t.primitive.(mldsa[mldsa65.PublicKey, mldsa65.PrivateKey, *mldsa65.PublicKey, *mldsa65.PrivateKey])
	p.pointers = true
	t.primitive = p
	return &t
}

// HasPointers is hasPointers.
func HasPointers[T any]() bool { return hasPointers(reflect.TypeFor[T]()) }
