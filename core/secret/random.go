package secret

import (
	"crypto"
	"crypto/rand"
	_ "crypto/sha256" // the hash of the generator
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"sync"

	drbg "github.com/canonical/go-sp800.90a-drbg"
)

const (
	// DefaultReseedInterval is how many draws of an [Arena] one seed serves
	// unless its [Options] say otherwise.
	DefaultReseedInterval = 100_000

	// maxReseedInterval is the most that Options take. SP 800-90A table 2
	// would allow 2^48.
	maxReseedInterval = 1 << 32
)

// The generator of an Arena is HMAC_DRBG with SHA-256 at a security strength of
// 256 bits (SP 800-90A §10.1.2 and table 2). What it reads from the entropy
// source, in bytes and in this order:
//
//	when opened       entropy_input 32, nonce 16
//	before each draw  additional_input 32
//	at a reseed       entropy_input 32, additional_input 32
//
// A reseed comes before the additional input of the draw that needs it.
const (
	generatorHash    = crypto.SHA256
	generatorLabel   = "ron-kms/drbg/v1" // personalization_string
	generatorEntropy = 32
	generatorNonce   = 16

	// generatorRequest is the most bytes of one draw (SP 800-90A table 2).
	generatorRequest = 1 << 16
)

// ErrEntropy is returned by everything that needs random bytes when the entropy
// source of the arena fails, or repeats itself. There is no output then.
var ErrEntropy = errors.New("secret: entropy source failed")

var errRepeats = errors.New("source repeats itself")

// generator is the random source of one Arena, safe for concurrent use.
//
// The library does not look at how many bytes its entropy source returned, and
// with SHA-256 asks it for 128 bits of strength only, so it is given its input
// from out here and never a source.
type generator struct {
	entropy  io.Reader
	interval uint64 // draws from one seed

	mu     sync.Mutex // guards what follows, and reading entropy
	state  *drbg.DRBG // nil once closed
	served uint64     // draws from the present seed
	broken bool       // the source repeated itself

	draws, reseeds uint64

	// in is where entropy is read to, and zero between draws. last is how the
	// latest read began; at first it is zero, so that a source that is stuck
	// at zero does not pass either.
	in   [2 * generatorEntropy]byte
	last [generatorNonce]byte
}

// newGenerator seeds a generator. An interval of zero is the default one, and a
// nil source is crypto/rand.
func newGenerator(source io.Reader, interval uint64, label []byte) (*generator, error) {
	if interval == 0 {
		interval = DefaultReseedInterval
	}
	if interval > maxReseedInterval {
		return nil, fmt.Errorf("reseed interval %d is out of range", interval)
	}
	if source == nil {
		source = rand.Reader
	}
	g := &generator{entropy: source, interval: interval}
	defer Wipe(g.in[:])
	seed, nonce := g.in[:generatorEntropy], g.in[generatorEntropy:][:generatorNonce]
	for _, p := range [][]byte{seed, nonce} {
		if err := g.gather(p); err != nil {
			return nil, err
		}
	}
	var err error
	Do(func() {
		g.state, err = drbg.NewHMACWithExternalEntropy(generatorHash, seed, nonce, label, nil)
	})
	if err != nil {
		return nil, err
	}
	return g, nil
}

// gather fills p, of at least 16 bytes, from the entropy source.
//
// It is the continuous test of FIPS 140-2 §4.9.2: a read that begins as the one
// before it did is refused, and so is every later one, because good sources do
// that once in 2^128 reads. A source that only returns an error is asked again
// at the next draw.
func (g *generator) gather(p []byte) error {
	if g.broken {
		return fmt.Errorf("%w: %w", ErrEntropy, errRepeats)
	}
	if _, err := io.ReadFull(g.entropy, p); err != nil {
		return fmt.Errorf("%w: %w", ErrEntropy, err)
	}
	if subtle.ConstantTimeCompare(p[:len(g.last)], g.last[:]) == 1 {
		g.broken = true
		return fmt.Errorf("%w: %w", ErrEntropy, errRepeats)
	}
	copy(g.last[:], p)
	return nil
}

