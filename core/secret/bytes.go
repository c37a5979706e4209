package secret

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
)

// redacted is all that any formatter shows of a secret.
const redacted = "[secret]"

// errNoExport is what encoders that would store a secret get.
var errNoExport = errors.New("secret: secret bytes have no encoding")

// Bytes is a secret of fixed length in a slot of an [Arena]. It is safe for
// concurrent use: calls of Use run side by side, Destroy waits for them. What
// fmt, encoding/json, encoding/gob and log/slog see of it is "[secret]" or an
// error. The zero value behaves as one that was destroyed.
type Bytes struct{ s *slot }

// slot is the state behind a Bytes. It is apart from it so that Bytes can have
// its redacting methods on the value: a copy is redacted too.
type slot struct {
	self   Bytes // what New returned: one allocation for both
	arena  *Arena
	off, n int
	users  atomic.Int64 // calls under way, plus dead once destroyed
	wiped  sync.WaitGroup
}

// dead is the bit of slot.users that says no further call may begin.
const dead = 1 << 62

// Use lends the bytes to fn, inside [Do]. The slice is valid only until fn
// returns: fn must not keep it, must not hand it to another goroutine that
// outlives the call, must not call cgo (inside Do that ends the process), and
// must not destroy b or close its arena (which would wait for itself). It may
// write to the slice, and may use other Bytes. Use returns [ErrDestroyed] and
// does not call fn once Destroy or Close has begun.
//
// The bytes are not on the Go heap: never give them to crypto/ed25519, which
// ends the process on such memory.
func (b *Bytes) Use(fn func(p []byte)) error {
	p, ok := b.hold()
	if !ok {
		return ErrDestroyed
	}
	defer b.s.drop()
	Do(func() { fn(p) })
	return nil
}

// Len returns the number of bytes, also after Destroy.
func (b *Bytes) Len() int {
	if b == nil || b.s == nil {
		return 0
	}
	return b.s.n
}

// Destroy wipes the bytes and gives the slot back. It waits for calls of Use
// under way, so that after it returns the bytes are gone. Later calls do
// nothing.
func (b *Bytes) Destroy() {
	if b != nil && b.s != nil {
		b.s.destroy()
	}
}

// Equal reports whether b and o hold the same bytes, in time that depends on
// their lengths alone. A destroyed secret equals nothing.
func (b *Bytes) Equal(o *Bytes) bool {
	p, ok := b.hold()
	if !ok {
		return false
	}
	defer b.s.drop()
	q, ok := o.hold()
	if !ok {
		return false
	}
	defer o.s.drop()
	return subtle.ConstantTimeCompare(p, q) == 1
}

// hold returns the bytes and keeps them from being wiped until slot.drop.
// A waiting Destroy never makes hold wait (it makes it fail), so holds of
// several secrets may nest in any order.
func (b *Bytes) hold() ([]byte, bool) {
	if b == nil || b.s == nil {
		return nil, false
	}
	s := b.s
	for {
		v := s.users.Load()
		if v&dead != 0 {
			return nil, false
		}
		if s.users.CompareAndSwap(v, v+1) {
			return s.arena.lend(s.off, s.n), true
		}
	}
}

func (s *slot) drop() {
	if s.users.Add(-1) == dead {
		s.finish()
	}
}

func (s *slot) destroy() {
	if v := s.users.Or(dead); v == 0 {
		s.finish() // the first to destroy, and nobody holds it
	}
	s.wiped.Wait()
}

// finish runs once: in the call that saw the last user go or none there.
func (s *slot) finish() {
	Wipe(s.arena.lend(s.off, class(s.n)))
	s.arena.release(s)
	s.wiped.Done()
}

// String returns "[secret]".
func (Bytes) String() string { return redacted }

// GoString returns "[secret]".
func (Bytes) GoString() string { return redacted }

// Format writes "[secret]" for every verb.
func (Bytes) Format(f fmt.State, _ rune) { f.Write([]byte(redacted)) }

// MarshalText returns "[secret]".
func (Bytes) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON returns the string "[secret]".
func (Bytes) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// MarshalBinary returns an error: secret bytes are stored only as [Bytes.Seal]
// returns them.
func (Bytes) MarshalBinary() ([]byte, error) { return nil, errNoExport }

// Wipe sets p to zero. It is not inlined, so that the compiler cannot see that
// nothing reads p afterwards.
//
//go:noinline
func Wipe(p []byte) {
	clear(p)
	runtime.KeepAlive(p)
}
