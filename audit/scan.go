package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/rustyonions/ron-kms/audit/fsys"
	"github.com/rustyonions/ron-kms/audit/notekey"
	"github.com/rustyonions/ron-kms/audit/tiles"
)

// scanner reads a log and judges it. It changes nothing. Open and Verify share it, so that they agree: Open reads from the
// snapshot on, Verify the packed records before it too.
type scanner struct {
	history
	st       fsys.Dir
	f        *format
	mac      macFunc // nil: frames, head and snapshot are not authenticated
	limit    int
	onLeaf   func(record []byte, leaf [32]byte) // what the ring has after the snapshot
	progress func(done, total uint64)
	live     func() (bool, error) // reports whether a writer has the log open; nil: none can
	prefetch map[int][]byte       // segments read beforehand

	snap   *snapshot
	slots  [2]*head // nil if damaged
	slotOK [2]bool  // agrees with the records
	seg0   int      // the first segment to read
	segs   int      // the number after the last segment
	old    []int    // segments before, which are free

	// Of the last frame of the prefix.
	lastSize uint64 // the size before it
	lastLen  int    // its length in bytes; 0 if none was read
	tag      [32]byte

	// What follows the prefix.
	why     error // why the next frame was refused
	garbage []byte
	gseg    int
	goff    int64
	later   *frame // an authentic frame in the garbage or after it
	stray   bool   // bytes at places that no crash writes to
}

// missing turns the error of a file that is not there, or is longer than the log writes it, into a verdict.
func (s *scanner) missing(name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return s.fail(VerdictMissing, "the file %s is not there", name)
	}
	if errors.Is(err, fsys.ErrTooLong) {
		return s.fail(VerdictTampered, "%v", err)
	}
	return fmt.Errorf("audit: %s: %w", name, err)
}

// begin reads the format file and the succession of keys.
func (s *scanner) begin() error {
	s.tornAt = -1
	b, err := fsys.ReadFile(s.st, formatFile, 64<<10)
	if err != nil {
		return s.missing(formatFile, err)
	}
	if s.f, err = parseFormat(b); err != nil {
		return s.fail(VerdictFormat, "%v", err)
	}
	s.limit = frameLimit(s.f.segment)
	s.origin, s.sum = s.f.origin, &s.f.sum
	s.tag, s.tree = s.f.sum, newTree()
	first, err := notekey.ParseSet(s.f.keys)
	if err != nil || first.Name() != s.f.origin {
		return s.fail(VerdictFormat, "the keys in the format file are malformed (%v)", err)
	}
	return s.loadChain(s.st, first)
}

// prepare reads everything but records. Head and checkpoints are read before the records: in a log that is being written
// they can only be behind.
func (s *scanner) prepare() error {
	b, err := fsys.ReadFile(s.st, headFile, 2*sector)
	if err != nil {
		return s.missing(headFile, err)
	}
	if len(b) != 2*sector {
		return s.fail(VerdictHead, "the head register is not of 1024 bytes")
	}
	for i := range s.slots {
		if s.slots[i], err = parseHead(b[i*sector:(i+1)*sector], uint64(i), s.f.id, s.mac); err != nil {
			return err
		}
	}
	if s.slots[0] == nil && s.slots[1] == nil {
		return s.fail(VerdictHead, "both slots of the head register are damaged")
	}
	if b, err = fsys.ReadFile(s.st, checkpointFile, maxNote); err != nil {
		return s.missing(checkpointFile, err)
	}
	if s.current, err = parseCheckpoint(b, s.f.origin); err == nil {
		err = s.checkSig(s.current)
	}
	if err != nil {
		return s.fail(VerdictCheckpoint, "the latest checkpoint: %v", err)
	}
	for {
		if err := s.loadSnapshot(); err != nil {
			return err
		}
		err := s.countSegments()
		if err == nil || s.live == nil {
			return err
		}
		// A running log may have recycled segments since the snapshot was read.
		was := s.snap.at
		if e := s.loadSnapshot(); e != nil || s.snap.at == was {
			return err
		}
	}
}

