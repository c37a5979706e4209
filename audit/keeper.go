package audit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/rustyonions/ron-kms/audit/tiles"
)

const (
	spareSegments   = 2     // kept ready
	keepEvery       = 16384 // records between snapshots, at least
	packEvery       = 4096  // records between looks at what can be packed
	keepTick        = time.Second
	mapInterval     = 10 * time.Second
	retryWhenFull   = time.Second
	checkpointsSize = 16 << 20 // when another file of checkpoints is begun
	checkpointFiles = 4        // kept
)

// keeper works behind the callers' backs: it packs what was committed into tiles, sums it up in snapshots, frees the ring and
// keeps spare segments ready. When the disk is full it waits for space; the ring takes records until it is full too.
func (l *Log) keeper() {
	tick := time.NewTicker(keepTick)
	defer tick.Stop()
	scrub := time.NewTicker(l.o.ScrubInterval)
	defer scrub.Stop()
	for {
		scrubNow := false
		var err error
		select {
		case <-l.halt:
			return
		case <-l.work:
		case <-tick.C:
		case <-scrub.C:
			scrubNow = true
		case p := <-l.prunes:
			err = l.prune(p)
		}
		if err == nil {
			err = l.keep()
		}
		if err == nil && scrubNow {
			err = l.scrub()
		}
		l.mu.Lock()
		was := l.stuck
		l.stuck = nil
		if isFull(err) {
			l.stuck = err
		} else if err != nil {
			l.failLocked(err)
		}
		if l.stuck != nil || was != nil {
			l.makeRoom()
		}
		full, failed := l.stuck != nil, l.err != nil
		l.mu.Unlock()
		if failed {
			return
		}
		if full {
			select {
			case <-l.halt:
				return
			case <-time.After(retryWhenFull):
				l.wake()
			}
		}
	}
}

// wake asks the keeper to look.
func (l *Log) wake() {
	select {
	case l.work <- struct{}{}:
	default: // already asked
	}
}

// wakeIfDue wakes the keeper after a commit if there is something to do. The caller holds mu.
func (l *Log) wakeIfDue() {
	if l.end.size-l.woken >= packEvery || l.disk != nil && l.disk.spareCount() < spareSegments {
		l.woken = l.end.size
		l.wake()
	}
}

// Full returns why the log cannot free its ring, or nil. New records are refused only when the ring is full too.
func (l *Log) Full() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stuck
}

// keep does what is due.
func (l *Log) keep() error {
	if l.disk == nil {
		return l.mapKeys(false)
	}
	// Ready segments come first: without them nobody can append. If there is no place for one, packing may still free another.
	tight := l.makeSpares()
	if tight != nil && !isFull(tight) {
		return fmt.Errorf("next segment: %w", tight)
	}
	if l.disk.spareCount() > 0 {
		if err := l.mapKeys(false); err != nil {
			return err
		}
	}
	if err := l.tiles.Flush(); err != nil {
		return fmt.Errorf("tiles: %w", err)
	}
	l.mu.Lock()
	since, keys, notes := l.end.size-l.saved.size, uint64(l.keys.Len()), l.latest.gen-l.notesAt
	l.mu.Unlock()
	n, _, _ := l.disk.count()
	if since >= max(keepEvery, 2*keys) || (n >= l.o.RingSegments-1 || tight != nil || notes > 1) && since > 0 {
		if err := l.snapshot(); err != nil {
			return err
		}
	}
	if err := l.free(); err != nil {
		return fmt.Errorf("ring: %w", err)
	}
	l.mu.Lock()
	upto := l.saved.size
	l.mu.Unlock()
	for _, m := range l.disk.mirrors {
		if err := m.release(upto); err != nil {
			return fmt.Errorf("mirror: %w", err)
		}
		l.signalRoom()
	}
	return l.makeSpares()
}

// makeSpares makes new segments while too few are ready and the ring may grow.
func (l *Log) makeSpares() error {
	for {
		made, err := l.disk.grow(spareSegments, l.o.RingSegments)
		if err != nil || !made {
			return err
		}
		l.signalRoom()
	}
}

// free recycles the segments before the snapshot, and gives up the oldest files of checkpoints.
func (l *Log) free() error {
	l.mu.Lock()
	upto, gen := l.saved.segment, l.notesAt
	l.mu.Unlock()
	for {
		_, _, base := l.disk.count()
		if base >= upto {
			break
		}
		if err := l.disk.recycle(l.disk.spareCount() < spareSegments); err != nil {
			return err
		}
		l.signalRoom()
	}
	return l.disk.trimCheckpoints(gen - checkpointFiles)
}

func (l *Log) signalRoom() {
	l.mu.Lock()
	l.makeRoom()
	l.mu.Unlock()
}

// mapKeys writes the root of the key map into the log, if keys moved since the last one and it is time, or somebody waits for a root,
// or the log is closing.
func (l *Log) mapKeys(last bool) error {
	asked, rooted := l.roots.state()
	if !last && !asked && time.Since(l.mapped) < mapInterval {
		return nil
	}
	l.mapped = time.Now()
	l.mu.Lock()
	changes, size := l.keys.TakeDirty(), l.queued
	l.mu.Unlock()
	if len(changes) == 0 && !l.unmapped && (rooted || !asked) {
		return nil
	}
	root, n, err := l.roots.apply(size, l.initial, changes)
	if err != nil {
		return err
	}
	l.initial = nil
	got, err := l.append(context.Background(), last, &Record{Kind: KindMap, Ref: size, InputHash: root, Count: n})
	if l.unmapped = err != nil; errors.Is(err, ErrClosed) || errors.Is(err, ErrFull) {
		return nil // later
	}
	if err != nil {
		return err
	}
	l.roots.named(got[0].Index)
	l.mu.Lock()
	l.tell()
	l.mu.Unlock()
	return nil
}

// tell lets those look again who wait for a checkpoint or a root of the key map. The caller holds mu.
func (l *Log) tell() {
	close(l.news)
	l.news = make(chan struct{})
}

// scrub reads some old bundles again.
func (l *Log) scrub() error {
	next, err := l.tiles.Scrub(context.Background(), l.scrubAt, scrubBundles)
	var damage *tiles.DamageError
	if errors.As(err, &damage) {
		return &IntegrityError{Verdict: VerdictTampered, Index: damage.Index, Reason: "packed records: " + damage.Error()}
	}
	if err != nil {
		return fmt.Errorf("scrub: %w", err)
	}
	end := next
	if next == 0 { // the last one was read: begin again
		end = (l.tiles.Size() + tiles.Width - 1) / tiles.Width
	}
	l.scrubs.Add(end - min(l.scrubAt, end))
	l.scrubAt = next
	return nil
}

// scrubBundles is how many bundles of 256 records one step of the scrubber reads.
const scrubBundles = 16

// Scrubbed returns how many bundles were read again and found right since the log was opened. A bundle is 256 records.
func (l *Log) Scrubbed() uint64 { return l.scrubs.Load() }

func sortedKeys[V any](m map[uint64]V) []uint64 { return slices.Sorted(maps.Keys(m)) }
