package audit

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"strings"
)

// Open opens the log in dir for appending, after verifying all of it. It never creates one. What a crash
// leaves is put right, and a KindRecovery record says so; anything else is refused with an *IntegrityError. It returns
// ErrBusy if the log is open elsewhere.
func Open(dir string, o Options) (*Log, error) {
	o, err := o.withDefaults(true)
	if err != nil {
		return nil, err
	}
	st, err := openStorage(dir)
	if err != nil {
		return nil, (&scanner{}).missing("directory", err)
	}
	return openIn(st, o)
}

// openIn is Open on a storage, which it closes on an error.
func openIn(st storage, o Options) (_ *Log, err error) {
	d := &disk{st: st, mac: borrowedMAC(o.MACKey)}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	if d.lock, err = st.lock(formatFile, true); err != nil {
		d.lock = nil
		if errors.Is(err, ErrBusy) {
			return nil, fmt.Errorf("audit: open: %w", ErrBusy)
		}
		return nil, (&scanner{}).missing(formatFile, err)
	}
	s := &scanner{st: st, mac: d.mac, onRecord: o.OnRecord}
	// The chain in the tree vouches for older checkpoints: only those that no later record names need their signature
	// checked here, which the latest does for all.
	s.checkSig = func(c *checkpoint) error { return nil }
	err = s.prepare()
	if s.ckpts != nil {
		defer s.ckpts.Close()
	}
	if err != nil {
		return nil, err
	}
	d.f, d.limit = s.f, s.limit
	if s.f.origin != o.Origin || s.f.vkey != shortKey(o.Verifier) && !strings.HasPrefix(s.f.vkey, shortKey(o.Verifier)+"+") {
		return nil, s.fail(VerdictFormat, "the log is %s with the key %s", s.f.origin, s.f.vkey)
	}
	if err := s.current.verify(o.Verifier); err != nil {
		return nil, s.fail(VerdictCheckpoint, "the latest checkpoint: %v", err)
	}
	if err := s.run(context.Background()); err != nil {
		return nil, err
	}
	if err := s.latest.verify(o.Verifier); err != nil {
		return nil, s.fail(VerdictCheckpoint, "%s: the last one: %v", checkpointsFile, err)
	}
	recs, err := d.recover(s)
	if err != nil {
		return nil, fmt.Errorf("audit: recover: %w", err)
	}
	l := newLog(o, d, s.limit)
	l.keys, l.tree, l.tag = s.keys, s.tree, s.tag
	l.size, l.root, l.queued, l.latest = s.size, s.root, s.size, s.latest
	l.starts = s.starts
	l.nextBatch()
	// The head says open before the first byte follows: a crash from here on is a crash, not a closed log that grew.
	if err = d.writeHead(head{state: headOpen, size: l.size, root: l.root, tag: l.tag}); err == nil {
		err = d.syncHead()
	}
	if err != nil {
		return nil, fmt.Errorf("audit: open: %w", err)
	}
	recs = append(recs, &Record{Kind: KindOpen, Ref: s.latest.size, InputHash: s.latest.hash()})
	if _, err = l.append(context.Background(), false, recs...); err == nil {
		err = l.checkpointNow(false)
	}
	if err != nil {
		return nil, err
	}
	l.start()
	return l, nil
}

// recover opens the files for writing at the end of what s found good, undoes what a crash left, and returns the records that say so.
func (d *disk) recover(s *scanner) (recs []*Record, err error) {
	d.segNum, d.off = s.seg, s.off
	d.headGen = s.newest().gen
	if d.seg, err = d.st.openFile(segmentName(s.seg), os.O_RDWR); err != nil {
		return nil, err
	}
	if d.ckpts, err = d.st.openFile(checkpointsFile, os.O_RDWR); err != nil {
		return nil, err
	}
	if d.head, err = d.st.openFile(headFile, os.O_RDWR); err != nil {
		return nil, err
	}
	if s.segs > s.seg+1 {
		if d.spare, err = d.st.openFile(segmentName(s.seg+1), os.O_RDWR); err != nil {
			return nil, err
		}
	}
	if s.garbage != nil {
		f := d.seg
		if s.gseg != s.seg {
			f = d.spare
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
		n := s.reader.limit - s.tornAt
		b := make([]byte, n)
		if _, err := d.ckpts.ReadAt(b, s.tornAt); err != nil {
			return nil, err
		}
		if err := d.ckpts.truncate(s.tornAt); err != nil {
			return nil, err
		}
		if err := d.ckpts.datasync(); err != nil {
			return nil, err
		}
		recs = append(recs, &Record{Kind: KindRecovery, Op: "checkpoints", Count: uint64(n), InputHash: sha256.Sum256(b)})
	}
	if string(s.current.raw) != string(s.latest.raw) {
		if err := replaceFile(d.st, checkpointFile, s.latest.raw); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{checkpointFile, segmentName(s.segs)} {
		if err := removeIfExists(d.st, name+tmpSuffix); err != nil {
			return nil, err
		}
	}
	return recs, nil
}
