package notekey

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

const (
	handoverHeader = "ron-kms audit handover v1"
	// handoverSuffix follows the origin of the log in the statement that is signed. No log has such a name (NewSet), so
	// a signed handover is no checkpoint of any log.
	handoverSuffix = "/handover"
)

// handover replaces the keys of a log. Its text is hashed, and the hash is the root of a statement in the form of a
// checkpoint, whose size is the number of the handover: ML-DSA-44 keys sign nothing else.
type handover struct {
	origin   string
	number   uint64 // 1, 2, 3, …
	size     uint64 // of the tree: the last for which the old keys sign
	previous [32]byte
	old, new *Set
}

func (h *handover) text() string {
	return strings.Join([]string{handoverHeader, h.origin, strconv.FormatUint(h.number, 10), strconv.FormatUint(h.size, 10),
		hex.EncodeToString(h.previous[:]), h.old.String(), h.new.String(), ""}, "\n")
}

func (h *handover) hash() [32]byte { return sha256.Sum256([]byte(h.text())) }

func (h *handover) statement() statement {
	return statement{h.origin + handoverSuffix, h.number, h.hash()}
}

// signatories returns the keys that must sign: those of both sets, each once.
func (h *handover) signatories() []*Verifier {
	keys := slices.Clone(h.old.keys)
	for _, k := range h.new.keys {
		if !h.old.holds(k) {
			keys = append(keys, k)
		}
	}
	return sorted(keys)
}

// Span is a set of keys and where in the log its signatures begin to count.
type Span struct {
	From     uint64 // the smallest tree size of a checkpoint by these keys
	Set      *Set
	Handover string // the text of the handover to them; empty for the first set
}

// Chain is the key sets that a log has had, oldest first. It has at least one.
type Chain []Span

// At returns the set whose keys sign the checkpoints over size records.
func (c Chain) At(size uint64) *Set {
	i := len(c) - 1
	for i > 0 && c[i].From > size {
		i--
	}
	return c[i].Set
}

// state is how far a chain was followed.
type state struct {
	spans   Chain
	number  uint64   // of the last handover
	last    [32]byte // hash of the last handover; before one, of the first set
	seen    map[string]bool
	origin  string
	current *Set
}

func begin(first *Set) (*state, error) {
	if first == nil {
		return nil, errors.New("no first key set")
	}
	st := &state{
		spans: Chain{{Set: first}}, last: sha256.Sum256([]byte(first.String() + "\n")),
		seen: make(map[string]bool), origin: first.Name(), current: first,
	}
	st.remember(first)
	return st, nil
}

func (st *state) remember(s *Set) {
	for _, k := range s.keys {
		st.seen[k.String()] = true
	}
}

// next returns the handover from the current keys to set, or says why there can be none.
func (st *state) next(size uint64, set *Set) (*handover, error) {
	if set == nil || set.Name() != st.origin {
		return nil, errors.New("the new keys are not of this log")
	}
	if set.String() == st.current.String() {
		return nil, errors.New("the new keys are the old ones")
	}
	for _, k := range st.current.keys {
		// Nothing is gained by leaving out an algorithm, even a broken one: all of them must hold.
		if !set.has(k.alg) {
			return nil, fmt.Errorf("the new keys have none of type 0x%02x", byte(k.alg))
		}
	}
	for _, k := range set.keys {
		if st.seen[k.String()] && !st.current.holds(k) {
			return nil, fmt.Errorf("the key %s+%08x was retired before", k.name, k.hash)
		}
	}
	if _, ok := parseSize(strconv.FormatUint(size, 10)); !ok || size < st.spans[len(st.spans)-1].From || size == 0 {
		return nil, fmt.Errorf("the old keys do not sign for the size %d", size)
	}
	return &handover{st.origin, st.number + 1, size, st.last, st.current, set}, nil
}

// follow makes h, which next has returned, the last handover.
func (st *state) follow(h *handover) {
	st.number, st.last, st.current = h.number, h.hash(), h.new
	st.remember(h.new)
	st.spans = append(st.spans, Span{h.size + 1, h.new, h.text()})
}

