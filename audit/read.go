package audit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rustyonions/ron-kms/audit/tiles"
)

// Read calls fn for each durable record from index from on, in order, up to those that are durable when it is called.
// Records are checked against the root of the tree as they are read. It may run beside Append. It returns the error of fn, and
// one that wraps ErrNotKept for records that were pruned, or that a memory log has let go.
func (l *Log) Read(ctx context.Context, from uint64, fn func(index uint64, r *Record) error) error {
	l.mu.Lock()
	size, root, shut := l.end.size, l.root, l.shut
	l.mu.Unlock()
	if shut {
		return fmt.Errorf("audit: read: %w", ErrClosed)
	}
	for from < size {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("audit: read: %w", context.Cause(ctx))
		}
		n := from / tiles.Width
		recs, _, err := l.bundle(n, int(min(size-n*tiles.Width, tiles.Width)), size, root)
		if err != nil {
			return fmt.Errorf("audit: read: record %d: %w", from, err)
		}
		for _, rec := range recs[from%tiles.Width:] {
			r, err := ParseRecord(rec)
			if err == nil {
				err = fn(from, r)
			}
			if err != nil {
				return err
			}
			from++
		}
	}
	return nil
}

// bundle returns the first width records of bundle n, and the bundle of them, after they were found to be in the tree of the first
// size records, whose root is trusted.
func (l *Log) bundle(n uint64, width int, size uint64, root [32]byte) ([][]byte, []byte, error) {
	b, err := l.tiles.Bundle(n, width)
	if err != nil {
		return nil, nil, err
	}
	recs, err := tiles.Split(b, width)
	if err != nil {
		return nil, nil, err
	}
	// The store compared with leaf hashes that nothing vouches for; these lead to the root.
	leaves, err := l.hashes(0, n, width, size, root)
	if err != nil {
		return nil, nil, err
	}
	for i, r := range recs {
		if tlog.RecordHash(r) != leaves[i] {
			return nil, nil, &tiles.DamageError{Level: tiles.Entries, Index: n, Reason: "the records do not lead to the root"}
		}
	}
	return recs, b, nil
}

// hashes returns the first width hashes of tile n of a level, checked like the records of bundle.
func (l *Log) hashes(level int, n uint64, width int, size uint64, root [32]byte) ([]tlog.Hash, error) {
	at := make([]int64, width)
	for i := range at {
		at[i] = tlog.StoredHashIndex(level*tileHeight, int64(n*tiles.Width)+int64(i))
	}
	return tiles.HashReader(l.tiles, size, root).ReadHashes(at)
}

// tileHeight is log2 of tiles.Width: level L of the tiles is level 8L of the tree.
const tileHeight = 8

// ErrBeyond is wrapped by errors about records, tiles and sizes that the latest checkpoint does not cover.
var ErrBeyond = errors.New("beyond the latest checkpoint")

// signed returns the latest checkpoint.
func (l *Log) signed() *checkpoint {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.latest
}

// Tile returns the tile or entry bundle with the given C2SP name, such as tile/0/x001/067 or tile/entries/000.p/17. Only
// what the latest checkpoint covers is served, after it was checked against that: a damaged file is a *tiles.DamageError or
// tiles.ErrRoot. A name that is malformed is ErrBeyond too: there is no such tile.
func (l *Log) Tile(name string) ([]byte, error) {
	level, n, width, err := tiles.ParsePath(name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrBeyond)
	}
	c := l.signed()
	// A shift by 64 or more leaves nothing. The number is looked at first: times the width it may be more than a uint64 holds.
	has := c.size >> (tileHeight * max(level, 0))
	if n > has/tiles.Width || n*tiles.Width+uint64(width) > has {
		return nil, fmt.Errorf("audit: %s: %w", name, ErrBeyond)
	}
	if level == tiles.Entries {
		_, b, err := l.bundle(n, width, c.size, c.root)
		return b, err
	}
	hashes, err := l.hashes(level, n, width, c.size, c.root)
	if err != nil {
		return nil, err
	}
	b := make([]byte, 0, width*tlog.HashSize)
	for _, h := range hashes {
		b = append(b, h[:]...)
	}
	return b, nil
}

// ReadTile is Tile, so that a log is a tiles.Source.
func (l *Log) ReadTile(name string) ([]byte, error) { return l.Tile(name) }

// A Proof shows that a record is in the tree of a checkpoint.
type Proof struct {
	Index      uint64
	Record     []byte // encoded
	Hashes     tlog.RecordProof
	Checkpoint []byte // signed note
}

// Prove returns the proof that record index is covered by the latest checkpoint. See ProveAt.
func (l *Log) Prove(index uint64) (*Proof, error) { return l.ProveAt(index, 0) }

// ProveConsistency returns the proof that the tree of the latest checkpoint begins with that over old records, and that
// checkpoint. See ProveConsistencyAt.
func (l *Log) ProveConsistency(old uint64) (tlog.TreeProof, []byte, error) {
	return l.ProveConsistencyAt(old, 0)
}

// Key says what the log knows of a key: how many records it has, which was the last, and which intent took effect last, both as
// log index + 1. It includes records that are about to be durable.
func (l *Log) Key(name string) (seq, last, effect uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, k, _ := l.keys.Lookup(name)
	return k.Seq, k.Last, k.Effect
}

// Effects returns the number of keys with an intent that took effect.
func (l *Log) Effects() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.keys.Effects()
}

// Pending returns the intents without an answer, by index. Their records must not be changed.
func (l *Log) Pending() map[uint64]*Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := make(map[uint64]*Record, len(l.pending))
	for i, r := range l.pending {
		m[i] = r
	}
	return m
}

// Unpacked returns how many records are in the ring alone: not yet packed into tiles, synced and summed up in a snapshot. It is how
// much an opening would read. A memory log has none.
func (l *Log) Unpacked() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.disk == nil {
		return 0
	}
	return l.end.size - l.saved.size
}

// Signed returns how many records the latest checkpoint covers.
func (l *Log) Signed() uint64 { return l.signed().size }

// LastEffect returns the latest intent that took effect, of whatever key or of none, as log index + 1; 0 if there is none.
func (l *Log) LastEffect() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.effect
}

// Found returns how many records the log had when it was opened, before the opening added its own.
func (l *Log) Found() uint64 { return l.found }

// Newest returns the latest time of any record.
func (l *Log) Newest() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.newest
}

// Keys returns the public keys that sign the checkpoints now, as C2SP vkeys.
func (l *Log) Keys() string { return l.o.Keys.String() }
