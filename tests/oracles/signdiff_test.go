package oracles

import (
	"bytes"
	stded25519 "crypto/ed25519"
	"crypto/rand"
	"fmt"
	"math/big"
	"slices"
	"testing"

	"filippo.io/mldsa"
	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/tink-crypto/tink-go/v2/insecuresecretdataaccess"
	"github.com/tink-crypto/tink-go/v2/key"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/secretdata"
	"github.com/tink-crypto/tink-go/v2/signature"
	tinked25519 "github.com/tink-crypto/tink-go/v2/signature/ed25519"
	tinkmldsa "github.com/tink-crypto/tink-go/v2/signature/mldsa"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// rounds is how many random keys and messages each comparison has.
const rounds = 200

// message is a random message of i random bytes or a few more.
func message(i int) []byte { return random(i + i%7) }

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// flip returns b with one random bit changed.
func flip(b []byte) []byte {
	bit := must(rand.Int(rand.Reader, big.NewInt(int64(8*len(b))))).Int64()
	b = slices.Clone(b)
	b[bit/8] ^= 1 << (bit % 8)
	return b
}

// Against filippo.io/mldsa: the same seed gives the same key, each verifies
// what the other signs in its context alone, and both refuse what was changed.
//
func TestMLDSADifferential(t *testing.T) {
	t.Parallel()
	contexts := []struct{ scheme, other alg.Scheme }{{alg.SchemeV1, alg.SchemeRaw}, {alg.SchemeRaw, alg.SchemeV1}}
	for _, p := range []mldsa.Parameters{mldsa.MLDSA44(), mldsa.MLDSA65(), mldsa.MLDSA87()} {
		name := map[string]string{"ML-DSA-44": "ml-dsa-44", "ML-DSA-65": "ml-dsa-65", "ML-DSA-87": "ml-dsa-87"}[p.String()]
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, tr := newArena(t), track(t, name)
			for i := range rounds {
				seed, msg := random(32), message(i)
				ours := newPair(t, a, tr, seed)
				theirs := must(mldsa.NewPrivateKey(p, seed))
				if !bytes.Equal(ours.public.Bytes(), theirs.PublicKey().Bytes()) {
					t.Fatalf("seed %x: public keys differ", seed)
				}
				for _, c := range contexts {
					options := &mldsa.Options{Context: contextOf(c.scheme)}
					sig := ours.sign(t, c.scheme, msg)
					if err := mldsa.Verify(theirs.PublicKey(), msg, sig, options); err != nil {
						t.Errorf("seed %x, %s: they refuse our signature %x: %v", seed, c.scheme, sig, err)
					}
					if mldsa.Verify(theirs.PublicKey(), msg, sig, &mldsa.Options{Context: contextOf(c.other)}) == nil {
						t.Errorf("seed %x, %s: they accept our signature in another context", seed, c.scheme)
					}
					foreign := must(theirs.Sign(nil, msg, options))
					if !ours.public.VerifyScheme(c.scheme, msg, foreign) {
						t.Errorf("seed %x, %s: we refuse their signature %x", seed, c.scheme, foreign)
					}
					if ours.public.VerifyScheme(c.other, msg, foreign) {
						t.Errorf("seed %x, %s: we accept their signature in another context", seed, c.scheme)
					}
					bad := flip(foreign)
					if ours.public.VerifyScheme(c.scheme, msg, bad) || mldsa.Verify(theirs.PublicKey(), msg, bad, options) == nil {
						t.Errorf("seed %x, %s: a changed signature is accepted: %x", seed, c.scheme, bad)
					}
				}
				ours.private.Destroy()
			}
		})
	}
}

// contextOf is the context string of FIPS 204 §5.2 under a scheme
// (docs/spec/preimage.md).
func contextOf(s alg.Scheme) string {
	if s == alg.SchemeV1 {
		return "ron-kms/v1"
	}
	return ""
}

