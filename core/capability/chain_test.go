package capability_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"testing"

	"github.com/rustyonions/ron-kms/core/capability"
)

// This file is a second implementation of the token, from docs/spec/token.md
// and the standard library alone. It can also make what the first refuses.

// link is one caveat in the chain. A verification id makes it third-party.
type link struct{ location, id, verification []byte }

// raw is a token in its parts.
type raw struct {
	location, identifier string
	links                []link
	tag                  []byte
}

func mac(key, text []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(text)
	return h.Sum(nil)
}

// chain makes a token; tags are all tags of the chain, the last its signature.
func chain(rootKey []byte, location, identifier string, caveats ...string) (t raw, tags [][]byte) {
	t = raw{location: location, identifier: identifier}
	t.tag = mac(mac([]byte("macaroons-key-generator"), rootKey), []byte(identifier))
	tags = append(tags, t.tag)
	for _, c := range caveats {
		t.tag = mac(t.tag, []byte(c))
		t.links = append(t.links, link{id: []byte(c)})
		tags = append(tags, t.tag)
	}
	return t, tags
}

// bytes encodes the macaroon V2 binary format.
func (t raw) bytes() []byte {
	out := []byte{2}
	field := func(kind byte, data []byte) {
		out = binary.AppendUvarint(append(out, kind), uint64(len(data)))
		out = append(out, data...)
	}
	if t.location != "" {
		field(1, []byte(t.location))
	}
	field(2, []byte(t.identifier))
	out = append(out, 0)
	for _, l := range t.links {
		if l.location != nil {
			field(1, l.location)
		}
		field(2, l.id)
		if l.verification != nil {
			field(4, l.verification)
		}
		out = append(out, 0)
	}
	out = append(out, 0)
	field(6, t.tag)
	return out
}

func (t raw) text() string { return b64(t.bytes()) }

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// The root keys of the tests and of the vectors.
const (
	rootID  = "demo"
	nonce   = "a0a1a2a3a4a5a6a7a8a9aaabacadaeaf"
	issued  = 1700000000
	ident   = "v2:" + rootID + ":1700000000:" + nonce
	expiry  = 1900000000
	tenantA = "tenant=acme"
	expA    = "exp=1900000000"
	scopeA  = "scope=kms:sign,kms:verify"
	digestA = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
	digestB = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262" // BLAKE3 of nothing
	uuidA   = "0197f0c2-7d6e-7c3a-9b1f-2a4c6e8091b3"
)

var rootKey = func() []byte {
	k := make([]byte, capability.RootKeyBytes)
	for i := range k {
		k[i] = byte(i)
	}
	return k
}()

// keyring is a Keys over a map.
type keyring map[string][]byte

func (k keyring) Root(id string, use func(key []byte)) error {
	key, ok := k[id]
	if !ok {
		return capability.ErrUnknownRoot
	}
	use(key)
	return nil
}

func verifier() *capability.Verifier {
	return capability.NewVerifier(keyring{rootID: rootKey})
}

// forge makes an authentic token with any caveats, well-formed or not.
func forge(caveats ...string) string {
	t, _ := chain(rootKey, capability.Location, ident, caveats...)
	return t.text()
}

func grant(t testing.TB, caveats ...string) *capability.Grant {
	t.Helper()
	g, err := verifier().Verify(forge(caveats...))
	if err != nil {
		t.Fatalf("verify: %v", err)
	}
	return g
}

// The tags that libmacaroons publishes in its README: they tie the second
// implementation to one that nobody here wrote.
func TestChainAgreesWithLibmacaroons(t *testing.T) {
	t.Parallel()
	_, tags := chain([]byte("this is our super secret key; only we should know it"), "http://mybank/", "we used our secret key",
		"account = 3735928559", "time < 2020-01-01T00:00", "email = alice@example.org")
	want := []string{
		"e3d9e02908526c4c0039ae15114115d97fdd68bf2ba379b342aaf0f617d0552f",
		"1efe4763f290dbce0c1d08477367e11f4eee456a64933cf662d79772dbb82128",
		"b5f06c8c8ef92f6c82c6ff282cd1f8bd1849301d09a2db634ba182536a611c49",
		"ddf553e46083e55b8d71ab822be3d8fcf21d6bf19c40d617bb9fb438934474b6",
	}
	for i, tag := range tags {
		if got := hex.EncodeToString(tag); got != want[i] {
			t.Errorf("tag %d = %s, want %s", i, got, want[i])
		}
	}
}
