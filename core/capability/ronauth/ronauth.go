// Package ronauth verifies the capability tokens of ron-auth v1 and turns them
// into grants, with the same checks as tokens of our own.
//
// A token is CBOR under a chain of BLAKE3 tags, all of which are keyed with
// the issuer's key. The format has weaknesses that cannot be mended from this
// side; docs/spec/token.md §8 lists them and what is done about each. What
// ron-auth accepts and we do not understand denies.
package ronauth

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/fxamacker/cbor/v2"
	"lukechampine.com/blake3"

	"github.com/rustyonions/ron-kms/core/capability"
	"github.com/rustyonions/ron-kms/core/capability/internal/foreign"
)

// Limits of a token, those of ron-auth.
const (
	MaxTokenBytes = 4096 // of the CBOR, before base64
	MaxCaveats    = 64
	KeyBytes      = 32
)

// AnyTenant in [Key.Tenants] lets a key speak for every tenant.
const AnyTenant = "*"

// A Key is an issuer's key. It must be used for ron-auth tokens alone: their
// tags do not say what they are for.
type Key struct {
	// Secret lends the 32 bytes, as *secret.Bytes does.
	Secret interface {
		Use(fn func(key []byte)) error
	}
	// Tenants are the ron-auth tenant ids (tid) that the issuer may speak for,
	// at least one, or AnyTenant.
	Tenants []string
}

// Options are what a Verifier goes by.
type Options struct {
	Keys map[string]Key // by the kid in tokens: [A-Za-z0-9._-]{1,64}
	// Amnesia tells whether this server keeps nothing on disk; the Amnesia
	// caveat asks for it.
	Amnesia bool
	// Revocations may end tokens; nil ends none. A key's root id in it is
	// "ron-auth:" and the kid.
	Revocations capability.Revocations
}

// A Verifier verifies ron-auth v1 tokens. It is safe for concurrent use.
type Verifier struct{ o Options }

// NewVerifier checks the options. It refuses a Verifier without keys: whoever
// does not want ron-auth tokens makes none.
func NewVerifier(o Options) (*Verifier, error) {
	if len(o.Keys) == 0 {
		return nil, errors.New("ronauth: no key")
	}
	for kid, k := range o.Keys {
		if !capability.ValidForeignKID(kid) {
			return nil, errors.New("ronauth: a kid is not [A-Za-z0-9._-]{1,64}")
		}
		if k.Secret == nil || len(k.Tenants) == 0 {
			return nil, fmt.Errorf("ronauth: key %s: secret or tenants are missing", kid)
		}
		n := 0
		if err := k.Secret.Use(func(key []byte) { n = len(key) }); err != nil {
			return nil, fmt.Errorf("ronauth: key %s: %w", kid, err)
		}
		if n != KeyBytes {
			return nil, fmt.Errorf("ronauth: key %s: not %d bytes", kid, KeyBytes)
		}
	}
	return &Verifier{o}, nil
}

// Beside returns a verifier of both kinds of tokens: those that begin as a
// ron-auth token does are for v, all others for native. No token is both.
func (v *Verifier) Beside(native capability.TokenVerifier) capability.TokenVerifier {
	return both{native, v}
}

type both struct {
	native  capability.TokenVerifier
	ronauth *Verifier
}

func (b both) Verify(text string) (*capability.Grant, error) {
	if Recognizes(text) {
		return b.ronauth.Verify(text)
	}
	return b.native.Verify(text)
}

// Recognizes tells whether text begins as ron-auth tokens do: with a CBOR map
// of five, whose base64 begins with "pW" for the length and text type of its
// first name. Tokens of our own begin with "Ag".
func Recognizes(text string) bool { return len(text) > 2 && text[:2] == "pW" }

var (
	refuseMalformed = capability.RefusalFor(capability.ReasonTokenMalformed)
	refuseSignature = capability.RefusalFor(capability.ReasonTokenSignature)
)

