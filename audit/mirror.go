package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/rustyonions/ron-kms/audit/fsys"
)

// A mirror is the ring's frames in another directory, each written there at the same time as to the log and acknowledged only
// when both have it. It is an anchor without a window, and gives back the end of a log whose disk lost what it said it had.
//
// Its files, mirror-00000000 and on, are as long as a segment and were filled with zeros beforehand. Frames stand in them one behind the
// other; a file whose frames are all packed is removed.
type mirror struct {
	st   fsys.Dir
	mac  macFunc
	size int64 // of a file

	making sync.Mutex // held while a spare is made; taken before mu

	mu    sync.Mutex
	f     fsys.File // the current file, nil before the first frame
	n     int       // its number
	off   int64
	ends  map[int]uint64 // for each file, the records before the end of its last frame
	spare fsys.File      // file n+1
	head  head           // what the last frame says
}

const mirrorPrefix = "mirror-"

func mirrorName(n int) string { return fmt.Sprintf("%s%08d", mirrorPrefix, n) }

// mirrored is an anchor that keeps frames too.
type mirrored interface {
	// frames calls fn for each frame that is kept, in the order they were written. It must be called before keep.
	frames(size int64, fn func(raw []byte, f *frame) error) error
	// keep returns when the frame, which ends the first end records, is durable.
	keep(raw []byte, end uint64) error
	// release may forget the frames before the first upto records, and gets ready for more.
	release(upto uint64) error
	// ready reports whether there is surely place for the commit in flight and the next one.
	ready() bool
}

// list returns the numbers of the files that are there.
func (m *mirror) list() ([]int, error) {
	names, err := m.st.List()
	if err != nil {
		return nil, err
	}
	var ns []int
	for _, name := range names {
		if text, ok := strings.CutPrefix(name, mirrorPrefix); ok && !strings.HasSuffix(name, fsys.TmpSuffix) {
			if n, err := strconv.Atoi(text); err == nil && mirrorName(n) == name {
				ns = append(ns, n)
			}
		}
	}
	slices.Sort(ns)
	return ns, nil
}

// frames reads all files, and leaves the mirror at its end. What follows the last good frame of a file is not a frame: a crash cut it off,
// or somebody changed it, which the log itself then shows.
func (m *mirror) frames(size int64, fn func(raw []byte, f *frame) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.closeLocked(); err != nil {
		return err
	}
	m.size, m.ends, m.n, m.off = size, make(map[int]uint64), -1, size
	ns, err := m.list()
	if err != nil {
		return err
	}
	for _, n := range ns {
		b, err := fsys.ReadFile(m.st, mirrorName(n), maxSegmentSize)
		if err != nil {
			return err
		}
		at := 0
		m.n, m.off, m.ends[n] = n, size, 0 // the next frame begins another file: what is torn here stays
		for at < len(b) {
			f, err := parseFrame(b[at:], frameLimit(size))
			if err != nil {
				break
			}
			raw := b[at : at+f.length]
			ok, err := authentic(m.mac, raw)
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			end := f.first + uint64(len(f.records))
			m.ends[n] = end
			if end > m.head.size {
				m.head = head{state: headOpen, size: end, root: f.root, tag: f.tag}
			}
			if fn != nil {
				if err := fn(raw, f); err != nil {
					return err
				}
			}
			at += f.length
		}
		if int64(len(b)) == size && allZero(b[at:]) {
			m.off = int64(at) // there is nothing but zeros: go on here
		}
	}
	if m.off < size {
		m.f, err = m.st.OpenFile(mirrorName(m.n), os.O_RDWR)
	}
	return err
}

