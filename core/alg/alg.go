// Package alg is the closed list of algorithms of ron-kms and the operations on
// their keys: generate, expand, sign and verify, seal and open, derive,
// together with the byte formats that signatures are made over (Statement) and
// carried in (bundles), the format of wrapped data keys (Envelope), and the
// rules by which a hybrid's two verdicts become one answer (Mode).
//
// An algorithm consists of one or more tracks. A track is one primitive with
// fixed parameters and a key of its own; "ed25519+ml-dsa-65" has two. X-Wing is
// one primitive, so "x25519+ml-kem-768" has one. The list is the variable algs
// and cannot be changed from outside: what is not in it does not exist,
// wherever a name comes from.
//
// Signatures are those of github.com/cloudflare/circl: Ed25519 (RFC 8032) and
// ML-DSA (FIPS 204). circl works on keys outside the Go heap, which
// crypto/ed25519 does not, so private keys stay in a locked [secret.Arena].
// Sealing to a public key is HPKE (RFC 9180) of crypto/hpke, which works on
// copies of the private key; they are made, used and erased inside secret.Do.
package alg

import (
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/mlkem"
	"slices"

	"github.com/cloudflare/circl/sign/ed25519"
	"github.com/cloudflare/circl/sign/mldsa/mldsa44"
	"github.com/cloudflare/circl/sign/mldsa/mldsa65"
	"github.com/cloudflare/circl/sign/mldsa/mldsa87"
)

// Class says what kind of attacker a track is meant to withstand.
type Class uint8

// The zero Class is invalid. PostQuantum means that quantum computers are
// withstood too; it includes X-Wing, whatever becomes of one of its halves, and
// symmetric keys of 256 bits.
const (
	Classical   Class = 1
	PostQuantum Class = 2
)

// String returns "classical", "post-quantum" or "invalid".
func (c Class) String() string {
	switch c {
	case Classical:
		return "classical"
	case PostQuantum:
		return "post-quantum"
	}
	return "invalid"
}

// Kind says what an algorithm is for.
type Kind uint8

// The zero Kind is invalid.
const (
	KindSign Kind = 1 // sign, verify
	KindKEM  Kind = 2 // wrap to a public key, unwrap
	KindAEAD Kind = 3 // wrap and unwrap with one secret key
	KindKDF  Kind = 4 // derive
)

// Op is something that an algorithm can serve. The names are those of the
// verbs.
type Op string

// The operations that Allows knows.
const (
	OpSign   Op = "sign"
	OpVerify Op = "verify"
	OpWrap   Op = "wrap"
	OpUnwrap Op = "unwrap"
	OpDerive Op = "derive"
)

var kinds = [...]struct {
	name string
	ops  []Op
}{
	0:        {"invalid", nil},
	KindSign: {"sign", []Op{OpSign, OpVerify}},
	KindKEM:  {"kem", []Op{OpWrap, OpUnwrap}},
	KindAEAD: {"aead", []Op{OpWrap, OpUnwrap}},
	KindKDF:  {"kdf", []Op{OpDerive}},
}

// String returns "sign", "kem", "aead", "kdf" or "invalid".
func (k Kind) String() string {
	if int(k) >= len(kinds) {
		k = 0
	}
	return kinds[k].name
}

// Alg is an algorithm that a key can have. Algs are compared by pointer.
type Alg struct {
	name    string
	family  string
	aliases []string
	tracks  []*Track
}

