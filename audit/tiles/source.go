package tiles

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

// A Source has the tiles and bundles of a log by their names (see Path): a Store, an exported directory, a server. What
// it returns need not be trusted. It returns an error that is fs.ErrNotExist for a name that it does not have.
type Source interface {
	ReadTile(name string) ([]byte, error)
}

// ReadTile returns the tile or bundle of a name, as Tile and Bundle do. The error for what the store does not have is also
// fs.ErrNotExist.
func (s *Store) ReadTile(name string) ([]byte, error) {
	level, n, width, err := ParsePath(name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, fs.ErrNotExist)
	}
	var b []byte
	if level == Entries {
		b, err = s.Bundle(n, width)
	} else {
		b, err = s.Tile(level, n, width)
	}
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrPruned) {
		err = fmt.Errorf("%w: %w", err, fs.ErrNotExist)
	}
	return b, err
}

// A DirSource is a directory in the layout of C2SP tlog-tiles, as Export makes it.
type DirSource struct{ root *os.Root }

// NewDirSource opens the directory that the folder tile is in.
func NewDirSource(dir string) (*DirSource, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("audit: tiles: %w", err)
	}
	return &DirSource{root}, nil
}

// Close closes the directory.
func (d *DirSource) Close() error { return d.root.Close() }

// ReadTile reads a file. Names that ParsePath refuses, links that lead out of the directory, what is not a regular file
// and files longer than any bundle are refused.
func (d *DirSource) ReadTile(name string) ([]byte, error) {
	if _, _, _, err := ParsePath(name); err != nil {
		return nil, err
	}
	b, err := d.read(filepath.FromSlash(name))
	if err != nil {
		return nil, fmt.Errorf("audit: tiles: %w", err)
	}
	return b, nil
}

func (d *DirSource) read(name string) ([]byte, error) {
	// Before it is opened, which would wait for the writer of a pipe.
	i, err := d.root.Stat(name)
	if err != nil {
		return nil, err
	}
	if !i.Mode().IsRegular() || i.Size() > maxBundle {
		return nil, fmt.Errorf("%s is not a regular file of at most %d bytes", name, maxBundle)
	}
	f, err := d.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxBundle+1))
	if err == nil && len(b) > maxBundle {
		err = fmt.Errorf("%s grows", name)
	}
	return b, err
}

// readWide reads the first width entries of a tile or bundle, or the full one: a source may drop partial ones once it
// has that. It returns the width of what it read.
func readWide(src Source, level int, n uint64, width int) ([]byte, int, error) {
	b, err := src.ReadTile(Path(level, n, width))
	if width == Width || !errors.Is(err, fs.ErrNotExist) {
		return b, width, err
	}
	full, fullErr := src.ReadTile(Path(level, n, Width))
	if fullErr != nil {
		return nil, 0, err
	}
	return full, Width, nil
}

// ReadBundle returns the first width records of bundle n. They are not checked: compare their hashes, tlog.RecordHash,
// with those that HashReader returns.
func ReadBundle(src Source, n uint64, width int) ([][]byte, error) {
	if width < 1 || width > Width {
		return nil, fmt.Errorf("audit: tiles: a bundle of %d records", width)
	}
	b, got, err := readWide(src, Entries, n, width)
	if err != nil {
		return nil, err
	}
	records, err := Split(b, got)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, Path(Entries, n, got))
	}
	return records[:width], nil
}

// ReadHashes returns the first width hashes of tile n of a level, without checking more than that there are so many.
func ReadHashes(src Source, level int, n uint64, width int) ([]byte, error) {
	b, got, err := readWide(src, level, n, width)
	if err == nil && len(b) != got*tlog.HashSize {
		err = &DamageError{level, n, fmt.Sprintf("%d bytes for %d hashes", len(b), got)}
	}
	if err != nil {
		return nil, err
	}
	return b[:width*tlog.HashSize], nil
}

// HashReader returns a reader of the hashes of the tree of size records with the given root. It checks every tile against
// the root before it returns a hash from it: a changed tile is ErrRoot, never a wrong hash.
func HashReader(src Source, size uint64, root [32]byte) tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		// Package tlog counts in int64, and does not expect a tree without leaves.
		if size == 0 || size > 1<<62 || slices.ContainsFunc(indexes, func(x int64) bool {
			return x < 0 || x >= tlog.StoredHashIndex(0, int64(size))
		}) {
			return nil, fmt.Errorf("audit: tiles: hashes of a tree of %d records: %w", size, ErrNotFound)
		}
		r := &tileReader{src: src}
		hashes, err := tlog.TileHashReader(tlog.Tree{N: int64(size), Hash: root}, r).ReadHashes(indexes)
		if err != nil && r.err == nil {
			err = fmt.Errorf("audit: tiles: %w: %w", ErrRoot, err)
		}
		return hashes, err
	})
}

// tileReader gives a Source the form that package tlog asks for.
type tileReader struct {
	src Source
	err error // that of ReadTiles
}

func (r *tileReader) Height() int                     { return height }
func (r *tileReader) SaveTiles([]tlog.Tile, [][]byte) {}

func (r *tileReader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	data := make([][]byte, len(tiles))
	for i, t := range tiles {
		b, err := ReadHashes(r.src, t.L, uint64(t.N), t.W)
		if err != nil {
			r.err = err
			return nil, err
		}
		data[i] = b
	}
	return data, nil
}
