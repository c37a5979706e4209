package alg_test

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/cloudflare/circl/dh/x25519"
	"github.com/cloudflare/circl/kem"
	"github.com/cloudflare/circl/kem/mlkem/mlkem1024"
	"github.com/cloudflare/circl/kem/mlkem/mlkem768"
	"github.com/cloudflare/circl/kem/xwing"
	"golang.org/x/crypto/chacha20poly1305"
)

// What follows is written from docs/spec/envelope.md and RFC 9180 with circl,
// HKDF and the ciphers alone. It shares no code with this package, nor its KEMs
// with crypto/hpke.

// hpkeIDs are the registered numbers of the KEMs.
var hpkeIDs = map[string]uint16{"x25519": 0x0020, "ml-kem-768": 0x0041, "ml-kem-1024": 0x0042, "x25519+ml-kem-768": 0x647a}

var circlKEMs = map[string]kem.Scheme{
	"ml-kem-768": mlkem768.Scheme(), "ml-kem-1024": mlkem1024.Scheme(), "x25519+ml-kem-768": xwing.Scheme(),
}

// circlPublic returns the public key of a seed.
func circlPublic(t testing.TB, name string, seed []byte) []byte {
	t.Helper()
	if name == "x25519" {
		var public x25519.Key
		x25519.KeyGen(&public, (*x25519.Key)(seed))
		return public[:]
	}
	public, _ := circlKEMs[name].DeriveKeyPair(seed)
	b, err := public.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// circlDecapsulate returns the shared secret that the KEM of HPKE gives.
func circlDecapsulate(t testing.TB, name string, seed, enc []byte) []byte {
	t.Helper()
	if name == "x25519" {
		var shared x25519.Key
		if !x25519.Shared(&shared, (*x25519.Key)(seed), (*x25519.Key)(enc)) {
			t.Fatal("shared secret is zero")
		}
		return dhkem(t, shared[:], enc, circlPublic(t, name, seed))
	}
	_, private := circlKEMs[name].DeriveKeyPair(seed)
	shared, err := circlKEMs[name].Decapsulate(private, enc)
	if err != nil {
		t.Fatal(err)
	}
	return shared
}

// circlEncapsulate is the other side of circlDecapsulate.
func circlEncapsulate(t testing.TB, name string, public []byte) (enc, shared []byte) {
	t.Helper()
	if name == "x25519" {
		var private, ephemeral, secret x25519.Key
		rand.Read(private[:])
		x25519.KeyGen(&ephemeral, &private)
		if !x25519.Shared(&secret, &private, (*x25519.Key)(public)) {
			t.Fatal("shared secret is zero")
		}
		return ephemeral[:], dhkem(t, secret[:], ephemeral[:], public)
	}
	key, err := circlKEMs[name].UnmarshalBinaryPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	enc, shared, err = circlKEMs[name].Encapsulate(key)
	if err != nil {
		t.Fatal(err)
	}
	return enc, shared
}

// dhkem is ExtractAndExpand of RFC 9180 §4.1.
func dhkem(t testing.TB, dh, enc, public []byte) []byte {
	suite := []byte("KEM\x00\x20")
	return labeledExpand(t, suite, labeledExtract(t, suite, nil, "eae_prk", dh), "shared_secret", slices.Concat(enc, public), 32)
}

func labeledExtract(t testing.TB, suite, salt []byte, label string, ikm []byte) []byte {
	prk, err := hkdf.Extract(sha256.New, slices.Concat([]byte("HPKE-v1"), suite, []byte(label), ikm), salt)
	if err != nil {
		t.Fatal(err)
	}
	return prk
}

func labeledExpand(t testing.TB, suite, prk []byte, label string, info []byte, n int) []byte {
	full := slices.Concat(binary.BigEndian.AppendUint16(nil, uint16(n)), []byte("HPKE-v1"), suite, []byte(label), info)
	out, err := hkdf.Expand(sha256.New, prk, string(full), n)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// hpkeCipher is the key schedule of RFC 9180 §5.1 in base mode, for the first
// message under HKDF-SHA256 and AES-256-GCM.
func hpkeCipher(t testing.TB, name string, shared, info []byte) (c cipher.AEAD, nonce []byte) {
	suite := binary.BigEndian.AppendUint16([]byte("HPKE"), hpkeIDs[name])
	suite = append(suite, 0, 1, 0, 2)
	context := slices.Concat([]byte{0}, labeledExtract(t, suite, nil, "psk_id_hash", nil), labeledExtract(t, suite, nil, "info_hash", info))
	secret := labeledExtract(t, suite, shared, "secret", nil)
	return gcm(t, labeledExpand(t, suite, secret, "key", context, 32)), labeledExpand(t, suite, secret, "base_nonce", context, 12)
}

func gcm(t testing.TB, key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func openByHand(t testing.TB, name string, seed, info, aad, enc, ct []byte) ([]byte, error) {
	t.Helper()
	c, nonce := hpkeCipher(t, name, circlDecapsulate(t, name, seed, enc), info)
	return c.Open(nil, nonce, ct, aad)
}

func sealByHand(t testing.TB, name string, public, info, aad, plaintext []byte) (enc, ct []byte) {
	t.Helper()
	enc, shared := circlEncapsulate(t, name, public)
	c, nonce := hpkeCipher(t, name, shared, info)
	return enc, c.Seal(nil, nonce, plaintext, aad)
}

// aeadByHand is the cipher of the blob with that salt.
func aeadByHand(t testing.TB, name string, key, salt []byte) cipher.AEAD {
	t.Helper()
	subkey, err := hkdf.Key(sha256.New, key, salt, "ron-kms/aead/v1\x00"+name, 32)
	if err != nil {
		t.Fatal(err)
	}
	if name == "aes-256-gcm" {
		return gcm(t, subkey)
	}
	c, err := chacha20poly1305.New(subkey)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func openAEADByHand(t testing.TB, name string, key, aad, blob []byte) ([]byte, error) {
	t.Helper()
	if len(blob) < 28 {
		return nil, errors.New("too short")
	}
	return aeadByHand(t, name, key, blob[:16]).Open(nil, blob[16:28], blob[28:], aad)
}

// parseEnvelopeByHand reads an envelope as docs/spec/envelope.md describes it.
func parseEnvelopeByHand(b []byte) (kid, name string, enc, body []byte, ok bool) {
	if len(b) < 1 || b[0] != 1 {
		return
	}
	b = b[1:]
	var fields [3][]byte
	for i := range fields {
		if len(b) < 2 || len(b)-2 < int(binary.BigEndian.Uint16(b)) {
			return
		}
		n := int(binary.BigEndian.Uint16(b))
		fields[i], b = b[2:2+n], b[2+n:]
	}
	if len(b) < 4 || int64(binary.BigEndian.Uint32(b)) != int64(len(b)-4) {
		return
	}
	return string(fields[0]), string(fields[1]), fields[2], b[4:], true
}

// envelopeAADByHand is the associated data of docs/spec/envelope.md.
func envelopeAADByHand(tenant, kid, name string, aad []byte) []byte {
	b := []byte("ron-kms/wrap/v1\x00")
	for _, f := range [][]byte{[]byte(tenant), []byte(kid), []byte(name), aad} {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(f))), f...)
	}
	return b
}
