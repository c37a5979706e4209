package witness

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	fnote "github.com/transparency-dev/formats/note"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"

	"github.com/rustyonions/ron-kms/audit/fsys"
)

const stateLimit = maxBody + 4096 // bytes of a checkpoint with its cosignature

// A knownLog is a log that the witness watches.
type knownLog struct {
	origin    string
	verifiers note.Verifiers
	mldsa     bool            // it has an ML-DSA-44 key, so its checkpoints need two signatures
	kinds     map[uint32]byte // type of each key, by its hash
	state     string          // names of its files
	fork      string

	mu   sync.Mutex // guards what follows, and the files
	last cosigned
	// forked says that the file of the fork is there.
	forked bool
}

// cosigned is a checkpoint that the witness signed.
type cosigned struct {
	head
	time time.Time
	note []byte // the checkpoint with the log's signatures and then the witness's
	line string // the witness's signature line
}

func newLog(c logConfig) (*knownLog, error) {
	id := sha256.Sum256([]byte(c.Origin))
	l := &knownLog{
		origin: c.Origin, kinds: make(map[uint32]byte),
		state: hex.EncodeToString(id[:]) + ".checkpoint", fork: hex.EncodeToString(id[:]) + ".fork",
	}
	// The head of an empty tree with this origin must be one that parses again.
	if h, err := parseHead(l.empty()); err != nil || h.origin != c.Origin || len(c.Origin) > maxOrigin {
		return nil, errors.New("the origin is not a line of 1 to 255 bytes")
	}
	var list []note.Verifier
	ed25519 := false
	for _, vkey := range c.VKeys {
		v, kind, err := parseVerifier(vkey, typeEd25519, typeMLDSA44)
		if err != nil {
			return nil, fmt.Errorf("log %s: %w", c.Origin, err)
		}
		// Signatures are told apart by name and hash, and types here by hash alone.
		if _, ok := l.kinds[v.KeyHash()]; ok {
			return nil, fmt.Errorf("log %s: two keys with the same hash", c.Origin)
		}
		l.kinds[v.KeyHash()] = kind
		ed25519 = ed25519 || kind == typeEd25519
		l.mldsa = l.mldsa || kind == typeMLDSA44
		list = append(list, v)
	}
	if !ed25519 {
		return nil, fmt.Errorf("log %s: no Ed25519 key (type 1)", c.Origin)
	}
	l.verifiers = note.VerifierList(list...)
	return l, nil
}

// empty is the text of a checkpoint before the first record.
func (l *knownLog) empty() string {
	return head{origin: l.origin, root: [hashSize]byte(rfc6962.DefaultHasher.EmptyRoot())}.text()
}

// open checks that the log signed a checkpoint, and drops the signatures of others. A signature that names a key of the
// log and is wrong spoils the rest.
func (l *knownLog) open(checkpoint []byte) (*note.Note, error) {
	n, err := note.Open(checkpoint, l.verifiers)
	if err != nil {
		return nil, errors.New("no key of the log signed the checkpoint, or a signature is wrong")
	}
	n.UnverifiedSigs = nil
	var have [typeMLDSA44 + 1]bool
	for _, s := range n.Sigs {
		have[l.kinds[s.Hash]] = true
	}
	if !have[typeEd25519] || l.mldsa && !have[typeMLDSA44] {
		return nil, errors.New("the checkpoint has not one signature of each type of key that the log has")
	}
	return n, nil
}

// load reads what the witness last cosigned. The error is fs.ErrNotExist if there is no state.
func (l *knownLog) load(d fsys.Dir, v note.Verifier) error {
	b, err := fsys.ReadFile(d, l.state, stateLimit)
	if err != nil {
		return err
	}
	if l.last, err = parseCosigned(b, v); err != nil {
		return fmt.Errorf("%s: %w", l.state, err)
	}
	if l.last.origin != l.origin {
		return fmt.Errorf("%s is of another log: %q", l.state, l.last.origin)
	}
	f, err := d.OpenFile(l.fork, 0)
	switch {
	case err == nil:
		l.forked = true
		return f.Close()
	case errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return err
}

// create makes the state of a log that was never seen.
func (l *knownLog) create(d fsys.Dir, k *cosigner) error {
	c, err := k.cosign(&note.Note{Text: l.empty()})
	if err != nil {
		return err
	}
	return fsys.ReplaceFile(d, l.state, c.note)
}

// cosign signs a checkpoint. The caller must not let the signature out before it is durable.
func (k *cosigner) cosign(n *note.Note) (cosigned, error) {
	b, err := note.Sign(n, k.signer)
	if err != nil {
		return cosigned{}, err
	}
	// Reading it back also keeps a signature that a fault made wrong from leaving: with the right one of the same
	// text it could give the private key away.
	return parseCosigned(b, k.verifier)
}

func parseCosigned(b []byte, v note.Verifier) (c cosigned, err error) {
	n, err := note.Open(b, note.VerifierList(v))
	if err != nil {
		return c, fmt.Errorf("not a checkpoint that this witness cosigned: %w", err)
	}
	if c.head, err = parseHead(n.Text); err != nil {
		return c, err
	}
	c.time, err = fnote.CoSigV1Timestamp(n.Sigs[0])
	c.note, c.line = b, signatureLine(n.Sigs[0])
	return c, err
}

// A LogState is what a witness last saw of a log.
type LogState struct {
	Origin string
	Size   uint64    // records; 0 if it saw none
	Root   [32]byte  // of the tree
	Time   time.Time // of the cosignature, or of the addition of the log
	Forked bool      // the log signed another tree of a size that the witness had cosigned; the file *.fork has it
	Note   []byte    // the checkpoint with the cosignature
}

// Read returns the verifier key of a witness and what it last saw of each log. It may run beside a server.
func Read(dir string) (vkey string, logs []LogState, err error) {
	defer wrap(&err)
	d, err := fsys.Open(dir)
	if err != nil {
		return "", nil, err
	}
	defer d.Close()
	c, err := readConfig(d)
	if err != nil {
		return "", nil, err
	}
	v, _, err := parseVerifier(c.VKey, typeCosignature)
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", configFile, err)
	}
	for _, lc := range c.Logs {
		l, err := newLog(lc)
		if err != nil {
			return "", nil, err
		}
		if err := l.load(d, v); err != nil {
			return "", nil, err
		}
		s := &l.last
		logs = append(logs, LogState{s.origin, s.size, s.root, s.time, l.forked, s.note})
	}
	return c.VKey, logs, nil
}
