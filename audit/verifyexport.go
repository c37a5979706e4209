package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rustyonions/ron-kms/audit/fsys"
	"github.com/rustyonions/ron-kms/audit/keymap"
	"github.com/rustyonions/ron-kms/audit/notekey"
	"github.com/rustyonions/ron-kms/audit/tiles"
)

// VerifyExport checks an export in dir (docs/spec/audit-export.md) with nothing but o.Keys: the signatures of its checkpoints, that
// the records lead to the signed root and to each tile, all that the records say about each other, that every checkpoint is named by
// a record, and the roots of the key map. It uses the Keys, Progress, OnRecord, Against and Witnesses of o.
//
// What is wrong with the export is an *IntegrityError with VerdictExport. The Report then covers the records before it.
func VerifyExport(ctx context.Context, dir string, o VerifyOptions) (*Report, error) {
	if o.Keys == nil {
		return nil, errors.New("audit: verify: the keys are required")
	}
	st, err := fsys.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("audit: verify: %w", err)
	}
	src, err := tiles.NewDirSource(dir)
	if err != nil {
		return nil, errors.Join(err, st.Close())
	}
	e := &exported{src: src, report: new(Report), hashes: tileHashes{src: src}}
	e.onRecord = e.report.counting(o)
	err = e.verify(ctx, st, o)
	if e.notes != nil {
		err = errors.Join(err, e.notes.close())
	}
	if v := (*IntegrityError)(nil); errors.As(err, &v) {
		err = outside(e.size, v.Reason)
	}
	e.fill()
	return e.report, errors.Join(err, src.Close(), st.Close())
}

// exported is an export that is being verified.
type exported struct {
	history
	src    tiles.Source
	hashes tileHashes
	report *Report
}

func (e *exported) verify(ctx context.Context, st fsys.Dir, o VerifyOptions) (err error) {
	if err := e.begin(st, o.Keys); err != nil {
		return err
	}
	if err := e.expect(o.Against...); err != nil {
		return err
	}
	if e.report.Cosigned, err = e.cosigned(st, o.Witnesses); err != nil {
		return err
	}
	size := e.current.size
	for e.size < size {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("audit: verify: %w", context.Cause(ctx))
		}
		if err := e.bundle(e.size/tiles.Width, int(min(size-e.size, tiles.Width))); err != nil {
			return err
		}
		if o.Progress != nil {
			o.Progress(e.size, size)
		}
	}
	return e.finish()
}

// begin reads everything but records and tiles.
func (e *exported) begin(st fsys.Dir, keys *notekey.Set) error {
	e.tornAt, e.tree = -1, newTree()
	e.keys, e.keyMap, e.pending = keymap.NewTable(), new(keymap.Map), make(map[uint64]*Record)
	text, err := e.file(st, exportKeys, 64<<10)
	if err != nil {
		return err
	}
	first, err := notekey.ParseSet(string(text))
	if err == nil && first.String()+"\n" != string(text) {
		err = errors.New("not in canonical form")
	}
	if err != nil {
		return e.fail(VerdictExport, "the file %s: %v", exportKeys, err)
	}
	e.origin = first.Name()
	text, err = fsys.ReadFile(st, formatFile, 64<<10)
	switch {
	case notThere(err): // a server does not give it out
	case err != nil:
		return fmt.Errorf("audit: %s: %w", formatFile, err)
	default:
		f, err := parseFormat(text)
		if err != nil {
			return e.fail(VerdictExport, "the file %s: %v", formatFile, err)
		}
		if f.keys != first.String() || f.origin != e.origin {
			return e.fail(VerdictExport, "the files %s and %s are of different logs", formatFile, exportKeys)
		}
		e.sum = &f.sum
	}
	if err := e.loadChain(st, first); err != nil {
		return err
	}
	if len(e.chain) == 1 {
		e.reload = func() error { return e.missing(handoverFile) } // a record speaks of one
	}
	if err := e.trusts(keys); err != nil {
		return err
	}
	text, err = e.file(st, checkpointFile, maxNote)
	if err != nil {
		return err
	}
	if e.current, err = parseCheckpoint(text, e.origin); err == nil {
		_, _, err = e.chain.At(e.current.size).VerifyCosigned(text) // a witness may have added its signature
	}
	if err != nil {
		return e.fail(VerdictExport, "the checkpoint: %v", err)
	}
	oldest, err := oldestCheckpoints(st)
	if notThere(err) {
		return nil
	}
	if err == nil {
		e.notes, err = newCheckpointReader(st, e.origin, oldest, 0)
	}
	if err != nil {
		return fmt.Errorf("audit: %s: %w", checkpointsName(oldest), err)
	}
	return nil
}

// file reads a file that every export has.
func (e *exported) file(st fsys.Dir, name string, limit int64) ([]byte, error) {
	b, err := fsys.ReadFile(st, name, limit)
	if notThere(err) {
		return nil, e.missing(name)
	}
	if err != nil {
		return nil, fmt.Errorf("audit: %s: %w", name, err)
	}
	return b, nil
}

func (e *exported) missing(name string) error {
	return e.fail(VerdictExport, "the file %s is not there", name)
}

