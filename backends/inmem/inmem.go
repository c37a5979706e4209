// Package inmem is the backend that forgets: records in ordinary memory, the
// root key and all seeds in the locked arena, nothing ever written. When it is
// closed, or the process ends, every key is gone (amnesia mode).
package inmem

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/rustyonions/ron-kms/backends"
	"github.com/rustyonions/ron-kms/backends/software"
	"github.com/rustyonions/ron-kms/core/secret"
)

// Backend implements [backends.Backend].
type Backend struct {
	*software.Custodian
	arena *secret.Arena

	mu       sync.Mutex // guards the fields below
	records  map[string][]byte
	revision uint64
	closed   bool
}

var _ backends.Backend = (*Backend)(nil)

// Open makes an empty store with a fresh random root key. arenaSize is in
// bytes.
func Open(arenaSize int, o secret.Options) (*Backend, error) {
	arena, err := secret.NewArenaWith(arenaSize, o)
	if err != nil {
		return nil, fmt.Errorf("inmem: %w", err)
	}
	root, err := arena.Random(32)
	if err != nil {
		arena.Close()
		return nil, fmt.Errorf("inmem: %w", err)
	}
	custodian, err := software.New(arena, root)
	if err != nil {
		arena.Close()
		return nil, fmt.Errorf("inmem: %w", err)
	}
	return &Backend{Custodian: custodian, arena: arena, records: make(map[string][]byte)}, nil
}

// Name implements [backends.Backend].
func (b *Backend) Name() string { return "inmem" }

// Load implements [backends.Records].
func (b *Backend) Load(_ context.Context, fn func(string, []byte) error) (uint64, error) {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return 0, backends.ErrClosed
	}
	keys := make([]string, 0, len(b.records))
	values := make(map[string][]byte, len(b.records))
	for k, v := range b.records {
		keys = append(keys, k)
		values[k] = slices.Clone(v)
	}
	rev := b.revision
	b.mu.Unlock()

	slices.Sort(keys)
	for _, k := range keys {
		if err := fn(k, values[k]); err != nil {
			return 0, err
		}
	}
	return rev, nil
}

// Get implements [backends.Records].
func (b *Backend) Get(_ context.Context, key string) ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, backends.ErrClosed
	}
	return slices.Clone(b.records[key]), nil
}

// Commit implements [backends.Records]. "Durable" means for the life of this
// process.
func (b *Backend) Commit(_ context.Context, revision uint64, puts ...backends.Put) (uint64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, backends.ErrClosed
	}
	if revision != b.revision {
		return 0, backends.ErrConflict
	}
	for _, p := range puts {
		if p.Value == nil {
			delete(b.records, p.Key)
		} else {
			b.records[p.Key] = slices.Clone(p.Value)
		}
	}
	b.revision++
	return b.revision, nil
}

// Close implements [backends.Backend].
func (b *Backend) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	b.closed = true
	clear(b.records)
	b.Custodian.Close()
	return b.arena.Close()
}
