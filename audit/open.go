package audit

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/rustyonions/ron-kms/audit/fsys"
	"github.com/rustyonions/ron-kms/audit/tiles"
)

// Open opens the log in dir for appending. It reads what came after the last snapshot and proves that it continues what is packed;
// how long the log is does not matter. It never creates one. What a crash leaves is put right, and a KindRecovery
// record says so; anything else is refused with an *IntegrityError. It returns ErrBusy if the log is open elsewhere.
func Open(ctx context.Context, dir string, o Options) (*Log, error) {
	o, err := o.withDefaults(true)
	if err != nil {
		return nil, err
	}
	st, err := fsys.Open(dir)
	if err != nil {
		return nil, (&scanner{}).missing("directory", err)
	}
	return openIn(ctx, st, o)
}

// openIn is Open on a directory, which it closes on an error.
func openIn(ctx context.Context, st fsys.Dir, o Options) (_ *Log, err error) {
	d := &disk{st: st, mac: borrowedMAC(o.MACKey), ckptsMax: checkpointsSize}
	var t *tiles.Store
	defer func() {
		if err != nil {
			if t != nil {
				err = errors.Join(err, t.Close())
			}
			err = errors.Join(err, d.close())
		}
	}()
	if d.lock, err = st.Lock(formatFile, true); err != nil {
		d.lock = nil
		if errors.Is(err, ErrBusy) {
			return nil, fmt.Errorf("audit: open: %w", ErrBusy)
		}
		return nil, (&scanner{}).missing(formatFile, err)
	}
	healed, err := heal(ctx, st, o)
	if err != nil {
		return nil, err
	}
	s := &scanner{st: st, mac: d.mac}
	defer func() {
		if s.notes != nil {
			err = errors.Join(err, s.notes.close())
		}
	}()
	if t, err = s.opening(ctx, o); err != nil {
		return nil, err
	}
	d.f, d.limit = s.f, s.limit
	if err := s.harden(); err != nil {
		return nil, fmt.Errorf("audit: open: %w", err)
	}
	found, err := checkAnchors(ctx, s, t, o.Anchors)
	if err != nil {
		return nil, err
	}
	said, faults, err := askWitnesses(ctx, s, t, o.Witnesses)
	if err != nil {
		return nil, err
	}
	recs, err := d.recover(s)
	if err != nil {
		return nil, fmt.Errorf("audit: recover: %w", err)
	}
	l := newLog(o, d, s.limit)
	l.tiles, l.keys, l.pending, l.newest, l.effect, l.tag = t, s.keys, s.pending, s.newest, s.effect, s.tag
	l.end = position{size: s.size, segment: s.seg, off: s.off, tag: s.tag}
	l.root, l.queued, l.latest, l.named = s.root, s.size, s.latest, s.named
	l.saved, l.notesAt, l.woken, l.kept = s.snap.at, s.snap.ckpt.gen, s.size, s.snap.kept
	l.found = s.size
	l.anchors, l.initial = found, s.keys.TakeDirty()
	l.cosigned.fault = faults
	for _, a := range found {
		if m, ok := a.Anchor.(mirrored); ok && a.mode == AnchorMirror {
			if err = m.frames(d.f.segment, nil); err != nil {
				return nil, fmt.Errorf("audit: anchor %s: %w", a.Name(), err)
			}
			d.mirrors = append(d.mirrors, m)
		}
	}
	l.nextBatch()
	// The head says open before the first byte follows: a crash from here on is a crash, not a closed log that grew. So do the
	// anchors.
	h := head{state: headOpen, size: l.end.size, root: l.root, tag: l.tag}
	if err = d.writeHead(h); err == nil {
		err = d.syncHead()
	}
	if err == nil {
		err = l.anchorAll(h)
	}
	if err != nil {
		return nil, fmt.Errorf("audit: open: %w", err)
	}
	// What was given up and is still there, because the program died meanwhile, goes now.
	if _, err = t.Prune(s.snap.kept); err != nil {
		return nil, fmt.Errorf("audit: open: %w", err)
	}
	recs = append(append(o.begun, healed...), recs...)
	if s.unrecorded() { // it has its place right behind what the old keys sign for
		recs = slices.Insert(recs, 0, s.handoverRecord())
	}
	open := &Record{Kind: KindOpen, Ref: s.latest.size, InputHash: s.latest.hash(), Detail: []byte(said)}
	recs = append(recs, open)
	if err = l.makeSpares(); err != nil && !isFull(err) {
		return nil, fmt.Errorf("audit: open: next segment: %w", err)
	}
	if _, err = l.append(ctx, true, recs...); err != nil {
		return nil, err
	}
	l.named = true
	if err = l.checkpointNow(false); err != nil {
		return nil, err
	}
	l.start()
	return l, nil
}

