package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rustyonions/ron-kms/audit/fsys"
	"github.com/rustyonions/ron-kms/audit/notekey"
	"github.com/rustyonions/ron-kms/audit/tiles"
)

// A Reader reads a log that somebody else writes, as it was when the Reader was made. Whatever it returns was checked against a
// checkpoint that the log's keys signed. Its methods may be called from any goroutine.
type Reader struct {
	src     tiles.Source
	size    uint64 // of the tree that Read reads, and its root: that of the checkpoint, or a later one that the MACs of frames cover
	root    [32]byte
	c       *checkpoint
	chain   notekey.Chain
	st      fsys.Dir    // of OpenReader; nil otherwise
	f       *format     // as st
	closers []io.Closer // what Close closes
}

// NewReader returns a Reader of the log that a server, or an export, gives out: checkpoint is its latest one, perhaps with
// signatures of witnesses, and keys are those that must have signed it. The source need not be trusted; its tiles are checked
// as they are read. It stays the caller's to close.
func NewReader(src tiles.Source, checkpoint []byte, keys *notekey.Set) (*Reader, error) {
	if keys == nil {
		return nil, errors.New("audit: reader: the keys are required")
	}
	c, err := parseCheckpoint(checkpoint, keys.Name())
	if err == nil {
		_, _, err = keys.VerifyCosigned(checkpoint)
	}
	if err != nil {
		return nil, outside(0, fmt.Sprintf("the checkpoint: %v", err))
	}
	return &Reader{src: src, size: c.size, root: c.root, c: c, chain: notekey.Chain{{Set: keys}}}, nil
}

// OpenReader reads the log in dir as Open does, from its snapshot on, but it changes nothing and keeps no lock, so that
// it may run beside the log's writer. Errors are those of Open; a log that is damaged is an *IntegrityError. Of the options it
// uses Keys, MACKey, Against and Witnesses.
//
// Without the MAC key it reads up to the latest checkpoint, because nobody vouches for what follows. With it, Size and Read
// include the records after that.
func OpenReader(ctx context.Context, dir string, o VerifyOptions) (*Reader, error) {
	if o.Keys == nil {
		return nil, errors.New("audit: reader: the keys are required")
	}
	st, err := fsys.Open(dir)
	if err != nil {
		return nil, (&scanner{}).missing("directory", err)
	}
	r, err := openReader(ctx, st, o)
	if err != nil {
		return nil, errors.Join(err, st.Close())
	}
	return r, nil
}

// readerTries is how often a log that is being written is read, until what was read fits together.
const readerTries = 10

// errMoved says that a running log has recycled what was being read.
var errMoved = errors.New("the log is being written faster than it can be read")

func openReader(ctx context.Context, st fsys.Dir, o VerifyOptions) (*Reader, error) {
	for try := 1; ; try++ {
		before, err := beingWritten(st)
		if err != nil && !notThere(err) {
			return nil, err
		}
		r, err := readLog(ctx, st, o)
		if err == nil {
			return r, nil
		}
		var damage *IntegrityError
		if try == readerTries || !errors.Is(err, errMoved) && !errors.As(err, &damage) {
			return nil, err
		}
		// Files that a writer replaces in between do not fit each other. Real damage is still there the next time.
		if live, e := beingWritten(st); !errors.Is(err, errMoved) && (e != nil || !live && !before) {
			return nil, err
		}
	}
}

