package alg_test

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"testing"

	"github.com/cloudflare/circl/sign/mldsa/mldsa44"
	"github.com/cloudflare/circl/sign/mldsa/mldsa65"
	"github.com/cloudflare/circl/sign/mldsa/mldsa87"
	"github.com/rustyonions/ron-kms/core/alg"
)

var schemes = []alg.Scheme{alg.SchemeV1, alg.SchemeRawB3, alg.SchemeRaw}

// foreign verifies with a library alone, as one would who has never heard of
// ron-kms.
func foreign(t *testing.T, name string, public, msg, ctx, sig []byte) bool {
	t.Helper()
	var err error
	var ok bool
	switch name {
	case "ed25519":
		return ed25519.Verify(public, msg, sig)
	case "ml-dsa-44":
		var pk mldsa44.PublicKey
		err = pk.UnmarshalBinary(public)
		ok = mldsa44.Verify(&pk, msg, ctx, sig)
	case "ml-dsa-65":
		var pk mldsa65.PublicKey
		err = pk.UnmarshalBinary(public)
		ok = mldsa65.Verify(&pk, msg, ctx, sig)
	case "ml-dsa-87":
		var pk mldsa87.PublicKey
		err = pk.UnmarshalBinary(public)
		ok = mldsa87.Verify(&pk, msg, ctx, sig)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ok
}

// D-1: the raw schemes sign with the empty context, so that foreign verifiers
// accept what they made; ron-kms/v1 signs with its own, so that an ML-DSA
// signature under it is none under the others. Sign and Verify are ron-kms/v1.
func TestSchemes(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	msg := bytes.Repeat([]byte{0x5a}, 32)
	for _, tr := range tracksOf(alg.KindSign) {
		k := generate(t, a, tr)
		for _, scheme := range schemes {
			ctx := []byte(nil)
			if scheme == alg.SchemeV1 {
				ctx = []byte("ron-kms/v1")
			}
			sig, err := tr.SignScheme(k.expanded, scheme, msg)
			if err != nil {
				t.Fatal(err)
			}
			if !foreign(t, tr.Name(), k.public.Bytes(), msg, ctx, sig) {
				t.Errorf("%s, %s: a foreign verifier refuses", tr.Name(), scheme)
			}
			for _, other := range schemes {
				// Ed25519 has no context. There the schemes are apart by the form
				// of what they sign and by one key having one scheme.
				want := other == scheme || tr.Class() == alg.Classical || scheme != alg.SchemeV1 && other != alg.SchemeV1
				if k.public.VerifyScheme(other, msg, sig) != want {
					t.Errorf("%s: signed as %s, verified as %s: %v", tr.Name(), scheme, other, !want)
				}
			}
			if k.public.Verify(msg, sig) != k.public.VerifyScheme(alg.SchemeV1, msg, sig) {
				t.Errorf("%s: Verify is not ron-kms/v1", tr.Name())
			}
			for _, no := range []alg.Scheme{"", "raw-msg", "RAW", "ron-kms/v2"} {
				if _, err := tr.SignScheme(k.expanded, no, msg); !errors.Is(err, alg.ErrScheme) {
					t.Errorf("%s: signed as %q: %v", tr.Name(), no, err)
				}
				if k.public.VerifyScheme(no, msg, sig) {
					t.Errorf("%s: verified as %q", tr.Name(), no)
				}
			}
		}
		sig := k.sign(t, msg)
		if !k.public.VerifyScheme(alg.SchemeV1, msg, sig) {
			t.Errorf("%s: Sign is not ron-kms/v1", tr.Name())
		}
	}
}

// D-1: raw-b3 signs 32 bytes and nothing else.
func TestRawB3(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	for _, tr := range tracksOf(alg.KindSign) {
		k := generate(t, a, tr)
		for _, n := range []int{0, 31, 33, 64} {
			msg := make([]byte, n)
			if _, err := tr.SignScheme(k.expanded, alg.SchemeRawB3, msg); !errors.Is(err, alg.ErrScheme) {
				t.Errorf("%s: signed %d bytes: %v", tr.Name(), n, err)
			}
			sig, err := tr.SignScheme(k.expanded, alg.SchemeRaw, msg)
			if err != nil || !k.public.VerifyScheme(alg.SchemeRaw, msg, sig) || k.public.VerifyScheme(alg.SchemeRawB3, msg, sig) {
				t.Errorf("%s: %d bytes: %v", tr.Name(), n, err)
			}
		}
	}
}