// Verify checks the form of a token, then its chain of tags, then what its
// caveats say, and returns what it grants, as [capability.Verifier.Verify]
// does. Its refusals are the same ones.
func (v *Verifier) Verify(text string) (*capability.Grant, error) {
	if text == "" {
		return nil, capability.RefusalFor(capability.ReasonTokenMissing)
	}
	t, ok := parse(text)
	if !ok {
		return nil, refuseMalformed
	}
	key, ok := v.o.Keys[t.KID]
	if !ok || !slices.Contains(key.Tenants, AnyTenant) && !slices.Contains(key.Tenants, t.TID) {
		return nil, refuseSignature
	}
	var tag []byte
	if err := key.Secret.Use(func(key []byte) {
		if len(key) == KeyBytes {
			tag = t.tag(key)
		}
	}); err != nil {
		return nil, fmt.Errorf("ronauth: key: %w", err)
	}
	if tag == nil {
		return nil, errors.New("ronauth: key: not given")
	}
	if !hmac.Equal(tag, t.MAC) {
		return nil, refuseSignature
	}
	caveats, refusal := t.conditions(v.o.Amnesia)
	if refusal != nil {
		return nil, refusal
	}
	identifier := t.identifier()
	sum := sha256.Sum256(identifier)
	return capability.Adopt(foreign.Token{
		Root: "ron-auth:" + t.KID, ID: "ron:" + hex.EncodeToString(sum[:8]), Identifier: identifier, Caveats: caveats,
	}, v.o.Revocations)
}

// token is the CBOR map, its fields in the order in which they are written.
type token struct {
	TID     string            `cbor:"tid"`
	KID     string            `cbor:"kid"`
	Scope   scope             `cbor:"scope"`
	Caveats []cbor.RawMessage `cbor:"caveats"`
	MAC     []byte            `cbor:"mac"`
}

// scope is what a token allows before its caveats. Absent values are written
// as null.
type scope struct {
	Prefix   *string  `cbor:"prefix"`
	Methods  []string `cbor:"methods"`
	MaxBytes *uint64  `cbor:"max_bytes"`
}

// decoder refuses what the format does not have: unknown and repeated names,
// names in another case, indefinite lengths, tags.
var decoder = must(cbor.DecOptions{
	DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden,
	ExtraReturnErrors: cbor.ExtraDecErrorUnknownField, FieldNameMatching: cbor.FieldNameMatchingCaseSensitive,
	MaxNestedLevels: 16, MaxArrayElements: 1024, MaxMapPairs: 1024,
}.DecMode())

// encoder writes the shortest form, in the order of the fields.
var encoder = must(cbor.EncOptions{Sort: cbor.SortNone, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden}.EncMode())

func must[T any](mode T, err error) T {
	if err != nil {
		panic("ronauth: " + err.Error()) // the options are constants
	}
	return mode
}

// canonical decodes data into v, a pointer, and tells whether v encodes to the
// very same bytes: no second spelling, and nothing missing or left over.
func canonical(data []byte, v any) bool {
	if decoder.Unmarshal(data, v) != nil {
		return false
	}
	again, err := encoder.Marshal(v)
	return err == nil && bytes.Equal(again, data)
}

// parse reads the form of a token and nothing of its caveats.
func parse(text string) (*token, bool) {
	if len(text) > base64.RawURLEncoding.EncodedLen(MaxTokenBytes) {
		return nil, false
	}
	data, err := base64.RawURLEncoding.DecodeString(text)
	// The decoder skips line breaks and ignores spare bits.
	if err != nil || base64.RawURLEncoding.EncodeToString(data) != text {
		return nil, false
	}
	t := new(token)
	if !canonical(data, t) || t.Scope.Methods == nil || t.Caveats == nil || len(t.Caveats) > MaxCaveats || len(t.MAC) != 32 {
		return nil, false
	}
	return t, true
}

// head is what the first tag is over: tid, kid and scope as an array of three.
func (t *token) head() []byte {
	head, err := encoder.Marshal([]any{t.TID, t.KID, t.Scope})
	if err != nil {
		return nil // cannot be: the same values were just encoded
	}
	return head
}

// tag computes the last tag of the chain:
//
//	tag 0 = BLAKE3(key, CBOR [tid, kid, scope])
//	tag i = BLAKE3(key, tag i-1 || CBOR of caveat i)
func (t *token) tag(key []byte) []byte {
	mac := blake3.New(32, key)
	_, _ = mac.Write(t.head())
	tag := mac.Sum(nil)
	for _, c := range t.Caveats {
		mac.Reset()
		_, _ = mac.Write(tag)
		_, _ = mac.Write(c)
		tag = mac.Sum(tag[:0])
	}
	return tag
}

// identifier is all that the tags are over: the format has no nonce.
func (t *token) identifier() []byte {
	id := append([]byte("ron-auth/v1\x00"), t.head()...)
	for _, c := range t.Caveats {
		id = append(id, c...)
	}
	return id
}
