package audit

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/rustyonions/ron-kms/audit/fsys"
	"github.com/rustyonions/ron-kms/audit/tiles"
)

// Create makes a new log in dir, which must be empty or not exist. It is a ceremony of its own, so that a log that went
// missing is never replaced by an empty one. The format file is written last: without it there is no log, and what an
// interrupted Create left must be removed by hand. Errors wrap ErrExists if dir holds anything.
func Create(dir string, o Options) error {
	o, err := o.withDefaults(true)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("audit: create: %w", err)
	}
	st, err := fsys.Open(dir)
	if err != nil {
		return fmt.Errorf("audit: create: %w", err)
	}
	err = createIn(st, o)
	if err == nil {
		err = syncParent(dir)
	}
	if err = errors.Join(err, st.Close()); err != nil {
		return fmt.Errorf("audit: create: %w", err)
	}
	return nil
}

// syncParent makes the name of dir durable.
func syncParent(dir string) error {
	d, err := os.Open(filepath.Dir(filepath.Clean(dir)))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// createIn writes the files of a new log: one frame with the genesis record, a head that says closed, the
// first checkpoint, and a snapshot of the beginning.
func createIn(st fsys.Dir, o Options) (err error) {
	names, err := st.List()
	if err != nil {
		return err
	}
	if len(names) != 0 {
		return ErrExists
	}
	f := &format{origin: o.Origin, keys: o.Keys.String(), segment: o.SegmentSize}
	rand.Read(f.id[:])
	if f, err = parseFormat(f.encode()); err != nil {
		return err
	}
	d := &disk{st: keepDir{st}, f: f, mac: borrowedMAC(o.MACKey), limit: frameLimit(f.segment), ckptsMax: checkpointsSize}
	defer func() { err = errors.Join(err, d.close()) }()
	if d.seg, err = makeSegment(st, 0, f.segment); err != nil {
		return err
	}
	if d.head, err = st.OpenFile(headFile, os.O_RDWR|os.O_CREATE|os.O_EXCL); err != nil {
		return err
	}
	if d.ckpts, err = st.OpenFile(checkpointsName(0), os.O_RDWR|os.O_CREATE|os.O_EXCL); err != nil {
		return err
	}
	start := &snapshot{at: position{tag: f.sum}}
	b, err := start.encode(f.id, nil, d.mac)
	if err != nil {
		return err
	}
	if err := fsys.ReplaceFile(st, snapshotFile, b); err != nil {
		return err
	}
	l := newLog(o, d, d.limit)
	l.tag = f.sum
	l.tiles = tiles.NewMemory(1) // the first opening makes the files
	l.nextBatch()
	genesis := &Record{Kind: KindGenesis, InputHash: f.sum}
	l.prepare(genesis)
	e := new(encoding)
	if _, err := e.add(genesis); err != nil {
		return err
	}
	if _, err := l.enqueue(l.cur, []*Record{genesis}, e); err != nil {
		return err
	}
	if _, l.root, err = l.write(l.cur); err != nil {
		return err
	}
	l.end = l.after(l.cur)
	d.headGen = 0
	if err := l.closeHead(); err != nil {
		return err
	}
	if err := l.checkpointNow(true); err != nil {
		return err
	}
	return fsys.ReplaceFile(st, formatFile, f.encode())
}

// keepDir is a directory that outlives the disk that uses it.
type keepDir struct{ fsys.Dir }

func (keepDir) Close() error { return nil }

// NewMemory returns a log that writes nothing: the same receipts, sequences, tree, proofs and checkpoints, gone with the
// process. It keeps the latest 65536 records, and what proofs about them need.
func NewMemory(o Options) (*Log, error) {
	o, err := o.withDefaults(false)
	if err != nil {
		return nil, err
	}
	l := newLog(o, nil, maxFrame)
	l.tiles = tiles.NewMemory(memoryRecords)
	l.nextBatch()
	ctx := context.Background()
	if _, err := l.append(ctx, false, &Record{Kind: KindGenesis}); err != nil {
		return nil, err
	}
	if err := l.checkpointNow(true); err != nil {
		return nil, err
	}
	if _, err := l.append(ctx, false, &Record{Kind: KindOpen, Ref: l.latest.size, InputHash: l.latest.hash()}); err != nil {
		return nil, err
	}
	l.named = true
	if err := l.checkpointNow(false); err != nil {
		return nil, err
	}
	l.start()
	return l, nil
}