var (
	trackEd25519 = &Track{
		name: "ed25519", kind: KindSign, class: Classical,
		seedSize: ed25519.SeedSize, publicSize: ed25519.PublicKeySize, expandedSize: ed25519.PrivateKeySize,
		signatureSize: ed25519.SignatureSize, primitive: pureEd25519{},
	}
	trackMLDSA44 = &Track{
		name: "ml-dsa-44", kind: KindSign, class: PostQuantum,
		seedSize: mldsa44.SeedSize, publicSize: mldsa44.PublicKeySize, expandedSize: structSize[mldsa44.PrivateKey](),
		signatureSize: mldsa44.SignatureSize, primitive: newMLDSA(mldsa44.NewKeyFromSeed, mldsa44.SignTo, mldsa44.Verify),
	}
	trackMLDSA65 = &Track{
		name: "ml-dsa-65", kind: KindSign, class: PostQuantum,
		seedSize: mldsa65.SeedSize, publicSize: mldsa65.PublicKeySize, expandedSize: structSize[mldsa65.PrivateKey](),
		signatureSize: mldsa65.SignatureSize, primitive: newMLDSA(mldsa65.NewKeyFromSeed, mldsa65.SignTo, mldsa65.Verify),
	}
	trackMLDSA87 = &Track{
		name: "ml-dsa-87", kind: KindSign, class: PostQuantum,
		seedSize: mldsa87.SeedSize, publicSize: mldsa87.PublicKeySize, expandedSize: structSize[mldsa87.PrivateKey](),
		signatureSize: mldsa87.SignatureSize, primitive: newMLDSA(mldsa87.NewKeyFromSeed, mldsa87.SignTo, mldsa87.Verify),
	}
	trackX25519 = &Track{
		name: "x25519", kind: KindKEM, class: Classical,
		seedSize: x25519Size, publicSize: x25519Size, expandedSize: x25519Size,
		encSize: x25519Size, overhead: sealTag, primitive: hpkeKEM{hpke.DHKEM(ecdh.X25519())},
	}
	trackMLKEM768 = &Track{
		name: "ml-kem-768", kind: KindKEM, class: PostQuantum,
		seedSize: mlkem.SeedSize, publicSize: mlkem.EncapsulationKeySize768, expandedSize: mlkem.SeedSize,
		encSize: mlkem.CiphertextSize768, overhead: sealTag, primitive: hpkeKEM{hpke.MLKEM768()},
	}
	trackMLKEM1024 = &Track{
		name: "ml-kem-1024", kind: KindKEM, class: PostQuantum,
		seedSize: mlkem.SeedSize, publicSize: mlkem.EncapsulationKeySize1024, expandedSize: mlkem.SeedSize,
		encSize: mlkem.CiphertextSize1024, overhead: sealTag, primitive: hpkeKEM{hpke.MLKEM1024()},
	}
	trackXWing = &Track{
		name: "x25519+ml-kem-768", kind: KindKEM, class: PostQuantum,
		seedSize: xwingSeedSize, publicSize: mlkem.EncapsulationKeySize768 + x25519Size, expandedSize: xwingSeedSize,
		encSize: mlkem.CiphertextSize768 + x25519Size, overhead: sealTag, primitive: hpkeKEM{hpke.MLKEM768X25519()},
	}
	trackAESGCM = &Track{
		name: "aes-256-gcm", kind: KindAEAD, class: PostQuantum,
		seedSize: symmetricSize, expandedSize: symmetricSize, overhead: aeadOverhead, primitive: aesGCM{},
	}
	trackChaCha20Poly1305 = &Track{
		name: "chacha20-poly1305", kind: KindAEAD, class: PostQuantum,
		seedSize: symmetricSize, expandedSize: symmetricSize, overhead: aeadOverhead, primitive: chaCha20Poly1305{},
	}
	trackHKDF = &Track{
		name: "hkdf-sha256", kind: KindKDF, class: PostQuantum,
		seedSize: symmetricSize, expandedSize: symmetricSize, primitive: hkdfSHA256{},
	}
)

const (
	x25519Size    = 32 // of private and public keys (RFC 7748 §5)
	xwingSeedSize = 32 // draft-connolly-cfrg-xwing-kem §5.2
	symmetricSize = 32
)

