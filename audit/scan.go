package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"
)

// scanner reads a whole log and judges it. It changes nothing. Open and Verify share it, so that they agree.
type scanner struct {
	st       storage
	f        *format
	mac      macFunc // nil: frames and head are not authenticated
	limit    int
	checkSig func(*checkpoint) error // called for every checkpoint, in order
	onRecord func(uint64, *Record) error
	progress func(done, total uint64)
	live     func() (bool, error) // reports whether a writer has the log open; nil: none can

	slots     [2]*head // nil if damaged
	slotOK    [2]bool  // agrees with the records
	segs      int
	ckpts     file
	reader    *checkpointReader
	next      *checkpoint // read, and not reached by the records yet
	latest    *checkpoint // reached
	before    *checkpoint // the one before latest
	ckptCount uint64
	named     bool        // latest is named by a record
	tornAt    int64       // where an unfinished note begins in checkpoints.log, or -1
	current   *checkpoint // the checkpoint file
	curOK     bool

	// The longest prefix of good frames.
	size     uint64
	lastSize uint64 // the size before the last frame
	root     [32]byte
	tag      [32]byte
	tree     *tree
	keys     map[string]keyState
	seg      int
	off      int64
	starts   []uint64 // the index of the first record of each segment
	lastTime time.Time
	lastKind Kind
	ckptTime time.Time

	// What follows the prefix.
	why     error // why the next frame was refused
	garbage []byte
	gseg    int
	goff    int64
	later   *frame // an authentic frame in the garbage or after it
	stray   bool   // bytes at places that no crash writes to
}

// fail returns an IntegrityError at the end of the good prefix.
func (s *scanner) fail(v Verdict, reason string, args ...any) error {
	return &IntegrityError{Verdict: v, Index: s.size, Segment: s.seg, Offset: s.off, Reason: fmt.Sprintf(reason, args...)}
}

// missing turns the error of a file that is not there into a verdict.
func (s *scanner) missing(name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return s.fail(VerdictMissing, "the file %s is not there", name)
	}
	return fmt.Errorf("audit: %s: %w", name, err)
}

// prepare reads everything but the segments. Head and checkpoints are read before the records: in a log that is being written they
// can only be behind.
func (s *scanner) prepare() error {
	s.tornAt = -1
	b, err := readAll(s.st, formatFile, 4096)
	if err != nil {
		return s.missing(formatFile, err)
	}
	if s.f, err = parseFormat(b); err != nil {
		return s.fail(VerdictFormat, "%v", err)
	}
	s.limit = frameLimit(s.f.segment)
	s.tag, s.tree, s.keys = s.f.sum, newTree(), make(map[string]keyState)

	if b, err = readAll(s.st, headFile, 2*sector); err != nil {
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
	if b, err = readAll(s.st, checkpointFile, maxNote); err != nil {
		return s.missing(checkpointFile, err)
	}
	if s.current, err = parseCheckpoint(b, s.f.origin); err == nil {
		err = s.checkSig(s.current)
	}
	if err != nil {
		return s.fail(VerdictCheckpoint, "the latest checkpoint: %v", err)
	}
	if s.ckpts, err = s.st.openFile(checkpointsFile, os.O_RDONLY); err != nil {
		return s.missing(checkpointsFile, err)
	}
	if s.reader, err = newCheckpointReader(s.ckpts, s.f.origin); err != nil {
		return err
	}
	return s.countSegments()
}

// countSegments checks that the segments are numbered without a gap.
func (s *scanner) countSegments() error {
	names, err := s.st.list()
	if err != nil {
		return fmt.Errorf("audit: list: %w", err)
	}
	n := 0
	for _, name := range names {
		if strings.HasPrefix(name, "seg-") && !strings.HasSuffix(name, tmpSuffix) {
			n++
		}
	}
	for i := range n {
		if !slices.Contains(names, segmentName(i)) {
			s.seg = i
			return s.fail(VerdictMissing, "the file %s is not there, yet later ones are", segmentName(i))
		}
	}
	if n == 0 {
		return s.fail(VerdictMissing, "the file %s is not there", segmentName(0))
	}
	s.segs = n
	return nil
}

// newest returns the slot with the higher generation.
func (s *scanner) newest() *head {
	a, b := s.slots[0], s.slots[1]
	if a == nil || b != nil && b.gen > a.gen {
		return b
	}
	return a
}

// run reads the segments and judges what it found.
func (s *scanner) run(ctx context.Context) error {
	buf := make([]byte, s.f.segment)
	ended := false
	for seg := range s.segs {
		if err := s.readSegment(seg, buf); err != nil {
			return err
		}
		off := int64(0)
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
			s.seg, s.off = seg, off
			if s.progress != nil {
				s.progress(s.size, max(s.size, s.newest().size))
			}
		}
		if err := s.remainder(seg, off, buf[off:]); err != nil {
			return err
		}
		// A segment without a frame, or with something else after its frames, is the last one with frames.
		ended = ended || off == 0 || s.garbage != nil || s.stray
	}
	return s.judge()
}

