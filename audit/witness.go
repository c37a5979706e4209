package audit

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/rustyonions/ron-kms/audit/fsys"
	"github.com/rustyonions/ron-kms/audit/tiles"
)

// A Witness remembers elsewhere the latest checkpoint that it saw, signs only what continues it, and so notices a log that
// went back or split (C2SP tlog-witness).
type Witness interface {
	Name() string
	// Cosign shows the witness a checkpoint, and the proof that it continues the size that the witness knows, which old
	// guesses. It returns lines to add to the note. Errors wrap ErrWitnessAhead if the witness knows a longer log,
	// ErrWitnessForked if it knows another one; others are of no meaning for the log.
	Cosign(ctx context.Context, old uint64, prove func(old uint64) ([][32]byte, error), checkpoint []byte) (lines []byte, err error)
}

var (
	// ErrWitnessAhead says that a witness has seen a longer log than this one.
	ErrWitnessAhead = errors.New("the witness has seen a longer log")
	// ErrWitnessForked says that a witness has seen other contents.
	ErrWitnessForked = errors.New("the witness has seen another log")
)

// A WitnessOption is a witness and what to do without it.
type WitnessOption struct {
	Witness Witness
	// Required refuses to open the log when the witness cannot be asked.
	Required bool
}

// witnessTimeout bounds one question to a witness.
const witnessTimeout = 10 * time.Second

// witnessing is the cosignatures of an open log.
type witnessing struct {
	mu    sync.Mutex
	size  uint64            // of the checkpoint that was cosigned
	note  []byte            // that checkpoint with its cosignatures
	seen  map[string]uint64 // the size that each witness signed last
	fault map[string]error  // why a witness did not answer
}

// askWitnesses shows the log that s found to its witnesses. It returns what they said, for the record and for Witnesses.
func askWitnesses(ctx context.Context, s *scanner, t *tiles.Store, ws []WitnessOption) (said string, faults map[string]error, err error) {
	var b strings.Builder
	faults = make(map[string]error)
	for _, w := range ws {
		c := s.latest
		ctx, cancel := context.WithTimeout(ctx, witnessTimeout)
		_, err := w.Witness.Cosign(ctx, c.size, consistency(t, c), c.raw)
		cancel()
		answer := "continues"
		switch {
		case errors.Is(err, ErrWitnessAhead):
			return "", nil, s.fail(VerdictStale, "witness %s: %v", w.Witness.Name(), err)
		case errors.Is(err, ErrWitnessForked):
			return "", nil, s.fail(VerdictForked, "witness %s: %v", w.Witness.Name(), err)
		case err != nil && w.Required:
			return "", nil, fmt.Errorf("audit: witness %s: %w", w.Witness.Name(), err)
		case err != nil:
			answer = "no answer"
			faults[w.Witness.Name()] = err
		}
		fmt.Fprintf(&b, "witness %s: %s\n", w.Witness.Name(), answer)
	}
	return b.String(), faults, nil
}

// consistency proves that the tree of c continues an earlier one.
func consistency(t *tiles.Store, c *checkpoint) func(old uint64) ([][32]byte, error) {
	return func(old uint64) ([][32]byte, error) {
		if old == 0 || old >= c.size {
			return nil, nil
		}
		proof, err := t.Consistency(old, c.size, c.root)
		out := make([][32]byte, len(proof))
		for i := range proof {
			out[i] = proof[i]
		}
		return out, err
	}
}

// herd shows each new checkpoint to the witnesses, until the log stops. It never holds up the log: only a witness that
// contradicts the log stops it.
func (l *Log) herd() {
	if len(l.o.Witnesses) == 0 {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	l.wg.Go(func() { // Close does not wait for a witness that is silent
		<-l.stop
		cancel()
	})
	tick := time.NewTicker(l.o.WitnessInterval)
	defer tick.Stop()
	for {
		select {
		case <-l.stop:
			return
		case <-tick.C:
		}
		l.mu.Lock()
		c := l.latest
		l.mu.Unlock()
		if err := l.cosign(ctx, c); err != nil {
			l.mu.Lock()
			l.failLocked(err)
			l.mu.Unlock()
			return
		}
	}
}

// cosign collects the cosignatures of c.
func (l *Log) cosign(ctx context.Context, c *checkpoint) error {
	var lines []byte
	for _, w := range l.o.Witnesses {
		name := w.Witness.Name()
		l.cosigned.mu.Lock()
		old := l.cosigned.seen[name]
		l.cosigned.mu.Unlock()
		// Each has its own time: one that is silent must not speak for the next.
		one, cancel := context.WithTimeout(ctx, witnessTimeout)
		got, err := w.Witness.Cosign(one, old, consistency(l.tiles, c), c.raw)
		cancel()
		switch {
		case errors.Is(err, ErrWitnessAhead):
			return &IntegrityError{Verdict: VerdictStale, Index: c.size, Reason: fmt.Sprintf("witness %s: %v", name, err)}
		case errors.Is(err, ErrWitnessForked):
			return &IntegrityError{Verdict: VerdictForked, Index: c.size, Reason: fmt.Sprintf("witness %s: %v", name, err)}
		}
		l.cosigned.mu.Lock()
		l.cosigned.fault[name] = err
		if err == nil {
			l.cosigned.seen[name] = c.size
		}
		l.cosigned.mu.Unlock()
		lines = append(lines, got...)
	}
	if len(lines) == 0 {
		return nil
	}
	signed := append(append([]byte(nil), c.raw...), lines...)
	l.cosigned.mu.Lock()
	l.cosigned.size, l.cosigned.note = c.size, signed
	l.cosigned.mu.Unlock()
	if l.disk == nil {
		return nil
	}
	// The cosignatures are a convenience of readers: losing them loses nothing that cannot be asked for again.
	if err := fsys.ReplaceFile(l.disk.st, cosignedFile, signed); err != nil {
		l.cosigned.mu.Lock()
		defer l.cosigned.mu.Unlock()
		l.cosigned.fault[l.o.Witnesses[0].Witness.Name()] = fmt.Errorf("cosigned checkpoint: %w", err)
	}
	return nil
}

// Cosigned returns the latest checkpoint that witnesses cosigned, with their signatures, or nil.
func (l *Log) Cosigned() []byte {
	l.cosigned.mu.Lock()
	defer l.cosigned.mu.Unlock()
	return append([]byte(nil), l.cosigned.note...)
}

// Witnesses says of each witness the size it cosigned last, and why it did not answer the last time, if so.
func (l *Log) Witnesses() (seen map[string]uint64, faults map[string]error) {
	l.cosigned.mu.Lock()
	defer l.cosigned.mu.Unlock()
	seen, faults = make(map[string]uint64), make(map[string]error)
	for _, w := range l.o.Witnesses {
		name := w.Witness.Name()
		seen[name] = l.cosigned.seen[name]
		if err := l.cosigned.fault[name]; err != nil {
			faults[name] = err
		}
	}
	return seen, faults
}
