package alg_test

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/mlkem"
	"crypto/rand"
	"errors"
	"strings"
	"testing"

	circlhpke "github.com/cloudflare/circl/hpke"
	"github.com/rustyonions/ron-kms/core/alg"
)

// openFrom returns what k opens, and fails if use is not called exactly when
// there is no error.
func (k keyPair) openFrom(t testing.TB, info, aad, enc, ct []byte) (plaintext []byte, err error) {
	t.Helper()
	calls := 0
	err = k.track.OpenFrom(k.expanded, info, aad, enc, ct, func(p []byte) {
		calls++
		plaintext = bytes.Clone(p)
	})
	if (calls == 1) != (err == nil) {
		t.Errorf("use was called %d times, with error %v", calls, err)
	}
	return plaintext, err
}

// Every KEM: what is sealed to a key opens with it, and with no other key, info
// or associated data; and never is the same sealed twice.
func TestKEMSealOpen(t *testing.T) {
	t.Parallel()
	for _, tr := range tracksOf(alg.KindKEM) {
		t.Run(tr.Name(), func(t *testing.T) {
			t.Parallel()
			a := newArena(t)
			k, other := generate(t, a, tr), generate(t, a, tr)
			info, aad := []byte("info"), []byte("aad")
			for _, n := range []int{1, 32, alg.MaxDataKey} {
				data := make([]byte, n)
				rand.Read(data)
				enc, ct, err := k.public.SealTo(info, aad, data)
				if err != nil || len(enc) != tr.EncSize() || len(ct) != n+16 {
					t.Fatalf("%d bytes: enc %d, ct %d, %v", n, len(enc), len(ct), err)
				}
				if got, err := k.openFrom(t, info, aad, enc, ct); err != nil || !bytes.Equal(got, data) {
					t.Errorf("%d bytes: %v", n, err)
				}
			}
			for _, n := range []int{0, alg.MaxDataKey + 1} {
				if _, _, err := k.public.SealTo(info, aad, make([]byte, n)); err != alg.ErrDataKey {
					t.Errorf("sealed %d bytes: %v", n, err)
				}
			}
			data := []byte("data key")
			enc, ct, err := k.public.SealTo(info, aad, data)
			if err != nil {
				t.Fatal(err)
			}
			enc2, ct2, err := k.public.SealTo(info, aad, data)
			if err != nil || bytes.Equal(enc, enc2) || bytes.Equal(ct, ct2) {
				t.Errorf("sealed the same twice: %v", err)
			}
			for name, open := range map[string]func() ([]byte, error){
				"other key":       func() ([]byte, error) { return other.openFrom(t, info, aad, enc, ct) },
				"other info":      func() ([]byte, error) { return k.openFrom(t, []byte("inf"), aad, enc, ct) },
				"other aad":       func() ([]byte, error) { return k.openFrom(t, info, []byte("aae"), enc, ct) },
				"no aad":          func() ([]byte, error) { return k.openFrom(t, info, nil, enc, ct) },
				"other enc":       func() ([]byte, error) { return k.openFrom(t, info, aad, enc2, ct) },
				"other ct":        func() ([]byte, error) { return k.openFrom(t, info, aad, enc, ct2) },
				"no enc":          func() ([]byte, error) { return k.openFrom(t, info, aad, nil, ct) },
				"short enc":       func() ([]byte, error) { return k.openFrom(t, info, aad, enc[1:], ct) },
				"long enc":        func() ([]byte, error) { return k.openFrom(t, info, aad, append(bytes.Clone(enc), 0), ct) },
				"no ct":           func() ([]byte, error) { return k.openFrom(t, info, aad, enc, nil) },
				"tag alone":       func() ([]byte, error) { return k.openFrom(t, info, aad, enc, ct[len(data):]) },
				"short ct":        func() ([]byte, error) { return k.openFrom(t, info, aad, enc, ct[1:]) },
				"long ct":         func() ([]byte, error) { return k.openFrom(t, info, aad, enc, append(bytes.Clone(ct), 0)) },
				"ct beyond limit": func() ([]byte, error) { return k.openFrom(t, info, aad, enc, make([]byte, alg.MaxDataKey+17)) },
				"zero enc":        func() ([]byte, error) { return k.openFrom(t, info, aad, make([]byte, len(enc)), ct) },
			} {
				if got, err := open(); err != alg.ErrOpen || got != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			if _, _, err := (alg.Public{}).SealTo(info, aad, data); !errors.Is(err, alg.ErrKind) {
				t.Errorf("sealed to the zero public key: %v", err)
			}
		})
	}
}

// Every byte of enc and ciphertext counts, and all changes give the same error.
// For X-Wing it follows that both halves of enc are needed.
func TestKEMTampered(t *testing.T) {
	t.Parallel()
	for _, tr := range tracksOf(alg.KindKEM) {
		t.Run(tr.Name(), func(t *testing.T) {
			t.Parallel()
			k := generate(t, newArena(t), tr)
			enc, ct, err := k.public.SealTo(nil, nil, []byte("data key"))
			if err != nil {
				t.Fatal(err)
			}
			sealed := append(bytes.Clone(enc), ct...)
			for i := range sealed {
				bad := bytes.Clone(sealed)
				bad[i] ^= 1 << (i % 8)
				if _, err := k.openFrom(t, nil, nil, bad[:len(enc)], bad[len(enc):]); err != alg.ErrOpen {
					t.Fatalf("byte %d: %v", i, err)
				}
			}
			// The bit of an X25519 key that RFC 7748 ignores.
			if strings.HasPrefix(tr.Name(), "x25519") {
				bad := bytes.Clone(enc)
				bad[len(bad)-1] ^= 0x80
				if _, err := k.openFrom(t, nil, nil, bad, ct); err != alg.ErrOpen {
					t.Errorf("top bit: %v", err)
				}
			}
		})
	}
}

// Against the other implementation, both ways, and that the same seed has the
// same public key there.
func TestKEMDifferential(t *testing.T) {
	t.Parallel()
	for _, tr := range tracksOf(alg.KindKEM) {
		a := newArena(t)
		for range 5 {
			seed := make([]byte, tr.SeedSize())
			rand.Read(seed)
			k := newPair(t, a, tr, fill(t, a, seed))
			if !bytes.Equal(k.public.Bytes(), circlPublic(t, tr.Name(), seed)) {
				t.Fatalf("%s: public keys differ", tr.Name())
			}
			data, info, aad := []byte("data key"), []byte("info"), []byte("aad")
			enc, ct, err := k.public.SealTo(info, aad, data)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := openByHand(t, tr.Name(), seed, info, aad, enc, ct); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s: the other does not open ours: %v", tr.Name(), err)
			}
			enc, ct = sealByHand(t, tr.Name(), k.public.Bytes(), info, aad, data)
			if got, err := k.openFrom(t, info, aad, enc, ct); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s: does not open the other's: %v", tr.Name(), err)
			}
		}
	}
}