func (s *scanner) loadSnapshot() error {
	b, err := fsys.ReadFile(s.st, snapshotFile, maxSnapshot)
	if err != nil {
		return s.missing(snapshotFile, err)
	}
	if s.snap, err = parseSnapshot(b, s.f.id, s.mac); err != nil {
		if errors.Is(err, errSnapshot) {
			return s.fail(VerdictSnapshot, "%v", err)
		}
		return err
	}
	s.kept = s.snap.kept
	return nil
}

// resume sets the scanner to the place of the snapshot, whose packed records t holds.
func (s *scanner) resume(t *tiles.Store) error {
	at := s.snap.at
	if at.off > s.f.segment {
		return s.fail(VerdictSnapshot, "%v", errSnapshot)
	}
	if t.Kept() > s.snap.kept {
		return s.fail(VerdictMissing, "records before %d are gone, and nothing says that they were given up", t.Kept())
	}
	if at.size > 0 {
		root, err := t.Root(at.size)
		if err != nil {
			return s.damaged(err)
		}
		if root != s.snap.root {
			return s.fail(VerdictTampered, "the tiles have another root than the snapshot over %d records", at.size)
		}
		if s.tree, err = treeAt(at.size, t.Edge()); err != nil {
			return err
		}
	}
	s.size, s.lastSize, s.root, s.tag, s.seg, s.off = at.size, at.size, s.snap.root, at.tag, at.segment, at.off
	s.keys, s.pending, s.newest, s.effect = s.snap.keys, s.snap.pending, s.snap.newest, s.snap.effect
	if err := s.earlierHandovers(t); err != nil {
		return err
	}
	if err := s.earlierHeads(t); err != nil {
		return err
	}
	return s.checkHeads()
}

// earlierHeads compares the slots of the head that are behind the place of the snapshot with the packed records.
func (s *scanner) earlierHeads(t *tiles.Store) error {
	for i, h := range s.slots {
		if h == nil || h.size >= s.size {
			continue
		}
		root, err := t.Root(h.size)
		if err != nil {
			return s.damaged(err)
		}
		if root != h.root {
			return s.fail(VerdictForked, "the head register knows other contents for %d records", h.size)
		}
		s.slotOK[i] = true
	}
	return nil
}

// resumeNotes begins the list of checkpoints where the snapshot says.
func (s *scanner) resumeNotes(t *tiles.Store) (err error) {
	c := s.snap.ckpt
	if s.notes, err = newCheckpointReader(s.st, s.f.origin, c.gen, c.off); err != nil {
		return s.missing(checkpointsName(c.gen), err)
	}
	if c.size == 0 {
		return nil
	}
	if err := s.load(); err != nil {
		return err
	}
	if s.next == nil || s.next.size != c.size || s.next.hash() != c.hash {
		return s.fail(VerdictCheckpoint, "the checkpoint over %d records is not where the snapshot has it", c.size)
	}
	s.latest, s.next, s.named = s.next, nil, c.named
	s.curOK = s.current.size == s.latest.size && bytes.Equal(s.current.raw, s.latest.raw)
	// While a checkpoint is being signed and written, the log goes on, and a snapshot may be taken of a later place.
	for {
		if err := s.load(); err != nil {
			return err
		}
		if s.next == nil || s.next.size > s.size {
			return nil
		}
		root, err := t.Root(s.next.size)
		if err != nil {
			return s.damaged(err)
		}
		if root != s.next.root {
			return s.fail(VerdictForked, "the checkpoint over %d records has another root than the packed records", s.next.size)
		}
		if !s.named {
			return s.fail(VerdictCheckpoint, "the checkpoint over %d records is not named by a record", s.latest.size)
		}
		s.before, s.latest, s.next, s.named = s.latest, s.next, nil, false
		// The latest checkpoint may still be the one before.
		s.curOK = s.curOK || s.current.size == s.latest.size && bytes.Equal(s.current.raw, s.latest.raw)
	}
}

