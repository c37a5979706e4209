package audit

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rustyonions/ron-kms/audit/fsys"
	"github.com/rustyonions/ron-kms/audit/notekey"
	"github.com/rustyonions/ron-kms/audit/tiles"
)

// An export is a directory, or a tar, of files in the layout of C2SP tlog-tiles, with the public keys (docs/spec/audit-export.md).
const (
	exportKeys    = "keys"
	partialSuffix = ".partial"
)

// ExportOptions say what to export.
type ExportOptions struct {
	// Size is the number of records, that of a checkpoint which the log still has. 0 is that of the latest one.
	Size uint64
	// Progress, if set, is called after each tile and bundle with the number done and the number of all.
	Progress func(done, total uint64)
}

// ErrNotExport is wrapped by the error of Export if dir holds something else than an export.
var ErrNotExport = errors.New("the folder holds something else than an export")

// Export writes the signed part of the log to dir: all of it or, after an error, nothing. What it writes it has verified as
// VerifyExport does.
//
// If dir holds an earlier export of the log, the new one takes its place, and must continue it: a log that was put back or
// changed is an *IntegrityError, and the old export stays. Tiles and bundles of the earlier export, and of an export that was broken off, are not
// read from the log again.
func (r *Reader) Export(ctx context.Context, dir string, o ExportOptions) error {
	r, err := r.back(o.Size)
	if err == nil {
		err = r.export(ctx, filepath.Clean(dir), o)
	}
	if err != nil {
		return fmt.Errorf("audit: export: %w", err)
	}
	return nil
}

func (r *Reader) export(ctx context.Context, dir string, o ExportOptions) (err error) {
	earlier, err := earlierExport(dir)
	if err != nil {
		return err
	}
	partial := dir + partialSuffix
	if err := os.Mkdir(partial, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	lock, err := os.Open(partial)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return fmt.Errorf("another export writes to %s", partial)
	}
	t := target{dir, partial, make(map[string]bool)}
	if err := tiles.Export(ctx, r, r.c.size, t.has, t.write, o.Progress); err != nil {
		return err
	}
	if err := r.describe(t.write); err != nil {
		return err
	}
	if err := t.tidy(); err != nil {
		return err
	}
	check := VerifyOptions{Keys: r.chain.At(r.c.size)}
	if earlier != nil {
		check.Against = [][]byte{earlier}
	}
	if _, err := VerifyExport(ctx, partial, check); err != nil {
		if v := (*IntegrityError)(nil); errors.As(err, &v) {
			// A part that was left by a crash may be the reason, so that it is not used again.
			err = errors.Join(err, os.RemoveAll(partial))
		}
		return err
	}
	return fsys.Publish(partial, dir)
}

// earlierExport returns the checkpoint of the export in dir, nil if dir is empty or not there.
func earlierExport(dir string) ([]byte, error) {
	names, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(names) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, name := range []string{exportKeys, "tile"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			return nil, fmt.Errorf("%w: %s", ErrNotExport, dir)
		}
	}
	st, err := fsys.Open(dir)
	if err != nil {
		return nil, err
	}
	b, err := fsys.ReadFile(st, checkpointFile, maxNote)
	return b, errors.Join(err, st.Close())
}

// target is where an export is written: partial, which will replace dir.
type target struct {
	dir, partial string
	names        map[string]bool // of the files that are to be there
}

// has reports whether a tile or bundle is there already, and takes it over from the earlier export.
func (t target) has(name string) bool {
	t.names[name] = true
	path := filepath.Join(t.partial, filepath.FromSlash(name))
	if i, err := os.Lstat(path); err == nil && i.Mode().IsRegular() {
		return true
	}
	old := filepath.Join(t.dir, filepath.FromSlash(name))
	i, err := os.Lstat(old)
	if err != nil || !i.Mode().IsRegular() || os.MkdirAll(filepath.Dir(path), 0o700) != nil {
		return false
	}
	return os.Link(old, path) == nil // where that cannot be done, the file is written
}

// write puts a file in its place when it is complete, so that one that is there may be kept.
func (t target) write(name string, data []byte) error {
	t.names[name] = true
	path := filepath.Join(t.partial, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(path+fsys.TmpSuffix, data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+fsys.TmpSuffix, path)
}

// tidy removes what an export that was broken off left and this one does not have: partial tiles of another size.
func (t target) tidy() error {
	return filepath.WalkDir(t.partial, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, err := filepath.Rel(t.partial, path)
		if err != nil || t.names[filepath.ToSlash(name)] {
			return err
		}
		if err := os.Remove(path); err != nil {
			return err
		}
		// An empty folder of partial tiles goes too; one that is not empty stays.
		if parent := filepath.Dir(path); strings.HasSuffix(parent, ".p") {
			if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
				return err
			}
			return os.Remove(parent)
		}
		return nil
	})
}

