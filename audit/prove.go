package audit

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rustyonions/ron-kms/audit/keymap"
	"github.com/rustyonions/ron-kms/audit/notekey"
	"github.com/rustyonions/ron-kms/audit/tiles"
)

// ErrNoKey is wrapped by the error of ProveKey for a key that has no record.
var ErrNoKey = errors.New("the log has no record of this key")

// ProveAt is Prove in the tree of the first size records, for who has the checkpoint of that size; 0 is the latest. Every hash was
// checked against the root of the latest checkpoint, which the proof bears whatever the size: a damaged file leads to a
// *tiles.DamageError or tiles.ErrRoot, never to a wrong proof.
func (l *Log) ProveAt(index, size uint64) (*Proof, error) {
	c := l.signed()
	if size == 0 {
		size = c.size
	}
	if index >= size || size > c.size {
		return nil, fmt.Errorf("audit: prove record %d of %d: %w", index, size, ErrBeyond)
	}
	p, err := l.proveAt(c, index, size)
	if err != nil {
		return nil, fmt.Errorf("audit: prove record %d of %d: %w", index, size, err)
	}
	return p, nil
}

func (l *Log) proveAt(c *checkpoint, index, size uint64) (*Proof, error) {
	rec, err := l.tiles.Record(index)
	if err != nil {
		return nil, err
	}
	reader := tiles.HashReader(l.tiles, c.size, c.root)
	root, err := tlog.TreeHash(int64(size), reader)
	if err != nil {
		return nil, err
	}
	hashes, err := tlog.ProveRecord(int64(size), int64(index), reader)
	if err != nil {
		return nil, err
	}
	// Record compared with a leaf hash that nothing vouches for. If that was changed too, the reader has refused its tile; unless
	// it was put right in between.
	if tlog.CheckRecord(hashes, int64(size), root, int64(index), tlog.RecordHash(rec)) != nil {
		return nil, tiles.ErrRoot
	}
	return &Proof{Index: index, Record: rec, Hashes: hashes, Checkpoint: c.raw}, nil
}

// ProveConsistencyAt is ProveConsistency with the tree of the first size records instead of that of the latest checkpoint; 0 is
// the latest. What ProveAt says of damage holds here.
func (l *Log) ProveConsistencyAt(old, size uint64) (tlog.TreeProof, []byte, error) {
	c := l.signed()
	if size == 0 {
		size = c.size
	}
	if old == 0 || old > size || size > c.size {
		return nil, nil, fmt.Errorf("audit: prove that %d records continue %d: %w", size, old, ErrBeyond)
	}
	p, err := tlog.ProveTree(int64(size), int64(old), tiles.HashReader(l.tiles, c.size, c.root))
	if err != nil {
		return nil, nil, fmt.Errorf("audit: prove that %d records continue %d: %w", size, old, err)
	}
	return p, c.raw, nil
}

// Verify checks, with the log's public keys, that they signed p.Checkpoint, which may bear lines of witnesses too, and that it
// covers the record. It returns the record and the size and root that were signed. The proof must be for the size of its checkpoint.
func (p *Proof) Verify(keys *notekey.Set) (r *Record, size uint64, root [32]byte, err error) {
	fail := func(err error) (*Record, uint64, [32]byte, error) {
		return nil, 0, root, fmt.Errorf("audit: verify proof of record %d: %w", p.Index, err)
	}
	if keys == nil {
		return fail(errors.New("the keys are required"))
	}
	if _, _, err := keys.VerifyCosigned(p.Checkpoint); err != nil {
		return fail(err)
	}
	c, err := parseCheckpoint(p.Checkpoint, keys.Name())
	if err != nil {
		return fail(err)
	}
	if c.size > 1<<62 || p.Index >= c.size { // package tlog counts in int64
		return fail(ErrBeyond)
	}
	if err := tlog.CheckRecord(p.Hashes, int64(c.size), c.root, int64(p.Index), tlog.RecordHash(p.Record)); err != nil {
		return fail(err)
	}
	if r, err = ParseRecord(p.Record); err != nil {
		return fail(err)
	}
	return r, c.size, c.root, nil
}

// LeafHash is the hash of the record in the tree (RFC 6962 §2.1).
func (p *Proof) LeafHash() [32]byte { return leafHash(p.Record) }

// A KeyProof shows that a key had exactly State.Seq records when the log had Size of them, and which was the last: no record of the
// key was hidden. The map of all keys says so, and a record of the log names the root of the map.
type KeyProof struct {
	Name  string // of the key: its kid without the version
	Slot  uint32 // of the key in the map
	State keymap.State
	Size  uint64     // records that the map is of
	Keys  uint64     // slots of the map
	Root  [32]byte   // of the map
	Path  [][32]byte // inclusion proof of the slot under Root
	Map   *Proof     // of the KindMap record that names Size, Keys and Root
}

