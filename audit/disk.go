package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// The files of a log.
const (
	formatFile      = "format"
	headFile        = "head"
	checkpointFile  = "checkpoint"
	checkpointsFile = "checkpoints.log"
	tmpSuffix       = ".tmp"
)

func segmentName(n int) string { return fmt.Sprintf("seg-%08d", n) }

// format is what the format file says. It never changes after Create.
type format struct {
	id      [16]byte // random: two logs with the same key do not fit each other's frames
	origin  string
	vkey    string
	segment int64
	sum     [32]byte // SHA-256 of the file; the first record holds it, and the first frame links to it
}

const formatTitle = "ron-kms audit log 1"

func (f *format) encode() []byte {
	return fmt.Appendf(nil, "%s\nid %x\norigin %s\nvkey %s\nsegment %d\n", formatTitle, f.id, f.origin, f.vkey, f.segment)
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
	f.vkey = strings.TrimPrefix(lines[3], "vkey ")
	f.segment, err = strconv.ParseInt(strings.TrimPrefix(lines[4], "segment "), 10, 64)
	if err != nil || f.segment < minSegmentSize || f.segment > maxSegmentSize || f.segment%sector != 0 {
		return nil, errors.New("the segment size is out of range")
	}
	if string(f.encode()) != string(b) {
		return nil, errors.New("the file is not in canonical form")
	}
	return f, nil
}

// disk writes the files of an open log. All its methods belong to the one goroutine that leads a commit, except
// writeCheckpoint and syncHead, which belong to the one that makes a checkpoint.
type disk struct {
	st    storage
	f     *format
	mac   macFunc
	lock  interface{ Close() error }
	limit int

	seg     file // the current segment
	segNum  int
	off     int64
	spare   file            // the next segment, if it is ready
	filling chan segmentFit // the next segment, while it is being prepared

	head    file
	headGen uint64
	ckpts   file
	ckptsAt int64
}

type segmentFit struct {
	f   file
	err error
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
	if _, err := d.seg.WriteAt(buf, d.off); err != nil {
		return buf, tag, fmt.Errorf("write: %w", err)
	}
	if err := d.seg.datasync(); err != nil {
		return buf, tag, fmt.Errorf("sync: %w", err)
	}
	d.off += int64(len(buf))
	// A log of many segments never waits for zeros to be written: the next segment is made while this one fills up.
	if d.off > d.f.segment/2 && d.spare == nil && d.filling == nil {
		d.filling = make(chan segmentFit, 1)
		go func(n int, done chan<- segmentFit) {
			f, err := makeSegment(d.st, n, d.f.segment)
			done <- segmentFit{f, err}
		}(d.segNum+1, d.filling)
	}
	return buf, tag, nil
}

// roll goes on to the next segment.
func (d *disk) roll() error {
	if err := d.settle(); err != nil || d.spare == nil {
		// Preparing ahead may have failed for a reason that is over, such as a full disk: this is the attempt that counts.
		if d.spare, err = makeSegment(d.st, d.segNum+1, d.f.segment); err != nil {
			return err
		}
	}
	err := d.seg.Close()
	d.seg, d.spare, d.off = d.spare, nil, 0
	d.segNum++
	return err
}

// settle waits for the segment that is being prepared, if any.
func (d *disk) settle() error {
	if d.filling == nil {
		return nil
	}
	fit := <-d.filling
	d.filling = nil
	d.spare = fit.f
	return fit.err
}

// makeSegment writes a segment of zeros. Frames then overwrite blocks that exist, at about half the
// cost of a sync that must also commit a new size or extent.
func makeSegment(st storage, n int, size int64) (file, error) {
	name := segmentName(n)
	f, err := st.openFile(name+tmpSuffix, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return nil, err
	}
	err = fillZeros(f, 0, size)
	if err == nil {
		err = st.rename(name+tmpSuffix, name)
	}
	if err == nil {
		err = st.syncDir()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// fillZeros makes f durably zero from off to end. It syncs often, so that commits next to it do not
// wait for one large sync.
func fillZeros(f file, off, end int64) error {
	zeros := make([]byte, min(1<<20, end-off))
	for off < end {
		n := min(int64(len(zeros)), end-off)
		if _, err := f.WriteAt(zeros[:n], off); err != nil {
			return err
		}
		if err := f.datasync(); err != nil {
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

// writeCheckpoint makes c durable: in the list of all checkpoints first, then as the latest one; and the head with it.
func (d *disk) writeCheckpoint(c *checkpoint) error {
	entry := append(c.raw[:len(c.raw):len(c.raw)], '\n')
	if _, err := d.ckpts.WriteAt(entry, d.ckptsAt); err != nil {
		return fmt.Errorf("checkpoints: write: %w", err)
	}
	if err := d.ckpts.datasync(); err != nil {
		return fmt.Errorf("checkpoints: sync: %w", err)
	}
	d.ckptsAt += int64(len(entry))
	if err := replaceFile(d.st, checkpointFile, c.raw); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return d.syncHead()
}

func (d *disk) syncHead() error {
	if err := d.head.datasync(); err != nil {
		return fmt.Errorf("head: sync: %w", err)
	}
	return nil
}

// close closes the files and gives up the lock.
func (d *disk) close() error {
	d.settle() // a segment that was prepared in vain is no fault of the log
	var errs []error
	for _, f := range []file{d.seg, d.spare, d.head, d.ckpts} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	if d.lock != nil {
		errs = append(errs, d.lock.Close())
	}
	return errors.Join(append(errs, d.st.close())...)
}