// ExportTar writes the signed part of the log to w as a tar, which has the checkpoint last: one that was cut short has none.
func (r *Reader) ExportTar(ctx context.Context, w io.Writer, o ExportOptions) error {
	r, err := r.back(o.Size)
	if err != nil {
		return fmt.Errorf("audit: export: %w", err)
	}
	out := tar.NewWriter(w)
	write := func(name string, data []byte) error {
		if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(data)), Mode: 0o600}); err != nil {
			return err
		}
		_, err := out.Write(data)
		return err
	}
	err = tiles.Export(ctx, r, r.c.size, nil, write, o.Progress)
	if err == nil {
		err = r.describe(write)
	}
	if err == nil {
		err = out.Close()
	}
	if err != nil {
		return fmt.Errorf("audit: export: %w", err)
	}
	return nil
}

// describe gives write the files of an export that are not tiles, the checkpoint last.
func (r *Reader) describe(write func(name string, data []byte) error) error {
	if err := write(exportKeys, []byte(r.chain[0].Set.String()+"\n")); err != nil {
		return err
	}
	if r.st == nil {
		return write(checkpointFile, r.c.raw)
	}
	if err := write(formatFile, r.f.encode()); err != nil {
		return err
	}
	for _, name := range []string{handoverFile, cosignedFile} {
		b, err := fsys.ReadFile(r.st, name, maxHandovers)
		if notThere(err) || err == nil && name == cosignedFile && !r.covers(b) {
			continue
		}
		if err == nil {
			err = write(name, b)
		}
		if err != nil {
			return err
		}
	}
	if err := r.list(write); err != nil {
		return err
	}
	return write(checkpointFile, r.c.raw)
}

// covers reports whether a cosigned checkpoint is of this log and not of a later state of it.
func (r *Reader) covers(raw []byte) bool {
	c, err := parseCheckpoint(raw, r.f.origin)
	return err == nil && c.size <= r.c.size
}

// notesUpTo calls fn for each checkpoint that is kept, in order, up to the one of the given size.
func (r *Reader) notesUpTo(size uint64, fn func(*checkpoint) error) (err error) {
	oldest, err := oldestCheckpoints(r.st)
	if err != nil {
		return err
	}
	notes, err := newCheckpointReader(r.st, r.chain[0].Set.Name(), oldest, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, notes.close()) }()
	for {
		c, err := notes.next()
		if err == io.EOF || err == errTornNote || err == nil && c.size > size {
			return nil
		}
		if err == nil {
			err = fn(c)
		}
		if err != nil {
			return err
		}
	}
}

// list gives write the files of checkpoints, up to that of r.
func (r *Reader) list(write func(name string, data []byte) error) error {
	var b []byte
	gen := -1
	flush := func() error {
		if gen < 0 {
			return nil
		}
		return write(checkpointsName(gen), b)
	}
	err := r.notesUpTo(r.c.size, func(c *checkpoint) error {
		if c.gen != gen {
			if err := flush(); err != nil {
				return err
			}
			gen, b = c.gen, b[:0]
		}
		b = append(append(b, c.raw...), '\n')
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}

// back returns r as it was at an earlier checkpoint, 0 for the latest.
func (r *Reader) back(size uint64) (*Reader, error) {
	if size == 0 || size == r.c.size {
		return r, nil
	}
	if r.st == nil {
		return nil, errors.New("only the folder of a log has its earlier checkpoints")
	}
	var found *checkpoint
	err := r.notesUpTo(size, func(c *checkpoint) error {
		if c.size == size {
			found = c
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if found == nil {
		return nil, fmt.Errorf("the log has no checkpoint over %d records any more", size)
	}
	if err := r.Continues(found.raw); err != nil {
		return nil, err
	}
	return r.as(found), nil
}

// ReadExport returns a Reader of the export in dir, whose checkpoint must be signed by keys, or by others that keys lead to. It
// checks what it reads; only VerifyExport checks everything.
func ReadExport(dir string, keys *notekey.Set) (*Reader, error) {
	if keys == nil {
		return nil, errors.New("audit: export: the keys are required")
	}
	st, err := fsys.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("audit: export: %w", err)
	}
	e := new(exported)
	err = e.begin(st, keys)
	if e.notes != nil {
		err = errors.Join(err, e.notes.close())
	}
	if v := (*IntegrityError)(nil); errors.As(err, &v) {
		err = outside(0, v.Reason)
	}
	if err = errors.Join(err, st.Close()); err != nil {
		return nil, err
	}
	src, err := tiles.NewDirSource(dir)
	if err != nil {
		return nil, fmt.Errorf("audit: export: %w", err)
	}
	c := e.current
	return &Reader{src: src, size: c.size, root: c.root, c: c, chain: e.chain, closers: []io.Closer{src}}, nil
}
