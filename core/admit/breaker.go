package admit

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"sync"
	"time"
)

// State is what a [Breaker] does with calls.
type State uint8

// The states. The zero State is invalid.
const (
	Closed   State = 1 // lets all through
	Open     State = 2 // lets none through
	HalfOpen State = 3 // lets one through, to see
)

// String returns "closed", "open", "half-open" or "invalid", for a metric's label.
func (s State) String() string {
	switch s {
	case Closed:
		return "closed"
	case Open:
		return "open"
	case HalfOpen:
		return "half-open"
	}
	return "invalid"
}

// BreakerOptions are when a breaker opens, and for how long. Zero values take the
// defaults.
type BreakerOptions struct {
	// Failures within Window open the breaker, if they are at least the part
	// Ratio of the calls that ended within it. Defaults: 5, 10 s, 0.5. Without a
	// ratio, a peer that fails once in ten thousand calls would be cut off for
	// being used a lot.
	Failures int
	Window   time.Duration
	Ratio    float64
	// MinBackoff is how long it is open the first time, at most; it doubles with
	// each probe that fails, up to MaxBackoff. Of each, a random part of up to a
	// half is left out, so that many do not probe at once. Defaults: 100 ms, 5 s.
	MinBackoff time.Duration
	MaxBackoff time.Duration
	// ProbeTimeout is after which a probe that has not ended counts as failed.
	// Default: 5 s.
	ProbeTimeout time.Duration
	// Failed says whether a call's error is a failure of the peer. The default
	// takes every error for one but context.Canceled, which is the caller's:
	// such a call says nothing, for or against. Errors that the peer gives
	// because it works, such as not-found, are to be told apart here.
	Failed func(error) bool
	// Now is the clock; default time.Now.
	Now func() time.Time
}

// OpenError is the refusal of a breaker that is open.
type OpenError struct {
	RetryAfter time.Duration // until the next probe
}

// Error says that the breaker is open.
func (*OpenError) Error() string { return "admit: breaker is open" }

// parts is how many parts of its window a breaker counts apart: the window slides
// by these.
const parts = 10

// A Breaker stops calls to a peer that fails, and probes whether it works again,
// with one call at a time. Its methods may be called concurrently.
//
// Results count for the period they were asked in: a call from before the peer
// failed that ends well after all is no probe. (Of failsafe-go's breaker this is
// not true: it closes upon such a call.)
type Breaker struct {
	o     BreakerOptions
	seed  maphash.Seed // of the jitter
	start time.Time

	// mu guards what follows.
	mu      sync.Mutex
	state   State
	period  uint64 // changes with each state, and with each probe
	counts  [parts]count
	opened  uint64 // how often, since it was made
	tries   int    // how often since it was closed
	until   time.Time
	refused uint64
}

// count is what ended in one part of the window.
type count struct {
	part         int64
	good, failed int
}