// opening reads the log from its snapshot on, as o says it should be. The caller closes the tiles, if there are any, whatever the error.
func (s *scanner) opening(ctx context.Context, o Options) (*tiles.Store, error) {
	if err := s.begin(); err != nil {
		return nil, err
	}
	if s.f.origin != o.Origin {
		return nil, s.fail(VerdictFormat, "the log is %s, not %s", s.f.origin, o.Origin)
	}
	if s.chain[len(s.chain)-1].Set.String() != o.Keys.String() {
		return nil, s.fail(VerdictFormat, "the keys of the log are not those that were given")
	}
	if err := s.prepare(); err != nil {
		return nil, err
	}
	t, err := tiles.Open(s.st, s.snap.at.size)
	if err != nil {
		return nil, s.damaged(err)
	}
	if err := s.resume(t); err != nil {
		return t, err
	}
	if err := s.resumeNotes(t); err != nil {
		return t, err
	}
	s.onLeaf = t.Append
	return t, s.run(ctx)
}

// harden makes durable what a writer that died may not have: its last frame and its last checkpoint, before anybody hears of
// them. They are written again, as they are, because a sync that failed earlier marks pages as written that are not.
func (s *scanner) harden() error {
	again := func(name string, off int64, n int) error {
		f, err := s.st.OpenFile(name, os.O_RDWR)
		if err != nil {
			return err
		}
		b := make([]byte, n)
		if n > 0 {
			_, err = f.ReadAt(b, off)
		}
		if err == nil {
			_, err = f.WriteAt(b, off)
		}
		if err == nil {
			err = f.Datasync()
		}
		return errors.Join(err, f.Close())
	}
	if err := again(segmentName(s.seg), s.off-int64(s.lastLen), s.lastLen); err != nil {
		return err
	}
	if err := again(checkpointsName(s.latest.gen), s.latest.off, len(s.latest.raw)+1); err != nil {
		return err
	}
	return s.st.SyncDir()
}

// recover opens the files for writing at the end of what s found good, undoes what a crash left, and returns the records that say so.
func (d *disk) recover(s *scanner) (recs []*Record, err error) {
	d.segNum, d.off, d.base = s.seg, s.off, s.seg0
	d.headGen = s.best().gen
	if d.seg, err = d.st.OpenFile(segmentName(s.seg), os.O_RDWR); err != nil {
		return nil, err
	}
	for n := s.seg + 1; n < s.segs; n++ {
		f, err := d.st.OpenFile(segmentName(n), os.O_RDWR)
		if err != nil {
			return nil, err
		}
		d.spares = append(d.spares, f)
	}
	d.ckptGen = s.latest.gen
	if d.ckptBase, err = oldestCheckpoints(d.st); err != nil {
		return nil, err
	}
	if d.ckpts, err = d.st.OpenFile(checkpointsName(d.ckptGen), os.O_RDWR); err != nil {
		return nil, err
	}
	if d.head, err = d.st.OpenFile(headFile, os.O_RDWR); err != nil {
		return nil, err
	}
	if s.garbage != nil {
		f := d.seg
		if s.gseg != s.seg {
			f = d.spares[0]
		}
		if err := fillZeros(f, s.goff, s.goff+int64(len(s.garbage))); err != nil {
			return nil, err
		}
		recs = append(recs, &Record{Kind: KindRecovery, Op: "torn", Count: uint64(len(s.garbage)), InputHash: sha256.Sum256(s.garbage)})
	}
	if s.slots[0] == nil || s.slots[1] == nil {
		recs = append(recs, &Record{Kind: KindRecovery, Op: "head", Count: sector})
	}
	d.ckptsAt = s.latest.off + int64(len(s.latest.raw)) + 1
	if s.tornAt >= 0 {
		r, err := d.cutNote(s.tornGen, s.tornAt)
		if err != nil {
			return nil, err
		}
		recs = append(recs, r)
	}
	if string(s.current.raw) != string(s.latest.raw) {
		if err := fsys.ReplaceFile(d.st, checkpointFile, s.latest.raw); err != nil {
			return nil, err
		}
	}
	return recs, d.tidy(s)
}

// cutNote removes an unfinished note from the list of checkpoints.
func (d *disk) cutNote(gen int, at int64) (r *Record, err error) {
	f, err := d.st.OpenFile(checkpointsName(gen), os.O_RDWR)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	b := make([]byte, size-at)
	if n, err := f.ReadAt(b, at); n != len(b) {
		return nil, err
	}
	if err := f.Truncate(at); err != nil {
		return nil, err
	}
	return &Record{Kind: KindRecovery, Op: "checkpoints", Count: uint64(len(b)), InputHash: sha256.Sum256(b)}, f.Datasync()
}

// tidy removes files in the making, segments that the snapshot made free, and empty files of checkpoints ahead.
func (d *disk) tidy(s *scanner) error {
	names, err := d.st.List()
	if err != nil {
		return err
	}
	for _, name := range names {
		ahead := strings.HasPrefix(name, checkpointPrefix) && name > checkpointsName(d.ckptGen)
		if strings.HasSuffix(name, fsys.TmpSuffix) || ahead {
			if err := fsys.RemoveIfExists(d.st, name); err != nil {
				return err
			}
		}
	}
	for _, n := range s.old {
		if err := fsys.RemoveIfExists(d.st, segmentName(n)); err != nil {
			return err
		}
	}
	return nil
}

// OpenDir is Open on a directory that was opened already, which it closes on an error and which Close closes.
func OpenDir(ctx context.Context, d fsys.Dir, o Options) (*Log, error) {
	o, err := o.withDefaults(true)
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return openIn(ctx, d, o)
}
