package policy

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
)

// pointFunc is a decision point in a function.
type pointFunc func(context.Context, Input) (Decision, error)

func (f pointFunc) Decide(ctx context.Context, in Input) (Decision, error) { return f(ctx, in) }

// phase1 is a floor that anything can tighten.
var phase1 = Static{Mode: alg.ModeOr, RolloutPercent: 100, AllowSignFallback: true}

func newEngine(tb testing.TB, o Options) *Engine {
	tb.Helper()
	if o.Static.Mode == 0 {
		o.Static = phase1
	}
	e, err := NewEngine(o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(e.Close)
	return e
}

func sign(tenant string) Input {
	return Input{Tenant: tenant, Purpose: "release", Verb: "sign", Method: "KMS:SIGN", Alg: "ed25519", KID: "k", ActorID: "cap:1"}
}

func verify(tenant string) Input {
	return Input{Tenant: tenant, Purpose: "release", Verb: "verify", Method: "KMS:VERIFY", Alg: "ed25519"}
}

// saying is a remote decision point whose answer tests change.
type saying struct {
	mu       sync.Mutex
	decision Decision
	err      error
	asked    int
	last     Input
}

func (s *saying) Decide(_ context.Context, in Input) (Decision, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	s.last = in
	return s.decision, s.err
}

func (s *saying) say(d Decision, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.decision, s.err = d, err
}

func (s *saying) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

var errDown = errors.New("connection refused")

// andMode is an answer that is told from the floor by its mode.
func andMode(version string, ttl time.Duration) Decision {
	d := neutral()
	d.Mode, d.Version, d.TTL = alg.ModeAnd, version, ttl
	return d
}

// D-16, R-341: without a remote decision point, the floor and the file decide.
func TestEngineLocal(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	e := newEngine(t, Options{Static: Static{Mode: alg.ModeAnd, RolloutPercent: 100}})
	if a, err := e.Decide(ctx, sign("acme"), Private); err != nil || a.Mode != alg.ModeAnd || a.Version != "static" || a.Cached || a.Age != 0 || a.Degraded {
		t.Errorf("static: %+v, %v", a, err)
	}
	if err := e.SetStatic(Static{Mode: alg.ModePQOnly, RolloutPercent: 101}); err == nil {
		t.Error("a floor of 101% was taken")
	}
	if err := e.SetStatic(Static{Mode: alg.ModePQOnly, RolloutPercent: 100}); err != nil || e.Static().Mode != alg.ModePQOnly {
		t.Error(err)
	}
	local := newEngine(t, Options{Local: pointFunc(func(_ context.Context, in Input) (Decision, error) {
		return mustBundle(t, rules(``, `"tenant":"acme" -> allow {"kind":"kms.limits","params":{"max_bytes":"10"}}`)).decide(&in, ""), nil
	})})
	in := sign("acme")
	in.BodyBytes = 10
	if a, err := local.Decide(ctx, in, Private); err != nil || a.Limits.MaxBytes != 10 {
		t.Errorf("file: %+v, %v", a, err)
	}
	in.BodyBytes = 11
	if _, err := local.Decide(ctx, in, Private); !api.HasReason(err, api.ReasonPolicy) {
		t.Errorf("a body over the limit: %v", err)
	}
	for _, kind := range []Kind{Private, Verify, Read} {
		if _, err := local.Decide(ctx, sign("beta"), kind); !api.HasReason(err, api.ReasonPolicy) {
			t.Errorf("kind %d of another tenant: %v", kind, err)
		}
	}
	for _, in := range []Input{{}, {Tenant: "acme"}, {Tenant: "acme", Method: "SIGN"}, {Method: "KMS:SIGN"}} {
		if _, err := e.Decide(ctx, in, Verify); !api.HasReason(err, api.ReasonInternal) {
			t.Errorf("%+v: %v", in, err)
		}
	}
}

// A denial reaches the caller without the reason, which may repeat input.
func TestEngineDenial(t *testing.T) {
	t.Parallel()
	e := newEngine(t, Options{Remote: &saying{decision: Decision{Mode: alg.ModeOr, Reason: "canary", Version: "7"}}})
	_, err := e.Decide(t.Context(), sign("acme"), Private)
	known := api.AsError(err)
	if !api.HasReason(err, api.ReasonPolicy) || known.HTTP != 403 || known.Message != "policy does not allow this" || known.Cause.Error() != "policy 7: canary" {
		t.Errorf("%+v", known)
	}
}

// D-16, R-170, R-340: an answer is used for its time; after it, private
// operations and reads need a decision, and verify goes on with the last known
// one and then with the floor.
func TestEngineCacheAndOutage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		remote := &saying{decision: andMode("v1", 4*time.Second)}
		e := newEngine(t, Options{Remote: remote, StaleLimit: time.Minute, MaxTTL: 10 * time.Second})
		defer e.Close()
		type want struct {
			mode             alg.Mode
			age              time.Duration
			cached, degraded bool
			version          string
			asked            int
		}
		step := func(name string, in Input, kind Kind, w want, reason api.Reason) {
			t.Helper()
			a, err := e.Decide(t.Context(), in, kind)
			synctest.Wait()
			if reason != "" {
				if !api.HasReason(err, reason) {
					t.Errorf("%s: %+v, %v", name, a, err)
				}
				if reason == api.ReasonPolicyDown && (api.AsError(err).HTTP != 503 || !api.AsError(err).Retryable || api.AsError(err).RetryAfter == 0) {
					t.Errorf("%s: %+v", name, api.AsError(err))
				}
			} else if got := (want{a.Mode, a.Age, a.Cached, a.Degraded, a.Version, w.asked}); err != nil || got != w {
				t.Errorf("%s: %+v, %v, want %+v", name, got, err, w)
			}
			if n := remote.count(); n != w.asked {
				t.Errorf("%s: asked %d times, want %d", name, n, w.asked)
			}
		}
		and, or := alg.ModeAnd, alg.ModeOr
		step("first", sign("acme"), Private, want{and, 0, false, false, "v1", 1}, "")
		time.Sleep(3 * time.Second)
		step("kept", sign("acme"), Private, want{and, 3 * time.Second, true, false, "v1", 1}, "")
		step("another method", verify("acme"), Verify, want{and, 0, false, false, "v1", 2}, "")
		step("another tenant", verify("beta"), Verify, want{and, 0, false, false, "v1", 3}, "")
		step("read", sign("acme"), Read, want{and, 3 * time.Second, true, false, "v1", 3}, "")

		remote.say(Decision{}, errDown)
		step("kept in an outage", sign("acme"), Private, want{and, 3 * time.Second, true, false, "v1", 3}, "")
		time.Sleep(time.Second)
		step("sign, expired", sign("acme"), Private, want{asked: 4}, api.ReasonPolicyDown)
		step("read, last known", sign("acme"), Read, want{and, 4 * time.Second, true, true, "v1", 4}, "")
		step("read, unknown", sign("gamma"), Read, want{asked: 5}, api.ReasonPolicyDown)
		step("verify, unknown", verify("delta"), Verify, want{or, 0, false, true, "static", 6}, "")
		time.Sleep(30 * time.Second)
		step("verify, last known", verify("acme"), Verify, want{and, 31 * time.Second, true, true, "v1", 7}, "")
		step("verify, no second question", verify("acme"), Verify, want{and, 31 * time.Second, true, true, "v1", 7}, "")
		step("sign asks each time", sign("acme"), Private, want{asked: 8}, api.ReasonPolicyDown)
		time.Sleep(29 * time.Second)
		step("verify, at the limit", verify("acme"), Verify, want{and, time.Minute, true, true, "v1", 9}, "")
		time.Sleep(time.Nanosecond)
		step("verify, over the limit", verify("acme"), Verify, want{or, 0, false, true, "static", 9}, "")
		if s := e.Status(); s.Err == nil || s.Failed.IsZero() || s.Entries != 3 {
			t.Errorf("%+v", s)
		}

		remote.say(andMode("v2", time.Hour), nil)
		step("over", sign("acme"), Private, want{and, 0, false, false, "v2", 10}, "")
		if s := e.Status(); s.Err != nil {
			t.Errorf("%+v", s)
		}
		time.Sleep(10*time.Second - 1)
		step("an hour is at most MaxTTL", sign("acme"), Private, want{and, 10*time.Second - 1, true, false, "v2", 10}, "")
		time.Sleep(time.Nanosecond)
		step("and then asked anew", sign("acme"), Private, want{and, 0, false, false, "v2", 11}, "")

		// Undefined denies; it is no decision that would be kept.
		time.Sleep(10 * time.Second)
		remote.say(Decision{}, ErrUndefined)
		step("sign, undefined", sign("acme"), Private, want{asked: 12}, api.ReasonPolicy)
		step("read, undefined", sign("acme"), Read, want{and, 10 * time.Second, true, true, "v2", 13}, "")
		step("verify, undefined", verify("delta"), Verify, want{or, 0, false, true, "static", 14}, "")

		// A denial is a decision: it is the last known one as well.
		remote.say(Decision{Mode: alg.ModeOr}, nil)
		step("denied", verify("acme"), Verify, want{asked: 15}, api.ReasonPolicy)
		step("denied, kept", verify("acme"), Verify, want{asked: 15}, api.ReasonPolicy)
		remote.say(Decision{}, errDown)
		time.Sleep(20 * time.Second)
		step("denied, last known", verify("acme"), Verify, want{asked: 16}, api.ReasonPolicy)

		// What a decision point may not say is no decision.
		remote.say(Decision{Allow: true}, nil)
		step("no mode", sign("omega"), Private, want{asked: 17}, api.ReasonPolicyDown)
		remote.say(Decision{Allow: true, Mode: 4}, nil)
		step("no such mode", sign("omega"), Private, want{asked: 18}, api.ReasonPolicyDown)
	})
}

