package admit

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var errPeer = errors.New("the peer failed")

func newBreaker(t testing.TB, o BreakerOptions) (*Breaker, *clock) {
	t.Helper()
	now := newClock()
	o.Now = now.now
	b, err := NewBreaker(o)
	if err != nil {
		t.Fatal(err)
	}
	return b, now
}

// call makes a call that ends at once, and reports whether it was let through.
func call(b *Breaker, err error) bool {
	done, refused := b.Allow()
	if refused != nil {
		return false
	}
	done(err)
	return true
}

func trip(t *testing.T, b *Breaker) {
	t.Helper()
	for range 5 {
		if !call(b, errPeer) {
			t.Fatal("not closed")
		}
	}
	if s := b.Stats().State; s != Open {
		t.Fatalf("%s after five failures", s)
	}
}

// Closed, open, half-open with one probe, closed again.
//
func TestBreakerCycle(t *testing.T) {
	t.Parallel()
	b, now := newBreaker(t, BreakerOptions{})
	trip(t, b)
	_, err := b.Allow()
	var open *OpenError
	if !errors.As(err, &open) || open.RetryAfter < 50*time.Millisecond || open.RetryAfter > 100*time.Millisecond {
		t.Fatalf("open: %v", err)
	}
	now.advance(open.RetryAfter - 1)
	if call(b, nil) {
		t.Fatal("a call before its time")
	}
	now.advance(1)
	probe, err := b.Allow()
	if err != nil {
		t.Fatal(err)
	}
	if s := b.Stats().State; s != HalfOpen {
		t.Fatal(s)
	}
	if call(b, nil) {
		t.Fatal("a second call beside the probe")
	}
	probe(nil)
	probe(errPeer) // later calls do nothing
	if s := b.Stats(); s.State != Closed || s.Opened != 1 || s.Refused != 3 {
		t.Fatalf("%+v", s)
	}
	for range 4 {
		call(b, errPeer)
	}
	if s := b.Stats().State; s != Closed {
		t.Fatal("failures from before the outage count")
	}
}

// It stays open for longer each time, up to a bound, and never quite as long.
func TestBreakerBackoff(t *testing.T) {
	t.Parallel()
	b, now := newBreaker(t, BreakerOptions{})
	trip(t, b)
	different := map[time.Duration]bool{}
	for i := range 100 {
		d := min(100*time.Millisecond<<min(i, 20), 5*time.Second)
		_, err := b.Allow()
		var open *OpenError
		if !errors.As(err, &open) || open.RetryAfter < d/2 || open.RetryAfter > d {
			t.Fatalf("time %d: %v %v, want %s to %s", i, err, open, d/2, d)
		}
		different[open.RetryAfter] = true
		now.advance(open.RetryAfter)
		if !call(b, errPeer) {
			t.Fatal("no probe")
		}
	}
	if len(different) < 90 {
		t.Errorf("%d different times out of 100", len(different))
	}
	now.advance(5 * time.Second)
	if !call(b, nil) {
		t.Fatal("no probe")
	}
	trip(t, b)
	_, err := b.Allow()
	var open *OpenError
	if !errors.As(err, &open) || open.RetryAfter > 100*time.Millisecond {
		t.Errorf("after it was closed: %v", err)
	}
}

// A call from before the outage says nothing about the peer after it, whenever it
// ends and however.
func TestBreakerIgnoresTheLate(t *testing.T) {
	t.Parallel()
	b, now := newBreaker(t, BreakerOptions{})
	var late []func(error)
	for range 4 {
		done, err := b.Allow()
		if err != nil {
			t.Fatal(err)
		}
		late = append(late, done)
	}
	trip(t, b)
	late[0](nil)
	if s := b.Stats().State; s != Open {
		t.Fatalf("%s after a late success", s)
	}
	now.advance(time.Second)
	probe, err := b.Allow()
	if err != nil {
		t.Fatal(err)
	}
	late[1](nil)
	late[2](errPeer)
	if s := b.Stats(); s.State != HalfOpen || s.Opened != 1 {
		t.Fatalf("a late call was taken for the probe: %+v", s)
	}
	if call(b, nil) {
		t.Fatal("a late call made room for a second probe")
	}
	probe(nil)
	late[3](errPeer)
	if s := b.Stats().State; s != Closed {
		t.Fatal(s)
	}
}

// A probe that never ends does not keep it half-open for ever, and one whose caller
// gave up makes way for another.
func TestBreakerLostProbe(t *testing.T) {
	t.Parallel()
	b, now := newBreaker(t, BreakerOptions{})
	trip(t, b)
	now.advance(time.Second)
	lost, err := b.Allow()
	if err != nil {
		t.Fatal(err)
	}
	now.advance(5*time.Second - 1)
	if call(b, nil) {
		t.Fatal("a second probe")
	}
	now.advance(1)
	if call(b, nil) || b.Stats().State != Open || b.Stats().Opened != 2 {
		t.Fatalf("a probe that hangs is no failure: %+v", b.Stats())
	}
	now.advance(time.Second)
	lost(nil)
	probe, err := b.Allow()
	if err != nil {
		t.Fatal(err)
	}
	probe(context.Canceled)
	if s := b.Stats(); s.State != HalfOpen || s.Opened != 2 {
		t.Fatalf("%+v", s)
	}
	if !call(b, nil) || b.Stats().State != Closed {
		t.Fatalf("no other probe: %+v", b.Stats())
	}
}

