package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/rustyonions/ron-kms/audit/fsys"
)

// The files of a log, apart from those of its tiles (package tiles).
const (
	formatFile     = "format"
	headFile       = "head"
	snapshotFile   = "snapshot"
	checkpointFile = "checkpoint"
	cosignedFile   = "cosigned"
	handoverFile   = "handovers"

	segmentPrefix    = "seg-"
	checkpointPrefix = "checkpoints-"
)

func checkpointsName(n int) string { return fmt.Sprintf("%s%08d", checkpointPrefix, n) }

func segmentName(n int) string { return fmt.Sprintf("%s%08d", segmentPrefix, n) }

// format is what the format file says. It never changes after Create.
type format struct {
	id      [16]byte // random: two logs with the same key do not fit each other's frames
	origin  string
	keys    string // the keys the log began with (notekey.Set)
	segment int64
	sum     [32]byte // SHA-256 of the file; the first record holds it, and the first frame links to it
}

const formatTitle = "ron-kms audit log 2"

func (f *format) encode() []byte {
	return fmt.Appendf(nil, "%s\nid %x\norigin %s\nkeys %s\nsegment %d\n", formatTitle, f.id, f.origin, f.keys, f.segment)
}

// parseFormat decodes the format file and accepts only what encode writes.
func parseFormat(b []byte) (*format, error) {
	lines := strings.Split(string(b), "\n")
	if len(lines) != 6 || lines[0] != formatTitle {
		return nil, errors.New("not the format of an audit log that this program knows")
	}
	f := &format{sum: sha256.Sum256(b)}
	id, err := hex.DecodeString(strings.TrimPrefix(lines[1], "id "))
	if err != nil || len(id) != 16 {
		return nil, errors.New("the log id is malformed")
	}
	f.id = [16]byte(id)
	f.origin = strings.TrimPrefix(lines[2], "origin ")
	f.keys = strings.TrimPrefix(lines[3], "keys ")
	f.segment, err = strconv.ParseInt(strings.TrimPrefix(lines[4], "segment "), 10, 64)
	if err != nil || f.segment < minSegmentSize || f.segment > maxSegmentSize || f.segment%sector != 0 {
		return nil, errors.New("the segment size is out of range")
	}
	if string(f.encode()) != string(b) {
		return nil, errors.New("the file is not in canonical form")
	}
	return f, nil
}

// disk writes the files of an open log. Its methods belong to the one goroutine that leads a commit, except for
// those of checkpoints, which belong to the one that makes a checkpoint, and those of spares, which are the keeper's.
type disk struct {
	st    fsys.Dir
	f     *format
	mac   macFunc
	lock  interface{ Close() error }
	limit int

	seg    fsys.File // the current segment
	segNum int
	off    int64

	growing sync.Mutex // held while a segment gets its number and its name

	mu     sync.Mutex
	spares []fsys.File // the segments after the current one, full of zeros
	base   int         // the oldest segment that is there

	mirrors []mirrored

	head    fsys.File
	headGen uint64

	ckpts    fsys.File
	ckptGen  int
	ckptBase int // the oldest file of checkpoints
	ckptsAt  int64
	ckptsMax int64 // when another file of checkpoints is begun
	ckptTorn bool  // an attempt to write a checkpoint failed, and may have left something behind ckptsAt
}

// write appends a frame whose records are in buf and returns it once it is durable.
func (d *disk) write(buf []byte, count int, first uint64, prev, root [32]byte) (_ []byte, tag [32]byte, err error) {
	buf, tag, err = sealFrame(buf, count, first, prev, root, d.mac)
	if err != nil {
		return buf, tag, err
	}
	if d.off+int64(len(buf)) > d.f.segment {
		if err := d.roll(); err != nil {
			return buf, tag, fmt.Errorf("next segment: %w", err)
		}
	}
	// The mirrors write at the same time.
	errs := make([]error, len(d.mirrors))
	var wg sync.WaitGroup
	for i, m := range d.mirrors {
		wg.Go(func() { errs[i] = m.keep(buf, first+uint64(count)) })
	}
	_, err = d.seg.WriteAt(buf, d.off)
	if err != nil {
		err = fmt.Errorf("write: %w", err)
	} else if err = d.seg.Datasync(); err != nil {
		err = fmt.Errorf("sync: %w", err)
	}
	wg.Wait()
	d.off += int64(len(buf))
	return buf, tag, errors.Join(err, errors.Join(errs...))
}