// readLog is one attempt to read the log in st.
func readLog(ctx context.Context, st fsys.Dir, o VerifyOptions) (_ *Reader, err error) {
	s := &scanner{st: st}
	if o.MACKey != nil {
		s.mac = borrowedMAC(o.MACKey)
	}
	s.live = func() (bool, error) { return beingWritten(st) }
	s.reload = s.begunChain
	var t *tiles.Store
	defer func() {
		if s.notes != nil {
			err = errors.Join(err, s.notes.close())
		}
		if err != nil && t != nil {
			err = errors.Join(err, t.Close())
		}
	}()
	if err := s.begin(); err != nil {
		return nil, err
	}
	if err := s.trusts(o.Keys); err != nil {
		return nil, err
	}
	if err := s.prepare(); err != nil {
		return nil, err
	}
	if t, err = tiles.Open(readOnly{st}, s.snap.at.size); err != nil {
		return nil, s.damaged(err)
	}
	if err := s.resume(t); err != nil {
		return nil, err
	}
	if err := s.resumeNotes(t); err != nil {
		return nil, err
	}
	moved, err := s.fetch()
	if err != nil {
		return nil, err
	}
	if moved {
		return nil, errMoved
	}
	s.onLeaf = t.Append // in memory; nothing is written without Flush
	if err := s.run(ctx); err != nil {
		return nil, err
	}
	r := &Reader{src: t, size: s.size, root: s.root, c: s.latest, chain: s.chain, st: st, f: s.f, closers: []io.Closer{t, st}}
	if err := r.Continues(s.latest.raw); err != nil {
		return nil, err
	}
	if s.mac == nil {
		r.size, r.root = s.latest.size, s.latest.root
	}
	if _, err := s.cosigned(st, o.Witnesses); err != nil {
		return nil, err
	}
	for _, m := range s.marks {
		if err := r.continues(m); err != nil {
			return nil, err
		}
	}
	for _, raw := range o.Against {
		if err := r.Continues(raw); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// Close releases what OpenReader and ReadExport opened.
func (r *Reader) Close() error {
	var errs []error
	for _, c := range r.closers {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// Size returns how many records Read can give: those that the checkpoint covers, and with the MAC key those behind.
func (r *Reader) Size() uint64 { return r.size }

// Signed returns how many records the checkpoint covers. They are the ones that can be proved and exported.
func (r *Reader) Signed() uint64 { return r.c.size }

// Checkpoint returns the latest checkpoint, a signed note (C2SP tlog-checkpoint).
func (r *Reader) Checkpoint() []byte { return bytes.Clone(r.c.raw) }

// Keys returns the public keys that the log has had, oldest first, as far as the Reader knows them.
func (r *Reader) Keys() notekey.Chain { return r.chain }

// Continues checks that the log begins with what checkpoint, which was kept from earlier, covers. Witnesses may have added
// signatures to it. It returns an *IntegrityError if the log does not, and another error for a checkpoint of another log or
// without the right signatures.
func (r *Reader) Continues(checkpoint []byte) error {
	h := history{origin: r.chain[0].Set.Name(), chain: r.chain}
	if err := h.expect(checkpoint); err != nil {
		return err
	}
	return r.continues(h.marks[0])
}

func (r *Reader) continues(c *checkpoint) error {
	if c.size > r.size {
		return outsideAs(VerdictStale, r.size, fmt.Sprintf("a checkpoint that was kept elsewhere covers %d records", c.size))
	}
	root, err := tlog.TreeHash(int64(c.size), tiles.HashReader(r.src, r.size, r.root))
	if err != nil {
		return r.damaged(err)
	}
	if root != c.root {
		return outsideAs(VerdictForked, r.size, fmt.Sprintf("a checkpoint over %d records that was kept elsewhere has another root than these records", c.size))
	}
	return nil
}

// Cosigned returns r as it was at the latest checkpoint that witnesses have cosigned, with their signatures, which it does not
// verify. Only a Reader of OpenReader knows it; the error wraps fs.ErrNotExist if there is none.
func (r *Reader) Cosigned() (*Reader, error) {
	if r.st == nil {
		return nil, errors.New("audit: reader: only the folder of a log has the cosigned checkpoint")
	}
	raw, err := fsys.ReadFile(r.st, cosignedFile, maxNote)
	if err != nil {
		return nil, fmt.Errorf("audit: reader: the cosigned checkpoint: %w", err)
	}
	if err := r.Continues(raw); err != nil {
		return nil, err
	}
	found, err := parseCheckpoint(raw, r.f.origin)
	if err != nil {
		return nil, err
	}
	return r.as(found), nil
}

// as returns r as it was at an earlier checkpoint, which was checked.
func (r *Reader) as(earlier *checkpoint) *Reader {
	c := *r
	c.c, c.size, c.root = earlier, earlier.size, earlier.root
	return &c
}

// damaged turns what is wrong with tiles into a verdict.
func (r *Reader) damaged(err error) error {
	var d *tiles.DamageError
	if errors.As(err, &d) || errors.Is(err, tiles.ErrRoot) || errors.Is(err, tiles.ErrBundle) {
		return outsideAs(VerdictTampered, r.size, err.Error())
	}
	return fmt.Errorf("audit: reader: %w", err)
}

// ReadTile returns the tile or entry bundle with the given C2SP name, if the checkpoint covers it. So a Reader is a tiles.Source.
func (r *Reader) ReadTile(name string) ([]byte, error) {
	level, n, width, err := tiles.ParsePath(name)
	if err != nil {
		return nil, fmt.Errorf("audit: tile: %w", err)
	}
	if n*tiles.Width+uint64(width) > r.c.size>>(tileHeight*max(level, 0)) {
		return nil, fmt.Errorf("audit: %s: %w", name, ErrBeyond)
	}
	b, err := r.src.ReadTile(name)
	if err != nil {
		return nil, r.damaged(err)
	}
	return b, nil
}

// Read calls fn for each record from index from on, in order, with its encoding, which fn must not keep. It returns the error of fn,
// an *IntegrityError for records that do not lead to the root, and an error that wraps ErrNotKept for pruned ones.
func (r *Reader) Read(ctx context.Context, from uint64, fn func(index uint64, encoded []byte, rec *Record) error) error {
	for from < r.size {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("audit: read: %w", context.Cause(ctx))
		}
		recs, err := r.bundle(from/tiles.Width, r.size, r.root)
		if err != nil {
			return err
		}
		for _, b := range recs[from%tiles.Width:] {
			rec, err := ParseRecord(b)
			if err != nil {
				return outsideAs(VerdictTampered, from, err.Error())
			}
			if err := fn(from, b, rec); err != nil {
				return err
			}
			from++
		}
	}
	return nil
}

// bundle returns the records of bundle n, checked against the root over size records.
func (r *Reader) bundle(n, size uint64, root [32]byte) ([][]byte, error) {
	width := int(min(size-n*tiles.Width, tiles.Width))
	recs, err := tiles.ReadBundle(r.src, n, width)
	if err != nil {
		return nil, r.damaged(err)
	}
	at := make([]int64, width)
	for i := range at {
		at[i] = tlog.StoredHashIndex(0, int64(n*tiles.Width)+int64(i))
	}
	leaves, err := tiles.HashReader(r.src, size, root).ReadHashes(at)
	if err != nil {
		return nil, r.damaged(err)
	}
	for i, b := range recs {
		if tlog.RecordHash(b) != leaves[i] {
			return nil, outsideAs(VerdictTampered, n*tiles.Width+uint64(i), "a record does not lead to the root of the checkpoint")
		}
	}
	return recs, nil
}

// Prove returns the proof that record index is covered by the checkpoint. It wraps ErrBeyond if it is not.
func (r *Reader) Prove(index uint64) (*Proof, error) {
	if index >= r.c.size {
		return nil, fmt.Errorf("audit: prove record %d: %w", index, ErrBeyond)
	}
	recs, err := r.bundle(index/tiles.Width, r.c.size, r.c.root)
	if err != nil {
		return nil, err
	}
	hashes, err := tlog.ProveRecord(int64(r.c.size), int64(index), tiles.HashReader(r.src, r.c.size, r.c.root))
	if err != nil {
		return nil, r.damaged(err)
	}
	return &Proof{Index: index, Record: bytes.Clone(recs[index%tiles.Width]), Hashes: hashes, Checkpoint: r.Checkpoint()}, nil
}

// ProveConsistency returns the proof that the tree of the checkpoint begins with that over old records, and the checkpoint.
func (r *Reader) ProveConsistency(old uint64) (tlog.TreeProof, []byte, error) {
	if old == 0 || old > r.c.size {
		return nil, nil, fmt.Errorf("audit: prove the tree of %d records: %w", old, ErrBeyond)
	}
	p, err := tlog.ProveTree(int64(r.c.size), int64(old), tiles.HashReader(r.src, r.c.size, r.c.root))
	if err != nil {
		return nil, nil, r.damaged(err)
	}
	return p, r.Checkpoint(), nil
}

// outside is the verdict about an export, a proof or a server's tiles, of which index records are right.
func outside(index uint64, reason string) error { return outsideAs(VerdictExport, index, reason) }

func outsideAs(v Verdict, index uint64, reason string) error {
	return &IntegrityError{Verdict: v, Index: index, Segment: -1, Reason: reason}
}
