package tiles

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
)

// Scrub reads n bundles from number from on, and the tiles over them, back from the files, and returns the number to go
// on with, which is 0 when the end of what is durable was reached. It returns a DamageError at the first record that does
// not have its leaf hash and at the first tile whose root is not the hash above it; next is then where to look again. Of
// pruned bundles it checks the hashes.
//
// A full pass checks every hash against the right edge in memory, and so against Root.
func (s *Store) Scrub(ctx context.Context, from, n uint64) (next uint64, err error) {
	s.mu.Lock()
	size := s.synced
	if s.dir == nil {
		size = s.size
	}
	s.mu.Unlock()
	total := size / Width
	if size%Width > 0 {
		total++
	}
	next = from
	for ; next < total && next-from < n; next++ {
		if err := ctx.Err(); err != nil {
			return next, err
		}
		if err := s.scrubBundle(next, size); err != nil {
			return next, err
		}
	}
	if next < total {
		return next, nil
	}
	if err := s.scrubEdge(size); err != nil {
		return from, err
	}
	return 0, nil
}

// scrubBundle checks bundle n of a log of size records, its leaf hashes, and the tiles above that end with it.
func (s *Store) scrubBundle(n, size uint64) error {
	width := int(min(Width, size-n*Width))
	tile, err := s.storedTile(0, n, width)
	if errors.Is(err, ErrPruned) {
		return nil // in memory
	}
	if err == nil {
		err = s.scrubRecords(n, width, tile)
	}
	if err != nil || width < Width {
		return err
	}
	for level := 0; ; level++ {
		above, err := s.storedHash(level+1, n)
		if err != nil {
			return err
		}
		if subtree(tile) != above {
			return &DamageError{level, n, "its root is not the hash above it"}
		}
		if n%Width != Width-1 {
			return nil
		}
		n /= Width
		if tile, err = s.storedTile(level+1, n, Width); err != nil {
			return err
		}
	}
}

// scrubRecords checks the records of a bundle that is durable against their leaf hashes.
func (s *Store) scrubRecords(n uint64, width int, leaves []byte) error {
	if n*Width < s.Kept() {
		return nil
	}
	var records [][]byte
	var err error
	if s.dir == nil {
		records, err = s.bundle(n, width)
	} else {
		var b []byte
		if b, err = s.storedBundle(n, width); err == nil {
			records, err = splitStored(b, n, width)
		}
	}
	if errors.Is(err, ErrPruned) {
		return nil // meanwhile
	}
	if err != nil {
		return err
	}
	return checkRecords(records[:width], leaves, n, 0)
}

// scrubEdge compares the partial tiles of a log of size records with those in memory, to which all others were compared.
func (s *Store) scrubEdge(size uint64) error {
	for level := range levels {
		count := size >> (height * level)
		n, width := count/Width, int(count%Width)
		if width == 0 {
			continue
		}
		stored, err := s.storedTile(level, n, width)
		if err != nil {
			return err
		}
		tile, err := s.Tile(level, n, width)
		if err != nil {
			return err
		}
		if !bytes.Equal(stored, tile) {
			return &DamageError{level, n, "the file does not hold what the memory does"}
		}
	}
	return nil
}

// Prune removes the volumes all of whose records are before the given one, oldest first, and returns the first record
// that is still kept. Hashes stay. The volume of the last durable record stays always. In memory it does nothing.
func (s *Store) Prune(before uint64) (kept uint64, err error) {
	s.pruning.Lock()
	defer s.pruning.Unlock()
	s.mu.Lock()
	kept = s.kept
	last := (max(s.synced, 1) - 1) / volumeRecords
	s.mu.Unlock()
	if s.dir == nil {
		return kept, nil
	}
	for v := kept / volumeRecords; v < min(before/volumeRecords, last); v++ {
		// Readers are told first, so that none takes the missing file for damage.
		s.setKept((v + 1) * volumeRecords)
		if err := s.dir.Remove(volumeName(v)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.setKept(v * volumeRecords)
			return v * volumeRecords, fmt.Errorf("audit: tiles: prune: %w", err)
		}
		// One at a time: a power cut must not leave a hole in the row.
		if err := s.dir.SyncDir(); err != nil {
			return (v + 1) * volumeRecords, fmt.Errorf("audit: tiles: prune: %w", err)
		}
		kept = (v + 1) * volumeRecords
	}
	return kept, nil
}

func (s *Store) setKept(i uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept = i
}
