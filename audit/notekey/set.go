package notekey

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// Set is the keys of one log, all of which sign each of its checkpoints: an Ed25519 key, an ML-DSA-44 key, or one of
// each, in this order. They bear one name, which is the origin of the log. A Set does not change.
type Set struct {
	keys []*Verifier
}

// NewSet returns the set of these keys, in whatever order they are given. It refuses keys of several names, two keys of one
// algorithm, and names that end in "/handover", which is how the origins of handovers end, or that are too long to get that end.
func NewSet(keys ...*Verifier) (*Set, error) {
	s, err := newSet(keys)
	if err != nil {
		return nil, fmt.Errorf("audit: key set: %w", err)
	}
	return s, nil
}

func newSet(keys []*Verifier) (*Set, error) {
	if len(keys) == 0 {
		return nil, errors.New("no keys")
	}
	s := &Set{sorted(keys)}
	if n := s.Name(); strings.HasSuffix(n, handoverSuffix) || len(n)+len(handoverSuffix) > maxName {
		return nil, fmt.Errorf("%s cannot be the name of a log", n)
	}
	for i, k := range s.keys[1:] {
		before := s.keys[i]
		switch {
		case k.name != before.name:
			return nil, fmt.Errorf("keys of %s and of %s", before.name, k.name)
		case k.alg == before.alg:
			return nil, fmt.Errorf("two keys of type 0x%02x", byte(k.alg))
		case k.hash == before.hash:
			return nil, fmt.Errorf("two keys with the ID %08x", k.hash)
		}
	}
	return s, nil
}

// sorted returns keys by algorithm, the order their signatures stand in. Keys of one algorithm stay as they are.
func sorted(keys []*Verifier) []*Verifier {
	keys = slices.Clone(keys)
	slices.SortStableFunc(keys, func(a, b *Verifier) int { return int(a.alg) - int(b.alg) })
	return keys
}

// ParseSet reads vkeys separated by spaces or line feeds, in any order. See [NewSet] for what makes a set.
func ParseSet(text string) (*Set, error) {
	fields := strings.FieldsFunc(text, func(r rune) bool { return r == ' ' || r == '\n' })
	// More keys are no set. Parsing them costs time that a stranger's file should not decide about.
	if len(fields) > 2 {
		return nil, fmt.Errorf("audit: key set: %d keys", len(fields))
	}
	var keys []*Verifier
	for _, f := range fields {
		k, err := ParseVKey(f)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	return NewSet(keys...)
}

// Name returns the name of the keys, the origin of the log.
func (s *Set) Name() string { return s.keys[0].name }

// String returns the one canonical text of the set: its vkeys, each after a single space but the first.
func (s *Set) String() string {
	var b strings.Builder
	for i, k := range s.keys {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(k.String())
	}
	return b.String()
}

// Hybrid reports whether the set has a key of each algorithm, so that a forger must break both.
func (s *Set) Hybrid() bool { return s.has(ed25519Note) && s.has(mldsa44Cosi) }

func (s *Set) has(a algorithm) bool {
	return slices.ContainsFunc(s.keys, func(k *Verifier) bool { return k.alg == a })
}

// holds reports whether k is one of the keys.
func (s *Set) holds(k *Verifier) bool {
	return slices.ContainsFunc(s.keys, func(o *Verifier) bool { return o.String() == k.String() })
}

// Verify returns the text of a checkpoint of the log, three lines, after checking that every key of the set has signed it
// exactly once, in the order of the set, and nobody else. The bytes must be those that [Sign] writes: no byte of the note can change
// without an error.
func (s *Set) Verify(noteBytes []byte) (text string, err error) {
	text, further, err := s.VerifyCosigned(noteBytes)
	if err == nil && len(further) > 0 {
		return "", fmt.Errorf("audit: note: signed by %s too", further[0].Name)
	}
	return text, err
}

// VerifyCosigned is Verify of a checkpoint to which others may have added signature lines, after the log's. It
// returns these lines without having verified them. Lines by the log's own name, and two lines of one key, are refused.
func (s *Set) VerifyCosigned(noteBytes []byte) (text string, further []note.Signature, err error) {
	n, err := parseNote(noteBytes)
	if err != nil {
		return "", nil, fmt.Errorf("audit: %w", err)
	}
	if n.origin != s.Name() {
		return "", nil, fmt.Errorf("audit: checkpoint: of %s, not of %s", n.origin, s.Name())
	}
	rest, err := n.verify(s.Name(), s.keys)
	if err != nil {
		return "", nil, fmt.Errorf("audit: %w", err)
	}
	for _, r := range rest {
		further = append(further, r.Signature)
	}
	return n.text(), further, nil
}
