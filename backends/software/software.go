// Package software is the custodian that does its work in this process: seeds
// are sealed under the store's root key wherever they rest, and plain only in
// the locked arena while in use. Every backend without hardware shares it.
package software

import (
	"bytes"
	"container/list"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
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

	// making is read-held while a key is made, and held by the one call that
	// found the arena full.
	making sync.RWMutex

	mu     sync.Mutex // guards the fields below; never held while computing
	cached map[backends.Ref]*list.Element
	recent *list.List // of *entry, most recent first
	closed bool
}

type entry struct {
	ref    backends.Ref
	sealed []byte        // what key was unsealed from
	key    *secret.Bytes // expanded private key
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

// Scratch implements [backends.Backend].
func (c *Custodian) Scratch(n int) (*secret.Bytes, error) {
	var b *secret.Bytes
	err := c.withRoom(func() (err error) {
		b, err = c.arena.New(n)
		return err
	})
	return b, arenaErr(err)
}

// StoreKey implements [backends.Backend].
func (c *Custodian) StoreKey(label string, n int) (*secret.Bytes, error) {
	var b *secret.Bytes
	err := c.withRoom(func() (err error) {
		b, err = c.root.Derive(c.arena, label, n)
		return err
	})
	return b, arenaErr(err)
}

// operations are what a track can do besides being generated, by its kind.
var operations = map[alg.Kind][]backends.Operation{
	alg.KindSign: {backends.OpGenerate, backends.OpSign},
	alg.KindKEM:  {backends.OpGenerate, backends.OpUnwrap},
	alg.KindAEAD: {backends.OpGenerate, backends.OpWrap, backends.OpUnwrap},
	alg.KindKDF:  {backends.OpGenerate, backends.OpDerive},
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
			for _, op := range operations[t.Kind()] {
				caps = append(caps, backends.Cap{Track: t.Name(), Operation: op, Class: backends.ClassSoftware})
			}
		}
	}
	return caps
}

// track finds the row of the allow-list for ref, if it can do op.
func track(ref backends.Ref, op backends.Operation) (*alg.Track, error) {
	a, listed := alg.Lookup(ref.KID.Alg)
	t, ok := alg.LookupTrack(ref.Track)
	if !listed || !ok || !backends.Serves(a, t) || !slices.Contains(operations[t.Kind()], op) {
		return nil, backends.ErrUnsupported
	}
	return t, nil
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
	t, err := track(ref, backends.OpGenerate)
	if err != nil {
		return backends.Material{}, err
	}
	var m backends.Material
	err = c.withRoom(func() error {
		seed, public, err := t.Generate(c.arena)
		if err != nil {
			return err
		}
		defer seed.Destroy()
		sealed, err := c.seal.Seal(seed, aad(ref))
		m = backends.Material{Public: public, Sealed: sealed}
		return err
	})
	if err != nil {
		return backends.Material{}, fmt.Errorf("software: generate: %w", arenaErr(err))
	}
	return m, nil
}

// Sign implements [backends.Custodian].
func (c *Custodian) Sign(_ context.Context, ref backends.Ref, scheme alg.Scheme, sealed, msg []byte) (sig []byte, err error) {
	err = c.use(ref, backends.OpSign, sealed, func(t *alg.Track, key *secret.Bytes) (err error) {
		sig, err = t.SignScheme(key, scheme, msg)
		return err
	})
	return sig, err
}

// Wrap implements [backends.Custodian].
func (c *Custodian) Wrap(_ context.Context, ref backends.Ref, sealed, aad, plaintext []byte) (body []byte, err error) {
	err = c.use(ref, backends.OpWrap, sealed, func(t *alg.Track, key *secret.Bytes) (err error) {
		body, err = t.SealWith(key, aad, plaintext)
		return err
	})
	return body, err
}