// In an outage, verify waits for nobody: not for a decision point that does not
// answer, and not for the question of another.
func TestEngineVerifyDoesNotWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		down := false
		e := newEngine(t, Options{Timeout: time.Second, TTL: time.Second, Remote: pointFunc(func(ctx context.Context, _ Input) (Decision, error) {
			if down {
				<-ctx.Done()
				return Decision{}, ctx.Err()
			}
			return andMode("v1", 0), nil
		})})
		defer e.Close()
		waited := func(in Input, kind Kind) time.Duration {
			start := time.Now()
			e.Decide(t.Context(), in, kind)
			return time.Since(start)
		}
		waited(verify("acme"), Verify)
		down = true
		time.Sleep(2 * time.Second)
		if d := waited(verify("acme"), Verify); d != time.Second {
			t.Errorf("the first waits %v, not for the timeout", d)
		}
		for range 100 {
			if d := waited(verify("acme"), Verify); d != 0 {
				t.Fatalf("verify waited %v", d)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if d := waited(sign("acme"), Private); d != time.Second {
			t.Errorf("sign waited %v", d)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := e.Decide(ctx, sign("acme"), Private); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a call whose time is over: %v", err)
		}
	})
}

// Those who ask the same thing at once share one question, and one who gives up
// does not take it from the others.
func TestEngineAsksOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		answer := make(chan struct{})
		e := newEngine(t, Options{Remote: pointFunc(func(ctx context.Context, _ Input) (Decision, error) {
			asked.Add(1)
			select {
			case <-answer:
				return andMode("v1", 0), nil
			case <-ctx.Done():
				return Decision{}, ctx.Err()
			}
		})})
		defer e.Close()
		first, giveUp := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		var refused, ok atomic.Int32
		for i := range 50 {
			ctx := t.Context()
			if i == 0 {
				ctx = first
			}
			wg.Go(func() {
				if _, err := e.Decide(ctx, sign("acme"), Private); err != nil {
					refused.Add(1)
				} else {
					ok.Add(1)
				}
			})
			synctest.Wait() // the one that gives up asked first
		}
		giveUp()
		synctest.Wait()
		close(answer)
		wg.Wait()
		if asked.Load() != 1 || refused.Load() != 1 || ok.Load() != 49 {
			t.Errorf("asked %d times; %d refused, %d ok", asked.Load(), refused.Load(), ok.Load())
		}
	})
}

