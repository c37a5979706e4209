package audit

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/rustyonions/ron-kms/audit/fsys"
	"github.com/rustyonions/ron-kms/audit/keymap"
)

// A refused log is never mended and never removed. Who has looked into it gives it up as it is, and begins another one, under another
// origin, whose second record says what was given up and why.

// A Finding is what Inspect found of a log, and what the part of it that is right knows.
type Finding struct {
	Report         Report
	ID             [16]byte          // of the directory
	CheckpointHash [32]byte          // SHA-256 of the latest checkpoint that fits the records; zero if none does
	Anchors        map[string]uint64 // how many records each anchor knows that could be read, by its name
	// Later counts the records after those that are right that could still be told by themselves.
	Later uint64
	// Mirrored says that a mirror has what follows the records that are right, which Open may take back.
	Mirrored bool
	// Refused says why Open refuses the log. Nil: it does not.
	Refused *IntegrityError

	keys    *keymap.Table
	pending map[uint64]*Record
}

// Inspect reads the whole log in dir like Verify, and then, if nothing is wrong so far, judges it as Open would, anchors and witnesses
// included. It changes nothing, and closes the anchors. OnRecord, if set, is called for each record that is right, in order, and then
// for what can still be read behind the damage, if there is some.
// The keys in o may be any that the log has had. If they are not, that is the finding, and the records are read as the log's own keys and
// the MAC key bear them out. An error that is not about the integrity of the log is returned.
func Inspect(ctx context.Context, dir string, o Options, onRecord func(index uint64, r *Record) error) (f *Finding, err error) {
	o, err = o.withDefaults(true)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, a := range o.Anchors {
			err = errors.Join(err, a.Anchor.Close())
		}
	}()
	if onRecord == nil {
		onRecord = func(uint64, *Record) error { return nil }
	}
	f = &Finding{keys: keymap.NewTable(), pending: make(map[uint64]*Record), Anchors: make(map[string]uint64)}
	for _, a := range o.Anchors {
		if s, err := a.Anchor.Read(ctx); err == nil {
			f.Anchors[a.Anchor.Name()] = s.Size
		}
	}
	lost := &salvager{mac: borrowedMAC(o.MACKey), onRecord: onRecord}
	if err := f.judge(ctx, dir, o, lost); err != nil {
		return nil, err
	}
	if f.Refused != nil {
		err = lost.run(ctx, dir, o.Anchors)
		f.Later, f.Mirrored = lost.n, lost.mirrored
	}
	return f, err
}