// algs is the allow-list. Names on it stand in stored keys, signed preimages
// and envelopes: they are never renamed, and never used again for something
// else. Aliases are for people; Dilithium is what ML-DSA was called before
// FIPS 204, and names ML-DSA here.
var algs = []*Alg{
	{name: "ed25519", family: "ed25519", tracks: []*Track{trackEd25519}, aliases: []string{"Ed25519"}},
	{name: "ml-dsa-44", family: "ml-dsa", tracks: []*Track{trackMLDSA44}, aliases: []string{"dilithium2"}},
	{name: "ml-dsa-65", family: "ml-dsa", tracks: []*Track{trackMLDSA65}, aliases: []string{"ml-dsa", "dilithium3"}},
	{name: "ml-dsa-87", family: "ml-dsa", tracks: []*Track{trackMLDSA87}, aliases: []string{"dilithium5"}},
	{name: "ed25519+ml-dsa-44", family: "hybrid", tracks: []*Track{trackEd25519, trackMLDSA44}},
	{name: "ed25519+ml-dsa-65", family: "hybrid", tracks: []*Track{trackEd25519, trackMLDSA65}, aliases: []string{"hybrid"}},
	{name: "ed25519+ml-dsa-87", family: "hybrid", tracks: []*Track{trackEd25519, trackMLDSA87}},
	{name: "x25519", family: "x25519", tracks: []*Track{trackX25519}},
	{name: "ml-kem-768", family: "ml-kem", tracks: []*Track{trackMLKEM768}},
	{name: "ml-kem-1024", family: "ml-kem", tracks: []*Track{trackMLKEM1024}},
	{name: "x25519+ml-kem-768", family: "hybrid", tracks: []*Track{trackXWing}, aliases: []string{"x-wing", "xwing"}},
	{name: "aes-256-gcm", family: "aead", tracks: []*Track{trackAESGCM}},
	{name: "chacha20-poly1305", family: "aead", tracks: []*Track{trackChaCha20Poly1305}},
	{name: "hkdf-sha256", family: "kdf", tracks: []*Track{trackHKDF}},
}

// Lookup returns the algorithm of that name or alias. It is for names that
// people and requests give; store and sign [Alg.Name], never the alias.
func Lookup(name string) (*Alg, bool) {
	for _, a := range algs {
		if a.name == name || slices.Contains(a.aliases, name) {
			return a, true
		}
	}
	return nil, false
}

// LookupTrack returns the track of that name. Tracks have no aliases.
func LookupTrack(name string) (*Track, bool) {
	for _, a := range algs {
		for _, t := range a.tracks {
			if t.name == name {
				return t, true
			}
		}
	}
	return nil, false
}

// All returns every algorithm, in a fixed order.
func All() []*Alg { return slices.Clone(algs) }

// canonical returns the algorithm of which name is the name, not an alias, if
// it serves op.
func canonical(name string, op Op) (*Alg, bool) {
	a, ok := Lookup(name)
	return a, ok && a.name == name && a.Allows(op)
}

// Name returns the canonical name, such as "ed25519+ml-dsa-65". It is the names
// of its tracks joined by "+".
func (a *Alg) Name() string { return a.name }

// Family returns the name used in metrics and logs: "ed25519", "ml-dsa",
// "x25519", "ml-kem", "hybrid", "aead" or "kdf".
func (a *Alg) Family() string { return a.family }

// Kind returns what the algorithm is for. All its tracks have the same kind.
func (a *Alg) Kind() Kind { return a.tracks[0].kind }

// Allows reports whether keys of the algorithm serve op. A key that signs
// neither wraps nor derives, and so on: no key has two uses.
func (a *Alg) Allows(op Op) bool { return slices.Contains(kinds[a.Kind()].ops, op) }

// WithCompanion returns the hybrid that a classical signing algorithm and its
// post-quantum companion, ML-DSA-65, make together; for any other algorithm, a
// itself.
func (a *Alg) WithCompanion() *Alg {
	if a.Kind() != KindSign || len(a.tracks) > 1 || a.tracks[0].class != Classical {
		return a
	}
	if hybrid, ok := Lookup(a.name + "+ml-dsa-65"); ok {
		return hybrid
	}
	return a
}

// Tracks returns the tracks, classical ones first. A key of this algorithm has
// a key for each. Only algorithms of KindSign have more than one.
func (a *Alg) Tracks() []*Track { return slices.Clone(a.tracks) }