// After Forget everything is asked anew; what was said before is the last known,
// also if it was said by an answer on its way.
func TestEngineForget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var version atomic.Int32
		var hold atomic.Pointer[chan struct{}]
		e := newEngine(t, Options{TTL: time.Minute, Remote: pointFunc(func(context.Context, Input) (Decision, error) {
			v := version.Load()
			if c := hold.Load(); c != nil {
				<-*c
			}
			return andMode(fmt.Sprint("v", v), 0), nil
		})})
		defer e.Close()
		ask := func() Answer {
			a, err := e.Decide(t.Context(), sign("acme"), Private)
			if err != nil {
				t.Error(err)
			}
			return a
		}
		ask()
		version.Store(1)
		if a := ask(); a.Version != "v0" {
			t.Errorf("%+v", a)
		}
		e.Forget()
		c := make(chan struct{})
		hold.Store(&c)
		got := make(chan Answer)
		go func() { got <- ask() }()
		synctest.Wait()
		version.Store(2)
		e.Forget() // the answer on its way is v1
		hold.Store(nil)
		close(c)
		if a := <-got; a.Version != "v1" {
			t.Errorf("%+v", a)
		}
		if a := ask(); a.Version != "v2" || a.Cached {
			t.Errorf("an answer of before Forget is used: %+v", a)
		}
	})
}

