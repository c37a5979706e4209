// Package software is the custodian that does its work in this process: seeds
// are sealed under the store's root key wherever they rest, and plain only in
// the locked arena while in use. Every backend without hardware shares it.
package software

import (
	"container/list"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/rustyonions/ron-kms/backends"
	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/secret"
)

// Labels of the keys derived from the root key.
const labelSeal = "ron-kms/v1/seal"

// A Custodian seals seeds under keys derived from one root key and caches
// expanded private keys, least recently used first out.
type Custodian struct {
	arena *secret.Arena
	root  *secret.Bytes
	seal  *secret.Bytes

	mu     sync.Mutex // guards the fields below; never held while computing
	cached map[backends.Ref]*list.Element
	recent *list.List // of *entry, most recent first
	bytes  int
	closed bool
}

type entry struct {
	ref backends.Ref
	key *secret.Bytes // expanded private key
}

// New makes a custodian over root, which it owns from then on.
func New(arena *secret.Arena, root *secret.Bytes) (*Custodian, error) {
	seal, err := root.Derive(arena, labelSeal, 32)
	if err != nil {
		return nil, fmt.Errorf("software: %w", arenaErr(err))
	}
	return &Custodian{
		arena: arena, root: root, seal: seal,
		cached: make(map[backends.Ref]*list.Element), recent: list.New(),
	}, nil
}

// Arena is the locked memory of this custodian.
func (c *Custodian) Arena() *secret.Arena { return c.arena }

// Derive implements [backends.Backend].
func (c *Custodian) Derive(label string, n int) (*secret.Bytes, error) {
	b, err := c.root.Derive(c.arena, label, n)
	return b, arenaErr(err)
}

// Caps implements [backends.Custodian].
func (c *Custodian) Caps() []backends.Cap {
	var caps []backends.Cap
	seen := make(map[string]bool)
	for _, a := range alg.All() {
		for _, t := range a.Tracks() {
			if seen[t.Name()] {
				continue
			}
			seen[t.Name()] = true
			for _, op := range []backends.Operation{backends.OpGenerate, backends.OpSign} {
				caps = append(caps, backends.Cap{Track: t.Name(), Operation: op, Class: backends.ClassSoftware})
			}
		}
	}
	return caps
}

// track finds the row of the allow-list for ref, which names it both by its
// key's algorithm and by its track.
func track(ref backends.Ref) (*alg.Track, error) {
	a, ok := alg.Lookup(ref.KID.Alg)
	if !ok {
		return nil, backends.ErrUnsupported
	}
	for _, t := range a.Tracks() {
		if t.Name() == ref.Track {
			return t, nil
		}
	}
	return nil, backends.ErrUnsupported
}

// aad binds a sealed seed to the one place where it may be opened.
func aad(ref backends.Ref) []byte {
	kid := ref.KID.String()
	b := append([]byte(nil), "ron-kms/key/v1\x00"...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(kid)))
	b = append(b, kid...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(ref.Track)))
	return append(b, ref.Track...)
}

// Generate implements [backends.Custodian].
func (c *Custodian) Generate(_ context.Context, ref backends.Ref) (backends.Material, error) {
	t, err := track(ref)
	if err != nil {
		return backends.Material{}, err
	}
	var seed *secret.Bytes
	var public []byte
	err = c.withRoom(func() (err error) {
		seed, public, err = t.Generate(c.arena)
		return err
	})
	if err != nil {
		return backends.Material{}, fmt.Errorf("software: generate: %w", err)
	}
	defer seed.Destroy()
	sealed, err := c.seal.Seal(seed, aad(ref))
	if err != nil {
		return backends.Material{}, fmt.Errorf("software: generate: %w", err)
	}
	return backends.Material{Public: public, Sealed: sealed}, nil
}

// Sign implements [backends.Custodian].
func (c *Custodian) Sign(_ context.Context, ref backends.Ref, sealed, msg []byte) ([]byte, error) {
	t, err := track(ref)
	if err != nil {
		return nil, err
	}
	// An entry may be evicted, and so destroyed, between look-up and use.
	for {
		key, err := c.expanded(ref, t, sealed)
		if err != nil {
			return nil, err
		}
		sig, err := t.Sign(key, msg)
		if errors.Is(err, secret.ErrDestroyed) && !c.isClosed() {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("software: sign: %w", err)
		}
		return sig, nil
	}
}

// expanded returns the cached private key of ref, or makes it from its seed.
func (c *Custodian) expanded(ref backends.Ref, t *alg.Track, sealed []byte) (*secret.Bytes, error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, backends.ErrClosed
	}
	if e, ok := c.cached[ref]; ok {
		c.recent.MoveToFront(e)
		c.mu.Unlock()
		return e.Value.(*entry).key, nil
	}
	c.mu.Unlock()

	var key *secret.Bytes
	err := c.withRoom(func() error {
		seed, err := c.seal.Unseal(c.arena, sealed, aad(ref))
		if err != nil {
			return err
		}
		defer seed.Destroy()
		key, err = t.Expand(c.arena, seed)
		return err
	})
	if err != nil {
		if errors.Is(err, secret.ErrUnseal) {
			return nil, backends.ErrTampered
		}
		return nil, fmt.Errorf("software: unseal: %w", err)
	}
	return c.cache(ref, key)
}

// cache keeps key for ref; if another call was first, its key stays.
func (c *Custodian) cache(ref backends.Ref, key *secret.Bytes) (*secret.Bytes, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		key.Destroy()
		return nil, backends.ErrClosed
	}
	if e, ok := c.cached[ref]; ok {
		key.Destroy()
		return e.Value.(*entry).key, nil
	}
	c.cached[ref] = c.recent.PushFront(&entry{ref, key})
	c.bytes += key.Len()
	return key, nil
}

// withRoom runs fn and, as long as the arena is full, evicts the key that was
// not used for longest and tries again.
func (c *Custodian) withRoom(fn func() error) error {
	for {
		err := fn()
		if !errors.Is(err, secret.ErrArenaFull) {
			return err
		}
		if !c.evict() {
			return backends.ErrArenaFull
		}
	}
}

func (c *Custodian) evict() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	last := c.recent.Back()
	if last == nil {
		return false
	}
	c.drop(last)
	return true
}

// drop removes an entry; c.mu is held. Destroy waits for a running Use.
func (c *Custodian) drop(e *list.Element) {
	ent := c.recent.Remove(e).(*entry)
	delete(c.cached, ent.ref)
	c.bytes -= ent.key.Len()
	ent.key.Destroy()
}

// Forget implements [backends.Custodian].
func (c *Custodian) Forget(ref backends.Ref) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.cached[ref]; ok {
		c.drop(e)
	}
}

func (c *Custodian) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// Close wipes every secret of the custodian. The arena stays its maker's.
func (c *Custodian) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.closed = true
	for e := c.recent.Front(); e != nil; e = c.recent.Front() {
		c.drop(e)
	}
	c.seal.Destroy()
	c.root.Destroy()
}

func arenaErr(err error) error {
	if errors.Is(err, secret.ErrArenaFull) {
		return backends.ErrArenaFull
	}
	if errors.Is(err, secret.ErrDestroyed) {
		return backends.ErrClosed
	}
	return err
}
