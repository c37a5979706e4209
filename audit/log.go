package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rustyonions/ron-kms/audit/keymap"
	"github.com/rustyonions/ron-kms/audit/tiles"
)

// A Log is an open audit log. Its methods may be called from any goroutine.
//
// Commits need no timer and no goroutine of their own: the first waiter writes for all who came while the previous
// write was under way. One write is in flight at a time, so that a torn frame can only be the last one. What was
// committed is packed into tiles behind the callers' backs (keeper.go).
type Log struct {
	o     Options
	disk  *disk // nil in memory
	tiles *tiles.Store
	found uint64 // records before the opening
	limit int    // bytes of records, lengths included, that fit a frame

	mu      sync.Mutex // guards the fields down to the blank line
	cur     *batch     // takes the records of the next commit
	busy    bool       // a commit is being led
	space   chan struct{}
	room    int // how many wait for space
	queued  uint64
	keys    *keymap.Table
	pending map[uint64]*Record // intents without an answer, by index
	newest  time.Time          // the latest time of any record
	effect  uint64             // the latest intent that took effect, of whatever key or none, +1
	end     position           // of the last durable frame
	root    [32]byte           // over end.size records
	dirty   uint64             // durable records since the last checkpoint that ask for one
	latest  *checkpoint
	sealed  chan struct{} // closed when there is another latest, if somebody waits for it
	sayer   *batch        // holds the record that names the latest checkpoint, until that is durable
	buf     []byte        // the buffer of an earlier batch, to use again
	idle    chan struct{} // closed when busy ends, if Close waits for it
	flying  *batch        // the commit in flight
	named   bool          // a durable record names latest
	saved   position      // of the last snapshot
	notesAt int           // the file of checkpoints where it begins
	crowd   int           // how many waited for the last commit
	woken   uint64        // size when the keeper was last asked to look
	moved   uint64        // the size after the last record that keys or intents depend on
	stuck   error         // why the keeper cannot go on: the disk is full
	err     error         // why the log failed
	shut    bool          // Close has begun
	news    chan struct{} // closed when there is a new checkpoint or root of the key map

	// Owned by the leader of a commit.
	tag  [32]byte
	leaf []byte

	// Owned by the keeper.
	initial  []keymap.Change // the keys at opening, until they are in roots
	mapped   time.Time
	unmapped bool   // a change is in roots and in no record
	kept     uint64 // records before it are pruned; written with mu held
	scrubAt  uint64 // the next bundle to scrub

	roots    keyRoots
	kick     chan struct{} // asks for a checkpoint now
	work     chan struct{} // asks the keeper to look
	prunes   chan *pruning
	offers   chan *Record
	lost     atomic.Uint64 // offered and dropped, not yet told in a gap record
	missed   atomic.Uint64 // offered and dropped since the opening
	scrubs   atomic.Uint64 // bundles scrubbed
	anchors  []*anchoring
	cosigned witnessing
	failed   chan struct{} // closed when err is set
	stop     chan struct{} // closed by Close: the goroutines finish
	halt     chan struct{} // closed by Close after them: so does the keeper
	quit     chan struct{} // closed at the end of Close: so does the herald
	wg       sync.WaitGroup
	keeping  sync.WaitGroup
	herald   sync.WaitGroup
	once     sync.Once
	closed   error
}

// position is a place between two frames.
type position struct {
	size    uint64 // records before it
	segment int
	off     int64
	tag     [32]byte // of the frame that ends here
}

// batch is the records of one commit.
type batch struct {
	buf     []byte // room for a frame header, then records with their lengths
	first   uint64
	count   int
	quiet   uint64 // records that do not ask for a checkpoint
	waiters int
	lead    chan struct{} // tells one waiter to commit this batch
	done    chan struct{}
	// Set before done is closed.
	err      error
	ckptSize uint64
}

// checkpointRoom is kept free in every batch for the record that names a checkpoint.
const checkpointRoom = 256