// A clock that is set back makes no decision younger.
func TestEngineClockBack(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	remote := &saying{decision: andMode("v1", time.Minute)}
	e := newEngine(t, Options{Remote: remote, Clock: func() time.Time { return now }})
	e.Decide(t.Context(), sign("acme"), Private)
	now = now.Add(-time.Second)
	remote.say(Decision{}, errDown)
	if a, err := e.Decide(t.Context(), sign("acme"), Private); err == nil {
		t.Errorf("%+v", a)
	}
	// The grace of old versions ends by the engine's clock if no time is given.
	now = time.Unix(2000, 0)
	grace := newEngine(t, Options{Static: Static{Mode: alg.ModeAnd, RolloutPercent: 100, GraceUntil: now}, Clock: func() time.Time { return now }})
	if a, err := grace.Decide(t.Context(), verify("acme"), Verify); err != nil || a.LegacyGrace {
		t.Errorf("%+v, %v", a, err)
	}
}

// breaker counts, and opens when told to.
type breaker struct {
	open     error
	ok, fail int
}

func (b *breaker) Allow() (func(error), error) {
	if b.open != nil {
		return nil, b.open
	}
	return func(err error) {
		if err == nil {
			b.ok++
		} else {
			b.fail++
		}
	}, nil
}

// The breaker hears of each question; when it is open, nothing is asked.
func TestEngineBreaker(t *testing.T) {
	t.Parallel()
	b, remote := &breaker{}, &saying{decision: andMode("v1", time.Nanosecond)}
	e := newEngine(t, Options{Remote: remote, Breaker: b})
	ask := func() error { _, err := e.Decide(t.Context(), sign("acme"), Private); return err }
	if err := ask(); err != nil || b.ok != 1 {
		t.Errorf("%v, %+v", err, b)
	}
	remote.say(Decision{}, ErrUndefined)
	if err := ask(); !api.HasReason(err, api.ReasonPolicy) || b.ok != 2 || b.fail != 0 {
		t.Errorf("undefined is no fault: %v, %+v", err, b)
	}
	remote.say(Decision{Allow: true, Mode: 9}, nil)
	if err := ask(); !api.HasReason(err, api.ReasonPolicyDown) || b.fail != 1 {
		t.Errorf("%v, %+v", err, b)
	}
	n := remote.count()
	b.open = errors.New("open")
	if err := ask(); !api.HasReason(err, api.ReasonPolicyDown) || !errors.Is(err, b.open) || remote.count() != n {
		t.Errorf("%v, asked %d times more", err, remote.count()-n)
	}
}

// Close ends the questions under way; afterwards private operations are refused
// and verify goes on.
func TestEngineClose(t *testing.T) {
	t.Parallel()
	started := make(chan struct{})
	e := newEngine(t, Options{Timeout: time.Hour, Remote: pointFunc(func(ctx context.Context, _ Input) (Decision, error) {
		close(started)
		<-ctx.Done()
		return Decision{}, ctx.Err()
	})})
	ended := make(chan error)
	go func() { _, err := e.Decide(context.Background(), sign("acme"), Private); ended <- err }()
	<-started
	e.Close()
	if err := <-ended; !api.HasReason(err, api.ReasonPolicyDown) {
		t.Error(err)
	}
	if _, err := e.Decide(t.Context(), sign("acme"), Private); !api.HasReason(err, api.ReasonPolicyDown) {
		t.Error(err)
	}
	if a, err := e.Decide(t.Context(), verify("acme"), Verify); err != nil || !a.Degraded {
		t.Errorf("%+v, %v", a, err)
	}
	e.Close()
}

func TestEngineOptions(t *testing.T) {
	t.Parallel()
	for _, o := range []Options{
		{Static: Static{RolloutPercent: 101}}, {Timeout: -1}, {TTL: -1}, {MaxTTL: -1}, {StaleLimit: -1}, {Entries: -1}, {InFlight: -1},
	} {
		if _, err := NewEngine(o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}

// A hit costs no allocation worth naming: verify asks for each call.
func BenchmarkDecideCached(b *testing.B) {
	e := newEngine(b, Options{Remote: &saying{decision: andMode("v1", time.Hour)}, MaxTTL: time.Hour})
	in := sign("acme")
	in.Now = time.Now()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := e.Decide(b.Context(), in, Private); err != nil {
			b.Fatal(err)
		}
	}
}
