package capability

import (
	"container/list"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"hash"
	"sync"
	"time"
)

// Limits of a Cache.
const (
	DefaultCacheSize = 4096        // grants
	MaxCacheTTL      = time.Minute // and the default

	maxTextBytes = 8 << 10 // longer than a token of any kind
)

// CacheOptions are the bounds of a Cache. The zero value takes the defaults.
type CacheOptions struct {
	Size  int              // number of grants, 1 or more; 0 is DefaultCacheSize
	TTL   time.Duration    // at most MaxCacheTTL, which 0 stands for
	Clock func() time.Time // nil is time.Now
}

// A Cache verifies tokens and remembers the grants for a short while, for
// faces that see the same token with each request. It keeps of a token
// nothing but HMAC-SHA-256 under a random key of its own: neither the cache
// nor a dump of it tells a token. What is refused is not remembered.
//
// A grant is dropped when its time is over, when it expires, when anything is
// revoked, and when it was not used for longer than the others and room is
// needed. It is safe for concurrent use.
type Cache struct {
	verifier TokenVerifier
	ttl      time.Duration
	size     int
	clock    func() time.Time
	hashers  sync.Pool // of *hasher

	mu           sync.Mutex // guards the rest
	entries      map[[32]byte]*list.Element
	order        *list.List // of *cached, the last used first
	hits, misses uint64
}

type cached struct {
	name       [32]byte
	grant      *Grant
	generation uint64
	made       time.Time
}

// NewCache returns an empty cache in front of v.
func NewCache(v TokenVerifier, o CacheOptions) *Cache {
	c := &Cache{
		verifier: v, ttl: o.TTL, size: o.Size, clock: o.Clock,
		entries: make(map[[32]byte]*list.Element), order: list.New(),
	}
	if c.ttl <= 0 || c.ttl > MaxCacheTTL {
		c.ttl = MaxCacheTTL
	}
	if c.size <= 0 {
		c.size = DefaultCacheSize
	}
	if c.clock == nil {
		c.clock = time.Now
	}
	key := make([]byte, sha256.Size)
	rand.Read(key) // does not fail: crypto/rand ends the process instead
	c.hashers.New = func() any {
		h := &hasher{mac: hmac.New(sha256.New, key)}
		h.mac.Reset()
		return h
	}
	return c
}

// Verify implements [TokenVerifier], from memory if it can.
func (c *Cache) Verify(text string) (*Grant, error) {
	if text == "" || len(text) > maxTextBytes {
		return c.verifier.Verify(text) // refuses; not worth a hash
	}
	name := c.name(text)
	now := c.clock()
	if g := c.lookup(name, now); g != nil {
		return g, nil
	}
	g, err := c.verifier.Verify(text)
	if err != nil {
		return nil, err
	}
	c.store(&cached{name: name, grant: g, generation: g.life.answered(), made: now})
	return g, nil
}

// hasher is a keyed hash and the memory it needs, so that a text is hashed
// without leaving a copy.
type hasher struct {
	mac   hash.Hash
	chunk [256]byte
	sum   [sha256.Size]byte
}

// name is what a token is known by.
func (c *Cache) name(text string) (name [32]byte) {
	h := c.hashers.Get().(*hasher)
	for len(text) > 0 {
		n := copy(h.chunk[:], text)
		h.mac.Write(h.chunk[:n])
		text = text[n:]
	}
	h.mac.Sum(h.sum[:0])
	name = h.sum
	clear(h.chunk[:])
	h.mac.Reset() // clears its block too, which has the end of the text
	c.hashers.Put(h)
	return name
}

func (c *Cache) lookup(name [32]byte, now time.Time) *Grant {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, ok := c.entries[name]
	if !ok {
		c.misses++
		return nil
	}
	e := at.Value.(*cached)
	// A clock that went back makes an entry's age negative: that is not young.
	age := now.Sub(e.made)
	if age < 0 || age >= c.ttl || now.Unix() >= e.grant.expiry || e.generation != e.grant.life.generation() {
		c.drop(at)
		c.misses++
		return nil
	}
	c.order.MoveToFront(at)
	c.hits++
	return e.grant
}

func (c *Cache) store(e *cached) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at, ok := c.entries[e.name]; ok {
		c.drop(at)
	}
	c.entries[e.name] = c.order.PushFront(e)
	for len(c.entries) > c.size {
		c.drop(c.order.Back())
	}
}

func (c *Cache) drop(at *list.Element) {
	delete(c.entries, at.Value.(*cached).name)
	c.order.Remove(at)
}

// Clear forgets all grants.
func (c *Cache) Clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.entries)
	c.order.Init()
}

// CacheStats are counts since the start, and the number of grants held.
type CacheStats struct {
	Hits, Misses uint64
	Size         int
}

// Stats returns the counts.
func (c *Cache) Stats() CacheStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return CacheStats{c.hits, c.misses, len(c.entries)}
}