// fill fills p with random bytes, or with zeros if it returns an error.
//
// Entropy is read outside Do, whose rules a source given by Options need not
// know.
func (g *generator) fill(p []byte) error {
	done := false
	defer func() {
		if !done { // also when the source panics
			Wipe(p)
		}
	}()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state == nil {
		return ErrDestroyed
	}
	for rest := p; len(rest) > 0; {
		n := min(len(rest), generatorRequest)
		if err := g.draw(rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	done = true
	return nil
}

// draw is one request of HMAC_DRBG_Generate (SP 800-90A §9.3.1).
func (g *generator) draw(p []byte) error {
	defer Wipe(g.in[:])
	if g.served >= g.interval {
		if err := g.reseed(); err != nil {
			return err
		}
	}
	add := g.in[:generatorEntropy]
	if err := g.gather(add); err != nil {
		return err
	}
	var err error
	Do(func() { err = g.state.Generate(add, p) })
	if err != nil {
		return fmt.Errorf("secret: draw: %w", err)
	}
	g.served++
	g.draws++
	return nil
}

// reseed is HMAC_DRBG_Reseed (SP 800-90A §9.2).
func (g *generator) reseed() error {
	seed, add := g.in[:generatorEntropy], g.in[generatorEntropy:]
	for _, p := range [][]byte{seed, add} {
		if err := g.gather(p); err != nil {
			return err
		}
	}
	var err error
	Do(func() { err = g.state.ReseedWithExternalEntropy(seed, add) })
	if err != nil {
		return fmt.Errorf("secret: reseed: %w", err)
	}
	g.served = 0
	g.reseeds++
	return nil
}

// counts returns how often the generator was drawn from and reseeded.
func (g *generator) counts() (draws, reseeds uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.draws, g.reseeds
}

// close lets go of the state. Later draws fail.
func (g *generator) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.state = nil
}

// Fill fills p with random bytes for a use that is not secret, such as a nonce
// or an identifier; secret ones come from [Arena.Random]. On an error, which
// wraps [ErrEntropy] or is [ErrDestroyed], p is zero.
//
// The bytes are those of HMAC_DRBG with SHA-256 (SP 800-90A §10.1.2), seeded
// from the system's random source, reseeded as [Options] say, with 32 fresh
// bytes of that source as additional input to each draw of up to 65536 bytes.
// Two copies of one state, as a snapshot or a fork makes them, therefore part at
// their next draw, and nobody has to notice that they were made. A forked child
// that does not exec has no use of it anyway: the arena reads zero there, and
// the Go runtime does not go on.
//
// The state of the generator (K and V), and while it runs a copy of what it
// returns, are on the Go heap, which is neither locked nor left out of dumps. In
// builds where [Do] erases, superseded states and copies are erased when they
// are collected; in plain builds they stay until they are overwritten, so a dump
// may hold secrets that were drawn before it. The present state alone tells
// neither what the next draw will return nor what earlier ones did.
func (a *Arena) Fill(p []byte) error { return a.rng().fill(p) }

// Fill is [Arena.Fill] of the arena that b is in, or [ErrDestroyed].
func (b *Bytes) Fill(p []byte) error {
	if b == nil || b.s == nil {
		clear(p)
		return ErrDestroyed
	}
	return b.s.arena.Fill(p)
}

// Random returns a slot of n random bytes, n at least 1, from the generator
// that [Arena.Fill] describes. It returns an error that wraps [ErrEntropy] if
// there are none to be had.
func (a *Arena) Random(n int) (*Bytes, error) {
	b, err := a.New(n)
	if err != nil {
		return nil, err
	}
	p, ok := b.hold()
	if !ok {
		return nil, ErrDestroyed
	}
	err = a.rng().fill(p)
	b.s.drop()
	if err != nil {
		b.Destroy()
		return nil, err
	}
	return b, nil
}