// damaged turns an error of the tile store into a verdict, if it is damage.
func (s *scanner) damaged(err error) error {
	var d *tiles.DamageError
	if errors.As(err, &d) {
		return s.fail(VerdictTampered, "packed records: %v", d)
	}
	return fmt.Errorf("audit: tiles: %w", err)
}

// countSegments checks that the segments are numbered without a gap from that of the snapshot on.
func (s *scanner) countSegments() error {
	names, err := s.st.List()
	if err != nil {
		return fmt.Errorf("audit: list: %w", err)
	}
	s.seg0, s.old = s.snap.at.segment, nil
	n := 0
	for _, name := range names {
		number, ok := strings.CutPrefix(name, segmentPrefix)
		if !ok || strings.HasSuffix(name, fsys.TmpSuffix) {
			continue
		}
		i, err := strconv.Atoi(number)
		switch {
		case err != nil || segmentName(i) != name:
			return s.fail(VerdictTampered, "the file %s is not of the log", name)
		case i < s.seg0:
			s.old = append(s.old, i)
		default:
			n++
		}
	}
	for i := s.seg0; i < s.seg0+n; i++ {
		if !slices.Contains(names, segmentName(i)) {
			s.seg = i
			return s.fail(VerdictMissing, "the file %s is not there, yet later ones are", segmentName(i))
		}
	}
	if n == 0 {
		return s.fail(VerdictMissing, "the file %s is not there", segmentName(s.seg0))
	}
	slices.Sort(s.old)
	s.segs = s.seg0 + n
	return nil
}

// best returns the slot with the higher generation.
func (s *scanner) best() *head {
	a, b := s.slots[0], s.slots[1]
	if a == nil || b != nil && b.gen > a.gen {
		return b
	}
	return a
}

// run reads the segments from the place of the snapshot on and judges what it found.
func (s *scanner) run(ctx context.Context) error {
	buf := make([]byte, s.f.segment)
	ended := false
	for seg := s.seg0; seg < s.segs; seg++ {
		if err := s.readSegment(seg, buf); err != nil {
			return err
		}
		off := int64(0)
		if seg == s.seg0 {
			off = s.off
			if err := s.checkBefore(buf[:off]); err != nil {
				return err
			}
		}
		start := off
		for !ended && off < s.f.segment {
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("audit: verify: %w", context.Cause(ctx))
			}
			f, err := s.frameAt(buf[off:], seg, off)
			if err != nil {
				return err
			}
			if f == nil {
				break
			}
			off += int64(f.length)
			s.seg, s.off, s.lastLen = seg, off, f.length
			if s.progress != nil {
				s.progress(s.size, max(s.size, s.best().size))
			}
		}
		if err := s.remainder(seg, off, buf[off:]); err != nil {
			return err
		}
		// A segment without a frame, or with something else after its frames, is the last one with frames.
		ended = ended || off == start && (seg > s.seg0 || !s.rest(buf[off:])) || s.garbage != nil || s.stray
	}
	return s.judge()
}

// rest reports whether the next frame may stand in the next segment although there is none at the place of the snapshot: it
// does not fit the rest of this one, which is b.
func (s *scanner) rest(b []byte) bool { return allZero(b) && len(b) < s.limit }

// checkBefore checks the frames before the place of the snapshot that are still in its segment.
func (s *scanner) checkBefore(b []byte) error {
	var last *frame
	for at := 0; at < len(b); {
		f, err := parseFrame(b[at:], s.limit)
		if err == nil {
			var ok bool
			if ok, err = authentic(s.mac, b[at:at+f.length]); err != nil {
				return err
			} else if !ok {
				err = errors.New("the frame's tag is wrong")
			} else if last != nil && (f.prev != last.tag || f.first != last.first+uint64(len(last.records))) {
				err = errors.New("the frame does not continue the one before")
			}
		}
		if err != nil {
			s.off = int64(at)
			return s.fail(VerdictTampered, "a frame that is packed already: %v", err)
		}
		at += f.length
		last = f
	}
	if last != nil && (last.tag != s.tag || last.first+uint64(len(last.records)) != s.size) {
		return s.fail(VerdictForked, "the frames and the snapshot over %d records are of different histories", s.size)
	}
	return nil
}

