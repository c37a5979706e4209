package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/rustyonions/ron-kms/audit/fsys"
	"github.com/rustyonions/ron-kms/audit/tiles"
)

// An Anchor is a memory of the log's head outside of its directory: who puts the directory back to an earlier state has to put
// back the anchor too. Its trust domain is the guarantee, and how often it is written is the window. An Anchor is
// used by one goroutine at a time.
type Anchor interface {
	// Name says what it is in records and metrics, such as "dir:/mnt/anchor".
	Name() string
	// Read returns what was written last, or an error that wraps ErrNoAnchor if nothing ever was.
	Read(ctx context.Context) (AnchorState, error)
	// Write returns when s would survive a power cut.
	Write(ctx context.Context, s AnchorState) error
	Close() error
}

// AnchorState is what an anchor keeps.
type AnchorState struct {
	Log    [16]byte // the id of the log's directory
	Size   uint64   // records
	Root   [32]byte // over them
	Closed bool     // the log was closed cleanly after them
}

// ErrNoAnchor is wrapped by Anchor.Read when nothing was ever written.
var ErrNoAnchor = errors.New("the anchor is empty")

// AnchorMode says when an anchor is written.
type AnchorMode string

// The modes, from the one that costs least to the one that leaves no window.
const (
	AnchorCheckpoint AnchorMode = "checkpoint" // with each checkpoint
	AnchorAsync      AnchorMode = "async"      // right behind each commit, which does not wait for it
	AnchorStrict     AnchorMode = "strict"     // before a commit is acknowledged
	AnchorMirror     AnchorMode = "mirror"     // with each commit, at the same time, all of it; for directories
)

// An AnchorOption is an anchor and how to use it.
type AnchorOption struct {
	Anchor Anchor
	Mode   AnchorMode
	// Fresh accepts an anchor that is empty: it was added to a log that exists. An empty anchor is refused otherwise,
	// unless the log is new, because emptying it must not be a way around it.
	Fresh bool
}

// anchoring is an anchor of an open log.
type anchoring struct {
	Anchor
	mode AnchorMode

	write sync.Mutex // held while the anchor is written

	mu    sync.Mutex
	want  head
	done  uint64        // size that was written last
	moved chan struct{} // tells the follower
	err   error         // of the last attempt, nil after a success
}

// anchorTimeout bounds one access to an anchor.
const anchorTimeout = 10 * time.Second

// checkAnchors compares the log that s found with its anchors.
func checkAnchors(ctx context.Context, s *scanner, t *tiles.Store, anchors []AnchorOption) ([]*anchoring, error) {
	var out []*anchoring
	for _, o := range anchors {
		a := &anchoring{Anchor: o.Anchor, mode: o.Mode, moved: make(chan struct{}, 1)}
		if m, ok := o.Anchor.(mirrored); ok && o.Mode == AnchorMirror {
			if err := m.frames(s.f.segment, nil); err != nil {
				return nil, fmt.Errorf("audit: anchor %s: %w", a.Name(), err)
			}
		}
		ctx, cancel := context.WithTimeout(ctx, anchorTimeout)
		state, err := a.Read(ctx)
		cancel()
		switch {
		case errors.Is(err, ErrNoAnchor):
			if !o.Fresh && s.size > 1 {
				return nil, s.fail(VerdictAnchor, "%s is empty, and the log is not new", a.Name())
			}
		case err != nil:
			return nil, fmt.Errorf("audit: anchor %s: %w", a.Name(), err)
		default:
			if err := checkAnchor(s, t, a, state); err != nil {
				return nil, err
			}
		}
		out = append(out, a)
	}
	return out, nil
}

