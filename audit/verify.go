package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/rustyonions/ron-kms/audit/fsys"
	"github.com/rustyonions/ron-kms/audit/keymap"
	"github.com/rustyonions/ron-kms/audit/notekey"
	"github.com/rustyonions/ron-kms/audit/tiles"
)

// VerifyOptions say what Verify may use.
type VerifyOptions struct {
	// Keys are the log's public keys, at any time of its life. They must come from somewhere else than the log.
	Keys *notekey.Set
	// MACKey, if set, also authenticates the frames, the snapshot and the head register (see Options).
	MACKey func(use func(key []byte))
	// Progress, if set, is called after each group of records with the number verified and the number expected.
	Progress func(done, total uint64)
	// OnRecord, if set, is called for each record in order. An error ends Verify.
	OnRecord func(index uint64, r *Record) error
	// Against are checkpoints of the log that were kept elsewhere: the log must continue each of them.
	Against [][]byte
	// Witnesses must each have cosigned a checkpoint that the log continues: the one in the file checkpoint, or in cosigned.
	Witnesses []note.Verifier
}

// A Report is what Verify found. After an error it covers the records that are intact.
type Report struct {
	Origin         string
	Size           uint64    // intact records
	Root           [32]byte  // over them
	CheckpointSize uint64    // records covered by the latest checkpoint
	CheckpointTime time.Time // when the last of them was written
	Checkpoints    uint64    // whose signatures were checked
	Unsigned       uint64    // records after the latest checkpoint
	// Pruned is the first record that is kept. Of those before it only the hashes are checked: not what they said, nor the
	// sequences of keys and the roots of the key map over them; Ops and Kinds leave them out.
	Pruned        uint64
	Ops           map[string]map[string]uint64 // operations by Op and Result: a KindOperation record is Count of them, or one
	Kinds         map[Kind]uint64
	Keys          int               // keys with a sequence
	Gaps          uint64            // offered records that were lost, by the KindGap records
	TornBytes     int               // bytes of an unfinished write at the end, which Open will discard and record
	Clean         bool              // closed, or just created: the next Open finds nothing to put right
	Cosigned      map[string]uint64 // records that each of the witnesses that were asked for has cosigned, by its name
	Authenticated bool              // the frames, snapshot and head were checked with the MAC key
}

// Verify reads the whole log in dir and checks everything that Open checks, every packed record and tile, the roots of the key
// map, and the signatures of all checkpoints that are kept. It changes nothing, takes no lock, and may run beside the
// log's writer. Without the MAC key the records after the latest checkpoint, and the removal of such, are only as
// trustworthy as the disk.
func Verify(ctx context.Context, dir string, o VerifyOptions) (*Report, error) {
	st, err := fsys.Open(dir)
	if err != nil {
		return nil, (&scanner{}).missing("directory", err)
	}
	rep, err := verifyIn(ctx, st, o)
	return rep, errors.Join(err, st.Close())
}

func verifyIn(ctx context.Context, st fsys.Dir, o VerifyOptions) (*Report, error) {
	return verifyWith(ctx, &scanner{st: st, progress: o.Progress}, o)
}

// verifyWith is Verify by s, which afterwards knows what was found.
func verifyWith(ctx context.Context, s *scanner, o VerifyOptions) (*Report, error) {
	if o.Keys == nil {
		return nil, errors.New("audit: verify: the keys are required")
	}
	st := s.st
	rep := new(Report)
	if o.MACKey != nil {
		s.mac = borrowedMAC(o.MACKey)
		rep.Authenticated = true
	}
	s.live = func() (bool, error) { return beingWritten(st) }
	s.onRecord = rep.counting(o)
	s.reload = s.begunChain
	err := s.begin()
	if err == nil {
		err = s.trusts(o.Keys)
	}
	if err == nil {
		err = s.expect(o.Against...)
	}
	if err == nil {
		rep.Cosigned, err = s.cosigned(st, o.Witnesses)
	}
	if err == nil {
		err = s.verify(ctx)
	}
	if err == nil {
		err = s.compared()
	}
	if s.notes != nil {
		err = errors.Join(err, s.notes.close())
	}
	if s.f == nil {
		return rep, err
	}
	rep.Origin, rep.Size, rep.Root = s.f.origin, s.size, s.root
	if s.keys != nil {
		rep.Keys = s.keys.Len()
	}
	if s.snap != nil {
		rep.Pruned = s.snap.kept
	}
	rep.TornBytes = len(s.garbage)
	if s.latest != nil {
		rep.CheckpointSize, rep.CheckpointTime = s.latest.size, s.ckptTime
	}
	rep.Unsigned = rep.Size - min(rep.Size, rep.CheckpointSize)
	rep.Checkpoints = s.count
	rep.Clean = err == nil && s.best().state == headClosed
	return rep, err
}