func (s *scanner) readSegment(n int, buf []byte) error {
	if b := s.prefetch[n]; b != nil {
		copy(buf, b)
		return nil
	}
	f, err := s.st.OpenFile(segmentName(n), os.O_RDONLY)
	if err != nil {
		return s.missing(segmentName(n), err)
	}
	defer f.Close()
	size, err := f.Size()
	if err == nil && size != s.f.segment {
		return s.fail(VerdictTampered, "the file %s has another length than the format says", segmentName(n))
	}
	if err == nil {
		err = fsys.ReadFull(f, buf)
	}
	if err != nil {
		return fmt.Errorf("audit: %s: %w", segmentName(n), err)
	}
	return nil
}

// frameAt takes the frame at the start of b, if there is one that continues the log, into the prefix. It returns nil if
// there is none.
func (s *scanner) frameAt(b []byte, seg int, off int64) (*frame, error) {
	f, err := parseFrame(b, s.limit)
	if err != nil {
		s.why = err
		return nil, nil
	}
	ok, err := authentic(s.mac, b[:f.length])
	if err != nil {
		return nil, err
	}
	switch {
	case !ok || allZero(f.tag[:]): // without the key, a tag that was never written can still be told
		s.why = errors.New("the frame's tag is wrong")
		return nil, nil
	case f.first != s.size || f.prev != s.tag:
		s.why = errors.New("the frame does not continue the one before")
		return nil, nil
	case seg != s.seg && s.off+int64(f.length) <= s.f.segment:
		s.why = errors.New("the frame is in a later segment than it was written to")
		return nil, nil
	}
	recs, leaves, tree, err := s.decode(f)
	if err != nil {
		if s.mac != nil { // authentic and yet wrong: the writer's key was misused
			return nil, s.fail(VerdictTampered, "%v", err)
		}
		s.why = err
		return nil, nil
	}
	s.tree, s.root, s.tag, s.lastSize = tree, f.root, f.tag, s.size
	for i, r := range recs {
		if err := s.take(f.first+uint64(i), r); err != nil {
			return nil, err
		}
		if s.onLeaf != nil {
			s.onLeaf(f.records[i], leaves[i])
		}
	}
	s.size += uint64(len(recs))
	if err := s.checkHeads(); err != nil {
		return nil, err
	}
	return f, s.reach()
}

// decode parses the records of f and checks the root after them, without changing s.
func (s *scanner) decode(f *frame) ([]*Record, [][32]byte, *tree, error) {
	tree, err := s.tree.clone()
	if err != nil {
		return nil, nil, nil, err
	}
	recs, leaves := make([]*Record, len(f.records)), make([][32]byte, len(f.records))
	for i, b := range f.records {
		if recs[i], err = ParseRecord(b); err != nil {
			return nil, nil, nil, err
		}
		leaves[i] = leafHash(b)
		if err := tree.append(leaves[i]); err != nil {
			return nil, nil, nil, err
		}
	}
	root, err := tree.root()
	if err == nil && root != f.root {
		err = errors.New("the frame's root is not that of the records")
	}
	return recs, leaves, tree, err
}

// checkHeads compares the head register with the end of a frame.
func (s *scanner) checkHeads() error {
	for i, h := range s.slots {
		if h != nil && h.size == s.size {
			if h.root != s.root || h.tag != s.tag {
				return s.fail(VerdictForked, "the head register knows other contents for these records")
			}
			s.slotOK[i] = true
		}
	}
	return nil
}