// NewBreaker makes a closed breaker.
func NewBreaker(o BreakerOptions) (*Breaker, error) {
	if o.Failures == 0 {
		o.Failures = 5
	}
	if o.Ratio == 0 {
		o.Ratio = 0.5
	}
	for p, standard := range map[*time.Duration]time.Duration{
		&o.Window: 10 * time.Second, &o.MinBackoff: 100 * time.Millisecond, &o.MaxBackoff: 5 * time.Second, &o.ProbeTimeout: 5 * time.Second,
	} {
		if *p == 0 {
			*p = standard
		}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Failed == nil {
		o.Failed = func(err error) bool { return !errors.Is(err, context.Canceled) }
	}
	switch {
	case o.Failures < 1:
		return nil, fmt.Errorf("admit: breaker: %d failures: want at least 1", o.Failures)
	case !(o.Ratio > 0 && o.Ratio <= 1):
		return nil, fmt.Errorf("admit: breaker: a ratio of %g: want more than 0, up to 1", o.Ratio)
	case o.Window < parts*time.Millisecond:
		return nil, fmt.Errorf("admit: breaker: a window of %s: want at least 10 ms", o.Window)
	case o.MinBackoff < time.Millisecond || o.MaxBackoff < o.MinBackoff:
		return nil, fmt.Errorf("admit: breaker: backoff from %s to %s: want at least 1 ms, in this order", o.MinBackoff, o.MaxBackoff)
	case o.ProbeTimeout < time.Millisecond:
		return nil, fmt.Errorf("admit: breaker: a probe timeout of %s: want at least 1 ms", o.ProbeTimeout)
	}
	return &Breaker{o: o, seed: maphash.MakeSeed(), start: o.Now(), state: Closed}, nil
}

// Allow says whether a call may be made; the error is an *OpenError. Done must be
// called with the call's error when it has ended; later calls of done do nothing.
func (b *Breaker) Allow() (done func(error), err error) {
	now := b.o.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	switch b.state {
	case Open:
		if now.Before(b.until) {
			return nil, b.refuse(now)
		}
		b.state = HalfOpen
		b.probe(now)
	case HalfOpen:
		if now.Before(b.until) {
			return nil, b.refuse(now)
		}
		if !b.until.IsZero() { // the probe has not ended in time
			b.open(now)
			return nil, b.refuse(now)
		}
		b.probe(now)
	}
	period, ended := b.period, false
	return func(err error) {
		now := b.o.Now()
		b.mu.Lock()
		defer b.mu.Unlock()
		if !ended && period == b.period {
			b.end(now, err)
		}
		ended = true
	}, nil
}

func (b *Breaker) refuse(now time.Time) error {
	b.refused++
	return &OpenError{RetryAfter: b.until.Sub(now)}
}

func (b *Breaker) probe(now time.Time) {
	b.period++
	b.until = now.Add(b.o.ProbeTimeout)
}

// end takes note of a call of the present period.
func (b *Breaker) end(now time.Time, err error) {
	failed := err != nil && b.o.Failed(err)
	silent := err != nil && !failed && errors.Is(err, context.Canceled)
	switch {
	case b.state == HalfOpen && failed:
		b.open(now)
	case b.state == HalfOpen && silent:
		b.until = time.Time{} // the next call is the probe
	case b.state == HalfOpen:
		b.state, b.tries, b.until = Closed, 0, time.Time{}
		b.period++
		b.counts = [parts]count{}
	case failed:
		b.count(now).failed++
		if b.due(now) {
			b.open(now)
		}
	case !silent:
		b.count(now).good++
	}
}

// part is the number of the part of the window that a time is in.
func (b *Breaker) part(now time.Time) int64 {
	return int64(max(0, now.Sub(b.start))) / int64(b.o.Window/parts)
}

func (b *Breaker) count(now time.Time) *count {
	part := b.part(now)
	c := &b.counts[part%parts]
	if c.part != part {
		*c = count{part: part}
	}
	return c
}

// due reports whether there were failures enough to open.
func (b *Breaker) due(now time.Time) bool {
	part := b.part(now)
	var good, failed int
	for _, c := range b.counts {
		if c.part > part-parts {
			good, failed = good+c.good, failed+c.failed
		}
	}
	return failed >= b.o.Failures && float64(failed) >= b.o.Ratio*float64(good+failed)
}

// open opens for a time that is longer with each try.
func (b *Breaker) open(now time.Time) {
	d := float64(b.o.MinBackoff) * math.Exp2(float64(min(b.tries, 60)))
	d = min(d, float64(b.o.MaxBackoff))
	// The jitter need not be hard to guess: a keyed hash of a counter will do.
	b.opened++
	jitter := float64(maphash.Comparable(b.seed, b.opened)) / math.MaxUint64
	b.until = now.Add(time.Duration(d * (1 - jitter/2)))
	b.state = Open
	b.tries++
	b.period++
}

// BreakerStats is the state of a breaker, for metrics.
type BreakerStats struct {
	State   State
	Opened  uint64 // how often, since it was made
	Refused uint64 // calls, since it was made
}

// Stats returns the state. It is Open until a call is let through as a probe.
func (b *Breaker) Stats() BreakerStats {
	b.mu.Lock()
	defer b.mu.Unlock()
	return BreakerStats{State: b.state, Opened: b.opened, Refused: b.refused}
}
