package tiles

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rustyonions/ron-kms/audit/fsys"
)

// Open returns the store of the first size records in d, which an earlier Sync covered; size 0 begins a new store. What
// the files hold beyond is overwritten in time. The directory must stay open as long as the store, and belongs to the
// caller. Nothing is written before the first Flush or Sync.
//
// It reads the right edge of the tree only: the last tiles, and the last bundle. A DamageError says that one of them is
// missing, or that they do not fit together; whether they are the right ones, Root tells.
func Open(d fsys.Dir, size uint64) (*Store, error) {
	s := &Store{dir: d, size: size, synced: size, first: size / Width}
	if size == 0 {
		return s, nil
	}
	err := s.loadLevels()
	if err == nil {
		err = s.loadVolumes()
	}
	if err == nil {
		err = s.loadBundle()
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.packer.written = size
	return s, nil
}

// loadLevels opens the files of hashes, and loads the partial tile of each. The root of each last complete tile must be
// the last hash of the level above.
func (s *Store) loadLevels() error {
	var below *tlog.Hash // root of the last complete tile of the level below
	for level := range levels {
		count := s.size >> (height * level)
		if count == 0 {
			return nil
		}
		f, err := s.dir.OpenFile(levelName(level), os.O_RDONLY)
		if err != nil {
			return readError(err, level, (count-1)/Width)
		}
		c := &s.hashes[level]
		c.file = f
		if below != nil {
			h, err := readStoredHash(f, level, count-1)
			if err != nil {
				return err
			}
			if h != *below {
				return &DamageError{level - 1, count - 1, "its root is not the hash above it"}
			}
			below = nil
		}
		c.first = count / Width
		if c.first > 0 {
			full, err := readStoredTile(f, level, c.first-1, Width)
			if err != nil {
				return err
			}
			h := subtree(full)
			below = &h
		}
		if err := s.loadPartial(level, int(count%Width)); err != nil {
			return err
		}
	}
	return nil
}

// loadPartial loads the partial tile of a level, and the roots in it that the edge consists of.
func (s *Store) loadPartial(level, width int) error {
	if width == 0 {
		return nil
	}
	c := &s.hashes[level]
	b, err := readStoredTile(c.file, level, c.first, width)
	if err != nil {
		return err
	}
	c.tiles = append(c.tiles, new([tileBytes]byte))
	copy(c.tiles[0][:], b)
	for k := height - 1; k >= 0; k-- {
		if width>>k&1 == 1 {
			n := tlog.HashSize << k
			s.edge[height*level+k] = subtree(b[:n])
			b = b[n:]
		}
	}
	return nil
}

// loadVolumes finds the volumes: all up to the last one, or all but some first ones that were pruned.
func (s *Store) loadVolumes() error {
	names, err := s.dir.List()
	if err != nil {
		return fmt.Errorf("audit: tiles: %w", err)
	}
	last := (s.size - 1) / volumeRecords
	there := make(map[uint64]bool)
	lowest := last
	for _, name := range names {
		if v, ok := parseVolumeName(name); ok && v <= last {
			there[v] = true
			lowest = min(lowest, v)
		}
	}
	for v := lowest; v <= last; v++ {
		if !there[v] {
			return &DamageError{Entries, v * volumeBundles, "the file is missing"}
		}
	}
	s.kept = lowest * volumeRecords
	return nil
}

// loadBundle checks the bundle of the last record, loads it if it is partial, and begins to continue its volume.
func (s *Store) loadBundle() error {
	n, width := (s.size-1)/Width, int((s.size-1)%Width)+1
	var b []byte
	err := s.withVolume(n, func(f fsys.File, t *offsets) (err error) {
		if b, err = readStoredBundle(f, t, n, width); err != nil || s.size%volumeRecords == 0 {
			return err
		}
		s.packer.volumes = []*volume{{number: n / volumeBundles, table: *t}}
		return nil
	})
	if err != nil {
		return err
	}
	records, err := splitStored(b, n, width)
	if err != nil {
		return err
	}
	leaves, err := s.Tile(0, n, width)
	if err != nil {
		return err
	}
	if err := checkRecords(records, leaves, n, 0); err != nil {
		return err
	}
	s.guess = len(b)
	if width < Width {
		s.bundles = [][]byte{b}
		s.packer.done = len(b)
	}
	return nil
}

// Close closes the files. It does not write what is pending.
func (s *Store) Close() error {
	s.packer.mu.Lock()
	defer s.packer.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	var errs []error
	shut := func(f io.Closer) { errs = append(errs, f.Close()) }
	for i := range s.hashes {
		read, write := s.hashes[i].file, s.packer.levels[i].file
		if read != nil {
			shut(read)
		}
		if write != nil && write != read {
			shut(write)
		}
	}
	for _, v := range s.packer.volumes {
		if v.file != nil {
			shut(v.file)
		}
	}
	return errors.Join(errs...)
}