func newLog(o Options, d *disk, limit int) *Log {
	l := &Log{o: o, disk: d, limit: limit - frameOverhead, keys: keymap.NewTable(), pending: make(map[uint64]*Record),
		kick: make(chan struct{}, 1), work: make(chan struct{}, 1), prunes: make(chan *pruning), offers: make(chan *Record, offerQueue), failed: make(chan struct{}), news: make(chan struct{}),
		stop: make(chan struct{}), halt: make(chan struct{}), quit: make(chan struct{})}
	l.cosigned.seen, l.cosigned.fault = make(map[string]uint64), make(map[string]error)
	return l
}

// start begins the work in the background.
func (l *Log) start() {
	l.wg.Go(l.sealer)
	l.wg.Go(l.scribe)
	l.mapped = time.Now()
	l.keeping.Go(l.keeper)
	l.wg.Go(l.herd)
	for _, a := range l.anchors {
		l.wg.Go(func() { l.follow(a) })
	}
	l.herald.Go(func() {
		select {
		case <-l.failed:
		case <-l.quit:
		}
		l.mu.Lock()
		err := l.err
		l.mu.Unlock()
		if err != nil && l.o.OnFailure != nil {
			l.o.OnFailure(err)
		}
	})
}

// nextBatch installs an empty batch. The caller holds mu.
func (l *Log) nextBatch() {
	buf := l.buf
	l.buf = nil
	if buf == nil {
		buf = make([]byte, 0, 4096)
	}
	l.cur = &batch{buf: append(buf[:0], make([]byte, frameHeader)...), first: l.queued,
		lead: make(chan struct{}, 1), done: make(chan struct{})}
	l.makeRoom()
}

// Append writes recs as one commit, together with what others append at the same time, and returns when they
// are durable, with a receipt each. It sets Boot, KeySeq, KeyPrev and a zero Time in recs, which the caller must not change
// meanwhile. Ctx counts while Append waits for room; once the records are accepted it waits for the disk, because
// their outcome must be known. On an error the caller must treat the operation as not recorded and release nothing.
func (l *Log) Append(ctx context.Context, recs ...*Record) ([]Receipt, error) {
	for _, r := range recs {
		if !r.Kind.appendable() {
			return nil, fmt.Errorf("audit: append: %s records are written by the log itself", r.Kind)
		}
	}
	if len(recs) == 0 {
		return nil, nil
	}
	return l.append(ctx, false, recs...)
}

// append is Append for all kinds of record. If last, it works in a log that is shutting down.
func (l *Log) append(ctx context.Context, last bool, recs ...*Record) ([]Receipt, error) {
	need := 0
	reserve := false
	e := encodings.Get().(*encoding)
	defer encodings.Put(e)
	e.reset()
	for _, r := range recs {
		l.prepare(r)
		n, err := e.add(r)
		if err != nil {
			return nil, err
		}
		need += 2 + n + placeFields
		// What was begun may be ended, even when the log takes nothing new; and the keeper cannot wait for place that only it can make.
		reserve = reserve || r.Ref > 0 || !r.Kind.appendable()
	}
	if need > l.limit-checkpointRoom {
		return nil, fmt.Errorf("audit: append: %d bytes exceed one commit", need)
	}
	l.mu.Lock()
	if err := l.waitForRoom(ctx, need, last, reserve); err != nil {
		l.mu.Unlock()
		return nil, err
	}
	b := l.cur
	receipts, err := l.enqueue(b, recs, e)
	if err != nil {
		l.mu.Unlock()
		return nil, err
	}
	err = l.await(b)
	if err != nil {
		return nil, err
	}
	for i := range receipts {
		receipts[i].CheckpointSize = b.ckptSize
	}
	return receipts, nil
}

// encoding holds records encoded before the lock is taken, all but the fields that depend on their place.
type encoding struct {
	buf   []byte
	parts []encoded
}

type encoded struct{ start, place, end int }

var encodings = sync.Pool{New: func() any { return new(encoding) }}

func (e *encoding) reset() { e.buf, e.parts = e.buf[:0], e.parts[:0] }