// bundle takes the records of a bundle, or only their hashes if they were pruned.
func (e *exported) bundle(n uint64, width int) error {
	recs, err := tiles.ReadBundle(e.src, n, width)
	if errors.Is(err, fs.ErrNotExist) && e.kept == e.size && width == tiles.Width {
		return e.skip(n)
	}
	if err != nil {
		return e.damaged(tiles.Entries, n, width, err)
	}
	for _, b := range recs {
		if err := e.add(b); err != nil {
			return err
		}
		if err := e.hashes.add(0, leafHash(b)); err != nil {
			return e.damaged(tiles.Entries, n, width, err)
		}
	}
	return nil
}

// skip takes the leaf hashes of a bundle of pruned records.
func (e *exported) skip(n uint64) error {
	leaves, err := tiles.ReadHashes(e.src, 0, n, tiles.Width)
	if errors.Is(err, fs.ErrNotExist) {
		return e.missing(tiles.Path(tiles.Entries, n, tiles.Width))
	}
	if err != nil {
		return e.damaged(0, n, tiles.Width, err)
	}
	e.kept, e.keyMap = (n+1)*tiles.Width, nil // what the pruned records said of keys is gone
	for ; len(leaves) > 0; leaves = leaves[tlog.HashSize:] {
		leaf := [32]byte(leaves)
		if err := e.addHash(leaf); err != nil {
			return err
		}
		if err := e.hashes.add(0, leaf); err != nil {
			return e.damaged(0, n, tiles.Width, err)
		}
	}
	return nil
}

// damaged turns what is wrong with tiles into a verdict.
func (e *exported) damaged(level int, n uint64, width int, err error) error {
	var v *tiles.DamageError
	switch {
	case errors.As(err, &v), errors.Is(err, tiles.ErrBundle):
		return e.fail(VerdictExport, "%v", err)
	case errors.Is(err, fs.ErrNotExist):
		return e.missing(tiles.Path(level, n, width))
	}
	return fmt.Errorf("audit: verify: %w", err)
}

// finish checks what can be checked at the end only.
func (e *exported) finish() (err error) {
	if err := e.hashes.finish(); err != nil {
		return e.damaged(0, 0, tiles.Width, err)
	}
	if e.root, err = e.tree.root(); err != nil {
		return err
	}
	switch last := e.latest; {
	case e.root != e.current.root:
		return e.fail(VerdictExport, "the records do not lead to the root of the checkpoint")
	case e.kept == e.size, e.pruned < e.kept:
		return e.fail(VerdictExport, "the records before %d are not there, and no record says that they were given up", e.kept)
	case e.notes == nil:
		e.ckptTime = e.lastTime
	case e.next != nil || e.tornAt >= 0 || last == nil || !bytes.HasPrefix(e.current.raw, last.raw):
		return e.fail(VerdictExport, "the list of checkpoints does not end with the latest one")
	}
	return e.compared()
}

// fill writes the report.
func (e *exported) fill() {
	r := e.report
	r.Origin, r.Size, r.Root, r.Pruned, r.Checkpoints, r.Clean = e.origin, e.size, e.root, e.kept, e.count, true
	if e.keys != nil {
		r.Keys = e.keys.Len()
	}
	if e.current != nil {
		r.CheckpointSize, r.CheckpointTime = e.current.size, e.ckptTime
		r.Checkpoints = max(r.Checkpoints, 1)
	}
}

// tileHashes compares tiles with the leaf hashes that they are over.
type tileHashes struct {
	src    tiles.Source
	levels []tileLevel
}

type tileLevel struct {
	n    uint64 // the tile that is being filled
	tile []byte
}

// add takes the next hash of a level. A complete tile is compared, and its root is the next hash of the level above.
func (t *tileHashes) add(level int, h [32]byte) error {
	if level == len(t.levels) {
		t.levels = append(t.levels, tileLevel{})
	}
	l := &t.levels[level]
	if l.tile = append(l.tile, h[:]...); len(l.tile) < tiles.Width*tlog.HashSize {
		return nil
	}
	if err := t.compare(level); err != nil {
		return err
	}
	root := treeHash(l.tile)
	l.n, l.tile = l.n+1, l.tile[:0]
	return t.add(level+1, root)
}

// finish compares the partial tiles.
func (t *tileHashes) finish() error {
	for level := range t.levels {
		if len(t.levels[level].tile) > 0 {
			if err := t.compare(level); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *tileHashes) compare(level int) error {
	l := t.levels[level]
	width := len(l.tile) / tlog.HashSize
	b, err := tiles.ReadHashes(t.src, level, l.n, width)
	reason := "the hashes are not those of the records"
	if errors.Is(err, fs.ErrNotExist) {
		err, reason = nil, "the file is not there"
	}
	if err == nil && !bytes.Equal(b, l.tile) {
		err = &tiles.DamageError{Level: level, Index: l.n, Reason: reason}
	}
	return err
}

// treeHash returns the root over hashes, of which there are a power of two.
func treeHash(hashes []byte) tlog.Hash {
	if len(hashes) == tlog.HashSize {
		return tlog.Hash(hashes)
	}
	n := len(hashes) / 2
	return tlog.NodeHash(treeHash(hashes[:n]), treeHash(hashes[n:]))
}
