package audit

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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
	st, err := openStorage(dir)
	if err != nil {
		return fmt.Errorf("audit: create: %w", err)
	}
	err = createIn(st, o)
	if err == nil {
		err = syncParent(dir)
	}
	if err = errors.Join(err, st.close()); err != nil {
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

// createIn writes the files of a new log: one frame with the genesis record, a head that says closed, and the
// first checkpoint.
func createIn(st storage, o Options) (err error) {
	names, err := st.list()
	if err != nil {
		return err
	}
	if len(names) != 0 {
		return ErrExists
	}
	f := &format{origin: o.Origin, vkey: o.VerifierKey, segment: o.SegmentSize}
	rand.Read(f.id[:])
	if f, err = parseFormat(f.encode()); err != nil {
		return err
	}
	d := &disk{st: keepDir{st}, f: f, mac: borrowedMAC(o.MACKey), limit: frameLimit(f.segment)}
	defer func() { err = errors.Join(err, d.close()) }()
	if d.seg, err = makeSegment(st, 0, f.segment); err != nil {
		return err
	}
	if d.head, err = st.openFile(headFile, os.O_RDWR|os.O_CREATE|os.O_EXCL); err != nil {
		return err
	}
	if d.ckpts, err = st.openFile(checkpointsFile, os.O_RDWR|os.O_CREATE|os.O_EXCL); err != nil {
		return err
	}
	l := newLog(o, d, d.limit)
	l.tag = f.sum
	l.nextBatch()
	genesis := &Record{Kind: KindGenesis, InputHash: f.sum}
	l.prepare(genesis)
	if _, err := l.enqueue(l.cur, []*Record{genesis}); err != nil {
		return err
	}
	if _, l.root, err = l.write(l.cur); err != nil {
		return err
	}
	l.size = 1
	d.headGen = 0
	if err := l.closeHead(); err != nil {
		return err
	}
	if err := l.checkpointNow(true); err != nil {
		return err
	}
	return replaceFile(st, formatFile, f.encode())
}

// keepDir is a storage that outlives the disk that uses it.
type keepDir struct{ storage }

func (keepDir) close() error { return nil }