// roll goes on to the next segment. Callers of Append are let in only when there is one. What the log writes for itself, and
// answers to what was begun, may come to the end of the ring: then it grows beyond its bound. To wait for the keeper instead would be a
// deadlock, because the keeper may wait for this very commit.
func (d *disk) roll() error {
	if d.spareCount() == 0 {
		if _, err := d.grow(1, math.MaxInt); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	err := d.seg.Close()
	d.seg, d.off = d.spares[0], 0
	d.spares = append([]fsys.File(nil), d.spares[1:]...)
	d.segNum++
	return err
}

// grow makes one more spare segment unless there are enough of them, or the ring has most segments, and reports whether it did.
func (d *disk) grow(enough, most int) (bool, error) {
	d.growing.Lock()
	defer d.growing.Unlock()
	n, next, _ := d.count()
	if d.spareCount() >= enough || n >= most {
		return false, nil
	}
	f, err := makeSegment(d.st, next, d.f.segment)
	if err != nil {
		return false, err
	}
	d.addSpare(f)
	return true, nil
}

func (d *disk) spareCount() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.spares)
}

// count returns how many segments there are, the number of the next spare, and the oldest.
func (d *disk) count() (n, next, base int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	next = d.segNum + len(d.spares) + 1
	return next - d.base, next, d.base
}

// addSpare makes f the last spare.
func (d *disk) addSpare(f fsys.File) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.spares = append(d.spares, f)
}

// recycle turns the oldest segment, whose records are packed, into the last spare, or removes it.
func (d *disk) recycle(spare bool) error {
	d.growing.Lock()
	defer d.growing.Unlock()
	_, next, base := d.count()
	name := segmentName(base)
	if !spare {
		if err := d.st.Remove(name); err != nil {
			return err
		}
		d.dropped()
		return nil
	}
	f, err := d.st.OpenFile(name, os.O_RDWR)
	if err != nil {
		return err
	}
	err = fillZeros(f, 0, d.f.segment)
	if err == nil {
		err = d.st.Rename(name, segmentName(next))
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	d.dropped()
	if err := d.st.SyncDir(); err != nil {
		return errors.Join(err, f.Close())
	}
	d.addSpare(f)
	return nil
}

func (d *disk) dropped() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.base++
}

// makeSegment writes a segment of zeros. Frames then overwrite blocks that exist, at about half the
// cost of a sync that must also commit a new size or extent.
func makeSegment(st fsys.Dir, n int, size int64) (fsys.File, error) {
	name := segmentName(n)
	f, err := st.OpenFile(name+fsys.TmpSuffix, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return nil, err
	}
	err = fillZeros(f, 0, size)
	if err == nil {
		err = st.Rename(name+fsys.TmpSuffix, name)
	}
	if err == nil {
		err = st.SyncDir()
	}
	if err != nil {
		// A half of it would take the place that something smaller needs.
		return nil, errors.Join(err, f.Close(), fsys.RemoveIfExists(st, name+fsys.TmpSuffix))
	}
	return f, nil
}

// fillZeros makes f durably zero from off to end. It syncs often, so that commits next to it do not
// wait for one large sync.
func fillZeros(f fsys.File, off, end int64) error {
	zeros := make([]byte, min(1<<20, end-off))
	for off < end {
		n := min(int64(len(zeros)), end-off)
		if _, err := f.WriteAt(zeros[:n], off); err != nil {
			return err
		}
		if err := f.Datasync(); err != nil {
			return err
		}
		off += n
	}
	return nil
}

