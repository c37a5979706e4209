package audit

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/note"

	"github.com/rustyonions/ron-kms/audit/fsys"
	"github.com/rustyonions/ron-kms/audit/notekey"
	"github.com/rustyonions/ron-kms/audit/tiles"
)

// The keys that sign checkpoints are replaced between two openings (docs/spec/audit-keys.md). The handover names the size of the
// closed log as the last for which the old keys sign. So the record that binds it into the tree has one possible place, the
// next one, and the next opening writes it there before anything else.

// Handover replaces the keys of the log in dir, which must have been closed cleanly: o has the present ones, and next are those
// that sign from the next record on. Signers are those of all present and all next keys, a key that stays once. When Handover returns
// nil the change is durable, and Open wants the next keys. After any error [LatestKeys] tells whether it has happened.
func Handover(ctx context.Context, dir string, o Options, next *notekey.Set, signers ...note.Signer) error {
	o, err := o.withDefaults(true)
	if err != nil {
		return err
	}
	st, err := fsys.Open(dir)
	if err != nil {
		return (&scanner{}).missing("directory", err)
	}
	return errors.Join(handoverIn(ctx, st, o, next, signers...), st.Close())
}

func handoverIn(ctx context.Context, st fsys.Dir, o Options, next *notekey.Set, signers ...note.Signer) (err error) {
	lock, err := st.Lock(formatFile, true)
	if err != nil {
		return fmt.Errorf("audit: handover: %w", err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	s := &scanner{st: readOnly{st}, mac: borrowedMAC(o.MACKey)}
	t, err := s.opening(ctx, o)
	if t != nil {
		err = errors.Join(err, t.Close())
	}
	if s.notes != nil {
		err = errors.Join(err, s.notes.close())
	}
	if err != nil {
		return err
	}
	if s.best().state != headClosed {
		return errors.New("audit: handover: the log was not closed cleanly")
	}
	b, err := readHandovers(st)
	if err != nil {
		return err
	}
	link, err := notekey.NewHandover(s.chain[0].Set, b, s.size, next, signers...)
	if err != nil {
		return err
	}
	if len(b)+len(link) > maxHandovers {
		return errors.New("audit: handover: the log has had too many keys")
	}
	if err := fsys.ReplaceFile(st, handoverFile, append(b, link...)); err != nil {
		return fmt.Errorf("audit: %s: %w", handoverFile, err)
	}
	return nil
}

// readHandovers returns the bytes of the handovers so far.
func readHandovers(st fsys.Dir) ([]byte, error) {
	b, err := fsys.ReadFile(st, handoverFile, maxHandovers)
	if err != nil && !notThere(err) {
		return nil, fmt.Errorf("audit: %s: %w", handoverFile, err)
	}
	return b, nil
}

// LatestKeys reads which keys the log in dir has now, by its own account: those that Open wants.
func LatestKeys(dir string) (keys *notekey.Set, err error) {
	err = beginIn(dir, func(s *scanner) { keys = s.chain[len(s.chain)-1].Set })
	return keys, err
}

// begunChain reads the handovers again.
func (s *scanner) begunChain() error { return s.loadChain(s.st, s.chain[0].Set) }

// checkHandover checks that r holds the handover that takes effect at its place, and is of that kind nowhere else.
func (h *history) checkHandover(index uint64, r *Record) error {
	span := h.spanAt(index)
	if span == nil && r.Kind == KindKeys && h.reload != nil {
		// The handover may be newer than what the reader began with.
		if err := h.reload(); err != nil {
			return err
		}
		span = h.spanAt(index)
	}
	switch {
	case span == nil && r.Kind == KindKeys:
		return h.fail(VerdictFormat, "record %d names a handover of keys that is not there", index)
	case span != nil && (r.Kind != KindKeys || r.InputHash != sha256.Sum256([]byte(span.Handover)) || string(r.Detail) != span.Handover):
		return h.fail(VerdictFormat, "record %d does not name the handover of keys that takes effect there", index)
	}
	return nil
}

// spanAt returns the keys whose handover belongs into the record with the given index, or nil.
func (h *history) spanAt(index uint64) *notekey.Span {
	for i := len(h.chain) - 1; i > 0 && h.chain[i].From > index; i-- {
		if h.chain[i].From == index+1 {
			return &h.chain[i]
		}
	}
	return nil
}

// earlierHandovers checks the handovers whose records are packed.
func (s *scanner) earlierHandovers(t *tiles.Store) error {
	for _, span := range s.chain[1:] {
		index := span.From - 1
		if index >= s.size || index < s.snap.kept {
			continue
		}
		b, err := t.Record(index)
		if err != nil {
			return s.damaged(err)
		}
		r, err := ParseRecord(b)
		if err != nil {
			return s.fail(VerdictTampered, "%v", err)
		}
		if err := s.checkHandover(index, r); err != nil {
			return err
		}
	}
	return nil
}

// handoverReached checks that the log is as long as it was when its keys were last replaced.
func (s *scanner) handoverReached() error {
	if from := s.chain[len(s.chain)-1].From; from > s.size+1 {
		return s.fail(VerdictTruncated, "the keys were replaced after %d records", from-1)
	}
	return nil
}

// unrecorded reports whether the last handover has no record yet.
func (s *scanner) unrecorded() bool {
	return len(s.chain) > 1 && s.chain[len(s.chain)-1].From == s.size+1
}

// handoverRecord is the record of the last handover.
func (s *scanner) handoverRecord() *Record {
	text := s.chain[len(s.chain)-1].Handover
	return &Record{Kind: KindKeys, InputHash: sha256.Sum256([]byte(text)), Detail: []byte(text)}
}
