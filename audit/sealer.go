package audit

import (
	"bytes"
	"context"
	"time"
)

// Checkpoint returns the latest checkpoint, a signed note (C2SP tlog-checkpoint).
func (l *Log) Checkpoint() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.latest.raw)
}

// sealer makes checkpoints until the log stops: when records wait for one, and at each heartbeat when none do, so that
// silence is signed too.
func (l *Log) sealer() {
	tick := time.NewTicker(l.o.CheckpointInterval)
	defer tick.Stop()
	beat := time.NewTicker(l.o.Heartbeat)
	defer beat.Stop()
	for {
		idle := false
		select {
		case <-l.stop:
			return
		case <-l.kick:
		case <-tick.C:
		case <-beat.C:
			idle = true
		}
		l.mu.Lock()
		due := l.err == nil && (l.dirty > 0 || idle)
		l.mu.Unlock()
		if !due {
			continue
		}
		if l.checkpointNow(false) != nil {
			return // the log has failed, which Err, OnFailure and every Append say
		}
		beat.Reset(l.o.Heartbeat)
	}
}

// checkpointNow signs all that is durable. Afterwards a record that names the checkpoint waits for the next
// commit, unless it is the final one: that is named when the log is next opened. It is called by one goroutine at a time.
func (l *Log) checkpointNow(final bool) error {
	l.mu.Lock()
	if b := l.sayer; b != nil {
		// No checkpoint before the previous one is named in the tree: at most one is ever known by its signature alone.
		if b == l.cur {
			l.await(b)
		} else {
			l.mu.Unlock()
			<-b.done
		}
		if b.err != nil {
			return b.err
		}
		l.mu.Lock()
	}
	if l.err != nil {
		defer l.mu.Unlock()
		return l.err
	}
	at, root, pending := l.end, l.root, l.dirty
	l.mu.Unlock()
	c, err := signCheckpoint(l.o.Origin, at.size, root, l.o.Signers, l.o.Keys)
	if err == nil && l.disk != nil {
		err = l.disk.writeCheckpoint(c)
		if isFull(err) && !final {
			// Nothing is lost by waiting: the records are durable, and stay in the ring until they are signed.
			l.mu.Lock()
			defer l.mu.Unlock()
			return nil
		}
		if err == nil {
			err = l.anchorAll(head{state: headOpen, size: at.size, root: root, tag: at.tag})
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.failLocked(err)
		return l.err
	}
	l.latest, l.named = c, false
	if l.sealed != nil {
		close(l.sealed)
		l.sealed = nil
	}
	l.tell()
	l.dirty -= pending
	if l.err != nil || final {
		return l.err
	}
	r := &Record{Kind: KindCheckpoint, Ref: c.size, InputHash: c.hash()}
	l.prepare(r)
	e := new(encoding)
	if _, err := e.add(r); err != nil {
		return err
	}
	if _, err := l.enqueue(l.cur, []*Record{r}, e); err != nil {
		return err
	}
	l.sayer = l.cur
	return nil
}

// Offer appends r in the background and never blocks, for what must be answered even when the log cannot keep up.
// R belongs to the log from here on. What finds the queue full, is malformed, or comes to a log that has failed is counted, and a
// KindGap record with the count is appended as soon as it can be.
func (l *Log) Offer(r *Record) {
	bad := !r.Kind.appendable() || r.check() != nil || r.sizeHint() > offerBytes
	l.mu.Lock() // orders Offer before Close, which drains the queue once
	defer l.mu.Unlock()
	if bad || l.shut || l.err != nil || r.Ref > l.end.size {
		l.lose(1)
		return
	}
	select {
	case l.offers <- r:
	default:
		l.lose(1)
	}
}

func (l *Log) lose(n uint64) {
	l.lost.Add(n)
	l.missed.Add(n)
}

// Missed returns how many offered records were lost since the log was opened, whether or not a gap record tells of them.
func (l *Log) Missed() uint64 { return l.missed.Load() }

// Lost returns how many offered records are neither in the log nor told in a gap record. After a failure, the owner
// carries the number into the reopened log as a KindGap record.
func (l *Log) Lost() uint64 { return l.lost.Load() }

// offerBytes bounds an offered record; twice as much is the bound of one commit of them.
const offerBytes = 24 << 10

// scribe writes offered records until the log stops and the queue is empty.
func (l *Log) scribe() {
	for {
		var r *Record
		select {
		case r = <-l.offers:
		case <-l.stop:
			select {
			case r = <-l.offers:
			default:
				if l.lost.Load() > 0 {
					l.writeOffers(nil)
				}
				return
			}
		}
		l.writeOffers(r)
	}
}

// writeOffers appends r and some of those that wait behind it, and a gap record if some were lost.
func (l *Log) writeOffers(r *Record) {
	recs := make([]*Record, 0, 64)
	gap := l.lost.Swap(0)
	if gap > 0 {
		recs = append(recs, &Record{Kind: KindGap, Count: gap})
	}
	offered := uint64(0)
	for bytes := 0; r != nil; {
		recs = append(recs, r)
		offered++
		if bytes += r.sizeHint(); bytes > offerBytes {
			break
		}
		select {
		case r = <-l.offers:
		default:
			r = nil
		}
	}
	if len(recs) == 0 {
		return
	}
	if _, err := l.append(context.Background(), true, recs...); err != nil {
		l.lost.Add(gap)
		l.lose(offered)
		return
	}
	if len(l.offers) == 0 && l.lost.Load() > 0 {
		l.writeOffers(nil)
	}
}

// sizeHint is about the encoded size of r in bytes, never less than it by much.
func (r *Record) sizeHint() int {
	return 256 + len(r.Op) + len(r.Tenant) + len(r.Key) + len(r.Alg) + len(r.Purpose) + len(r.Result) + len(r.Actor) +
		len(r.Attestation) + len(r.Detail) + len(r.Sealed) + len(r.ext)
}
