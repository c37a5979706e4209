package notekey

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// maxNote bounds a note with its signatures, in bytes: room for the log's two and sixteen ML-DSA-44 cosignatures.
const maxNote = 64 << 10

// sigPrefix begins a signature line: an em dash and a space.
const sigPrefix = "— "

// signedNote is a checkpoint with its signatures, none of them verified.
type signedNote struct {
	statement
	sigs []signature
}

type signature struct {
	note.Signature
	value []byte // without the key ID
}

// parseNote decodes a signed checkpoint in the one form that encode writes. Package note tolerates carriage returns and stray
// bits in base64, leading zeros and repeated signatures, which would leave bytes that anyone may change.
func parseNote(raw []byte) (*signedNote, error) {
	if len(raw) > maxNote {
		return nil, fmt.Errorf("note: %d bytes, more than %d", len(raw), maxNote)
	}
	body, block, ok := strings.Cut(string(raw), "\n\n")
	if !ok {
		return nil, errors.New("note: without signatures")
	}
	var n signedNote
	var err error
	if n.statement, err = parseStatement(body + "\n"); err != nil {
		return nil, err
	}
	block, ok = strings.CutSuffix(block, "\n")
	if !ok {
		return nil, errors.New("note: cut short")
	}
	type key struct {
		name string
		hash uint32
	}
	seen := make(map[key]bool)
	for line := range strings.SplitSeq(block, "\n") {
		s, err := parseSignature(line)
		if err != nil {
			return nil, fmt.Errorf("note: signature line %d: %w", len(n.sigs)+1, err)
		}
		if seen[key{s.Name, s.Hash}] {
			return nil, fmt.Errorf("note: two signatures by %s+%08x", s.Name, s.Hash)
		}
		seen[key{s.Name, s.Hash}] = true
		n.sigs = append(n.sigs, s)
	}
	return &n, nil
}

func parseSignature(line string) (signature, error) {
	rest, ok := strings.CutPrefix(line, sigPrefix)
	name, b64, found := strings.Cut(rest, " ")
	if !ok || !found || !validName(name) {
		return signature{}, errors.New("malformed")
	}
	b, err := base64.StdEncoding.Strict().DecodeString(b64)
	if err != nil || len(b) < 5 || base64.StdEncoding.EncodeToString(b) != b64 {
		return signature{}, errors.New("not canonical base64 of a key ID and a signature")
	}
	return signature{note.Signature{Name: name, Hash: binary.BigEndian.Uint32(b), Base64: b64}, b[4:]}, nil
}

// encode is the inverse of parseNote.
func (n *signedNote) encode() []byte {
	b := []byte(n.text() + "\n")
	for _, s := range n.sigs {
		b = append(b, sigPrefix+s.Name+" "+s.Base64+"\n"...)
	}
	return b
}

// verify checks that n begins with one valid signature by each of keys, in their order, and returns the lines that follow.
// None of those may be by name.
func (n *signedNote) verify(name string, keys []*Verifier) (further []signature, err error) {
	for i, k := range keys {
		if i >= len(n.sigs) || n.sigs[i].Name != k.name || n.sigs[i].Hash != k.hash {
			return nil, fmt.Errorf("note: signature line %d is not by %s+%08x", i+1, k.name, k.hash)
		}
		if !k.Verify([]byte(n.text()), n.sigs[i].value) {
			return nil, fmt.Errorf("note: invalid signature by %s+%08x", k.name, k.hash)
		}
	}
	further = n.sigs[len(keys):]
	for _, s := range further {
		if s.Name == name {
			return nil, fmt.Errorf("note: signed by %s+%08x too", s.Name, s.Hash)
		}
	}
	return further, nil
}