// VerifyKeyProof checks all that p says with the log's public keys, which must come from somewhere else than the log. Who trusts
// the result for the records themselves checks too that they are numbered 1 to State.Seq, each linked to the one before.
func VerifyKeyProof(p *KeyProof, keys *notekey.Set) error {
	if p.Map == nil {
		return errors.New("audit: verify key proof: without the proof of its map")
	}
	r, _, _, err := p.Map.Verify(keys)
	if err != nil {
		return err
	}
	switch {
	case r.Kind != KindMap:
		err = fmt.Errorf("record %d is of kind %s", p.Map.Index, r.Kind)
	case r.Ref != p.Size || r.Count != p.Keys || r.InputHash != p.Root:
		err = fmt.Errorf("record %d names another map", p.Map.Index)
	case p.Size > p.Map.Index || p.State.Last > p.Size || p.State.Effect > p.State.Last || p.State.Seq > p.State.Last:
		err = errors.New("no log leads to this")
	default:
		err = keymap.VerifyProof(p.Root, p.Keys, p.Slot, p.Name, p.State, p.Path)
	}
	if err != nil {
		return fmt.Errorf("audit: verify key proof: %w", err)
	}
	return nil
}

// ProveKey returns the proof of how many records the key called name had in the latest key map, which is up to ten seconds old. It
// waits, as long as ctx lasts, for a map that has the key and for a checkpoint over the record of that map, and asks for both.
// The errors wrap ErrNoKey, ErrFull, ErrClosed, ErrFailed, or what ProveAt has.
func (l *Log) ProveKey(ctx context.Context, name string) (*KeyProof, error) {
	p, err := l.proveKey(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("audit: prove key: %w", err)
	}
	return p, nil
}

func (l *Log) proveKey(ctx context.Context, name string) (*KeyProof, error) {
	for {
		l.mu.Lock()
		slot, _, ok := l.keys.Lookup(name)
		news, covered := l.news, l.latest.size
		l.mu.Unlock()
		if !ok {
			return nil, ErrNoKey
		}
		p, record, err := l.roots.prove(name, slot)
		if err != nil {
			return nil, err
		}
		if p != nil && record < covered {
			return l.complete(p, record)
		}
		if err := l.askFor(p != nil); err != nil {
			return nil, err
		}
		select {
		case <-news:
		case <-l.failed:
			return nil, l.Err()
		case <-l.stop:
			return nil, ErrClosed
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// askFor asks for a checkpoint if a map record waits for one, else for a map.
func (l *Log) askFor(checkpoint bool) error {
	if err := l.Full(); err != nil {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	if !checkpoint {
		l.wake()
		return nil
	}
	select {
	case l.kick <- struct{}{}:
	default: // already asked
	}
	return nil
}

// complete adds the proof of the map's record, and checks that the record speaks of this map.
func (l *Log) complete(p *KeyProof, record uint64) (*KeyProof, error) {
	var err error
	if p.Map, err = l.ProveAt(record, 0); err != nil {
		return nil, err
	}
	r, err := ParseRecord(p.Map.Record)
	if err != nil {
		return nil, err
	}
	if r.Kind != KindMap || r.Ref != p.Size || r.Count != p.Keys || r.InputHash != p.Root {
		return nil, tiles.ErrRoot
	}
	return p, keymap.VerifyProof(p.Root, p.Keys, p.Slot, p.Name, p.State, p.Path)
}

// keyRoots is the key map together with the record that names its root. The keeper writes it; anyone may ask it for proofs.
type keyRoots struct {
	mu     sync.Mutex // guards what follows, and is never held during disk work
	keys   keymap.Map
	size   uint64 // records that keys is of
	record uint64 // log index + 1 of the durable record that names the root; 0: there is none
	asked  bool   // somebody waits for a root
}

// apply brings the map up to date, as of the first size records. Its root is in no record yet.
func (k *keyRoots) apply(size uint64, changes ...[]keymap.Change) (root [32]byte, n uint64, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.size, k.record, k.asked = size, 0, false
	for _, c := range changes {
		if err := k.keys.Apply(c); err != nil {
			return root, 0, err
		}
	}
	return k.keys.Root(), uint64(k.keys.Len()), nil
}

// named says that the record with the given index names the root.
func (k *keyRoots) named(index uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.record = index + 1
}

// state reports whether somebody waits for a root, and whether a record names that of the map as it is.
func (k *keyRoots) state() (asked, rooted bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.asked, k.record > 0
}

// prove returns the proof of a slot, and the index of the record that names the root. It returns nil, and notes that somebody
// asked, if there is no such record, or the map does not have the slot yet.
func (k *keyRoots) prove(name string, slot uint32) (*KeyProof, uint64, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.record == 0 || uint64(slot) >= uint64(k.keys.Len()) {
		k.asked = true
		return nil, 0, nil
	}
	state, err := k.keys.State(slot)
	if err != nil {
		return nil, 0, err
	}
	path, err := k.keys.Proof(slot)
	if err != nil {
		return nil, 0, err
	}
	return &KeyProof{Name: name, Slot: slot, State: state, Size: k.size, Keys: uint64(k.keys.Len()), Root: k.keys.Root(), Path: path},
		k.record - 1, nil
}