// ParseChain follows the handovers in data, which begin with the replacement of first. It returns all sets with the sizes they
// count from, and the last of them. No data is no handover. Every handover must have the next number, name its predecessor's hash and
// keys, come later in the log, and be signed by all old and all new keys.
//
// That handovers are missing at the end of data cannot be seen in data: then checkpoints by newer keys are refused.
func ParseChain(first *Set, data []byte) (chain Chain, latest *Set, err error) {
	st, err := parseChain(first, data)
	if err != nil {
		return nil, nil, fmt.Errorf("audit: handover: %w", err)
	}
	return st.spans, st.current, nil
}

func parseChain(first *Set, data []byte) (*state, error) {
	st, err := begin(first)
	if err != nil {
		return nil, err
	}
	for len(data) > 0 {
		l, rest, err := cutLink(data)
		if err == nil {
			err = st.verify(l)
		}
		if err != nil {
			return nil, fmt.Errorf("%d: %w", st.number+1, err)
		}
		data = rest
	}
	return st, nil
}

// link is a handover as it is written: its text, and the signed note with its hash.
type link struct {
	text string
	note []byte
}

func (l link) encode() []byte { return []byte(l.text + "\n" + string(l.note) + "\n") }

// cutLink takes the first link off data: a text, an empty line, a note (which has one empty line inside), an empty line.
func cutLink(data []byte) (l link, rest []byte, err error) {
	blank := []byte("\n\n")
	text, rest, ok1 := bytes.Cut(data, blank)
	body, rest, ok2 := bytes.Cut(rest, blank)
	sigs, rest, ok3 := bytes.Cut(rest, blank)
	if !ok1 || !ok2 || !ok3 {
		return link{}, nil, errors.New("cut short")
	}
	return link{string(text) + "\n", slices.Concat(body, blank, sigs, []byte("\n"))}, rest, nil
}

// verify checks that l is the next handover and follows it. Of the text it reads only the tree size and the new keys: all
// else it writes itself and compares. What costs time, keys and signatures, comes last.
func (st *state) verify(l link) error {
	if len(l.text) > maxNote {
		return errors.New("too long")
	}
	n, err := parseNote(l.note)
	if err != nil {
		return err
	}
	if n.root != sha256.Sum256([]byte(l.text)) {
		return errors.New("the signed statement is not about this text")
	}
	lines := strings.Split(l.text, "\n")
	if len(lines) != 8 {
		return errors.New("not seven lines")
	}
	size, ok := parseSize(lines[3])
	if !ok {
		return fmt.Errorf("tree size %q", lines[3])
	}
	set, err := ParseSet(lines[6])
	if err != nil {
		return fmt.Errorf("the new keys: %w", err)
	}
	h, err := st.next(size, set)
	if err != nil {
		return err
	}
	for i, want := range strings.Split(h.text(), "\n") {
		if lines[i] != want {
			return fmt.Errorf("its %s is not what follows here", fields[i])
		}
	}
	if n.statement != h.statement() {
		return errors.New("the signed statement is not about this handover")
	}
	further, err := n.verify(h.origin, h.signatories())
	if err != nil {
		return err
	}
	if len(further) > 0 {
		return fmt.Errorf("signed by %s too", further[0].Name)
	}
	st.follow(h)
	return nil
}

// fields names the lines of a handover.
var fields = [...]string{"header", "origin", "number", "tree size", "hash of the one before", "set of old keys", "set of new keys", "end"}

// NewHandover returns the bytes to append to chain, the handovers so far that begin with the replacement of first, so that
// next replaces the latest keys. size is the number of records that the old keys signed for last; the new ones sign
// from size+1 on. signers are those of all old and all new keys, a key that stays once. The result was verified as
// ParseChain does.
func NewHandover(first *Set, chain []byte, size uint64, next *Set, signers ...note.Signer) ([]byte, error) {
	st, err := parseChain(first, chain)
	if err != nil {
		return nil, fmt.Errorf("audit: handover: %w", err)
	}
	h, err := st.next(size, next)
	if err != nil {
		return nil, fmt.Errorf("audit: handover: %w", err)
	}
	signed, err := Sign(h.statement().text(), signers...)
	if err != nil {
		return nil, fmt.Errorf("audit: handover: %w", err)
	}
	l := link{h.text(), signed}
	if err := st.verify(l); err != nil {
		return nil, fmt.Errorf("audit: handover: %w", err)
	}
	return l.encode(), nil
}