// remainder looks at what follows the good frames in a segment.
func (s *scanner) remainder(seg int, off int64, b []byte) error {
	n := lastNonZero(b) + 1
	if n == 0 {
		return nil
	}
	for at := 0; at < n && s.later == nil; at += sector {
		f, err := parseFrame(b[at:], s.limit)
		if err != nil {
			continue
		}
		ok, err := authentic(s.mac, b[at:at+f.length])
		if err != nil {
			return err
		}
		if ok {
			s.later = f
		}
	}
	// A crash leaves bytes only where the next frame would have begun: after the last one, or at the start of the next segment.
	starts := seg == s.seg || seg == s.seg+1 && off == 0
	if s.garbage != nil || !starts || n > s.limit {
		s.stray = true
		return nil
	}
	s.garbage, s.gseg, s.goff = bytes.Clone(b[:n]), seg, off
	return nil
}

var zeroSector [sector]byte

// lastNonZero returns the offset of the last byte of b that is not zero, or -1.
func lastNonZero(b []byte) int {
	for len(b) >= sector && bytes.Equal(b[len(b)-sector:], zeroSector[:]) {
		b = b[:len(b)-sector]
	}
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] != 0 {
			return i
		}
	}
	return -1
}

// judge decides, by the rules of docs/spec/audit-log.md, whether the log is whole, torn by a crash, or refused.
func (s *scanner) judge() error {
	h := s.best()
	if (s.garbage != nil || s.stray) && s.live != nil && s.size >= h.size {
		// What the writer adds during the scan is seen in no particular order, and none of it was acknowledged when the
		// head was read.
		live, err := s.live()
		if err != nil {
			return err
		}
		if live {
			s.garbage, s.stray, s.later = nil, false, nil
		}
	}
	dirt := s.garbage != nil || s.stray
	if f := s.later; f != nil {
		switch {
		case f.first > s.size:
			return s.fail(VerdictHole, "a later record is intact, but not the one here (%v)", s.why)
		case f.first == s.size:
			return s.fail(VerdictForked, "an authentic frame is here that continues another history (%v)", s.why)
		default:
			return s.fail(VerdictTampered, "an authentic frame stands in the wrong place (%v)", s.why)
		}
	}
	if h.size > s.size || s.next != nil && !s.next.late || s.current.size > s.size {
		if dirt {
			return s.fail(VerdictTampered, "a record that was acknowledged is altered (%v)", s.why)
		}
		return s.fail(VerdictTruncated, "%d records were acknowledged", max(h.size, s.current.size))
	}
	if err := s.handoverReached(); err != nil {
		return err
	}
	for i, slot := range s.slots {
		if slot != nil && !s.slotOK[i] {
			return s.fail(VerdictForked, "the head register ends inside a group of records")
		}
	}
	if s.stray {
		return s.fail(VerdictTampered, "bytes follow the records that no crash leaves there")
	}
	if s.latest == nil || !s.curOK {
		return s.fail(VerdictCheckpoint, "the latest checkpoint is not in the list")
	}
	if h.state == headClosed {
		switch {
		case dirt || h.size != s.size:
			return s.fail(VerdictClosed, "the log was closed after %d records, and something follows", h.size)
		case s.latest.size != s.size || !bytes.Equal(s.current.raw, s.latest.raw) || s.tornAt >= 0:
			return s.fail(VerdictClosed, "the log was closed with a checkpoint over %d records, and that is not the last one", h.size)
		}
	} else if !bytes.Equal(s.current.raw, s.latest.raw) && !s.latest.late && (s.before == nil || !bytes.Equal(s.current.raw, s.before.raw)) {
		return s.fail(VerdictCheckpoint, "the latest checkpoint is older than one crash explains")
	}
	return s.judgeHead(h)
}

// judgeHead decides about a damaged slot. A crash can only tear the slot that was being written, and then the frame it spoke of is
// there, after those that the other slot counts. A lone slot that counts everything may just as well be the older one, of a log that
// lost its last frame.
func (s *scanner) judgeHead(h *head) error {
	if s.slots[0] != nil && s.slots[1] != nil {
		return nil
	}
	if h.state == headOpen && h.size == s.lastSize && h.size < s.size {
		return nil
	}
	return s.fail(VerdictHead, "one slot of the head register is damaged, and no crash explains it")
}
