// Package witness is the memory elsewhere that an audit log needs: a server that cosigns a log's checkpoints only while
// they continue what it saw before, and a client that asks such a server.
//
// The protocol is C2SP tlog-witness (https://c2sp.org/tlog-witness), so that logs of others can use the server, and the
// client can use public witnesses. A cosignature is that of C2SP tlog-cosignature: it says that at the named time the
// checkpoint was the largest of its log that the witness had seen, and consistent with all before.
//
// A witness helps only if whoever controls the log cannot roll it back too: it belongs on another host, run by other
// people. Its private key is a plain file beside its state. It is a second domain of trust and no key of a custodian.
//
// # What a witness keeps
//
// One directory (mode 0700) with files of mode 0600:
//
//	key              the private key, one line: PRIVATE+KEY+name+hash+base64
//	witness.json     the public key and the logs: origin and verifier keys of each
//	ID.checkpoint    the last checkpoint cosigned of a log, with the cosignature
//	ID.fork          the first checkpoint, signed by the log, of the same size as one cosigned and with another root
//
// ID is the SHA-256 of the origin in hexadecimal digits. A log that has not shown a checkpoint yet has that of the
// empty tree, without a signature of its own. So a state that is missing was lost: the witness then refuses to start,
// because one that forgets would cosign what it must refuse. Whoever can put the whole directory back to an earlier
// state can make it forget all the same.
package witness

import (
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	flog "github.com/transparency-dev/formats/log"
	fnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
)

const (
	path       = "/add-checkpoint" // under the submission prefix
	sizeType   = "text/x.tlog.size"
	maxProof   = 63      // hashes, of tlog-witness
	maxBody    = 1 << 16 // bytes of a request; a hybrid checkpoint takes 4 KiB
	maxOrigin  = 255     // bytes; ML-DSA cosignatures have one byte for the length
	hashSize   = 32      // bytes of a SHA-256
	hashLength = 44      // characters of one in base64
)

// Signature types of C2SP signed-note and tlog-cosignature.
const (
	typeEd25519     = 0x01
	typeCosignature = 0x04
	typeMLDSA44     = 0x06
)

// A head is what a checkpoint says of a tree.
type head struct {
	origin string
	size   uint64
	root   [hashSize]byte
}

// parseHead reads the text of a checkpoint (C2SP tlog-checkpoint). Each tree has one text, apart from extension lines.
func parseHead(text string) (head, error) {
	var c flog.Checkpoint
	if _, err := c.Unmarshal([]byte(text)); err != nil {
		return head{}, errors.New("not a checkpoint")
	}
	switch {
	case !strings.HasPrefix(text, string(c.Marshal())), strings.Contains(text, "\n\n"):
		return head{}, errors.New("the checkpoint is not in canonical form")
	case len(c.Hash) != hashSize:
		return head{}, errors.New("the root is not of 32 bytes")
	case c.Size > math.MaxInt64:
		return head{}, errors.New("the size is out of range")
	}
	return head{c.Origin, c.Size, [hashSize]byte(c.Hash)}, nil
}

// text is a checkpoint without extension lines.
func (h head) text() string {
	return string(flog.Checkpoint{Origin: h.origin, Size: h.size, Hash: h.root[:]}.Marshal())
}

// noteText is the signed part of a note whose signatures are not looked at.
func noteText(msg []byte) (string, error) {
	_, err := note.Open(msg, note.VerifierList())
	var unverified *note.UnverifiedNoteError
	if !errors.As(err, &unverified) {
		return "", errors.New("not a signed note")
	}
	return unverified.Note.Text, nil
}

// parseVerifier reads a verifier key of one of the given types, in its canonical form. The key hash is checked: it is
// part of what people compare.
func parseVerifier(vkey string, types ...byte) (v note.Verifier, kind byte, err error) {
	_, rest, _ := strings.Cut(vkey, "+")
	_, text, _ := strings.Cut(rest, "+")
	key, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(key) == 0 {
		return nil, 0, errors.New("not a verifier key: name+hash+base64")
	}
	kind = key[0]
	if !slices.Contains(types, kind) {
		return nil, 0, fmt.Errorf("a verifier key of type %d has no use here", kind)
	}
	if v, err = fnote.NewVerifier(vkey); err != nil {
		return nil, 0, fmt.Errorf("verifier key: %w", err)
	}
	if vkey != formatKey(v.Name(), v.KeyHash(), key) {
		return nil, 0, errors.New("the verifier key has a wrong hash")
	}
	return v, kind, nil
}

// formatKey writes a key as C2SP signed-note does; key begins with its type.
func formatKey(name string, hash uint32, key []byte) string {
	return fmt.Sprintf("%s+%08x+%s", name, hash, base64.StdEncoding.EncodeToString(key))
}

// signatureLine is a signature as it stands in a note.
func signatureLine(s note.Signature) string { return "— " + s.Name + " " + s.Base64 + "\n" }
