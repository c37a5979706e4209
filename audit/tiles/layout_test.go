package tiles

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"

	"github.com/rustyonions/ron-kms/audit/fsys/fsystest"
)

// Names of C2SP tlog-tiles, the ones of its text first.
func TestPath(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		level int
		n     uint64
		width int
		name  string
	}{
		{0, 1234067, 256, "tile/0/x001/x234/067"},
		{0, 0, 256, "tile/0/000"},
		{1, 0, 1, "tile/1/000.p/1"},
		{0, 273, 112, "tile/0/273.p/112"},
		{63, 999, 255, "tile/63/999.p/255"},
		{7, 1000, 256, "tile/7/x001/000"},
		{Entries, 0, 256, "tile/entries/000"},
		{Entries, 1234067, 17, "tile/entries/x001/x234/067.p/17"},
		{0, maxIndex, 256, "tile/0/x072/x057/x594/x037/x927/935"},
	} {
		if got := Path(c.level, c.n, c.width); got != c.name {
			t.Errorf("Path(%d, %d, %d) = %s, want %s", c.level, c.n, c.width, got, c.name)
		}
		level, n, width, err := ParsePath(c.name)
		if level != c.level || n != c.n || width != c.width || err != nil {
			t.Errorf("ParsePath(%s) = %d, %d, %d, %v", c.name, level, n, width, err)
		}
	}
}

// Other spellings are refused: one tile has one name.
func TestParsePathRefuses(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"", "tile", "tile/", "tile/0", "tile/0/", "0/000", "/tile/0/000", "tile//000", "tile/0/000/", "tile/0//000",
		"tile/00/000", "tile/+1/000", "tile/-1/000", "tile/64/000", "tile/data/000", "tile/Entries/000", "tile/8/0/000",
		"tile/0/0", "tile/0/0000", "tile/0/1000", "tile/0/x000", "tile/0/x000/001", "tile/0/001/x000", "tile/0/001/000",
		"tile/0/x1/000", "tile/0/xx01/000", "tile/0/+01", "tile/0/-01", "tile/0/ 01", "tile/0/0_1", "tile/0/1e2",
		"tile/0/000.p", "tile/0/000.p/", "tile/0/000.p/0", "tile/0/000.p/256", "tile/0/000.p/01", "tile/0/000.p/+1",
		"tile/0/000.p/1/", "tile/0/000.p/1.p/1", "tile/0/x001.p/1/000", "tile/0/../000", "tile/0/000.p/-1", "tile/0/000\n",
		"tile/0/x072/x057/x594/x037/x927/936", "tile/0/x999/x999/x999/x999/x999/999", "tile/0/x001/x000/x000/x000/x000/x000/x000/000",
		"tile/entries", "tile/entries/000/000", "checkpoint",
	} {
		if level, n, width, err := ParsePath(name); err == nil {
			t.Errorf("ParsePath(%q) = %d, %d, %d", name, level, n, width)
		}
	}
}

// What ParsePath accepts, Path makes again.
func FuzzParsePath(f *testing.F) {
	for _, name := range []string{"tile/0/x001/x234/067", "tile/entries/000.p/17", "tile/0/000.p/256", "tile/63/999"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		level, n, width, err := ParsePath(name)
		if err == nil && (Path(level, n, width) != name || level < Entries || level > 63 || n > maxIndex || width < 1 || width > Width) {
			t.Errorf("ParsePath(%q) = %d, %d, %d", name, level, n, width)
		}
	})
}

// export writes a log of size records to a new directory.
func export(t *testing.T, s *Store, size uint64) string {
	t.Helper()
	dir := t.TempDir()
	var last, all uint64
	files := 0
	err := Export(context.Background(), s, size, nil, func(name string, data []byte) error {
		files++
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		return os.WriteFile(path, data, 0o600)
	}, func(done, total uint64) {
		if done != last+1 {
			t.Errorf("progress from %d to %d", last, done)
		}
		last, all = done, total
	})
	if err != nil || last != all || s.Kept() == 0 && uint64(files) != all {
		t.Fatalf("%d of %d, %d files: %v", last, all, files, err)
	}
	return dir
}

func openDir(t *testing.T, dir string) *DirSource {
	t.Helper()
	src, err := NewDirSource(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := src.Close(); err != nil {
			t.Error(err)
		}
	})
	return src
}

// verify reads all records from a source and checks them against the root, as an offline verifier does.
func verify(src Source, size uint64, root tlog.Hash) error {
	hashes := HashReader(src, size, root)
	for n := range files(Entries, size) {
		width := int(min(Width, size-n*Width))
		records, err := ReadBundle(src, n, width)
		if err != nil {
			return err
		}
		indexes := make([]int64, width)
		for i := range indexes {
			indexes[i] = tlog.StoredHashIndex(0, int64(n*Width)+int64(i))
		}
		want, err := hashes.ReadHashes(indexes)
		if err != nil {
			return err
		}
		for i, r := range records {
			if tlog.RecordHash(r) != want[i] {
				return errForged
			}
		}
	}
	return nil
}

var errForged = errors.New("a record does not have its leaf hash")

