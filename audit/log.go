package audit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// A Log is an open audit log. Its methods may be called from any goroutine.
//
// Commits need no timer and no goroutine of their own: the first waiter writes for all who came while the previous
// write was under way. One write is in flight at a time, so that a torn frame can only be the last one.
type Log struct {
	o     Options
	disk  *disk // nil in memory
	ring  *ring // nil on disk
	limit int   // bytes of records, lengths included, that fit a frame

	mu     sync.Mutex // guards the fields down to the blank line
	cur    *batch     // takes the records of the next commit
	busy   bool       // a commit is being led
	space  chan struct{}
	room   int // how many wait for space
	queued uint64
	keys   map[string]keyState
	size   uint64 // durable records
	root   [32]byte
	dirty  uint64 // durable records since the last checkpoint that ask for one
	latest *checkpoint
	sayer  *batch        // holds the record that names the latest checkpoint, until that is durable
	buf    []byte        // the buffer of an earlier batch, to use again
	idle   chan struct{} // closed when busy ends, if Close waits for it
	starts []uint64      // the index of the first record of each segment
	err    error         // why the log failed
	shut   bool          // Close has begun

	// Owned by the leader of a commit.
	tree *tree
	tag  [32]byte

	kick   chan struct{} // asks for a checkpoint now
	offers chan *Record
	lost   atomic.Uint64 // offered and dropped, not yet told in a gap record
	failed chan struct{} // closed when err is set
	stop   chan struct{} // closed by Close: the goroutines finish
	quit   chan struct{} // closed at the end of Close: so does the herald
	wg     sync.WaitGroup
	herald sync.WaitGroup
	once   sync.Once
	closed error
}

type keyState struct{ seq, last uint64 }

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
	l := &Log{o: o, disk: d, limit: limit - frameOverhead, keys: make(map[string]keyState), tree: newTree(),
		kick: make(chan struct{}, 1), offers: make(chan *Record, offerQueue), failed: make(chan struct{}),
		stop: make(chan struct{}), quit: make(chan struct{})}
	return l
}