// add encodes r and returns its length without place.
func (e *encoding) add(r *Record) (int, error) {
	start := len(e.buf)
	b, at, err := r.appendUnplaced(e.buf)
	if err != nil {
		return 0, err
	}
	if len(b)-start+placeFields > maxRecord {
		return 0, errTooLong
	}
	e.buf = b
	e.parts = append(e.parts, encoded{start, at, len(b)})
	return len(b) - start, nil
}

// prepare sets the fields of r that do not depend on its place.
func (l *Log) prepare(r *Record) {
	if r.Time.IsZero() {
		r.Time = l.o.Clock()
	}
	r.Time = r.Time.UTC().Truncate(time.Microsecond)
	r.Boot = l.o.Boot
	r.KeySeq, r.KeyPrev = 0, 0
}

// waitForRoom returns when need bytes fit the current batch, and the disk has place for it. The caller holds mu, which is
// held again on return. If last, it works in a log that is shutting down; if reserve, the place that is kept free may be used.
func (l *Log) waitForRoom(ctx context.Context, need int, last, reserve bool) error {
	for {
		fits := len(l.cur.buf)-frameHeader+need+checkpointRoom <= l.limit || l.cur.count == 0
		placed := reserve || l.hasPlace()
		switch {
		case l.err != nil:
			return l.err
		case l.shut && !last:
			return fmt.Errorf("audit: %w", ErrClosed)
		case fits && placed:
			return nil
		case !placed && l.stuck != nil:
			return fmt.Errorf("audit: %w: %w", ErrFull, l.stuck)
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("audit: append: %w", context.Cause(ctx))
		}
		if !placed {
			l.wake()
		}
		if l.space == nil {
			l.space = make(chan struct{})
		}
		l.room++
		space := l.space
		l.mu.Unlock()
		select {
		case <-space:
		case <-ctx.Done():
		}
		l.mu.Lock()
	}
}

// makeRoom lets those who wait for room look again. The caller holds mu.
func (l *Log) makeRoom() {
	if l.space != nil {
		close(l.space)
		l.space, l.room = nil, 0
	}
}

// hasPlace reports whether the disk surely has place for the commit in flight and the next one. The caller holds mu.
func (l *Log) hasPlace() bool {
	if l.disk != nil && slices.ContainsFunc(l.disk.mirrors, func(m mirrored) bool { return !m.ready() }) {
		return false
	}
	return l.disk == nil || l.disk.spareCount() >= 2 || l.disk.f.segment-l.end.off >= 2*int64(l.disk.limit)
}

// enqueue gives recs their places and puts them into b. The caller holds mu. Nothing changes on an error.
func (l *Log) enqueue(b *batch, recs []*Record, e *encoding) ([]Receipt, error) {
	for i, r := range recs {
		if r.Ref > l.queued+uint64(i) {
			return nil, errors.New("audit: append: ref is not of an earlier record")
		}
	}
	receipts := make([]Receipt, len(recs))
	for i, r := range recs {
		l.place(r, l.queued)
		receipts[i] = Receipt{Index: l.queued, KeySeq: r.KeySeq}
		p := e.parts[i]
		at := len(b.buf)
		buf := append(b.buf, 0, 0)
		buf = append(buf, e.buf[p.start:p.place]...)
		buf = appendUint64(appendUint64(buf, tagKeySeq, r.KeySeq), tagKeyPrev, r.KeyPrev)
		buf = append(buf, e.buf[p.place:p.end]...)
		binary.BigEndian.PutUint16(buf[at:], uint16(len(buf)-at-2))
		b.buf = buf
		b.count++
		l.queued++
		if r.Kind == KindCheckpoint {
			b.quiet++
		}
	}
	return receipts, nil
}

// place gives r the next number of its key, and keeps what is known of keys and intents. The caller holds mu.
func (l *Log) place(r *Record, index uint64) {
	if r.sequenced() {
		slot, k := l.keys.Slot(r.Key)
		r.KeySeq, r.KeyPrev = k.Seq+1, k.Last
		l.keys.Set(slot, next(k, r, index))
	}
	if r.sequenced() || r.Kind == KindIntent || r.Ref > 0 {
		l.moved = index + 1
	}
	l.settle(r, index)
}

