package oracles

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"slices"
	"testing"

	aeadsubtle "github.com/tink-crypto/tink-go/v2/aead/subtle"
	"github.com/tink-crypto/tink-go/v2/hybrid"
	"github.com/tink-crypto/tink-go/v2/hybrid/hpke"
	prfsubtle "github.com/tink-crypto/tink-go/v2/prf/subtle"
	"github.com/tink-crypto/tink-go/v2/tink"

	"github.com/rustyonions/ron-kms/core/alg"
)

// Against the HPKE of tink-go, which has its own X-Wing: the same private key
// gives the same public key, each opens what the other seals, and neither what
// was changed. tink-go has no associated data in HPKE; the vectors of
// TestVectors are opened with some.
//
func TestHPKEDifferential(t *testing.T) {
	t.Parallel()
	for name, id := range map[string]hpke.KEMID{
		"x25519": hpke.DHKEM_X25519_HKDF_SHA256, "ml-kem-768": hpke.ML_KEM768, "ml-kem-1024": hpke.ML_KEM1024, "x25519+ml-kem-768": hpke.X_WING,
	} {
		params := must(hpke.NewParameters(hpke.ParametersOpts{
			KEMID: id, KDFID: hpke.HKDFSHA256, AEADID: hpke.AES256GCM, Variant: hpke.VariantNoPrefix,
		}))
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, tr := newArena(t), track(t, name)
			for i := range rounds {
				seed, info, plaintext := random(tr.SeedSize()), message(i), random(i+1)
				ours := newPair(t, a, tr, seed)
				private := must(hpke.NewPrivateKey(secretBytes(seed), 0, params))
				if public := must(private.PublicKey()).(*hpke.PublicKey).PublicKeyBytes(); !bytes.Equal(ours.public.Bytes(), public) {
					t.Fatalf("seed %x: public keys differ", seed)
				}
				h := tinkHandle(t, private)
				open, seal := must(hybrid.NewHybridDecrypt(h)), must(hybrid.NewHybridEncrypt(must(h.Public())))

				enc, ct, err := ours.public.SealTo(info, nil, plaintext)
				if err != nil {
					t.Fatal(err)
				}
				got, err := open.Decrypt(slices.Concat(enc, ct), info)
				if err != nil || !bytes.Equal(got, plaintext) {
					t.Errorf("seed %x: they do not open what we seal: %v", seed, err)
				}
				if _, err := open.Decrypt(flip(slices.Concat(enc, ct)), info); err == nil {
					t.Errorf("seed %x: they open what was changed", seed)
				}

				sealed := must(seal.Encrypt(plaintext, info))
				if got, err := ours.open(info, sealed); err != nil || !bytes.Equal(got, plaintext) {
					t.Errorf("seed %x: we do not open what they seal: %v", seed, err)
				}
				if _, err := ours.open(info, flip(sealed)); !errors.Is(err, alg.ErrOpen) {
					t.Errorf("seed %x: a changed ciphertext: %v", seed, err)
				}
				if _, err := ours.open(append(info, 0), sealed); !errors.Is(err, alg.ErrOpen) {
					t.Errorf("seed %x: another info: %v", seed, err)
				}
				ours.private.Destroy()
			}
		})
	}
}

// open opens enc ‖ ct.
func (p pair) open(info, sealed []byte) (plaintext []byte, err error) {
	n := p.track.EncSize()
	err = p.track.OpenFrom(p.private, info, nil, sealed[:n], sealed[n:], func(b []byte) { plaintext = bytes.Clone(b) })
	return plaintext, err
}

// The blobs of docs/spec/envelope.md, read and written with the HKDF and the
// ciphers of tink-go.
//
func TestAEADDifferential(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	for name, newCipher := range map[string]func([]byte) (tink.AEAD, error){
		"aes-256-gcm":       func(k []byte) (tink.AEAD, error) { return aeadsubtle.NewAESGCM(k) },
		"chacha20-poly1305": func(k []byte) (tink.AEAD, error) { return aeadsubtle.NewChaCha20Poly1305(k) },
	} {
		tr := track(t, name)
		for i := range rounds {
			seed, aad, plaintext := random(32), message(i), random(i+1)
			private := must(expand(a, tr, seed))
			theirs := func(salt []byte) tink.AEAD {
				prf := must(prfsubtle.NewHKDFPRF("SHA256", seed, salt))
				return must(newCipher(must(prf.ComputePRF([]byte("ron-kms/aead/v1\x00"+name), 32))))
			}
			blob, err := tr.SealWith(private, aad, plaintext)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := theirs(blob[:16]).Decrypt(blob[16:], aad); err != nil || !bytes.Equal(got, plaintext) {
				t.Errorf("%s, key %x: they do not open what we seal: %v", name, seed, err)
			}
			salt := random(16)
			blob = append(salt, must(theirs(salt).Encrypt(plaintext, aad))...)
			same := false
			if err := tr.OpenWith(private, aad, blob, func(p []byte) { same = bytes.Equal(p, plaintext) }); err != nil || !same {
				t.Errorf("%s, key %x: we do not open what they seal: %v", name, seed, err)
			}
			if err := tr.OpenWith(private, aad, flip(blob), func([]byte) {}); !errors.Is(err, alg.ErrOpen) {
				t.Errorf("%s, key %x: a changed blob: %v", name, seed, err)
			}
			private.Destroy()
		}
	}
}

// Derivation of docs/spec/derive.md, against the HKDF of tink-go.
//
func TestDeriveDifferential(t *testing.T) {
	t.Parallel()
	a, tr := newArena(t), track(t, "hkdf-sha256")
	salt := sha256.Sum256([]byte("ron-kms/derive/v1"))
	for i := range rounds {
		seed := random(32)
		info, err := alg.DeriveInfo("tenant", "purpose", "c"+string(rune('a'+i%26)))
		if err != nil {
			t.Fatal(err)
		}
		private := must(expand(a, tr, seed))
		child, err := tr.DeriveSeed(private, a, info, 1+i)
		if err != nil {
			t.Fatal(err)
		}
		prf := must(prfsubtle.NewHKDFPRF("SHA256", seed, salt[:]))
		want := must(prf.ComputePRF([]byte(info), uint32(1+i)))
		same := false
		if err := child.Use(func(p []byte) { same = bytes.Equal(p, want) }); err != nil || !same {
			t.Errorf("key %x, %s: other bytes: %v", seed, info, err)
		}
		child.Destroy()
		private.Destroy()
	}
}