// X25519 and X-Wing against circl's HPKE, both ways. R-061
func TestCirclHPKE(t *testing.T) {
	t.Parallel()
	for name, id := range map[string]circlhpke.KEM{"x25519": circlhpke.KEM_X25519_HKDF_SHA256, "x25519+ml-kem-768": circlhpke.KEM_XWING} {
		suite := circlhpke.NewSuite(id, circlhpke.KDF_HKDF_SHA256, circlhpke.AEAD_AES256GCM)
		a, tr := newArena(t), track(t, name)
		seed := make([]byte, tr.SeedSize())
		rand.Read(seed)
		k := newPair(t, a, tr, fill(t, a, seed))
		private, err := id.Scheme().UnmarshalBinaryPrivateKey(seed)
		if err != nil {
			t.Fatal(err)
		}
		public, err := id.Scheme().UnmarshalBinaryPublicKey(k.public.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if raw, err := private.Public().MarshalBinary(); err != nil || !bytes.Equal(raw, k.public.Bytes()) {
			t.Errorf("%s: public keys differ: %v", name, err)
		}
		data, info, aad := []byte("data key"), []byte("info"), []byte("aad")

		enc, ct, err := k.public.SealTo(info, aad, data)
		if err != nil {
			t.Fatal(err)
		}
		receiver, err := suite.NewReceiver(private, info)
		if err != nil {
			t.Fatal(err)
		}
		opener, err := receiver.Setup(enc)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := opener.Open(ct, aad); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: circl does not open ours: %v", name, err)
		}

		sender, err := suite.NewSender(public, info)
		if err != nil {
			t.Fatal(err)
		}
		enc, sealer, err := sender.Setup(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if ct, err = sealer.Seal(data, aad); err != nil {
			t.Fatal(err)
		}
		if got, err := k.openFrom(t, info, aad, enc, ct); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: does not open circl's: %v", name, err)
		}
	}
}

