package audit

import (
	"context"
	"sync"
)

// NewMemory returns a log that writes nothing: the same receipts, sequences, tree and checkpoints, gone with the process.
// It keeps the right edge of the tree and the latest 65536 records.
func NewMemory(o Options) (*Log, error) {
	o, err := o.withDefaults(false)
	if err != nil {
		return nil, err
	}
	l := newLog(o, nil, maxFrame)
	l.ring = &ring{recs: make([][]byte, 0, 64)}
	l.nextBatch()
	ctx := context.Background()
	if _, err := l.append(ctx, false, &Record{Kind: KindGenesis}); err != nil {
		return nil, err
	}
	if err := l.checkpointNow(true); err != nil {
		return nil, err
	}
	if _, err := l.append(ctx, false, &Record{Kind: KindOpen, Ref: l.latest.size, InputHash: l.latest.hash()}); err != nil {
		return nil, err
	}
	if err := l.checkpointNow(false); err != nil {
		return nil, err
	}
	l.start()
	return l, nil
}

// ring holds the latest records of a memory log.
type ring struct {
	mu    sync.Mutex
	recs  [][]byte // record i is at i mod memoryRecords
	total uint64
}

func (g *ring) add(rec []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := append([]byte(nil), rec...)
	if len(g.recs) < memoryRecords {
		g.recs = append(g.recs, c)
	} else {
		g.recs[g.total%memoryRecords] = c
	}
	g.total++
}

// get returns record i, which is below total, or ErrNotKept.
func (g *ring) get(i uint64) ([]byte, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if i+memoryRecords < g.total {
		return nil, ErrNotKept
	}
	return g.recs[i%memoryRecords], nil
}