// next is the state of a key in state k after its record r.
func next(k keymap.State, r *Record, index uint64) keymap.State {
	k.Seq, k.Last = k.Seq+1, index+1
	if r.effective() {
		k.Effect = max(k.Effect, r.Ref) // answers may come in another order than their intents
	}
	return k
}

// effective reports whether r says that the intent it answers had its effect.
func (r *Record) effective() bool {
	return r.Kind == KindOperation && r.Ref > 0 && r.Result == ResultOK
}

// settle keeps the intents that have no answer, and the latest time. The caller holds mu.
func (l *Log) settle(r *Record, index uint64) {
	switch {
	case r.Kind == KindIntent:
		c := *r
		c.Detail, c.Sealed = bytes.Clone(r.Detail), bytes.Clone(r.Sealed)
		l.pending[index] = &c
	case r.Kind == KindOperation && r.Ref > 0:
		delete(l.pending, r.Ref-1)
	}
	if r.effective() {
		l.effect = max(l.effect, r.Ref)
	}
	if r.Time.After(l.newest) {
		l.newest = r.Time
	}
}

// await returns when b is durable or has failed, and commits it if this goroutine is to lead. The caller holds mu, which
// await releases.
func (l *Log) await(b *batch) error {
	b.waiters++
	lead := !l.busy
	if lead {
		l.busy = true
	}
	l.mu.Unlock()
	if !lead {
		select {
		case <-b.done:
		case <-b.lead:
			lead = true
		}
	}
	if lead {
		l.commit(b)
	}
	return b.err
}

// gather lets those who are about to append do so first, if the commit before was of more than this one would be: whoever was
// just released comes back at once, and would miss the sync by a hair. It gives way and never waits, so that it costs a lone writer
// nothing.
func (l *Log) gather(b *batch) {
	for range gatherYields {
		l.mu.Lock()
		enough := b.waiters >= l.crowd
		l.mu.Unlock()
		if enough {
			return
		}
		runtime.Gosched()
	}
}

// gatherYields bounds how often a leader gives way.
const gatherYields = 4

// commit makes b durable and hands the lead on.
func (l *Log) commit(b *batch) {
	l.gather(b)
	l.mu.Lock()
	l.crowd = b.waiters
	l.nextBatch() // from here on b is ours alone
	l.flying = b
	err := l.err
	l.mu.Unlock()

	var root [32]byte
	var buf []byte
	if err == nil {
		buf, root, err = l.write(b)
	}

	l.mu.Lock()
	if err != nil {
		l.failLocked(err)
		b.err = l.err
	} else {
		l.end, l.root = l.after(b), root
		l.dirty += uint64(b.count) - b.quiet
		if l.sayer == b {
			l.sayer, l.named = nil, true
		}
		if l.latest != nil {
			b.ckptSize = l.latest.size
		}
		l.buf = buf
	}
	l.flying = nil
	full := l.dirty >= uint64(l.o.CheckpointRecords)
	l.wakeIfDue()
	if l.cur.waiters > 0 {
		l.cur.lead <- struct{}{}
	} else {
		l.busy = false
		if l.idle != nil {
			close(l.idle)
			l.idle = nil
		}
	}
	l.mu.Unlock()
	close(b.done)
	if full {
		select {
		case l.kick <- struct{}{}:
		default: // already asked
		}
	}
}

// after is the place behind b. The caller leads the commit of b.
func (l *Log) after(b *batch) position {
	p := position{size: b.first + uint64(b.count), tag: l.tag}
	if l.disk != nil {
		p.segment, p.off = l.disk.segNum, l.disk.off
	}
	return p
}

