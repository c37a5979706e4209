package alg_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/secret"
)

// keyOf puts known bytes into an arena.
func keyOf(t testing.TB, a *secret.Arena, key []byte) *secret.Bytes {
	t.Helper()
	b, err := a.New(len(key))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Use(func(p []byte) { copy(p, key) }); err != nil {
		t.Fatal(err)
	}
	return b
}

// The published answer of draft-irtf-cfrg-xchacha-03, appendix A.3.1, opens.
//
func TestFieldKnownAnswer(t *testing.T) {
	t.Parallel()
	key := keyOf(t, newArena(t), unhex(t, "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f"))
	sealed := unhex(t, "404142434445464748494a4b4c4d4e4f5051525354555657"+
		"bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb731c7f1b0b4aa6440bf3a82f4eda7e39"+
		"ae64c6708c54c216cb96b72e1213b4522f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff9"+
		"21f9664c97637da9768812f615c68b13b52e"+"c0875924c1c7987947deafd8780acf49")
	got, err := alg.OpenField(key, unhex(t, "50515253c0c1c2c3c4c5c6c7"), sealed)
	const want = "Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it."
	if err != nil || string(got) != want {
		t.Errorf("%q, %v", got, err)
	}
}

// What is sealed opens with the same key and associated data only; every byte
// counts; two seals are never the same.
func TestField(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	key, other := keyOf(t, a, bytes.Repeat([]byte{1}, 32)), keyOf(t, a, bytes.Repeat([]byte{2}, 32))
	aad := []byte("a record")
	for _, n := range []int{0, 1, 300} {
		plain := bytes.Repeat([]byte("x"), n)
		sealed, err := alg.SealField(key, aad, plain)
		if err != nil || len(sealed) != n+alg.FieldOverhead {
			t.Fatalf("%d bytes became %d, %v", n, len(sealed), err)
		}
		if got, err := alg.OpenField(key, aad, sealed); err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("%q, %v", got, err)
		}
		again, _ := alg.SealField(key, aad, plain)
		if bytes.Equal(again[:24], sealed[:24]) {
			t.Error("a nonce was used twice")
		}
		refused := func(name string, key *secret.Bytes, aad, sealed []byte) {
			t.Helper()
			if got, err := alg.OpenField(key, aad, sealed); err != alg.ErrOpen || got != nil {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		}
		refused("other key", other, aad, sealed)
		refused("other data", key, []byte("a recorD"), sealed)
		refused("no data", key, nil, sealed)
		refused("cut", key, aad, sealed[:len(sealed)-1])
		refused("longer", key, aad, append(bytes.Clone(sealed), 0))
		refused("nonce alone", key, aad, sealed[:24])
		refused("nothing", key, aad, nil)
		for i := range sealed {
			flipped := bytes.Clone(sealed)
			flipped[i] ^= 0x10
			refused("flipped", key, aad, flipped)
		}
	}
	short := keyOf(t, a, make([]byte, 31))
	if _, err := alg.SealField(short, aad, aad); err == nil {
		t.Error("a short key seals")
	}
	key.Destroy()
	if _, err := alg.SealField(key, aad, aad); !errors.Is(err, secret.ErrDestroyed) {
		t.Errorf("a destroyed key: %v", err)
	}
	if _, err := alg.OpenField(key, aad, make([]byte, 100)); !errors.Is(err, secret.ErrDestroyed) {
		t.Errorf("a destroyed key: %v", err)
	}
}