// What opens it: failures enough, within the window, of those that ended in it.
func TestBreakerThreshold(t *testing.T) {
	t.Parallel()
	notFound := errors.New("not found")
	failed := func(err error) bool { return err == errPeer }
	for _, c := range []struct {
		name string
		do   func(*Breaker, *clock)
		want State
	}{
		{"four failures", func(b *Breaker, _ *clock) { repeat(4, func() { call(b, errPeer) }) }, Closed},
		{"five", func(b *Breaker, _ *clock) { repeat(5, func() { call(b, errPeer) }) }, Open},
		{"five over more than the window", func(b *Breaker, c *clock) {
			repeat(5, func() { call(b, errPeer); c.advance(2500 * time.Millisecond) })
		}, Closed},
		{"five over less than the window", func(b *Breaker, c *clock) {
			repeat(5, func() { call(b, errPeer); c.advance(1500 * time.Millisecond) })
		}, Open},
		{"five among many that are good", func(b *Breaker, _ *clock) {
			repeat(100, func() { call(b, nil) })
			repeat(5, func() { call(b, errPeer) })
		}, Closed},
		{"as many as are good", func(b *Breaker, _ *clock) {
			repeat(100, func() { call(b, nil) })
			repeat(100, func() { call(b, errPeer) })
		}, Open},
		{"after much good that is long ago", func(b *Breaker, c *clock) {
			repeat(1000, func() { call(b, nil) })
			c.advance(11 * time.Second)
			repeat(5, func() { call(b, errPeer) })
		}, Open},
		{"callers that gave up", func(b *Breaker, _ *clock) { repeat(50, func() { call(b, context.Canceled) }) }, Closed},
		{"answers that are errors", func(b *Breaker, _ *clock) { repeat(50, func() { call(b, notFound) }) }, Closed},
		{"a clock that goes back", func(b *Breaker, c *clock) {
			c.advance(-time.Hour)
			repeat(5, func() { call(b, errPeer) })
		}, Open},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b, now := newBreaker(t, BreakerOptions{Failed: failed})
			c.do(b, now)
			if s := b.Stats().State; s != c.want {
				t.Errorf("%s, want %s", s, c.want)
			}
		})
	}
}

func repeat(n int, f func()) {
	for range n {
		f()
	}
}

// Whatever is called and ends, in whatever order: one probe at a time, none while
// it is open, and a peer that is well is used again.
func TestBreakerProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		now := newClock()
		b, err := NewBreaker(BreakerOptions{Now: now.now})
		if err != nil {
			t.Fatal(err)
		}
		var out []func(error)
		probes := 0 // let through since it was half-open
		t.Repeat(map[string]func(*rapid.T){
			"call": func(t *rapid.T) {
				before := b.Stats().State
				done, err := b.Allow()
				after := b.Stats().State
				switch {
				case err != nil && before == Closed:
					t.Fatal("refused while closed")
				case err == nil && after == Open:
					t.Fatal("let through while open")
				case err == nil && after == HalfOpen:
					if before == HalfOpen && probes > 0 {
						t.Fatal("a second probe")
					}
					probes = 1
				}
				if err == nil {
					out = append(out, done)
				}
			},
			"end": func(t *rapid.T) {
				if len(out) == 0 {
					return
				}
				i := rapid.IntRange(0, len(out)-1).Draw(t, "which")
				result := rapid.SampledFrom([]error{nil, errPeer, context.Canceled}).Draw(t, "result")
				before := b.Stats().State
				out[i](result)
				if s := b.Stats().State; before == HalfOpen && (s != HalfOpen || errors.Is(result, context.Canceled)) {
					probes = 0
				}
				out = append(out[:i], out[i+1:]...)
			},
			"time": func(t *rapid.T) {
				now.advance(time.Duration(rapid.IntRange(0, 3000).Draw(t, "ms")) * time.Millisecond)
			},
		})
		for range 3 { // at most: a probe that hangs, a wait, a probe
			now.advance(6 * time.Second)
			call(b, nil)
		}
		if s := b.Stats().State; s != Closed {
			t.Fatalf("%s, and the peer is well", s)
		}
	})
}

func TestBreakerConcurrent(t *testing.T) {
	t.Parallel()
	b, err := NewBreaker(BreakerOptions{MinBackoff: time.Millisecond, MaxBackoff: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var through atomic.Int64
	for g := range 8 {
		wg.Go(func() {
			for i := range 500 {
				var result error
				if (i/50+g)%2 == 0 {
					result = errPeer
				}
				if call(b, result) {
					through.Add(1)
				}
				b.Stats()
			}
		})
	}
	wg.Wait()
	if s := b.Stats(); int64(s.Refused)+through.Load() != 8*500 {
		t.Errorf("%+v, let through %d", s, through.Load())
	}
}

func TestBreakerOptions(t *testing.T) {
	t.Parallel()
	for _, o := range []BreakerOptions{
		{Failures: -1}, {Ratio: -1}, {Ratio: 1.1}, {Window: time.Millisecond}, {MinBackoff: time.Second, MaxBackoff: time.Millisecond},
		{MinBackoff: -1}, {ProbeTimeout: -1}, {MinBackoff: time.Minute},
	} {
		if _, err := NewBreaker(o); err == nil {
			t.Errorf("%+v is accepted", o)
		}
	}
}