// Against crypto/ed25519 and tink-go: the same seed gives the same key and the
// same signature, and all say the same to what was changed.
//
func TestEd25519Differential(t *testing.T) {
	t.Parallel()
	a, tr := newArena(t), track(t, "ed25519")
	for i := range rounds {
		seed, msg := random(32), message(i)
		ours, std := newPair(t, a, tr, seed), stded25519.NewKeyFromSeed(seed)
		public := std.Public().(stded25519.PublicKey)
		signer, verifier := tinkEd25519(t, seed)
		if !bytes.Equal(ours.public.Bytes(), public) {
			t.Fatalf("seed %x: public keys differ", seed)
		}
		sig := ours.sign(t, alg.SchemeRaw, msg)
		if !bytes.Equal(sig, stded25519.Sign(std, msg)) || !bytes.Equal(sig, must(signer.Sign(msg))) {
			t.Fatalf("seed %x: signatures differ", seed)
		}
		for _, s := range [][]byte{sig, flip(sig), flip(sig), sig[:63], append(slices.Clone(sig), 0)} {
			want := stded25519.Verify(public, msg, s)
			if got := ours.public.VerifyScheme(alg.SchemeRaw, msg, s); got != want || (verifier.Verify(s, msg) == nil) != want {
				t.Errorf("seed %x, signature %x: we say %t, crypto/ed25519 %t", seed, s, got, want)
			}
		}
		ours.private.Destroy()
	}
}

// Against the ML-DSA of tink-go, a third implementation, which signs without
// context: what our raw schemes make and take.
//
func TestMLDSATink(t *testing.T) {
	t.Parallel()
	for name, instance := range map[string]tinkmldsa.Instance{
		"ml-dsa-44": tinkmldsa.MLDSA44, "ml-dsa-65": tinkmldsa.MLDSA65, "ml-dsa-87": tinkmldsa.MLDSA87,
	} {
		a, tr := newArena(t), track(t, name)
		for i := range 10 {
			seed, msg := random(32), message(i)
			ours := newPair(t, a, tr, seed)
			params := must(tinkmldsa.NewParameters(instance, tinkmldsa.VariantNoPrefix))
			signer, verifier := tinkSignature(t, must(tinkmldsa.NewPrivateKey(secretBytes(seed), 0, params)))
			if !ours.public.VerifyScheme(alg.SchemeRaw, msg, must(signer.Sign(msg))) {
				t.Errorf("%s, seed %x: we refuse their signature", name, seed)
			}
			sig := ours.sign(t, alg.SchemeRaw, msg)
			if err := verifier.Verify(sig, msg); err != nil {
				t.Errorf("%s, seed %x: they refuse our signature: %v", name, seed, err)
			}
			if verifier.Verify(ours.sign(t, alg.SchemeV1, msg), msg) == nil {
				t.Errorf("%s, seed %x: they accept a signature of ron-kms/v1 as one without context", name, seed)
			}
			ours.private.Destroy()
		}
	}
}

func secretBytes(b []byte) secretdata.Bytes {
	return secretdata.NewBytesFromData(b, insecuresecretdataaccess.Token{})
}

// tinkHandle is a keyset of tink-go with one key.
func tinkHandle(t testing.TB, k key.Key) *keyset.Handle {
	t.Helper()
	m := keyset.NewManager()
	id, err := m.AddKey(k)
	if err == nil {
		err = m.SetPrimary(id)
	}
	if err != nil {
		t.Fatal(fmt.Errorf("tink-go: %w", err))
	}
	return must(m.Handle())
}

func tinkSignature(t testing.TB, private key.Key) (tink.Signer, tink.Verifier) {
	t.Helper()
	h := tinkHandle(t, private)
	return must(signature.NewSigner(h)), must(signature.NewVerifier(must(h.Public())))
}

func tinkEd25519(t testing.TB, seed []byte) (tink.Signer, tink.Verifier) {
	t.Helper()
	params := must(tinked25519.NewParameters(tinked25519.VariantNoPrefix))
	return tinkSignature(t, must(tinked25519.NewPrivateKey(secretBytes(seed), 0, params)))
}
