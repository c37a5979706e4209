package audit

import (
	"context"
	"errors"
	"fmt"
)

// VolumeRecords is how many records are given up at a time.
const VolumeRecords = 1 << 16

// maxPolicy bounds the text of a policy, in bytes.
const maxPolicy = 1024

// pruning asks the keeper to let records go.
type pruning struct {
	before uint64
	done   chan struct{}
	// Set before done is closed.
	kept uint64
	err  error
}

// Prunable returns the first record that Prune(before) would keep: records go in whole volumes of VolumeRecords, and never the
// latest one. It returns an error if before is beyond the end, or if a record that would go is an intent without an answer,
// which the next opening has to settle.
func (l *Log) Prunable(before uint64) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if before > l.end.size {
		return 0, fmt.Errorf("audit: prune: the log has %d records: %w", l.end.size, ErrBeyond)
	}
	to := min(before, l.end.size-1) / VolumeRecords * VolumeRecords
	for index := range l.pending {
		if index < to {
			return 0, fmt.Errorf("audit: prune: record %d is an intent without an answer", index)
		}
	}
	return max(to, l.tiles.Kept()), nil
}

// Kept returns the index of the first record that was not pruned.
func (l *Log) Kept() uint64 { return l.tiles.Kept() }

// Prune gives up the records before the given index, as far as Prunable says, and returns the first one that is kept. It
// is for good: what remains of them is their hashes, so that all proofs about other records and all checkpoints stay as they
// are. Policy says why, in 1 to 1024 bytes of text.
//
// A KindPrune record states what goes and by which policy. Nothing goes before that record is covered by a checkpoint, and before
// the snapshot says so too: a log that lacks more than was stated is refused. If the program dies in between, either nothing has
// gone, or the next opening finishes it.
func (l *Log) Prune(ctx context.Context, before uint64, policy string) (kept uint64, err error) {
	if l.disk == nil {
		return 0, errors.New("audit: prune: a log in memory lets go of old records by itself")
	}
	if policy == "" || len(policy) > maxPolicy || checkText(policy) != nil {
		return 0, fmt.Errorf("audit: prune: the policy is not a text of 1 to %d bytes", maxPolicy)
	}
	to, err := l.Prunable(before)
	if err != nil {
		return 0, err
	}
	if to <= l.Kept() {
		return l.Kept(), nil
	}
	got, err := l.append(ctx, false, &Record{Kind: KindPrune, Count: to, Detail: []byte(policy)})
	if err != nil {
		return 0, err
	}
	if err := l.awaitCheckpoint(ctx, got[0].Index+1); err != nil {
		return 0, err
	}
	p := &pruning{before: to, done: make(chan struct{})}
	select {
	case l.prunes <- p:
	case <-ctx.Done():
		return 0, fmt.Errorf("audit: prune: %w", context.Cause(ctx))
	case <-l.failed:
		return 0, l.Err()
	case <-l.halt:
		return 0, fmt.Errorf("audit: prune: %w", ErrClosed)
	}
	<-p.done
	return p.kept, p.err
}

// awaitCheckpoint returns when a checkpoint covers the first size records.
func (l *Log) awaitCheckpoint(ctx context.Context, size uint64) error {
	for {
		l.mu.Lock()
		if l.latest.size >= size {
			l.mu.Unlock()
			return nil
		}
		if l.sealed == nil {
			l.sealed = make(chan struct{})
		}
		sealed := l.sealed
		l.mu.Unlock()
		select {
		case l.kick <- struct{}{}:
		default: // already asked
		}
		select {
		case <-sealed:
		case <-ctx.Done():
			return fmt.Errorf("audit: wait for a checkpoint: %w", context.Cause(ctx))
		case <-l.failed:
			return l.Err()
		case <-l.stop:
			return fmt.Errorf("audit: wait for a checkpoint: %w", ErrClosed)
		}
	}
}

// prune lets go what p asks for. It is the keeper's: nobody else writes snapshots meanwhile.
func (l *Log) prune(p *pruning) error {
	defer close(p.done)
	was := l.kept
	l.setKept(max(was, p.before))
	if err := l.snapshot(); err != nil {
		l.setKept(was)
		p.err = fmt.Errorf("audit: prune: %w", err)
		return err
	}
	if p.kept, p.err = l.tiles.Prune(l.kept); p.err != nil {
		// The log is whole: the next opening tries again.
		p.err = fmt.Errorf("audit: prune: %w", p.err)
	}
	return nil
}

func (l *Log) setKept(kept uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kept = kept
}

// takePrune notes what record r gives up.
func (h *history) takePrune(index uint64, r *Record) error {
	if r.Count > index {
		return h.fail(VerdictTampered, "record %d gives up later ones", index)
	}
	h.pruned = max(h.pruned, r.Count)
	return nil
}

// checkPruned checks that a record, and not only the snapshot, gave up what is not kept. That record is always kept, because it
// comes after those.
func (s *scanner) checkPruned() error {
	if s.snap.kept > s.pruned {
		return s.fail(VerdictMissing, "the records before %d are given up, and only those before %d are so by a record", s.snap.kept, s.pruned)
	}
	return nil
}

// prunedMeanwhile reports whether a running log gave up records since the snapshot was read, and reads the new one.
func (s *scanner) prunedMeanwhile() (bool, error) {
	kept := s.snap.kept
	err := s.loadSnapshot()
	return err == nil && s.snap.kept > kept, err
}