// writeHead writes h to the older slot, without syncing it.
func (d *disk) writeHead(h head) error {
	d.headGen++
	h.gen = d.headGen
	b, err := h.encode(d.f.id, d.mac)
	if err != nil {
		return err
	}
	_, err = d.head.WriteAt(b, int64(h.gen%2)*sector)
	return err
}

// writeCheckpoint makes c durable: in the list of checkpoints first, then as the latest one; and the head with it. After an
// error that says that the disk is full, it may be called again with a newer checkpoint.
func (d *disk) writeCheckpoint(c *checkpoint) error {
	entry := append(c.raw[:len(c.raw):len(c.raw)], '\n')
	if d.ckptsAt >= d.ckptsMax {
		if err := d.nextCheckpoints(); err != nil {
			return fmt.Errorf("checkpoints: %w", err)
		}
	}
	if d.ckptTorn {
		// What an attempt left that failed for want of space goes durably, so that a crash cannot mix it with what follows.
		err := d.ckpts.Truncate(d.ckptsAt)
		if err == nil {
			err = d.ckpts.Datasync()
		}
		if err != nil {
			return fmt.Errorf("checkpoints: cut: %w", err)
		}
	}
	d.ckptTorn = true
	if _, err := d.ckpts.WriteAt(entry, d.ckptsAt); err != nil {
		return fmt.Errorf("checkpoints: write: %w", err)
	}
	if err := d.ckpts.Datasync(); err != nil {
		return fmt.Errorf("checkpoints: sync: %w", err)
	}
	if err := fsys.ReplaceFile(d.st, checkpointFile, c.raw); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	c.gen, c.off, d.ckptTorn = d.ckptGen, d.ckptsAt, false
	d.ckptsAt += int64(len(entry))
	return d.syncHead()
}

// nextCheckpoints begins another file of checkpoints.
func (d *disk) nextCheckpoints() error {
	f, err := d.st.OpenFile(checkpointsName(d.ckptGen+1), os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	if err := d.st.SyncDir(); err != nil {
		return errors.Join(err, f.Close())
	}
	err = d.ckpts.Close()
	d.ckpts, d.ckptsAt = f, 0
	d.ckptGen++
	return err
}

// trimCheckpoints removes the files of checkpoints up to number last, the oldest first and durably one by one: a crash must not leave a
// gap.
func (d *disk) trimCheckpoints(last int) error {
	for ; d.ckptBase <= last; d.ckptBase++ {
		if err := fsys.RemoveIfExists(d.st, checkpointsName(d.ckptBase)); err != nil {
			return err
		}
		if err := d.st.SyncDir(); err != nil {
			return err
		}
	}
	return nil
}

func (d *disk) syncHead() error {
	if err := d.head.Datasync(); err != nil {
		return fmt.Errorf("head: sync: %w: %w", errUnknown, err)
	}
	return nil
}

// close closes the files and gives up the lock.
func (d *disk) close() error {
	var errs []error
	for _, f := range append([]fsys.File{d.seg, d.head, d.ckpts}, d.spares...) {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	if d.lock != nil {
		errs = append(errs, d.lock.Close())
	}
	return errors.Join(append(errs, d.st.Close())...)
}

// errUnknown is wrapped by errors after which nobody knows what the disk has, so that trying again would be wrong.
var errUnknown = errors.New("what the disk has is not known")

// isFull reports whether err says that the disk has no place left: the one failure that may pass by itself. It may not when a file
// was replaced and only its name is not durable: to go on as if nothing had happened would contradict what may be there.
func isFull(err error) bool {
	return (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) && !errors.Is(err, fsys.ErrReplaced) && !errors.Is(err, errUnknown)
}
