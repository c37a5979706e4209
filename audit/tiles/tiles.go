// Package tiles keeps the records of the audit log and the hashes of its Merkle tree (RFC 6962 §2.1, SHA-256) in flat
// files, from which the tiles and entry bundles of C2SP tlog-tiles are slices.
//
// It stands behind the write-ahead ring: Append takes records into memory, Sync makes them durable, and what came after
// the last successful Sync is given again by the ring after a crash.
//
// # Files
//
// Integers are big-endian.
//
//	level-0, level-1, …   hashes of 32 bytes. Hash i of level L is at 32*i, so tile N of level L is the 8192 bytes at
//	                      8192*N. Level 0 holds the leaf hashes; hash i of level L+1 is the root of tile i of level L.
//	data-00000000, …      volumes of 256 bundles, 65536 records, each: a header of 4096 bytes, then the bundles
//
//	header of a volume:
//	   0     4  RKAT
//	   4     4  00 00 00 01
//	   8     8  number of the volume
//	  16  2056  257 offsets in the file: bundle j is the bytes from offset j to offset j+1. Offset 0 is 4096. The offset
//	            behind a bundle that is not complete yet is not valid
//	2072  2024  zeros
//
// A bundle is up to 256 records, each after its length in 2 bytes. Files may hold more than the last Sync covered; such
// bytes mean nothing, and are overwritten.
//
// # What is checked
//
// Open checks the right edge of the tree, Record and Bundle check records against the leaf hashes, proofs are checked
// against the root that the caller trusts, and Scrub checks everything against the right edge in memory. Whether that
// edge is right is for the caller to see: compare Root with a signed checkpoint after Open.
package tiles

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sync"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rustyonions/ron-kms/audit/fsys"
)

const (
	// Width is the number of hashes in a full tile and of records in a full bundle.
	Width = 256
	// MaxRecord is the longest record, in bytes. Records are not empty.
	MaxRecord = 1<<16 - 1
	// Entries stands for the records where a level of hashes could stand.
	Entries = -1

	height    = 8 // of a tile: Width is 1<<height
	levels    = 8 // enough for 1<<64 records
	tileBytes = Width * tlog.HashSize
)

var (
	// ErrPruned is returned for records, and by a store in memory for leaf hashes, that are no longer kept.
	ErrPruned = errors.New("no longer kept")
	// ErrNotFound is returned for what is beyond the end of the log.
	ErrNotFound = errors.New("beyond the end of the log")
	// ErrRoot is returned when the stored hashes do not lead to the root that the caller trusts.
	ErrRoot = errors.New("the stored hashes do not lead to the root")

	errClosed = errors.New("audit: tiles: the store is closed")
)

// A DamageError says that a file is missing, too short, or does not hold what was written.
type DamageError struct {
	Level  int    // of the tile, or Entries for a bundle
	Index  uint64 // number of the tile or bundle
	Reason string
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("audit: tiles: %s: %s", Path(e.Level, e.Index, Width), e.Reason)
}

// A Store is the records of a log and the hashes of its tree. One goroutine appends; one, the packer, calls Flush and
// Sync; everything else may be called by any number of goroutines beside them.
type Store struct {
	dir fsys.Dir // nil: all in memory
	// keep is the number of complete bundles that a store in memory keeps.
	keep uint64

	mu       sync.Mutex // guards what follows, and is never held during disk work
	size     uint64
	synced   uint64 // records that a successful Sync covered
	kept     uint64 // first record that is not pruned
	appended uint64 // bytes in memory since Open, hashes included; the difference to covered is pending
	covered  uint64
	closed   bool
	// edge[k] is the root of the last complete subtree of 1<<k records, if bit k of size is set.
	edge   [levels * height]tlog.Hash
	hashes [levels]column
	// bundles are those from number first on, the last perhaps partial. Bytes that were appended never change, so that
	// who took a slice under the lock may read it without.
	bundles [][]byte
	first   uint64
	guess   int // bytes of the last complete bundle

	packer  packer
	pruning sync.Mutex // held by Prune
}

// A column is one level of hashes: in memory the tiles from number first on, the last perhaps partial.
type column struct {
	first uint64
	tiles []*[tileBytes]byte // bytes that were written never change, as in bundles
	file  fsys.File          // for reading; nil while nothing of the level was written
}

// NewMemory returns a store without files. It keeps the records and leaf hashes of at least the last keep records, and
// all hashes of the levels above. Flush and Sync do nothing.
func NewMemory(keep uint64) *Store {
	n := keep / Width
	if keep%Width != 0 {
		n++
	}
	return &Store{keep: n}
}