// Who has one of the two private keys of X-Wing opens nothing. R-061
func TestXWingNeedsBoth(t *testing.T) {
	t.Parallel()
	private := func() (*mlkem.DecapsulationKey768, *ecdh.PrivateKey) {
		pq, err := mlkem.GenerateKey768()
		if err != nil {
			t.Fatal(err)
		}
		classical, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return pq, classical
	}
	pq, classical := private()
	otherPQ, otherClassical := private()
	public, err := track(t, "x25519+ml-kem-768").ParsePublic(append(pq.EncapsulationKey().Bytes(), classical.PublicKey().Bytes()...))
	if err != nil {
		t.Fatal(err)
	}
	enc, ct, err := public.SealTo(nil, nil, []byte("data key"))
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name      string
		pq        crypto.Decapsulator
		classical *ecdh.PrivateKey
		ok        bool
	}{
		{"both", pq, classical, true},
		{"ml-kem alone", pq, otherClassical, false},
		{"x25519 alone", otherPQ, classical, false},
	} {
		key, err := hpke.NewHybridPrivateKey(row.pq, row.classical)
		if err != nil {
			t.Fatal(err)
		}
		_, err = hpke.Open(key, hpke.HKDFSHA256(), hpke.AES256GCM(), nil, append(bytes.Clone(enc), ct...))
		if (err == nil) != row.ok {
			t.Errorf("%s: %v", row.name, err)
		}
	}
}

// Public keys of small order, and ML-KEM keys with a coefficient that is not
// reduced (FIPS 203 §7.2), are refused, and so is an enc of small order. R-251
func TestKEMBadPublicKeys(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	lowOrder := []string{ // u coordinates of order 1, 2, 4 and 8, and those not reduced
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0100000000000000000000000000000000000000000000000000000000000000",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
		"5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"0000000000000000000000000000000000000000000000000000000000000080",
	}
	for _, tr := range tracksOf(alg.KindKEM) {
		k := generate(t, a, tr)
		raw := k.public.Bytes()
		if tr.Name() != "x25519" {
			bad := bytes.Clone(raw)
			bad[0], bad[1] = 0xff, bad[1]|0x0f // 4095, the modulus is 3329
			if _, err := tr.ParsePublic(bad); !errors.Is(err, alg.ErrPublicKey) {
				t.Errorf("%s: coefficient not reduced: %v", tr.Name(), err)
			}
			bad = bytes.Clone(raw)
			bad[0], bad[1] = 0x01, bad[1]&0xf0|0x0d // 3329 itself
			if _, err := tr.ParsePublic(bad); !errors.Is(err, alg.ErrPublicKey) {
				t.Errorf("%s: coefficient is the modulus: %v", tr.Name(), err)
			}
			bad[0], bad[1] = 0x00, bad[1]&0xf0|0x0d // 3328
			if _, err := tr.ParsePublic(bad); err != nil {
				t.Errorf("%s: largest coefficient: %v", tr.Name(), err)
			}
		}
		for _, n := range []int{0, len(raw) - 1, len(raw) + 1} {
			if p, err := tr.ParsePublic(make([]byte, n)); !errors.Is(err, alg.ErrPublicKey) || p.Track() != nil {
				t.Errorf("%s: key of %d bytes: %v", tr.Name(), n, err)
			}
		}
		if !strings.HasPrefix(tr.Name(), "x25519") {
			continue
		}
		enc, ct, err := k.public.SealTo(nil, nil, []byte("data key"))
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range lowOrder {
			point := unhex(t, u)
			bad := bytes.Clone(raw)
			copy(bad[len(bad)-32:], point)
			if _, err := tr.ParsePublic(bad); !errors.Is(err, alg.ErrPublicKey) {
				t.Errorf("%s: parsed a key with u = %s: %v", tr.Name(), u, err)
			}
			bad = bytes.Clone(enc)
			copy(bad[len(bad)-32:], point)
			if _, err := k.openFrom(t, nil, nil, bad, ct); err != alg.ErrOpen {
				t.Errorf("%s: enc with u = %s: %v", tr.Name(), u, err)
			}
		}
	}
}
