// Package secret keeps secret bytes in one locked region of memory, lends them
// for the length of a call, and wipes them when they are released.
//
// An [Arena] is a single memguard buffer: locked into memory (never swapped),
// left out of core dumps, wiped in forked children, with a guard page on each
// side. It hands out [Bytes], 64-byte-aligned slots of it. One buffer for all
// secrets, because a buffer for each costs three pages and 30 µs, and the one
// that no longer fits makes memguard destroy all the others.
//
// Code that touches secret bytes runs inside [Do], which erases the registers,
// the stack and (once collected) the heap that it used, in builds with
// GOEXPERIMENT=runtimesecret. In plain builds Do only calls its argument: the
// arena is wiped as always, but copies that cryptographic code leaves on the
// stack and on the heap stay until they are overwritten. Neither build can
// hide a secret from someone who reads the process's memory while an operation
// runs, nor can it erase what is copied out of a slot.
//
// Importing this package imports memguard, which sets RLIMIT_CORE to zero for
// the whole process.
package secret

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/awnumar/memguard"
)

var (
	// ErrArenaFull is returned when no free range of the arena is large enough.
	// Destroy a Bytes that is no longer needed, or open a larger arena.
	ErrArenaFull = errors.New("secret: arena is full")

	// ErrDestroyed is returned for a Bytes that was destroyed, and for
	// everything of an Arena that was closed.
	ErrDestroyed = errors.New("secret: destroyed")
)

// Arena is a locked region of memory that hands out slots of itself. It is
// safe for concurrent use. Close it when the secrets are no longer needed;
// nothing else releases it.
type Arena struct {
	// lend returns the n bytes at off. The region is reachable only through
	// this func value, because a reflective printer follows pointers and
	// slices but cannot look into a func.
	lend    func(off, n int) []byte
	destroy func() error
	size    int

	// rng returns the generator, which is behind a func for the same reason.
	rng func() *generator

	once     sync.Once
	closeErr error

	mu     sync.Mutex // guards what follows
	closed bool
	space  *space
	live   map[*slot]struct{}
}

// Options say where the random bytes of an Arena come from. The zero value is
// the system's random source and the default interval.
type Options struct {
	// ReseedInterval is after how many draws the generator is seeded anew, 1 to
	// 2^32. Zero is DefaultReseedInterval.
	ReseedInterval uint64

	// Entropy is where seeds and the additional input of each draw are read
	// from, by one goroutine at a time. It must be truly random, whatever the
	// tests do. Nil is crypto/rand, which on Linux is getrandom, and which ends
	// the process rather than return an error.
	Entropy io.Reader
}

// Stats says how much of an Arena is in use. Sizes are in bytes.
type Stats struct {
	Size   int  // of the whole arena
	Used   int  // of the slots handed out, rounded up to their 64-byte classes
	Slots  int  // handed out and not destroyed
	Locked bool // the pages are locked into memory; false once closed

	Draws   uint64 // from the generator, of up to 65536 bytes each
	Reseeds uint64 // of the generator, not counting its first seed
}

// opening serialises NewArenaWith: between the probe and memguard's own lock, no
// other arena of this process may take the memory that the probe found free.
var opening sync.Mutex

// NewArena is [NewArenaWith] with the zero Options.
func NewArena(size int) (*Arena, error) { return NewArenaWith(size, Options{}) }

// NewArenaWith locks size bytes of memory, rounded up to whole pages, and seeds
// the generator of the arena. It fails if the memory cannot be locked, and its
// error then says what limit to raise, and with an error that wraps
// [ErrEntropy] if the entropy source fails.
func NewArenaWith(size int, o Options) (*Arena, error) {
	const maxSize = 1 << 40 // keeps the rounding below from overflowing
	if size < 1 || size > maxSize {
		return nil, fmt.Errorf("secret: open arena: size %d is out of range", size)
	}
	page := os.Getpagesize()
	size = (size + page - 1) / page * page

	rng, err := newGenerator(o.Entropy, o.ReseedInterval, []byte(generatorLabel))
	if err != nil {
		return nil, fmt.Errorf("secret: open arena: %w", err)
	}

	opening.Lock()
	defer opening.Unlock()
	// memguard answers a failed lock by destroying every buffer of the process
	// and panicking (or hanging), so find out beforehand.
	if err := probeLock(size); err != nil {
		return nil, fmt.Errorf("secret: open arena: %w", err)
	}
	buf, err := newBuffer(size)
	if err != nil {
		return nil, fmt.Errorf("secret: open arena: %w", err)
	}
	mem := buf.Bytes()
	if err := keepFromChildren(mem); err != nil {
		buf.Destroy()
		return nil, fmt.Errorf("secret: open arena: %w", err)
	}
	return &Arena{
		lend:    func(off, n int) []byte { return mem[off : off+n : off+n] },
		destroy: func() error { return destroyBuffer(buf) },
		size:    size,
		rng:     func() *generator { return rng },
		space:   newSpace(size),
		live:    make(map[*slot]struct{}),
	}, nil
}

// New returns a slot of n zero bytes, n at least 1.
func (a *Arena) New(n int) (*Bytes, error) {
	if n < 1 {
		return nil, fmt.Errorf("secret: new: length %d is out of range", n)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, ErrDestroyed
	}
	off, ok := a.space.alloc(n)
	if !ok {
		return nil, fmt.Errorf("%w: %d bytes asked for, %d of %d in use", ErrArenaFull, n, a.space.used, a.size)
	}
	// Slots are wiped when released. Wiping again costs little and keeps the
	// promise even if something wrote through a slice it should not have kept.
	Wipe(a.lend(off, class(n)))
	s := &slot{arena: a, off: off, n: n}
	s.self.s = s
	s.wiped.Add(1)
	a.live[s] = struct{}{}
	return &s.self, nil
}

// Stats returns the arena's present use.
func (a *Arena) Stats() Stats {
	draws, reseeds := a.rng().counts()
	a.mu.Lock()
	defer a.mu.Unlock()
	return Stats{
		Size: a.size, Used: a.space.used, Slots: len(a.live), Locked: !a.closed,
		Draws: draws, Reseeds: reseeds,
	}
}

// Close destroys every Bytes of the arena, waiting for calls of Use under way,
// wipes the region and returns it to the system, and lets go of the generator.
// It must not be called from inside Use. Later calls do nothing and return what
// the first one returned.
func (a *Arena) Close() error {
	a.once.Do(func() {
		a.mu.Lock()
		a.closed = true
		live := make([]*slot, 0, len(a.live))
		for s := range a.live {
			live = append(live, s)
		}
		a.mu.Unlock()
		for _, s := range live {
			s.destroy()
		}
		a.rng().close()
		a.closeErr = a.destroy()
	})
	return a.closeErr
}

// release takes back the space of a slot that is already wiped.
func (a *Arena) release(s *slot) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.space.release(s.off, s.n)
	delete(a.live, s)
}

// newBuffer turns memguard's panic into an error.
func newBuffer(size int) (buf *memguard.LockedBuffer, err error) {
	defer func() {
		if r := recover(); r != nil {
			buf, err = nil, fmt.Errorf("memguard: %v", r)
		}
	}()
	buf = memguard.NewBuffer(size)
	if buf.Size() != size {
		return nil, errors.New("memguard returned no buffer")
	}
	return buf, nil
}

// destroyBuffer wipes and unmaps buf. memguard panics if the bytes beside it
// were overwritten, which is reported here as an error: the region is wiped.
func destroyBuffer(buf *memguard.LockedBuffer) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("secret: close arena: memguard: %v", r)
		}
	}()
	buf.Destroy()
	return nil
}