// checkAnchor judges one anchor. It may be behind the log by what a crash explains, and never ahead.
func checkAnchor(s *scanner, t *tiles.Store, a *anchoring, state AnchorState) error {
	if state.Log != s.f.id {
		return s.fail(VerdictAnchor, "%s belongs to another log", a.Name())
	}
	if state.Size > s.size {
		return s.fail(VerdictStale, "%s knows of %d records", a.Name(), state.Size)
	}
	root := [32]byte{}
	var err error
	if state.Size > 0 {
		if root, err = t.Root(state.Size); err != nil {
			return s.damaged(err)
		}
	}
	if root != state.Root {
		return s.fail(VerdictForked, "%s knows other contents for %d records", a.Name(), state.Size)
	}
	h := s.best()
	switch {
	case h.state == headClosed && s.size > 1 && !(state.Closed && state.Size == s.size):
		return s.fail(VerdictAnchor, "%s ends at %d records, yet the log was closed cleanly after %d", a.Name(), state.Size, s.size)
	case state.Closed && state.Size < s.size:
		return s.fail(VerdictAnchor, "%s says that the log was closed after %d records, and more follow", a.Name(), state.Size)
	case (a.mode == AnchorStrict || a.mode == AnchorMirror) && state.Size < s.lastSize:
		return s.fail(VerdictAnchor, "%s ends at %d records, which is earlier than one crash explains (unless its mode was changed after a crash: put the old one back)", a.Name(), state.Size)
	case s.named && state.Size < s.latest.size, s.before != nil && state.Size < s.before.size:
		// A checkpoint is named by a record only after the anchors have it.
		return s.fail(VerdictAnchor, "%s ends at %d records, before a checkpoint that it was written with", a.Name(), state.Size)
	}
	return nil
}

// put writes h to the anchor, unless something newer is there already.
func (l *Log) put(a *anchoring, h head) error {
	a.write.Lock()
	defer a.write.Unlock()
	a.mu.Lock()
	newer := a.done > h.size
	a.mu.Unlock()
	if newer {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), anchorTimeout)
	defer cancel()
	err := a.Write(ctx, AnchorState{Log: l.disk.f.id, Size: h.size, Root: h.root, Closed: h.state == headClosed})
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err = err; err != nil {
		a.err = fmt.Errorf("anchor %s: %w", a.Name(), err)
		return a.err
	}
	a.done = h.size
	return nil
}

