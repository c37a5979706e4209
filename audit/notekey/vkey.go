// Package notekey signs and verifies checkpoints of a log with the log's own keys, an Ed25519 key and an ML-DSA-44 key
// that must both have signed, and follows the replacement of those keys.
//
// A checkpoint is a C2SP signed-note whose text is a tlog-checkpoint of exactly three lines. The Ed25519 signature is note
// algorithm 0x01, over the text; the ML-DSA-44 signature is algorithm 0x06 of tlog-cosignature, over what the text says.
// Private keys are never here: a signer is given a function that signs. The formats are in docs/spec/audit-keys.md.
package notekey

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/note"

	"github.com/rustyonions/ron-kms/core/alg"
)

// maxName bounds names and origins, in bytes: tlog-cosignature counts them in one byte.
const maxName = 255

// algorithm is a signature type of C2SP signed-note. The types that are not here are not accepted: not 0x04 either, whose
// Ed25519 signatures do not cover the name of the signer.
type algorithm byte

const (
	ed25519Note algorithm = 0x01 // signed-note: over the text
	mldsa44Cosi algorithm = 0x06 // tlog-cosignature: over cosigned_message
)

// track returns the primitive behind a, false if there is none.
func (a algorithm) track() (*alg.Track, bool) {
	switch a {
	case ed25519Note:
		return alg.LookupTrack("ed25519")
	case mldsa44Cosi:
		return alg.LookupTrack("ml-dsa-44")
	}
	return nil, false
}

// Verifier is a public key with its name. It implements [note.Verifier] and is safe for concurrent use.
type Verifier struct {
	name   string
	hash   uint32
	alg    algorithm
	public alg.Public
}

var _ note.Verifier = (*Verifier)(nil)

func newVerifier(name string, a algorithm, public []byte) (*Verifier, error) {
	if !validName(name) {
		return nil, fmt.Errorf("key name %q: not 1 to %d bytes of UTF-8 without spaces, control characters and plus", name, maxName)
	}
	track, ok := a.track()
	if !ok {
		return nil, fmt.Errorf("key of %s: signature type 0x%02x is not accepted", name, byte(a))
	}
	p, err := track.ParsePublic(public)
	if err != nil {
		return nil, fmt.Errorf("key of %s: %w", name, err)
	}
	v := &Verifier{name: name, alg: a, public: p}
	// The key ID of signed-note.
	sum := sha256.Sum256(append([]byte(name+"\n"), v.encoded()...))
	v.hash = binary.BigEndian.Uint32(sum[:4])
	return v, nil
}

// validName reports whether name can be the name of a key (signed-note) and fits tlog-cosignature.
func validName(name string) bool {
	return name != "" && len(name) <= maxName && utf8.ValidString(name) &&
		!strings.ContainsFunc(name, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) || r == '+' })
}

// ParseVKey returns the key that text encodes, a vkey of C2SP signed-note: name+hash+base64 of type and public key. The
// type is 0x01 (Ed25519) or 0x06 (ML-DSA-44). Each key has one encoding, and anything else is refused: a hash that is not the key's,
// capital hexadecimal digits, base64 that is not canonical, an Ed25519 point of small order.
func ParseVKey(text string) (*Verifier, error) {
	name, rest, _ := strings.Cut(text, "+")
	_, key64, ok := strings.Cut(rest, "+")
	if !ok {
		return nil, errors.New("audit: vkey: not name+hash+key")
	}
	key, err := base64.StdEncoding.Strict().DecodeString(key64)
	if err != nil || len(key) == 0 {
		return nil, errors.New("audit: vkey: the key is not base64")
	}
	v, err := newVerifier(name, algorithm(key[0]), key[1:])
	if err != nil {
		return nil, fmt.Errorf("audit: vkey: %w", err)
	}
	if v.String() != text {
		return nil, fmt.Errorf("audit: vkey of %s: wrong hash, or not in canonical form", name)
	}
	return v, nil
}

// Name returns the name of the key.
func (v *Verifier) Name() string { return v.name }

// KeyHash returns the key ID: with the name, it marks the signatures of the key.
func (v *Verifier) KeyHash() uint32 { return v.hash }

// String returns the vkey, which ParseVKey reads.
func (v *Verifier) String() string {
	return fmt.Sprintf("%s+%08x+%s", v.name, v.hash, base64.StdEncoding.EncodeToString(v.encoded()))
}

func (v *Verifier) encoded() []byte { return append([]byte{byte(v.alg)}, v.public.Bytes()...) }

// Verify reports whether sig is a signature of msg by the key. ML-DSA-44 keys sign checkpoints alone: for any other msg,
// one with extension lines included, there is no signature.
func (v *Verifier) Verify(msg, sig []byte) bool {
	if v.alg == ed25519Note {
		return v.public.VerifyScheme(alg.SchemeRaw, msg, sig)
	}
	c, err := parseStatement(string(msg))
	if err != nil || len(sig) < timestampSize {
		return false
	}
	t := binary.BigEndian.Uint64(sig)
	return t <= math.MaxInt64 && v.public.VerifyScheme(alg.SchemeRaw, c.cosignedMessage(v.name, t), sig[timestampSize:])
}