// start begins the work in the background.
func (l *Log) start() {
	l.wg.Go(l.sealer)
	l.wg.Go(l.scribe)
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
	if l.room > 0 {
		close(l.space)
		l.space, l.room = nil, 0
	}
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
	for _, r := range recs {
		l.prepare(r)
		b, err := r.AppendBinary(nil)
		if err != nil {
			return nil, err
		}
		if len(b)+logFields > maxRecord {
			return nil, errTooLong
		}
		need += 2 + len(b) + logFields
	}
	if need > l.limit-checkpointRoom {
		return nil, fmt.Errorf("audit: append: %d bytes exceed one commit", need)
	}
	l.mu.Lock()
	if err := l.waitForRoom(ctx, need, last); err != nil {
		l.mu.Unlock()
		return nil, err
	}
	b := l.cur
	receipts, err := l.enqueue(b, recs)
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

// prepare sets the fields of r that do not depend on its place.
func (l *Log) prepare(r *Record) {
	if r.Time.IsZero() {
		r.Time = l.o.Clock()
	}
	r.Time = r.Time.UTC().Truncate(time.Microsecond)
	r.Boot = l.o.Boot
	r.KeySeq, r.KeyPrev = 0, 0
}

// waitForRoom returns when need bytes fit the current batch. The caller holds mu, which is held again on return.
func (l *Log) waitForRoom(ctx context.Context, need int, last bool) error {
	for {
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("audit: append: %w", context.Cause(ctx))
		case l.err != nil:
			return l.err
		case l.shut && !last:
			return fmt.Errorf("audit: append: %w", ErrClosed)
		case len(l.cur.buf)-frameHeader+need <= l.limit-checkpointRoom:
			return nil
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

// enqueue gives recs their places and puts them into b. The caller holds mu. Nothing changes on an error.
func (l *Log) enqueue(b *batch, recs []*Record) ([]Receipt, error) {
	for i, r := range recs {
		if r.Ref > l.queued+uint64(i) {
			return nil, errors.New("audit: append: ref is not of an earlier record")
		}
	}
	receipts := make([]Receipt, len(recs))
	for i, r := range recs {
		if r.sequenced() {
			k := l.keys[r.Key]
			r.KeySeq, r.KeyPrev = k.seq+1, k.last
			l.keys[r.Key] = keyState{seq: k.seq + 1, last: l.queued + 1}
		}
		receipts[i] = Receipt{Index: l.queued, KeySeq: r.KeySeq}
		at := len(b.buf)
		buf, err := r.AppendBinary(append(b.buf, 0, 0))
		if err != nil {
			// Every reason was checked before; going on would leave a gap in a key's sequence.
			l.failLocked(err)
			return nil, l.err
		}
		n := len(buf) - at - 2
		buf[at], buf[at+1] = byte(n>>8), byte(n)
		b.buf = buf
		b.count++
		l.queued++
		if r.Kind == KindCheckpoint {
			b.quiet++
		}
	}
	return receipts, nil
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

// commit makes b durable and hands the lead on.
func (l *Log) commit(b *batch) {
	l.mu.Lock()
	l.nextBatch() // from here on b is ours alone
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
		l.size, l.root = b.first+uint64(b.count), root
		if l.disk != nil && len(l.starts) <= l.disk.segNum {
			l.starts = append(l.starts, b.first)
		}
		l.dirty += uint64(b.count) - b.quiet
		if l.sayer == b {
			l.sayer = nil
		}
		if l.latest != nil {
			b.ckptSize = l.latest.size
		}
		l.buf = buf
	}
	full := l.dirty >= uint64(l.o.CheckpointRecords)
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

// write hashes the records of b into the tree and makes them durable, and then the head.
func (l *Log) write(b *batch) (buf []byte, root [32]byte, err error) {
	for rest := b.buf[frameHeader:]; len(rest) > 0; {
		rec, r, ok := nextRecord(rest)
		if !ok {
			return nil, root, errors.New("audit: batch is malformed")
		}
		if err := l.tree.append(rec); err != nil {
			return nil, root, err
		}
		if l.ring != nil {
			l.ring.add(rec)
		}
		rest = r
	}
	if root, err = l.tree.root(); err != nil || l.disk == nil {
		return b.buf, root, err
	}
	buf, l.tag, err = l.disk.write(b.buf, b.count, b.first, l.tag, root)
	if err != nil {
		return nil, root, err
	}
	err = l.disk.writeHead(head{state: headOpen, size: b.first + uint64(b.count), root: root, tag: l.tag})
	if err != nil {
		return nil, root, fmt.Errorf("head: write: %w", err)
	}
	return buf, root, nil
}

// failLocked stops the log for good. The caller holds mu.
func (l *Log) failLocked(cause error) {
	if l.err != nil {
		return
	}
	l.err = fmt.Errorf("audit: %w: %w", ErrFailed, cause)
	close(l.failed)
	if l.space != nil {
		close(l.space)
		l.space, l.room = nil, 0
	}
}

// MaxCommit returns how many bytes of records one Append can take, two bytes a record included.
func (l *Log) MaxCommit() int { return l.limit - checkpointRoom }

// Size returns the number of durable records.
func (l *Log) Size() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.size
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
	if l.space != nil { // those who wait for room look again
		close(l.space)
		l.space, l.room = nil, 0
	}
	l.mu.Unlock()
	close(l.stop)
	l.wg.Wait()
	_, err := l.append(context.Background(), true, &Record{Kind: KindClose})
	if err == nil {
		err = l.checkpointNow(true)
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
	if l.disk != nil {
		if e := l.disk.close(); err == nil {
			err = e
		}
	}
	return err
}

// closeHead marks both slots of the head as closed, so that no older state is left to fall back to.
func (l *Log) closeHead() error {
	for range 2 {
		if err := l.disk.writeHead(head{state: headClosed, size: l.size, root: l.root, tag: l.tag}); err != nil {
			return fmt.Errorf("head: write: %w", err)
		}
	}
	return l.disk.syncHead()
}