func (m *mirror) keep(raw []byte, end uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.f == nil || m.off+int64(len(raw)) > m.size {
		if m.spare == nil {
			m.mu.Unlock()
			err := m.prepare()
			m.mu.Lock()
			if err != nil {
				return fmt.Errorf("mirror: next file: %w", err)
			}
			continue
		}
		old := m.f
		m.f, m.spare, m.off = m.spare, nil, 0
		m.n++
		if old != nil {
			if err := old.Close(); err != nil {
				return fmt.Errorf("mirror: close: %w", err)
			}
		}
	}
	if _, err := m.f.WriteAt(raw, m.off); err != nil {
		return fmt.Errorf("mirror: write: %w", err)
	}
	if err := m.f.Datasync(); err != nil {
		return fmt.Errorf("mirror: sync: %w", err)
	}
	m.off += int64(len(raw))
	m.ends[m.n] = end
	return nil
}

// ready reports whether the next two frames have a place.
func (m *mirror) ready() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.spare != nil || m.f != nil && m.size-m.off >= 2*int64(frameLimit(m.size))
}

// prepare makes the next file, unless there is one. The number of the current file changes only when a spare is used, and only
// prepare makes spares.
func (m *mirror) prepare() error {
	m.making.Lock()
	defer m.making.Unlock()
	m.mu.Lock()
	n, have := m.n+1, m.spare != nil
	m.mu.Unlock()
	if have {
		return nil
	}
	f, err := m.make(n)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.spare = f
	return nil
}

// make makes file n, full of zeros.
func (m *mirror) make(n int) (fsys.File, error) {
	tmp := mirrorName(n) + fsys.TmpSuffix
	f, err := m.st.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return nil, err
	}
	err = fillZeros(f, 0, m.size)
	if err == nil {
		err = m.st.Rename(tmp, mirrorName(n))
	}
	if err == nil {
		err = m.st.SyncDir()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), fsys.RemoveIfExists(m.st, tmp))
	}
	return f, nil
}

func (m *mirror) release(upto uint64) error {
	m.mu.Lock()
	var done []int
	for file, end := range m.ends {
		if file < m.n && end <= upto {
			done = append(done, file)
			delete(m.ends, file)
		}
	}
	m.mu.Unlock()
	for _, file := range done {
		if err := fsys.RemoveIfExists(m.st, mirrorName(file)); err != nil {
			return err
		}
	}
	return m.prepare()
}

func (m *mirror) close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closeLocked()
}

func (m *mirror) closeLocked() error {
	var errs []error
	for _, f := range []fsys.File{m.f, m.spare} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	m.f, m.spare = nil, nil
	return errors.Join(errs...)
}

// heal writes to the log what a mirror has after its end, and returns the records that say so. It changes nothing unless the log as it is
// could be the beginning of what the mirror has.
func heal(ctx context.Context, st fsys.Dir, o Options) (recs []*Record, err error) {
	for _, a := range o.Anchors {
		m, ok := a.Anchor.(mirrored)
		if a.Mode != AnchorMirror || !ok {
			continue
		}
		more, err := healFrom(ctx, st, o, m)
		if err != nil {
			return nil, fmt.Errorf("audit: anchor %s: %w", a.Anchor.Name(), err)
		}
		recs = append(recs, more...)
	}
	return recs, nil
}