// write hands the records of b to the tile store, which hashes them into the tree, and makes them durable in the ring; then the
// head, then the anchors that are waited for. The tile store may know records that the disk refused: nobody is shown those, and the
// log has failed.
func (l *Log) write(b *batch) (buf []byte, root [32]byte, err error) {
	for rest := b.buf[frameHeader:]; len(rest) > 0; {
		rec, r, ok := nextRecord(rest)
		if !ok {
			return nil, root, errors.New("audit: batch is malformed")
		}
		l.leaf = append(append(l.leaf[:0], 0), rec...) // the leaf prefix of RFC 6962 §2.1
		l.tiles.Append(rec, sha256.Sum256(l.leaf))
		rest = r
	}
	size := b.first + uint64(b.count)
	if root, err = l.tiles.Root(size); err != nil || l.disk == nil {
		return b.buf, root, err
	}
	buf, l.tag, err = l.disk.write(b.buf, b.count, b.first, l.tag, root)
	if err != nil {
		return nil, root, err
	}
	h := head{state: headOpen, size: size, root: root, tag: l.tag}
	if err := l.disk.writeHead(h); err != nil {
		return nil, root, fmt.Errorf("head: write: %w", err)
	}
	return buf, root, l.anchorNow(h)
}

// failLocked stops the log for good. The caller holds mu.
func (l *Log) failLocked(cause error) {
	if l.err != nil {
		return
	}
	l.err = fmt.Errorf("audit: %w: %w", ErrFailed, cause)
	close(l.failed)
	l.makeRoom()
}

// MaxCommit returns how many bytes of records one Append can take, two bytes a record included.
func (l *Log) MaxCommit() int { return l.limit - checkpointRoom }

// Size returns the number of durable records.
func (l *Log) Size() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.end.size
}

// Err returns nil while the log can append, and otherwise why it cannot: an error that wraps ErrFailed or ErrClosed.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil && l.shut {
		return fmt.Errorf("audit: %w", ErrClosed)
	}
	return l.err
}

// Close writes what was offered, a record that the log was closed, and a last checkpoint, marks the head as closed, and
// releases the log. Appends that were accepted before it are completed. It must not be called from OnFailure. A second
// Close does nothing and returns what the first returned.
func (l *Log) Close() error {
	l.once.Do(func() { l.closed = l.close() })
	return l.closed
}

func (l *Log) close() error {
	l.mu.Lock()
	l.shut = true
	l.makeRoom()
	l.mu.Unlock()
	close(l.stop)
	l.wg.Wait()
	close(l.halt)
	l.keeping.Wait()
	// A disk that is full leaves the ring to be packed at the next opening.
	err := l.keep()
	if isFull(err) {
		l.mu.Lock()
		l.stuck = err
		l.mu.Unlock()
		err = nil
	}
	// What could not be taken is told now if there is place, and by the next opening's owner if there is none.
	if n := l.lost.Swap(0); err == nil && n > 0 {
		if _, err := l.append(context.Background(), true, &Record{Kind: KindGap, Count: n}); err != nil {
			l.lost.Add(n)
		}
	} else {
		l.lost.Add(n)
	}
	if err == nil {
		err = l.mapKeys(true)
	}
	if err == nil {
		_, err = l.append(context.Background(), true, &Record{Kind: KindClose})
	}
	if err == nil {
		err = l.checkpointNow(true)
	}
	if err == nil && l.disk != nil {
		if err = l.snapshot(); isFull(err) {
			err = nil
		}
	}
	if err == nil && l.disk != nil {
		err = l.closeHead()
	}
	l.mu.Lock()
	if err != nil {
		l.failLocked(err)
	}
	idle := l.idle
	if l.busy { // a log that failed elsewhere may still have a write under way
		idle = make(chan struct{})
		l.idle = idle
	}
	l.mu.Unlock()
	if idle != nil {
		<-idle
	}
	close(l.quit)
	l.herald.Wait()
	for _, a := range l.anchors {
		err = errors.Join(err, a.Close())
	}
	err = errors.Join(err, l.tiles.Close())
	if l.disk != nil {
		err = errors.Join(err, l.disk.close())
	}
	return err
}

// closeHead marks the anchors as closed, and then both slots of the head, so that no older state is left to fall back to. The head is
// last: a log that says that it was closed has anchors that say so too.
func (l *Log) closeHead() error {
	h := head{state: headClosed, size: l.end.size, root: l.root, tag: l.end.tag}
	if err := l.anchorAll(h); err != nil {
		return err
	}
	for range 2 {
		if err := l.disk.writeHead(h); err != nil {
			return fmt.Errorf("head: write: %w", err)
		}
	}
	return l.disk.syncHead()
}
