package notekey

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// SignFunc signs msg with a private key that is kept elsewhere. For an ML-DSA-44 key it signs with the empty context
// (FIPS 204 §5.2), as C2SP has it.
type SignFunc func(msg []byte) (sig []byte, err error)

// Signer signs as a key with a name. It implements [note.Signer], and is safe for concurrent use if its SignFunc is.
type Signer struct {
	verifier *Verifier
	sign     SignFunc
	clock    func() time.Time // ML-DSA-44
}

var _ note.Signer = (*Signer)(nil)

// NewEd25519 returns a signer for an Ed25519 key: note algorithm 0x01, over any text.
func NewEd25519(name string, public []byte, sign SignFunc) (*Signer, error) {
	return newSigner(name, ed25519Note, public, sign, nil)
}

// NewMLDSA44 returns a signer for an ML-DSA-44 key: algorithm 0x06 of tlog-cosignature, over checkpoints. clock
// gives the time that each signature states, in whole seconds.
func NewMLDSA44(name string, public []byte, sign SignFunc, clock func() time.Time) (*Signer, error) {
	if clock == nil {
		return nil, errors.New("audit: signer: ML-DSA-44 signatures need a clock")
	}
	return newSigner(name, mldsa44Cosi, public, sign, clock)
}

func newSigner(name string, a algorithm, public []byte, sign SignFunc, clock func() time.Time) (*Signer, error) {
	if sign == nil {
		return nil, errors.New("audit: signer: nothing signs")
	}
	v, err := newVerifier(name, a, public)
	if err != nil {
		return nil, fmt.Errorf("audit: signer: %w", err)
	}
	return &Signer{v, sign, clock}, nil
}

// Name returns the name of the key.
func (s *Signer) Name() string { return s.verifier.name }

// KeyHash returns the key ID.
func (s *Signer) KeyHash() uint32 { return s.verifier.hash }

// Verifier returns the public half. Its String is the vkey.
func (s *Signer) Verifier() *Verifier { return s.verifier }

// Sign returns a signature of msg, after checking it as any reader would: a custodian that is broken, or that signs with
// another key or in another way, is found here and not by those who were given the note.
func (s *Signer) Sign(msg []byte) ([]byte, error) {
	var sig []byte
	signed := msg
	if s.verifier.alg == mldsa44Cosi {
		c, err := parseStatement(string(msg))
		if err != nil {
			return nil, fmt.Errorf("audit: sign as %s: %w", s.Name(), err)
		}
		// 0 would mean that the signature makes no statement about the time.
		t := s.clock().Unix()
		if t <= 0 {
			return nil, fmt.Errorf("audit: sign as %s: the clock is before 1970", s.Name())
		}
		sig = binary.BigEndian.AppendUint64(sig, uint64(t))
		signed = c.cosignedMessage(s.Name(), uint64(t))
	}
	b, err := s.sign(signed)
	if err != nil {
		return nil, fmt.Errorf("audit: sign as %s: %w", s.Name(), err)
	}
	if sig = append(sig, b...); !s.verifier.Verify(msg, sig) {
		return nil, fmt.Errorf("audit: sign as %s: the signature does not verify", s.Name())
	}
	return sig, nil
}

// Sign returns text, a checkpoint of three lines, as a signed note. The signatures of the log that text names stand first, in the order
// of a [Set] whatever order the signers are given in; those of others follow.
func Sign(text string, signers ...note.Signer) ([]byte, error) {
	c, err := parseStatement(text)
	if err != nil {
		return nil, fmt.Errorf("audit: sign: %w", err)
	}
	if len(signers) == 0 {
		return nil, errors.New("audit: sign: no signers")
	}
	log := strings.TrimSuffix(c.origin, handoverSuffix)
	rank := func(s note.Signer) int {
		if own, ok := s.(*Signer); ok && own.Name() == log {
			return int(own.verifier.alg)
		}
		return math.MaxInt
	}
	signers = slices.Clone(signers)
	slices.SortStableFunc(signers, func(a, b note.Signer) int { return cmp.Compare(rank(a), rank(b)) })
	raw, err := note.Sign(&note.Note{Text: text}, signers...)
	if err != nil {
		return nil, fmt.Errorf("audit: sign: %w", err)
	}
	// What signers of other kinds return is checked for its form, and no key may sign twice.
	if _, err := parseNote(raw); err != nil {
		return nil, fmt.Errorf("audit: sign: %w", err)
	}
	return raw, nil
}
