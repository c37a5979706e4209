package audit

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// VerifyOptions say what Verify may use.
type VerifyOptions struct {
	// Verifier is the log's public key. It must come from somewhere else than the log.
	Verifier note.Verifier
	// MACKey, if set, also authenticates the frames and the head register (see Options).
	MACKey func(use func(key []byte))
	// Progress, if set, is called after each group of records with the number verified and the number expected.
	Progress func(done, total uint64)
	// OnRecord, if set, is called for each record in order. An error ends Verify.
	OnRecord func(index uint64, r *Record) error
}

// A Report is what Verify found. After an error it covers the records that are intact.
type Report struct {
	Origin         string
	Size           uint64    // intact records
	Root           [32]byte  // over them
	CheckpointSize uint64    // records covered by the latest checkpoint
	CheckpointTime time.Time // when the last of them was written
	Checkpoints    uint64
	Unsigned       uint64                       // records after the latest checkpoint
	Ops            map[string]map[string]uint64 // KindOperation records by Op and Result
	Kinds          map[Kind]uint64
	Keys           int    // keys with a sequence
	Gaps           uint64 // offered records that were lost, by the KindGap records
	TornBytes      int    // bytes of an unfinished write at the end, which Open will discard and record
	Clean          bool   // closed, or just created: the next Open finds nothing to put right
	Authenticated  bool   // the frames and head were checked with the MAC key
}

// Verify reads the log in dir and checks everything that Open checks, and the signature of every checkpoint. It
// changes nothing, takes no lock, and may run beside the log's writer. Without the MAC key the records after
// the latest checkpoint, and the removal of such, are only as trustworthy as the disk.
func Verify(ctx context.Context, dir string, o VerifyOptions) (*Report, error) {
	st, err := openStorage(dir)
	if err != nil {
		return nil, (&scanner{}).missing("directory", err)
	}
	rep, err := verifyIn(ctx, st, o)
	return rep, errors.Join(err, st.close())
}

func verifyIn(ctx context.Context, st storage, o VerifyOptions) (*Report, error) {
	if o.Verifier == nil {
		return nil, errors.New("audit: verify: a verifier is required")
	}
	rep := &Report{Ops: make(map[string]map[string]uint64), Kinds: make(map[Kind]uint64)}
	s := &scanner{st: st, progress: o.Progress}
	if o.MACKey != nil {
		s.mac = borrowedMAC(o.MACKey)
		rep.Authenticated = true
	}
	s.live = func() (bool, error) { return beingWritten(st) }
	s.checkSig = func(c *checkpoint) error { return c.verify(o.Verifier) }
	s.onRecord = func(i uint64, r *Record) error {
		rep.add(r)
		if o.OnRecord != nil {
			if err := o.OnRecord(i, r); err != nil {
				return fmt.Errorf("audit: verify: record %d: %w", i, err)
			}
		}
		return nil
	}
	err := s.prepare()
	if s.ckpts != nil {
		defer s.ckpts.Close()
	}
	if err == nil && s.f.origin != o.Verifier.Name() {
		err = s.fail(VerdictFormat, "the log is %s, the key of %s", s.f.origin, o.Verifier.Name())
	}
	short := shortKey(o.Verifier)
	if err == nil && s.f.vkey != short && !strings.HasPrefix(s.f.vkey, short+"+") {
		err = s.fail(VerdictFormat, "the log has the key %s, not %s", s.f.vkey, short)
	}
	if err == nil {
		err = s.run(ctx)
	}
	if s.f == nil {
		return rep, err
	}
	rep.Origin, rep.Size, rep.Root, rep.Keys = s.f.origin, s.size, s.root, len(s.keys)
	rep.TornBytes = len(s.garbage)
	if s.latest != nil {
		rep.CheckpointSize, rep.CheckpointTime = s.latest.size, s.ckptTime
	}
	rep.Unsigned = rep.Size - rep.CheckpointSize
	rep.Checkpoints = s.ckptCount
	rep.Clean = err == nil && s.newest().state == headClosed
	return rep, err
}

// add counts r.
func (rep *Report) add(r *Record) {
	rep.Kinds[r.Kind]++
	switch r.Kind {
	case KindOperation:
		m := rep.Ops[r.Op]
		if m == nil {
			m = make(map[string]uint64)
			rep.Ops[r.Op] = m
		}
		m[r.Result]++
	case KindGap:
		rep.Gaps += r.Count
	}
}

// beingWritten reports whether a writer has the log open at this moment.
func beingWritten(st storage) (bool, error) {
	c, err := st.lock(formatFile, false)
	if errors.Is(err, ErrBusy) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("audit: verify: %w", err)
	}
	return false, c.Close()
}