func (s *scanner) readSegment(n int, buf []byte) error {
	f, err := s.st.openFile(segmentName(n), os.O_RDONLY)
	if err != nil {
		return s.missing(segmentName(n), err)
	}
	defer f.Close()
	size, err := f.size()
	if err == nil && size != s.f.segment {
		return s.fail(VerdictTampered, "the file %s has another length than the format says", segmentName(n))
	}
	if err == nil {
		err = readFull(f, buf)
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
	recs, tree, err := s.decode(f)
	if err != nil {
		if s.mac != nil { // authentic and yet wrong: the writer's key was misused
			return nil, s.fail(VerdictTampered, "%v", err)
		}
		s.why = err
		return nil, nil
	}
	if seg != s.seg || len(s.starts) == 0 {
		s.starts = append(s.starts, f.first)
	}
	s.tree, s.root, s.tag, s.lastSize = tree, f.root, f.tag, s.size
	for i, r := range recs {
		if err := s.take(f.first+uint64(i), r); err != nil {
			return nil, err
		}
	}
	s.size += uint64(len(recs))
	return f, s.boundary()
}

// decode parses the records of f and checks the root after them, without changing s.
func (s *scanner) decode(f *frame) ([]*Record, *tree, error) {
	tree, err := s.tree.clone()
	if err != nil {
		return nil, nil, err
	}
	recs := make([]*Record, len(f.records))
	for i, b := range f.records {
		if recs[i], err = ParseRecord(b); err != nil {
			return nil, nil, err
		}
		if err := tree.append(b); err != nil {
			return nil, nil, err
		}
	}
	root, err := tree.root()
	if err == nil && root != f.root {
		err = errors.New("the frame's root is not that of the records")
	}
	return recs, tree, err
}

// take checks what record r claims about those before it.
func (s *scanner) take(index uint64, r *Record) error {
	genesis := r.Kind == KindGenesis
	if genesis != (index == 0) || genesis && r.InputHash != s.f.sum {
		return s.fail(VerdictFormat, "the first record does not belong to this format file")
	}
	want := keyState{}
	if r.sequenced() {
		k := s.keys[r.Key]
		want = keyState{k.seq + 1, k.last}
		s.keys[r.Key] = keyState{k.seq + 1, index + 1}
	}
	if r.KeySeq != want.seq || r.KeyPrev != want.last {
		return s.fail(VerdictTampered, "record %d breaks the sequence of its key", index)
	}
	if r.Ref > index {
		return s.fail(VerdictTampered, "record %d answers a later one", index)
	}
	if r.Kind == KindCheckpoint || r.Kind == KindOpen {
		if err := s.checkName(index, r); err != nil {
			return err
		}
	}
	s.lastTime, s.lastKind = r.Time, r.Kind
	if s.onRecord != nil {
		return s.onRecord(index, r)
	}
	return nil
}

// checkName checks that record r names the latest checkpoint.
func (s *scanner) checkName(index uint64, r *Record) error {
	if s.next == nil && (s.latest == nil || s.latest.size < r.Ref) {
		// The log is being written: the note came after the reader met the end of the file.
		s.reader.reset()
		if err := s.load(); err != nil {
			return err
		}
		if s.next != nil && s.next.off >= s.reader.limit && s.next.size == r.Ref {
			s.before, s.latest, s.next, s.named = s.latest, s.next, nil, false
		}
	}
	if s.latest == nil || r.Ref != s.latest.size || r.InputHash != s.latest.hash() {
		return s.fail(VerdictCheckpoint, "record %d names a checkpoint that is not in %s", index, checkpointsFile)
	}
	s.named = true
	return nil
}

// load reads the next checkpoint, if there is one.
func (s *scanner) load() error {
	c, err := s.reader.next()
	switch {
	case err == io.EOF:
		return nil
	case err == errTornNote:
		s.tornAt = s.reader.off
		return nil
	case err != nil:
		return s.fail(VerdictCheckpoint, "%s: %v", checkpointsFile, err)
	case s.latest != nil && c.size <= s.latest.size:
		return s.fail(VerdictCheckpoint, "%s: checkpoints are not in order", checkpointsFile)
	}
	if err := s.checkSig(c); err != nil {
		return s.fail(VerdictCheckpoint, "%s: %v", checkpointsFile, err)
	}
	s.next = c
	s.ckptCount++
	return nil
}

// boundary compares heads and checkpoints with the end of a frame.
func (s *scanner) boundary() error {
	for i, h := range s.slots {
		if h != nil && h.size == s.size {
			if h.root != s.root || h.tag != s.tag {
				return s.fail(VerdictForked, "the head register knows other contents for these records")
			}
			s.slotOK[i] = true
		}
	}
	if s.next == nil && s.tornAt < 0 {
		if err := s.load(); err != nil {
			return err
		}
	}
	for s.next != nil && s.next.size <= s.size {
		c := s.next
		late := c.off >= s.reader.limit
		if c.size == s.size && c.root != s.root || c.size != s.size && !late {
			return s.fail(VerdictForked, "the checkpoint over %d records has another root than the records", c.size)
		}
		if s.latest != nil && !s.named {
			return s.fail(VerdictCheckpoint, "the checkpoint over %d records is not named by a record", s.latest.size)
		}
		s.before, s.latest, s.next, s.named = s.latest, c, nil, false
		s.ckptTime = s.lastTime
		if err := s.load(); err != nil {
			return err
		}
	}
	if s.latest != nil && s.latest.size == s.current.size {
		s.curOK = bytes.Equal(s.latest.raw, s.current.raw)
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
	h := s.newest()
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
	if h.size > s.size || s.next != nil && s.next.off < s.reader.limit || s.current.size > s.size {
		if dirt {
			return s.fail(VerdictTampered, "a record that was acknowledged is altered (%v)", s.why)
		}
		return s.fail(VerdictTruncated, "%d records were acknowledged", max(h.size, s.current.size))
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
		return s.fail(VerdictCheckpoint, "the latest checkpoint is not in %s", checkpointsFile)
	}
	if h.state == headClosed {
		switch {
		case dirt || h.size != s.size:
			return s.fail(VerdictClosed, "the log was closed after %d records, and something follows", h.size)
		case s.latest.size != s.size || !bytes.Equal(s.current.raw, s.latest.raw) || s.tornAt >= 0:
			return s.fail(VerdictClosed, "the log was closed with a checkpoint over %d records, and that is not the last one", h.size)
		}
	} else if !bytes.Equal(s.current.raw, s.latest.raw) && !s.late(s.latest) && (s.before == nil || !bytes.Equal(s.current.raw, s.before.raw)) {
		return s.fail(VerdictCheckpoint, "the latest checkpoint is older than one crash explains")
	}
	return s.judgeHead(h)
}

// late reports whether c was written after the scan began.
func (s *scanner) late(c *checkpoint) bool { return c.off >= s.reader.limit }

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