// verify reads the packed records and then the ring.
func (s *scanner) verify(ctx context.Context) error {
	s.keys, s.keyMap, s.pending = keymap.NewTable(), new(keymap.Map), make(map[uint64]*Record)
	oldest, err := oldestCheckpoints(s.st)
	if err == nil {
		s.notes, err = newCheckpointReader(s.st, s.f.origin, oldest, 0)
	}
	if err != nil {
		return s.missing(checkpointsName(0), err)
	}
	for {
		if err := s.prepare(); err != nil {
			return err
		}
		s.seg, s.off = s.snap.at.segment, s.snap.at.off
		if err := s.packed(ctx, s.snap.at.size); err != nil {
			if pruned, e := s.prunedMeanwhile(); e != nil || !pruned {
				return err
			}
			continue
		}
		if s.root != s.snap.root && s.size > 0 {
			return s.fail(VerdictTampered, "the packed records have another root than the snapshot over %d records", s.size)
		}
		s.tag, s.lastSize = s.snap.at.tag, s.size
		if err := s.checkHeads(); err != nil {
			return err
		}
		moved, err := s.fetch()
		if err != nil {
			return err
		}
		if !moved {
			if err := s.run(ctx); err != nil {
				return err
			}
			return s.checkPruned()
		}
	}
}

// packed reads the records up to size from the tile store, and checks all of it.
func (s *scanner) packed(ctx context.Context, size uint64) (err error) {
	if size == 0 {
		return nil
	}
	t, err := tiles.Open(readOnly{s.st}, size)
	if err != nil {
		return s.damaged(err)
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	if t.Kept() > s.snap.kept {
		return s.fail(VerdictMissing, "records before %d are gone, and nothing says that they were given up", t.Kept())
	}
	if kept := min(s.snap.kept, size); s.size < kept {
		s.keyMap = nil // what the pruned records said of keys is gone
		if err := s.skipPruned(t, kept); err != nil {
			return err
		}
	}
	for s.size < size {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("audit: verify: %w", context.Cause(ctx))
		}
		n := s.size / tiles.Width
		width := int(min(size-n*tiles.Width, tiles.Width))
		b, err := t.Bundle(n, width)
		if err != nil {
			return s.damaged(err)
		}
		recs, err := tiles.Split(b, width)
		if err != nil {
			return s.fail(VerdictTampered, "packed records: %v", err)
		}
		for _, b := range recs[s.size%tiles.Width:] {
			if err := s.add(b); err != nil {
				return err
			}
		}
		if s.progress != nil {
			s.progress(s.size, max(s.size, s.best().size))
		}
	}
	if s.root, err = s.tree.root(); err != nil {
		return err
	}
	if err := s.earlierHeads(t); err != nil {
		return err
	}
	for from := uint64(0); ; {
		next, err := t.Scrub(ctx, from, 1<<10)
		if err != nil {
			return s.damaged(err)
		}
		if next <= from {
			return nil
		}
		from = next
	}
}

// skipPruned takes the leaf hashes of records that are not kept.
func (s *scanner) skipPruned(t *tiles.Store, kept uint64) error {
	for s.size < kept {
		hashes, err := t.Tile(0, s.size/tiles.Width, tiles.Width)
		if err != nil {
			return s.damaged(err)
		}
		for at := int(s.size%tiles.Width) * 32; at < len(hashes) && s.size < kept; at += 32 {
			if err := s.addHash([32]byte(hashes[at:])); err != nil {
				return err
			}
		}
	}
	return nil
}

// fetch reads the ring of a log that is being written, and reports whether it moved on meanwhile: then what was read
// may be of no use.
func (s *scanner) fetch() (moved bool, err error) {
	s.prefetch = nil
	live, err := s.live()
	if err != nil || !live {
		return false, err
	}
	s.prefetch = make(map[int][]byte)
	for seg := s.seg0; seg < s.segs; seg++ {
		b := make([]byte, s.f.segment)
		err := s.readSegment(seg, b)
		if v := (*IntegrityError)(nil); errors.As(err, &v) && v.Verdict != VerdictMissing || err != nil && v == nil {
			return false, err
		}
		if err == nil {
			s.prefetch[seg] = b
		}
	}
	was := s.snap.at.segment
	if err := s.loadSnapshot(); err != nil {
		return false, err
	}
	return s.snap.at.segment != was || s.snap.at.size != s.size, nil
}

// readOnly refuses to make files.
type readOnly struct{ fsys.Dir }

func (r readOnly) OpenFile(name string, flag int) (fsys.File, error) {
	return r.Dir.OpenFile(name, flag&os.O_EXCL|os.O_RDONLY)
}

func (readOnly) Close() error { return nil }

// counting returns a function that counts each record and gives it to the caller of Verify.
func (rep *Report) counting(o VerifyOptions) func(uint64, *Record) error {
	rep.Ops, rep.Kinds = make(map[string]map[string]uint64), make(map[Kind]uint64)
	return func(i uint64, r *Record) error {
		rep.add(r)
		if o.OnRecord != nil {
			if err := o.OnRecord(i, r); err != nil {
				return fmt.Errorf("audit: verify: record %d: %w", i, err)
			}
		}
		return nil
	}
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
		m[r.Result] += max(1, r.Count)
	case KindGap:
		rep.Gaps += r.Count
	}
}

// beingWritten reports whether a writer has the log open at this moment.
func beingWritten(st fsys.Dir) (bool, error) {
	c, err := st.Lock(formatFile, false)
	if errors.Is(err, ErrBusy) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("audit: verify: %w", err)
	}
	return false, c.Close()
}