// anchorNow writes h to the anchors that a commit waits for, and tells the others.
func (l *Log) anchorNow(h head) error {
	var wg sync.WaitGroup
	errs := make([]error, len(l.anchors))
	for i, a := range l.anchors {
		switch a.mode {
		case AnchorMirror: // it has the frame
			a.mu.Lock()
			a.done = h.size
			a.mu.Unlock()
		case AnchorStrict:
			wg.Go(func() { errs[i] = l.put(a, h) })
		case AnchorAsync:
			a.mu.Lock()
			a.want = h
			a.mu.Unlock()
			select {
			case a.moved <- struct{}{}:
			default: // already told
			}
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}

// anchorAll writes h to every anchor. No anchor may stay behind a checkpoint for longer than a crash explains, so an anchor that
// cannot be written stops the log.
func (l *Log) anchorAll(h head) error {
	for _, a := range l.anchors {
		if err := l.put(a, h); err != nil {
			return err
		}
	}
	return nil
}

// follow writes an asynchronous anchor behind the commits. A failure shows at the next checkpoint.
func (l *Log) follow(a *anchoring) {
	if a.mode != AnchorAsync {
		return
	}
	for {
		select {
		case <-l.stop:
			return
		case <-a.moved:
		}
		a.mu.Lock()
		h := a.want
		a.mu.Unlock()
		_ = l.put(a, h) // a.err keeps it
	}
}

// AnchorLag says how many records each anchor is behind the log, by its name.
func (l *Log) AnchorLag() map[string]uint64 {
	size := l.Size()
	lag := make(map[string]uint64)
	for _, a := range l.anchors {
		a.mu.Lock()
		lag[a.Name()] = size - min(size, a.done)
		a.mu.Unlock()
	}
	return lag
}

// AnchorFaults says of each anchor, by its name, why it could not be written the last time, if so.
func (l *Log) AnchorFaults() map[string]error {
	faults := make(map[string]error)
	for _, a := range l.anchors {
		a.mu.Lock()
		if a.err != nil {
			faults[a.Name()] = a.err
		}
		a.mu.Unlock()
	}
	return faults
}

// dirAnchor is a register in another directory, of the same form as the log's head.
type dirAnchor struct {
	name string
	st   fsys.Dir
	mac  macFunc
	f    fsys.File
	gen  uint64
	m    mirror // used in mode mirror only
}

func (a *dirAnchor) frames(size int64, fn func([]byte, *frame) error) error {
	a.m.st, a.m.mac = a.st, a.mac
	return a.m.frames(size, fn)
}

func (a *dirAnchor) keep(raw []byte, end uint64) error { return a.m.keep(raw, end) }
func (a *dirAnchor) release(upto uint64) error         { return a.m.release(upto) }
func (a *dirAnchor) ready() bool                       { return a.m.ready() }

const anchorFile = "ron-kms-audit-anchor"

// NewDirAnchor returns an anchor in a directory, which should be on another disk than the log and writable by nobody else. The
// key is that of Options.MACKey.
func NewDirAnchor(dir string, key func(use func(key []byte))) (Anchor, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !os.IsExist(err) {
		return nil, fmt.Errorf("audit: anchor: %w", err)
	}
	st, err := fsys.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("audit: anchor: %w", err)
	}
	return newDirAnchor("dir:"+dir, st, key), nil
}

func newDirAnchor(name string, st fsys.Dir, key func(use func(key []byte))) *dirAnchor {
	return &dirAnchor{name: strings.ToValidUTF8(name, "?"), st: st, mac: borrowedMAC(key)}
}

func (a *dirAnchor) Name() string { return a.name }

func (a *dirAnchor) Read(context.Context) (AnchorState, error) {
	b, err := fsys.ReadFile(a.st, anchorFile, 2*sector)
	if notThere(err) {
		return AnchorState{}, ErrNoAnchor
	}
	if err != nil {
		return AnchorState{}, err
	}
	if len(b) != 2*sector {
		return AnchorState{}, errors.New("the register is not of 1024 bytes")
	}
	var best *head
	var id [16]byte
	for i := range uint64(2) {
		slot := b[i*sector : (i+1)*sector]
		h, err := parseHead(slot, i, [16]byte(slot[88:]), a.mac)
		if err != nil {
			return AnchorState{}, err
		}
		if h != nil && (best == nil || h.gen > best.gen) {
			best, id = h, [16]byte(slot[88:])
		}
	}
	if best == nil {
		return AnchorState{}, errors.New("both slots of the register are damaged")
	}
	a.gen = best.gen
	if h := a.m.head; h.size > best.size { // the frames say more than the register, which is written more seldom
		return AnchorState{Log: id, Size: h.size, Root: h.root}, nil
	}
	return AnchorState{Log: id, Size: best.size, Root: best.root, Closed: best.state == headClosed}, nil
}

func (a *dirAnchor) Write(_ context.Context, s AnchorState) error {
	h := head{state: headOpen, gen: a.gen + 1, size: s.Size, root: s.Root}
	if s.Closed {
		h.state = headClosed
	}
	b, err := h.encode(s.Log, a.mac)
	if err != nil {
		return err
	}
	if a.f == nil {
		if err := a.open(b, h.gen); err != nil {
			return err
		}
	}
	if _, err := a.f.WriteAt(b, int64(h.gen%2)*sector); err != nil {
		return err
	}
	if err := a.f.Datasync(); err != nil {
		return err
	}
	a.gen = h.gen
	return nil
}

// open opens the register, and makes it if it is not there: whole, so that a crash leaves none or one that can be read.
func (a *dirAnchor) open(slot []byte, gen uint64) (err error) {
	a.f, err = a.st.OpenFile(anchorFile, os.O_RDWR)
	if !notThere(err) {
		return err
	}
	b := make([]byte, 2*sector)
	copy(b[int64(gen%2)*sector:], slot)
	if err := fsys.ReplaceFile(a.st, anchorFile, b); err != nil {
		return err
	}
	a.f, err = a.st.OpenFile(anchorFile, os.O_RDWR)
	return err
}

func (a *dirAnchor) Close() error {
	var err error
	if a.f != nil {
		err = a.f.Close()
	}
	return errors.Join(err, a.m.close(), a.st.Close())
}