func healFrom(ctx context.Context, st fsys.Dir, o Options, m mirrored) (recs []*Record, err error) {
	s := &scanner{st: st, mac: borrowedMAC(o.MACKey)}
	t, err := s.opening(ctx, o)
	if t != nil {
		err = errors.Join(err, t.Close())
	}
	if s.notes != nil {
		err = errors.Join(err, s.notes.close())
	}
	if s.f == nil || s.tree == nil {
		return nil, nil // the opening itself says what is wrong
	}
	var v *IntegrityError
	// Cut off, or torn in the last frame: what a disk does that loses writes. Everything else is somebody's doing.
	torn := s.garbage != nil && !s.stray && s.later == nil
	if err != nil && !(errors.As(err, &v) && (v.Verdict == VerdictTruncated || v.Verdict == VerdictTampered && torn)) {
		return nil, nil
	}
	size, tag := s.size, s.tag
	var lost [][]byte
	if err := m.frames(s.f.segment, func(raw []byte, f *frame) error {
		if f.first == size && f.prev == tag {
			lost = append(lost, slices.Clone(raw))
			size, tag = size+uint64(len(f.records)), f.tag
		}
		return nil
	}); err != nil {
		return nil, err
	}
	if len(lost) == 0 {
		return nil, nil
	}
	if s.best().state == headClosed {
		return nil, nil // it did not lose its end: it is another log's, or it was put back
	}
	// First in memory: nothing is written unless the whole would be accepted.
	plan := &overlay{Dir: st, segment: s.f.segment, changed: make(map[string][]byte)}
	if s.garbage != nil {
		b, err := plan.get(segmentName(s.gseg))
		if err != nil {
			return nil, err
		}
		clear(b[s.goff : s.goff+int64(len(s.garbage))])
		recs = append(recs, &Record{Kind: KindRecovery, Op: "torn", Count: uint64(len(s.garbage)), InputHash: sha256.Sum256(s.garbage)})
	}
	seg, off, n, sum := s.seg, s.off, uint64(0), sha256.New()
	for _, raw := range lost {
		if off+int64(len(raw)) > s.f.segment {
			seg, off = seg+1, 0
		}
		b, err := plan.get(segmentName(seg))
		if err != nil {
			return nil, err
		}
		off += int64(copy(b[off:], raw))
		n += uint64(len(raw))
		sum.Write(raw)
	}
	again := &scanner{st: plan, mac: borrowedMAC(o.MACKey)}
	t, err = again.opening(ctx, o)
	if t != nil {
		err = errors.Join(err, t.Close())
	}
	if again.notes != nil {
		err = errors.Join(err, again.notes.close())
	}
	if err != nil {
		return nil, nil // what the mirror has does not fit what else is there: the opening says what is wrong
	}
	for _, name := range slices.Sorted(maps.Keys(plan.changed)) {
		f, err := st.OpenFile(name, os.O_RDWR|os.O_CREATE)
		if err != nil {
			return nil, err
		}
		_, err = f.WriteAt(plan.changed[name], 0)
		if err = errors.Join(err, f.Datasync(), f.Close()); err != nil {
			return nil, err
		}
	}
	if err := st.SyncDir(); err != nil {
		return nil, err
	}
	return append(recs, &Record{Kind: KindRecovery, Op: "mirror", Count: n, InputHash: [32]byte(sum.Sum(nil))}), nil
}

// overlay is a directory some of whose segments are as they would be.
type overlay struct {
	fsys.Dir
	segment int64
	changed map[string][]byte
}

// get returns the contents of a segment, to be changed. One that is not there is full of zeros.
func (d *overlay) get(name string) ([]byte, error) {
	if b, ok := d.changed[name]; ok {
		return b, nil
	}
	b, err := fsys.ReadFile(d.Dir, name, maxSegmentSize)
	if notThere(err) {
		b, err = make([]byte, d.segment), nil
	}
	if err == nil {
		d.changed[name] = b
	}
	return b, err
}

// OpenFile opens a changed segment for reading, or any other file.
func (d *overlay) OpenFile(name string, flag int) (fsys.File, error) {
	if b, ok := d.changed[name]; ok {
		return &overlayFile{Reader: bytes.NewReader(b)}, nil
	}
	return d.Dir.OpenFile(name, flag)
}

// List returns the names that there would be.
func (d *overlay) List() ([]string, error) {
	names, err := d.Dir.List()
	for name := range d.changed {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names, err
}

// overlayFile is a file that is only read.
type overlayFile struct{ *bytes.Reader }

func (f *overlayFile) WriteAt([]byte, int64) (int, error) { return 0, errors.ErrUnsupported }
func (f *overlayFile) Truncate(int64) error               { return errors.ErrUnsupported }
func (f *overlayFile) Datasync() error                    { return nil }
func (f *overlayFile) Close() error                       { return nil }
func (f *overlayFile) Size() (int64, error)               { return f.Reader.Size(), nil }
