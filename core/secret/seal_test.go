package secret_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/fips140"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"testing"

	"github.com/rustyonions/ron-kms/core/secret"
)

// what is sealed opens under the same key and associated data only.
func TestSealUnseal(t *testing.T) {
	t.Parallel()
	a := newArena(t, 1<<20)
	key, _ := a.Random(32)
	wrong, _ := a.Random(32)
	for _, n := range []int{1, 32, 65700} {
		plain, err := a.Random(n)
		if err != nil {
			t.Fatal(err)
		}
		sealed, err := key.Seal(plain, []byte("aad"))
		if err != nil {
			t.Fatal(err)
		}
		if len(sealed) != n+secret.SealOverhead || cap(sealed) != len(sealed) {
			t.Errorf("%d bytes sealed to %d, cap %d", n, len(sealed), cap(sealed))
		}
		if n > 1 && bytes.Contains(sealed, reveal(t, plain)) {
			t.Error("blob holds the plaintext")
		}
		got, err := key.Unseal(a, sealed, []byte("aad"))
		if err != nil {
			t.Fatal(err)
		}
		if !got.Equal(plain) {
			t.Errorf("%d bytes: not the plaintext", n)
		}
		used := a.Stats().Used
		for name, open := range map[string]func() (*secret.Bytes, error){
			"wrong key": func() (*secret.Bytes, error) { return wrong.Unseal(a, sealed, []byte("aad")) },
			"wrong aad": func() (*secret.Bytes, error) { return key.Unseal(a, sealed, []byte("aae")) },
			"no aad":    func() (*secret.Bytes, error) { return key.Unseal(a, sealed, nil) },
			"longer":    func() (*secret.Bytes, error) { return key.Unseal(a, append(bytes.Clone(sealed), 0), []byte("aad")) },
			"empty":     func() (*secret.Bytes, error) { return key.Unseal(a, nil, []byte("aad")) },
		} {
			if b, err := open(); b != nil || err != secret.ErrUnseal {
				t.Errorf("%s: %v, %v", name, b, err)
			}
		}
		if a.Stats().Used != used {
			t.Error("a refused blob kept a slot")
		}
	}
}

// every bit counts, and so does every byte's presence.
func TestUnsealTampered(t *testing.T) {
	t.Parallel()
	a := newArena(t, 1<<16)
	key, _ := a.Random(32)
	plain := fill(t, a, []byte("0123456789abcdef0123456789abcdef"))
	sealed, err := key.Seal(plain, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range sealed {
		for bit := range 8 {
			bad := bytes.Clone(sealed)
			bad[i] ^= 1 << bit
			if _, err := key.Unseal(a, bad, nil); err != secret.ErrUnseal {
				t.Fatalf("byte %d bit %d: %v", i, bit, err)
			}
		}
		if _, err := key.Unseal(a, sealed[:i], nil); err != secret.ErrUnseal {
			t.Fatalf("cut to %d bytes: %v", i, err)
		}
	}
}

// D-19: fresh salt and nonce in every blob.
func TestSealIsFresh(t *testing.T) {
	t.Parallel()
	a := newArena(t, 1)
	key, _ := a.Random(32)
	salts, nonces := map[string]bool{}, map[string]bool{}
	for range 200 {
		sealed, err := key.Seal(key, nil)
		if err != nil {
			t.Fatal(err)
		}
		salts[string(sealed[1:17])] = true
		nonces[string(sealed[17:29])] = true
	}
	if len(salts) != 200 || len(nonces) != 200 {
		t.Errorf("%d salts and %d nonces in 200 blobs", len(salts), len(nonces))
	}
}

// The blob is what its description says: the standard library's HKDF and GCM,
// put together by hand, open it.
func TestSealFormat(t *testing.T) {
	t.Parallel()
	a := newArena(t, 1)
	rawKey := bytes.Repeat([]byte{0x42}, 32)
	sealed, err := fill(t, a, rawKey).Seal(fill(t, a, []byte("plain")), []byte("aad"))
	if err != nil {
		t.Fatal(err)
	}
	subkey, err := hkdf.Key(sha256.New, rawKey, sealed[1:17], "ron-kms/seal/v1", 32)
	if err != nil {
		t.Fatal(err)
	}
	var plain []byte
	fips140.WithoutEnforcement(func() { // in FIPS 140-only mode a chosen nonce is refused
		var block cipher.Block
		if block, err = aes.NewCipher(subkey); err != nil {
			return
		}
		var gcm cipher.AEAD
		if gcm, err = cipher.NewGCM(block); err != nil {
			return
		}
		plain, err = gcm.Open(nil, sealed[17:29], sealed[29:], []byte("aad"))
	})
	if err != nil || string(plain) != "plain" || sealed[0] != 1 {
		t.Errorf("%q, %v, version %d", plain, err, sealed[0])
	}
}

func TestSealShortKeyAndFullArena(t *testing.T) {
	t.Parallel()
	a, small := newArena(t, 1), newArena(t, 1)
	short, _ := a.Random(31)
	key, _ := a.Random(32)
	if _, err := short.Seal(key, nil); err == nil {
		t.Error("sealed under a short key")
	}
	if _, err := short.Derive(a, "x", 32); err == nil {
		t.Error("derived from a short key")
	}
	sealed, err := key.Seal(key, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := short.Unseal(a, sealed, nil); err == nil || errors.Is(err, secret.ErrUnseal) {
		t.Errorf("unsealed with a short key: %v", err)
	}
	if _, err := small.New(small.Stats().Size); err != nil {
		t.Fatal(err)
	}
	if _, err := key.Unseal(small, sealed, nil); !errors.Is(err, secret.ErrArenaFull) {
		t.Errorf("unseal into a full arena: %v", err)
	}
}

// RFC 5869 A.1 gives the PRK of its extract step and the bytes expanded from it.
func TestDerive(t *testing.T) {
	t.Parallel()
	a := newArena(t, 1<<15)
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	prk := fill(t, a, unhex("077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5"))
	info := string(unhex("f0f1f2f3f4f5f6f7f8f9"))
	okm, err := prk.Derive(a, info, 42)
	if err != nil {
		t.Fatal(err)
	}
	want := fill(t, a, unhex("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"))
	if !okm.Equal(want) {
		t.Errorf("derived %x", reveal(t, okm))
	}
	other, err := prk.Derive(a, info+"x", 42)
	if err != nil || other.Equal(okm) {
		t.Errorf("info does not matter: %v", err)
	}
	for _, n := range []int{0, -1, 255*32 + 1} {
		if _, err := prk.Derive(a, info, n); err == nil {
			t.Errorf("derived %d bytes", n)
		}
	}
	if _, err := prk.Derive(a, info, 255*32); err != nil {
		t.Error(err)
	}
}

func BenchmarkSeal(b *testing.B) {
	a := newArena(b, 1)
	key, _ := a.Random(32)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := key.Seal(key, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUnseal(b *testing.B) {
	a := newArena(b, 1)
	key, _ := a.Random(32)
	sealed, err := key.Seal(key, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		p, err := key.Unseal(a, sealed, nil)
		if err != nil {
			b.Fatal(err)
		}
		p.Destroy()
	}
}
