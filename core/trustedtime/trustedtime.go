// Package trustedtime tells the time, and how far it may be trusted.
//
// A [Source] gives the wall clock for what people and windows of validity are
// about, a sequence that never goes back for order, and three checks of the
// wall clock: whether the kernel says that it is synchronised
// ([Source.Status]), whether it is behind a time that is known to have passed
// ([Source.Floor]), and whether it is within a window ([Source.Check]).
//
// The wall clock can be set forward without any of them noticing, unless the
// kernel knows: the kernel and its NTP daemon are trusted within the tolerance.
// Everything that is compared is in whole milliseconds since the Unix epoch,
// rounded down, and tolerances are rounded down to whole milliseconds.
package trustedtime

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// ErrBehind is returned when the wall clock is further than the tolerance
// behind a time that has passed already.
var ErrBehind = errors.New("trustedtime: clock is behind a time that has passed")

// Direction says on which side of a window the clock is.
type Direction uint8

const (
	_ Direction = iota // the zero value says nothing

	// Early is before not_before.
	Early

	// Late is after not_after.
	Late
)

// String returns "early" or "late", for a metric's label.
func (d Direction) String() string {
	switch d {
	case Early:
		return "early"
	case Late:
		return "late"
	}
	return fmt.Sprintf("Direction(%d)", uint8(d))
}

// ErrSkew is the error of [Source.Check] for a clock outside a window. It can be
// compared: errors.Is(err, ErrSkew{Late}).
type ErrSkew struct{ Direction Direction }

// Error says which bound the clock is beyond.
func (e ErrSkew) Error() string {
	switch e.Direction {
	case Early:
		return "trustedtime: clock is before not_before by more than the tolerance"
	case Late:
		return "trustedtime: clock is after not_after by more than the tolerance"
	}
	return "trustedtime: clock is outside the window"
}

// Clock is a wall clock. A time.Time with a monotonic reading makes the sequence
// of a [Source] keep real distances too.
type Clock interface{ Now() time.Time }

type system struct{}

func (system) Now() time.Time { return time.Now() }

// Status is what the kernel says of the wall clock.
type Status struct {
	Synchronized bool      // an NTP daemon keeps the clock, and lately did
	MaxErrorMS   int64     // bound of its error in milliseconds, rounded up
	Checked      time.Time // when this was asked, by the wall clock, UTC
}

// Options are what a [Source] rests on. The zero value is this machine.
type Options struct {
	// Clock is the wall clock. Nil is the system's.
	Clock Clock

	// Sync asks whether the wall clock is synchronised, and bounds its error in
	// milliseconds. Nil asks the kernel with adjtimex(2), which works on Linux
	// and needs no privilege.
	Sync func() (synchronized bool, maxErrorMS int64, err error)
}

// Source tells the time. It is safe for concurrent use if what its Options gave
// is. Make one with [New], and one only in a process: each has a sequence of its
// own.
type Source struct {
	clock Clock
	ask   func() (synchronized bool, maxErrorMS int64, err error)
	start time.Time // with the clock's monotonic reading, if it has one

	last atomic.Int64 // of the sequence

	mu    sync.Mutex // guards floor
	floor int64      // Unix ms
}

// New returns a Source whose sequence begins now.
func New(o Options) *Source {
	s := &Source{clock: o.Clock, ask: o.Sync, floor: math.MinInt64}
	if s.clock == nil {
		s.clock = system{}
	}
	if s.ask == nil {
		s.ask = kernelSync
	}
	s.start = s.clock.Now()
	return s
}

// Now returns the wall clock in UTC. It can go back; see [Source.Sequence].
func (s *Source) Now() time.Time { return s.clock.Now().UTC() }

// Sequence returns a number greater than all it returned before: the nanoseconds
// since New by the monotonic clock, or one more than the last number if that is
// not greater. It orders what happens in this process, whatever is done to the
// wall clock, and means nothing to another one.
func (s *Source) Sequence() int64 {
	for {
		last := s.last.Load()
		next := max(last+1, int64(s.clock.Now().Sub(s.start)))
		if s.last.CompareAndSwap(last, next) {
			return next
		}
	}
}

// Status asks whether the wall clock is synchronised. With an error, Synchronized
// is false, and the error wraps errors.ErrUnsupported where there is nobody to
// ask.
func (s *Source) Status() (Status, error) {
	st := Status{Checked: s.Now()}
	ok, maxErr, err := s.ask()
	if err != nil {
		return st, fmt.Errorf("trustedtime: status: %w", err)
	}
	st.Synchronized, st.MaxErrorMS = ok, maxErr
	return st, nil
}

// Floor says that t has passed, and checks that the wall clock agrees: it returns
// [ErrBehind] unless now + tolerance is at or after t and after every t of
// earlier calls. The last timestamp of the audit log is such a time, and the zero
// Time only checks. A tolerance below zero is zero.
//
// A floor is never lowered: if the clock was ahead when t was written, the checks
// fail until it has caught up.
func (s *Source) Floor(t time.Time, tolerance time.Duration) error {
	floor := s.raise(t.UnixMilli())
	now := s.clock.Now().UnixMilli()
	if tol := millis(tolerance); now+tol < floor {
		return fmt.Errorf("%w: by %d ms, tolerance is %d ms", ErrBehind, floor-now, tol)
	}
	return nil
}

// raise returns the floor, which is ms from now on if it was lower.
func (s *Source) raise(ms int64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.floor = max(s.floor, ms)
	return s.floor
}

// Check returns nil if the wall clock is within the window from notBefore to
// notAfter, in Unix milliseconds, widened by the tolerance at both ends:
//
//	notBefore <= now + tolerance  and  now - tolerance <= notAfter
//
// Otherwise it returns an [ErrSkew]. Both ends are inside, and one millisecond
// beyond them is outside. A nil end is no bound. A tolerance below zero is zero.
// Check does not refuse a window that ends before it begins, which the tolerance
// may bridge: that is for the one who reads the window.
func (s *Source) Check(notBefore, notAfter *int64, tolerance time.Duration) error {
	now, tol := s.clock.Now().UnixMilli(), millis(tolerance)
	// Sums are of now and tol alone, which are far from overflow. The bounds
	// come from outside and are only compared.
	if notBefore != nil && *notBefore > now+tol {
		return ErrSkew{Early}
	}
	if notAfter != nil && now-tol > *notAfter {
		return ErrSkew{Late}
	}
	return nil
}

func millis(d time.Duration) int64 { return max(0, d.Milliseconds()) }