// Append adds a record of 1 to MaxRecord bytes, of which it keeps a copy, and its leaf hash, SHA-256(0x00 ‖ record). It
// does not look at the disk. It panics if the record has another length.
func (s *Store) Append(record []byte, leaf [32]byte) {
	if len(record) == 0 || len(record) > MaxRecord {
		panic("audit: tiles: a record of impossible length")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.size%Width == 0 {
		// An eighth more than the last one, so that most bundles are one allocation.
		s.bundles = append(s.bundles, make([]byte, 0, max(s.guess+s.guess/8, Width*(2+len(record)))))
	}
	b := &s.bundles[len(s.bundles)-1]
	*b = append(*b, byte(len(record)>>8), byte(len(record)))
	*b = append(*b, record...)
	s.appended += uint64(2 + len(record) + tlog.HashSize)

	h := tlog.Hash(leaf)
	s.addHash(0, s.size, h)
	k := 0
	for ; s.size>>k&1 == 1; k++ {
		h = tlog.NodeHash(s.edge[k], h)
		if (k+1)%height == 0 {
			s.addHash((k+1)/height, s.size>>(k+1), h)
		}
	}
	s.edge[k] = h
	s.size++

	if s.size%Width == 0 {
		s.guess = len(*b)
		if s.dir == nil {
			s.forget(s.size/Width - min(s.keep, s.size/Width))
		}
	}
}

// addHash appends hash i of a level.
func (s *Store) addHash(level int, i uint64, h tlog.Hash) {
	c := &s.hashes[level]
	if i%Width == 0 {
		c.tiles = append(c.tiles, new([tileBytes]byte))
	}
	copy(c.tiles[i/Width-c.first][i%Width*tlog.HashSize:], h[:])
}

// forget drops the bundles and tiles of leaf hashes below number n of a store in memory.
func (s *Store) forget(n uint64) {
	s.dropBundles(n)
	s.hashes[0].drop(n)
	s.kept = s.first * Width
}

// dropBundles drops the bundles below number n from memory.
func (s *Store) dropBundles(n uint64) {
	if n > s.first {
		s.bundles = slices.Delete(s.bundles, 0, int(n-s.first))
		s.first = n
	}
}

// drop drops the tiles below number n from memory.
func (c *column) drop(n uint64) {
	if n > c.first {
		c.tiles = slices.Delete(c.tiles, 0, int(n-c.first))
		c.first = n
	}
}

// Size returns the number of records appended.
func (s *Store) Size() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.size
}

// Kept returns the index of the first record that was not pruned. A store whose first volumes were deleted by
// somebody else looks pruned: who calls Prune must remember what was agreed.
func (s *Store) Kept() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kept
}

// Pending returns how many records, and how many bytes of memory, no Sync covers yet. It is nothing in memory.
func (s *Store) Pending() (records uint64, bytes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dir == nil {
		return 0, 0
	}
	return s.size - s.synced, int(s.appended - s.covered)
}

// Root returns the root over the first size records. For the size of the log it is that of the right edge in memory; for
// a smaller one it is made from the stored hashes, which it does not check. It returns ErrNotFound for a larger one.
func (s *Store) Root(size uint64) (tlog.Hash, error) {
	s.mu.Lock()
	have := s.size
	if size == have && size > 0 {
		defer s.mu.Unlock()
		return s.edgeRoot(), nil
	}
	s.mu.Unlock()
	if size > have {
		return tlog.Hash{}, fmt.Errorf("audit: tiles: root of %d records: %w", size, ErrNotFound)
	}
	h, err := tlog.TreeHash(int64(size), tlog.HashReaderFunc(s.uncheckedHashes))
	if err != nil {
		return tlog.Hash{}, fmt.Errorf("audit: tiles: root of %d records: %w", size, err)
	}
	return h, nil
}

// edgeRoot returns the root over at least one record.
func (s *Store) edgeRoot() (root tlog.Hash) {
	k := bits.TrailingZeros64(s.size)
	root = s.edge[k]
	for k++; k < len(s.edge); k++ {
		if s.size>>k&1 == 1 {
			root = tlog.NodeHash(s.edge[k], root)
		}
	}
	return root
}

// uncheckedHashes is a tlog.HashReader of hashes as they are stored.
func (s *Store) uncheckedHashes(indexes []int64) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		t := tlog.TileForIndex(height, x)
		data, err := s.Tile(t.L, uint64(t.N), t.W)
		if err != nil {
			return nil, err
		}
		if hashes[i], err = tlog.HashFromTile(t, data, x); err != nil {
			return nil, err
		}
	}
	return hashes, nil
}

// subtree returns the root over hashes, of which there are a power of two.
func subtree(hashes []byte) tlog.Hash {
	if len(hashes) == tlog.HashSize {
		return tlog.Hash(hashes)
	}
	n := len(hashes) / 2
	return tlog.NodeHash(subtree(hashes[:n]), subtree(hashes[n:]))
}