// An exported log of any size up to that of the store is complete, and is verified by its root alone; the store itself is
// a source of the same. R-273.
func TestExport(t *testing.T) {
	t.Parallel()
	s := mustOpen(t, fsystest.New(), 0)
	grow(s, 1000)
	mustSync(t, s)
	grow(s, 1300)
	for _, size := range []uint64{0, 1, 255, 256, 257, 1000, 1300} {
		root := theModel().root(size)
		dir := export(t, s, size)
		if err := verify(openDir(t, dir), size, root); err != nil {
			t.Errorf("size %d: %v", size, err)
		}
		if err := verify(s, size, root); err != nil {
			t.Errorf("store, size %d: %v", size, err)
		}
		if size > 1 {
			if err := verify(openDir(t, dir), size, theModel().root(size-1)); !errors.Is(err, ErrRoot) {
				t.Errorf("size %d with another root: %v", size, err)
			}
		}
	}
	if err := Export(context.Background(), s, 1301, nil, func(string, []byte) error { return nil }, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("more than there is: %v", err)
	}
	full := errors.New("the disk is full")
	if err := Export(context.Background(), s, 1300, nil, func(string, []byte) error { return full }, nil); !errors.Is(err, full) {
		t.Errorf("a write that fails: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Export(ctx, s, 1300, nil, nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

// Each byte of an export that is changed is found by who has the root..
func TestExportTampered(t *testing.T) {
	t.Parallel()
	const size = 300
	s := NewMemory(size)
	grow(s, size)
	dir := export(t, s, size)
	src := openDir(t, dir)
	root := theModel().root(size)
	files := 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		files++
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for off := 0; off < len(b); off += 1 + len(b)/50 {
			b[off] ^= 4
			if err := os.WriteFile(path, b, 0o600); err != nil {
				return err
			}
			if err := verify(src, size, root); err == nil {
				t.Errorf("%s: a change at %d is not found", path, off)
			}
			b[off] ^= 4
		}
		for _, other := range [][]byte{nil, b[:len(b)-1], append(b[:len(b):len(b)], 0)} {
			if err := os.WriteFile(path, other, 0o600); err != nil {
				return err
			}
			if err := verify(src, size, root); err == nil {
				t.Errorf("%s: %d bytes instead of %d are not found", path, len(other), len(b))
			}
		}
		if err := os.Remove(path); err != nil {
			return err
		}
		if err := verify(src, size, root); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is missing: %v", path, err)
		}
		return os.WriteFile(path, b, 0o600)
	})
	if err != nil || files != 5 {
		t.Fatalf("%d files: %v", files, err)
	}
	if err := verify(src, size, root); err != nil {
		t.Error(err)
	}
}

// A partial tile may have been dropped for the full one.
func TestFullForPartial(t *testing.T) {
	t.Parallel()
	s := NewMemory(1000)
	grow(s, 1000)
	src := openDir(t, export(t, s, 1000))
	if err := verify(src, 700, theModel().root(700)); err == nil {
		t.Error("tile/1 has no full tile to stand in for it")
	}
	for _, width := range []int{1, 100, 255, 256} {
		if records, err := ReadBundle(src, 1, width); err != nil || len(records) != width {
			t.Errorf("%d records of %d: %v", len(records), width, err)
		}
	}
	for _, width := range []int{0, 257, -1} {
		if _, err := ReadBundle(src, 1, width); err == nil {
			t.Errorf("a bundle of %d records", width)
		}
	}
}

// A pruned log exports what it keeps, and all hashes.
func TestExportPruned(t *testing.T) {
	t.Parallel()
	s := NewMemory(256)
	grow(s, 1000)
	src := openDir(t, export(t, s, 1000))
	if _, err := ReadBundle(src, 0, Width); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("pruned: %v", err)
	}
	if records, err := ReadBundle(src, 3, 1000-3*Width); err != nil || len(records) != 1000-3*Width {
		t.Errorf("kept: %v", err)
	}
}

// A directory that somebody else made cannot lead the reader out of it or hold it up.
func TestDirSourceRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "secret")
	if err := errors.Join(
		os.WriteFile(outside, make([]byte, 32), 0o600),
		os.MkdirAll(filepath.Join(dir, "tile/0/002"), 0o700),
		os.Symlink(outside, filepath.Join(dir, "tile/0/000")),
		os.WriteFile(filepath.Join(dir, "tile/0/001"), nil, 0o600),
		os.Truncate(filepath.Join(dir, "tile/0/001"), maxBundle+1),
		unix.Mkfifo(filepath.Join(dir, "tile/0/004"), 0o600),
		os.WriteFile(filepath.Join(dir, "checkpoint"), []byte("note"), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	src := openDir(t, dir)
	for _, name := range []string{"tile/0/000", "tile/0/001", "tile/0/002", "tile/0/003", "tile/0/004", "checkpoint", "../x", "/etc/passwd", "tile/0/../../checkpoint"} {
		if b, err := src.ReadTile(name); err == nil {
			t.Errorf("%s: %d bytes", name, len(b))
		}
	}
	if _, err := NewDirSource(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

// Split takes exactly the records of a bundle.
func TestSplit(t *testing.T) {
	t.Parallel()
	good := "\x00\x01a\x00\x02bc"
	if r, err := Split([]byte(good), 2); err != nil || string(r[0]) != "a" || string(r[1]) != "bc" || cap(r[0]) != 1 {
		t.Errorf("Split = %q, %v", r, err)
	}
	for _, c := range []struct {
		bundle string
		width  int
	}{{good, 1}, {good, 3}, {good + "\x00", 2}, {good[:6], 2}, {"", 1}, {"\x00", 1}, {"\x00\x00", 1}, {"\xff\xffa", 1}} {
		if r, err := Split([]byte(c.bundle), c.width); err == nil || strings.Contains(err.Error(), "\x00") {
			t.Errorf("Split(%q, %d) = %q, %v", c.bundle, c.width, r, err)
		}
	}
}
