package tiles

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rustyonions/ron-kms/audit/fsys"
)

// ErrBundle is wrapped by errors about a bundle that has another form than C2SP tlog-tiles says.
var ErrBundle = errors.New("not a sequence of records with their lengths")

// Split returns the records of a bundle of exactly width records. They share the memory of the bundle.
func Split(bundle []byte, width int) ([][]byte, error) {
	records, rest, err := split(bundle, width)
	if err == nil && len(rest) > 0 {
		err = ErrBundle
	}
	if err != nil {
		return nil, fmt.Errorf("audit: tiles: bundle: %w", err)
	}
	return records, nil
}

// split returns the first width records and what follows them.
func split(b []byte, width int) (records [][]byte, rest []byte, err error) {
	records = make([][]byte, 0, width)
	for range width {
		if len(b) < 2 {
			return nil, nil, ErrBundle
		}
		end := 2 + int(binary.BigEndian.Uint16(b))
		if end == 2 || end > len(b) {
			return nil, nil, ErrBundle
		}
		records = append(records, b[2:end:end])
		b = b[end:]
	}
	return records, b, nil
}

// has reports whether the first width entries of a tile or bundle are among size records.
func has(size uint64, level int, n uint64, width int) bool {
	if level < 0 || level >= levels || width < 1 || width > Width || n > math.MaxUint64/Width-1 {
		return false
	}
	return n*Width+uint64(width) <= size>>(height*level)
}

// Tile returns the first width hashes, 1 to Width, of tile n of a level, as C2SP tlog-tiles encodes them. It does not
// check them: see HashReader. It returns ErrNotFound, ErrPruned, or a DamageError.
func (s *Store) Tile(level int, n uint64, width int) ([]byte, error) {
	s.mu.Lock()
	if !has(s.size, level, n, width) {
		s.mu.Unlock()
		return nil, fmt.Errorf("audit: tiles: tile %d of level %d, %d wide: %w", n, level, width, ErrNotFound)
	}
	c := &s.hashes[level]
	if n >= c.first {
		defer s.mu.Unlock()
		return slices.Clone(c.tiles[n-c.first][:width*tlog.HashSize]), nil
	}
	f := c.file
	s.mu.Unlock()
	if f == nil {
		return nil, fmt.Errorf("audit: tiles: %s: %w", Path(level, n, width), ErrPruned)
	}
	return readStoredTile(f, level, n, width)
}

// bundle returns the first width records of bundle n, unchecked. They may share the memory of the store.
func (s *Store) bundle(n uint64, width int) ([][]byte, error) {
	s.mu.Lock()
	found, kept := has(s.size, 0, n, width), s.kept
	var b []byte
	if found && n >= s.first {
		b = s.bundles[n-s.first]
	}
	s.mu.Unlock()
	switch {
	case !found:
		return nil, ErrNotFound
	case n*Width < kept:
		return nil, ErrPruned
	case b == nil:
		var err error
		if b, err = s.storedBundle(n, Width); err != nil {
			return nil, err
		}
		return splitStored(b, n, Width)
	}
	return splitStored(b, n, width)
}

// splitStored splits what is stored as bundle n. Only a complete bundle must end with its last record.
func splitStored(b []byte, n uint64, width int) ([][]byte, error) {
	records, rest, err := split(b, width)
	if err != nil || width == Width && len(rest) > 0 {
		return nil, &DamageError{Entries, n, ErrBundle.Error()}
	}
	return records, nil
}

// checkRecords compares records of bundle n with leaf hashes, the first of both being number from of the bundle.
func checkRecords(records [][]byte, leaves []byte, n uint64, from int) error {
	for i, r := range records {
		if tlog.RecordHash(r) != tlog.Hash(leaves[i*tlog.HashSize:]) {
			return &DamageError{Entries, n, fmt.Sprintf("record %d does not have its leaf hash", n*Width+uint64(from+i))}
		}
	}
	return nil
}

// Record returns record i, after it was found to have its leaf hash. It returns ErrNotFound, ErrPruned, or a
// DamageError.
func (s *Store) Record(i uint64) ([]byte, error) {
	n, at := i/Width, int(i%Width)
	records, err := s.bundle(n, at+1)
	if err != nil {
		return nil, fmt.Errorf("audit: tiles: record %d: %w", i, err)
	}
	leaves, err := s.Tile(0, n, at+1)
	if err != nil {
		return nil, err
	}
	if err := checkRecords(records[at:at+1], leaves[at*tlog.HashSize:], n, at); err != nil {
		return nil, err
	}
	return slices.Clone(records[at]), nil
}

// Bundle returns the first width records, 1 to Width, of bundle n, as C2SP tlog-tiles encodes them, after they were found
// to have their leaf hashes. It returns ErrNotFound, ErrPruned, or a DamageError.
func (s *Store) Bundle(n uint64, width int) ([]byte, error) {
	records, err := s.bundle(n, width)
	if err != nil {
		return nil, fmt.Errorf("audit: tiles: bundle %d, %d wide: %w", n, width, err)
	}
	leaves, err := s.Tile(0, n, width)
	if err != nil {
		return nil, err
	}
	if err := checkRecords(records[:width], leaves, n, 0); err != nil {
		return nil, err
	}
	var b []byte
	for _, r := range records[:width] {
		b = binary.BigEndian.AppendUint16(b, uint16(len(r)))
		b = append(b, r...)
	}
	return b, nil
}

// storedTile returns the first width hashes of a tile that was written, from its file.
func (s *Store) storedTile(level int, n uint64, width int) ([]byte, error) {
	s.mu.Lock()
	f := s.hashes[level].file
	s.mu.Unlock()
	if f == nil { // a store in memory
		return s.Tile(level, n, width)
	}
	return readStoredTile(f, level, n, width)
}

// storedHash returns hash i of a level, as storedTile.
func (s *Store) storedHash(level int, i uint64) (tlog.Hash, error) {
	s.mu.Lock()
	f := s.hashes[level].file
	s.mu.Unlock()
	if f == nil {
		b, err := s.Tile(level, i/Width, int(i%Width)+1)
		if err != nil {
			return tlog.Hash{}, err
		}
		return tlog.Hash(b[i%Width*tlog.HashSize:]), nil
	}
	return readStoredHash(f, level, i)
}

// readStoredHash reads hash i of a level from its file.
func readStoredHash(f fsys.File, level int, i uint64) (h tlog.Hash, err error) {
	err = readAt(f, h[:], int64(i*tlog.HashSize), level, i/Width)
	return h, err
}