// Unwrap implements [backends.Custodian].
func (c *Custodian) Unwrap(_ context.Context, ref backends.Ref, sealed, aad []byte, e alg.Envelope, lend func([]byte)) error {
	return c.use(ref, backends.OpUnwrap, sealed, func(t *alg.Track, key *secret.Bytes) error {
		var err error
		if t.Kind() == alg.KindAEAD {
			err = t.OpenWith(key, aad, e.Body, lend)
		} else {
			err = t.OpenFrom(key, []byte(alg.WrapInfo), aad, e.Enc, e.Body, lend)
		}
		if errors.Is(err, alg.ErrOpen) {
			return backends.ErrUnwrap
		}
		return err
	})
}

// Derive implements [backends.Custodian].
func (c *Custodian) Derive(_ context.Context, ref backends.Ref, sealed []byte, info string, child backends.Ref) (m backends.Material, err error) {
	ct, err := track(child, backends.OpGenerate)
	if err != nil {
		return m, err
	}
	err = c.use(ref, backends.OpDerive, sealed, func(t *alg.Track, key *secret.Bytes) error {
		return c.withRoom(func() error {
			seed, err := t.DeriveSeed(key, c.arena, info, ct.SeedSize())
			if err != nil {
				return err
			}
			defer seed.Destroy()
			public, err := ct.Adopt(c.arena, seed)
			if err != nil {
				return err
			}
			box, err := c.seal.Seal(seed, aad(child))
			m = backends.Material{Public: public, Sealed: box}
			return err
		})
	})
	return m, err
}

// use runs fn with the expanded private key of ref.
func (c *Custodian) use(ref backends.Ref, op backends.Operation, sealed []byte, fn func(*alg.Track, *secret.Bytes) error) error {
	t, err := track(ref, op)
	if err != nil {
		return err
	}
	// An entry may be evicted, and so destroyed, between look-up and use.
	for {
		key, err := c.expanded(ref, t, sealed)
		if err != nil {
			return err
		}
		err = fn(t, key)
		switch {
		case errors.Is(err, secret.ErrDestroyed) && !c.isClosed():
			continue
		case errors.Is(err, backends.ErrUnwrap), err == nil:
			return err
		}
		return fmt.Errorf("software: %s: %w", op, arenaErr(err))
	}
}

// expanded returns the cached private key of ref, or makes it from its seed.
func (c *Custodian) expanded(ref backends.Ref, t *alg.Track, sealed []byte) (*secret.Bytes, error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, backends.ErrClosed
	}
	// A key that is cached vouches only for the sealed form it came from.
	if e, ok := c.cached[ref]; ok && bytes.Equal(e.Value.(*entry).sealed, sealed) {
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
		made, err := t.Expand(c.arena, seed)
		if err != nil {
			return err
		}
		key, err = c.cache(ref, sealed, made)
		return err
	})
	if errors.Is(err, secret.ErrUnseal) {
		return nil, backends.ErrTampered
	}
	if err != nil {
		return nil, fmt.Errorf("software: unseal: %w", arenaErr(err))
	}
	return key, nil
}

// cache keeps key for ref; if another call was first, its key stays.
func (c *Custodian) cache(ref backends.Ref, sealed []byte, key *secret.Bytes) (*secret.Bytes, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		key.Destroy()
		return nil, backends.ErrClosed
	}
	if e, ok := c.cached[ref]; ok {
		if ent := e.Value.(*entry); bytes.Equal(ent.sealed, sealed) {
			key.Destroy()
			return ent.key, nil
		}
		c.drop(e)
	}
	c.cached[ref] = c.recent.PushFront(&entry{ref, bytes.Clone(sealed), key})
	return key, nil
}

// withRoom runs fn, which holds nothing of the arena when it fails. If the
// arena is full, it runs fn again without others beside it, whose half-made
// keys take room for a moment, and evicts the key that was not used for longest
// until there is room.
func (c *Custodian) withRoom(fn func() error) error {
	c.making.RLock()
	err := fn()
	c.making.RUnlock()
	if !errors.Is(err, secret.ErrArenaFull) {
		return err
	}
	c.making.Lock()
	defer c.making.Unlock()
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