// judge finds out what is right, and leaves to lost what comes after it.
func (f *Finding) judge(ctx context.Context, dir string, o Options, lost *salvager) (err error) {
	st, err := fsys.Open(dir)
	if err != nil {
		return f.refuse((&scanner{}).missing("directory", err))
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	lock, err := st.Lock(formatFile, false)
	if notThere(err) {
		return f.refuse((&scanner{}).missing(formatFile, err))
	}
	if err != nil {
		return fmt.Errorf("audit: inspect: %w", err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err := f.verify(ctx, st, o, lost); err != nil || f.Refused != nil {
		return err
	}
	return f.open(ctx, st, o)
}

// refuse notes the verdict in err and returns any other error.
func (f *Finding) refuse(err error) error {
	var v *IntegrityError
	if f.Refused == nil && errors.As(err, &v) {
		f.Refused = v
		return nil
	}
	return err
}

// verify reads all records.
func (f *Finding) verify(ctx context.Context, st fsys.Dir, o Options, lost *salvager) error {
	own := &scanner{st: st}
	if err := own.begin(); err != nil {
		return f.refuse(err)
	}
	f.ID = own.f.id
	keys := o.Keys
	if err := own.trusts(keys); err != nil {
		keys = own.chain[0].Set
		if err := f.refuse(err); err != nil {
			return err
		}
	}
	s := &scanner{st: st}
	rep, err := verifyWith(ctx, s, VerifyOptions{Keys: keys, MACKey: o.MACKey, OnRecord: func(index uint64, r *Record) error {
		lost.from = index + 1
		return lost.onRecord(index, r)
	}})
	lost.size, lost.tag = s.size, s.tag
	if rep != nil {
		f.Report = *rep
	}
	if s.keys != nil {
		f.keys, f.pending = s.keys, s.pending
	}
	if s.latest != nil {
		f.CheckpointHash = s.latest.hash()
	}
	var v *IntegrityError
	if !errors.As(err, &v) {
		return err
	}
	if f.Refused != nil {
		v.Reason = f.Refused.Reason + "; and " + v.Reason
	}
	f.Refused = v
	return nil
}

// open judges the log as an opening would.
func (f *Finding) open(ctx context.Context, st fsys.Dir, o Options) error {
	own := &scanner{st: st}
	if err := own.begin(); err != nil {
		return f.refuse(err)
	}
	o.Keys = own.chain[len(own.chain)-1].Set
	s := &scanner{st: readOnly{st}, mac: borrowedMAC(o.MACKey)}
	t, err := s.opening(ctx, o)
	if err == nil {
		_, err = checkAnchors(ctx, s, t, o.Anchors)
	}
	if err == nil {
		_, _, err = askWitnesses(ctx, s, t, o.Witnesses)
	}
	if t != nil {
		err = errors.Join(err, t.Close())
	}
	if s.notes != nil {
		err = errors.Join(err, s.notes.close())
	}
	if s.keys != nil { // knows of pruned records too
		f.keys, f.pending = s.keys, s.pending
	}
	return f.refuse(err)
}

// Key says what the log knows of a key, like [Log.Key].
func (f *Finding) Key(name string) (seq, last, effect uint64) {
	_, k, _ := f.keys.Lookup(name)
	return k.Seq, k.Last, k.Effect
}

// Effects returns the number of keys with an intent that took effect.
func (f *Finding) Effects() int { return f.keys.Effects() }

// Pending returns the intents without an answer, by index.
func (f *Finding) Pending() map[uint64]*Record { return f.pending }

// Size returns the number of records that are right.
func (f *Finding) Size() uint64 { return f.Report.Size }

// Succeed makes a new log in dir, which takes the place of one that was given up: its second record is accepted, of kind
// KindRecovery, and what fill appends comes after. Then the log is closed. It returns the number of its records. If anything fails,
// what is in dir is of no use.
func Succeed(ctx context.Context, dir string, o Options, accepted *Record, fill func(l *Log) error) (size uint64, err error) {
	if accepted.Kind != KindRecovery {
		return 0, errors.New("audit: succeed: the record is not of a recovery")
	}
	o.Anchors, o.Witnesses, o.OnFailure = nil, nil, nil
	if err := Create(dir, o); err != nil {
		return 0, err
	}
	o.begun = []*Record{accepted}
	l, err := Open(ctx, dir, o)
	if err != nil {
		return 0, err
	}
	if err := errors.Join(fill(l), l.Close()); err != nil {
		return 0, err
	}
	return l.Size(), nil
}

// SetAsideAnchor renames the files of a directory anchor that is of another log than id to their names and suffix, so that the anchor is
// empty, and reports whether it did. It is for the anchor of a log that was given up. Only an anchor that the key authenticates is touched:
// any other may be of another store.
func SetAsideAnchor(ctx context.Context, dir string, id [16]byte, suffix string, key func(use func(key []byte))) (done bool, err error) {
	st, err := fsys.Open(dir)
	if notThere(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("audit: anchor: %w", err)
	}
	a := newDirAnchor("dir:"+dir, st, key)
	defer func() { err = errors.Join(err, a.Close()) }()
	s, err := a.Read(ctx)
	if errors.Is(err, ErrNoAnchor) || err == nil && s.Log == id {
		return false, nil
	}
	if err == nil {
		err = a.setAside(suffix)
	}
	if err != nil {
		return false, fmt.Errorf("audit: anchor %s: %w", a.Name(), err)
	}
	return true, nil
}

// setAside renames the mirror first and the register last: while that is there, it says whose the rest is.
func (a *dirAnchor) setAside(suffix string) error {
	m := mirror{st: a.st}
	numbers, err := m.list()
	if err != nil {
		return err
	}
	var names []string
	for _, n := range numbers {
		names = append(names, mirrorName(n))
	}
	for _, name := range append(names, anchorFile) {
		to := name + suffix
		if f, err := a.st.OpenFile(to, os.O_RDONLY); !notThere(err) {
			if err == nil {
				err = f.Close()
			}
			return errors.Join(fmt.Errorf("%s is there already", to), err)
		}
		if err := a.st.Rename(name, to); err != nil {
			return err
		}
		if err := a.st.SyncDir(); err != nil {
			return err
		}
	}
	return nil
}
