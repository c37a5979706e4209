package policy

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
)

// D-16: over any history of answers, failures, reloads and time,
// nothing that the engine lets pass is looser than the configuration, the local
// decision point, the remote one's decision that may be relied on, the key or
// the request; and a private operation only passes with a decision of each that
// has not expired.
func TestEngineNeverLoosens(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		const stale, maxTTL, defaultTTL = time.Minute, 20 * time.Second, 5 * time.Second
		var (
			mu     sync.Mutex
			now    = time.Unix(1_000_000, 0)
			local  = neutral()
			remote = neutral()
			fails  error
		)
		type said struct {
			decision Decision
			at       time.Time
			forgets  int
		}
		last := make(map[string]said) // by question, as the world outside saw it
		forgets := 0
		clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
		static := Static{Mode: alg.ModeOr, RolloutPercent: 100, AllowSignFallback: true}
		e, err := NewEngine(Options{
			Static: static, StaleLimit: stale, MaxTTL: maxTTL, TTL: defaultTTL, Clock: clock, Entries: 1000,
			Local: pointFunc(func(context.Context, Input) (Decision, error) { mu.Lock(); defer mu.Unlock(); return local, nil }),
			Remote: pointFunc(func(_ context.Context, in Input) (Decision, error) {
				mu.Lock()
				defer mu.Unlock()
				if fails != nil {
					return Decision{}, fails
				}
				last[in.Tenant+in.Method] = said{remote, now, forgets}
				return remote, nil
			}),
		})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		for i := range rapid.IntRange(1, 30).Draw(t, "steps") {
			label := func(s string) string { return fmt.Sprint(i, s) }
			switch rapid.SampledFrom([]string{"ask", "ask", "ask", "ask", "time", "remote", "outage", "local", "static", "forget"}).Draw(t, label("step")) {
			case "time":
				mu.Lock()
				now = now.Add(time.Duration(rapid.SampledFrom([]int{0, 1, 4, 5, 6, 20, 59, 61}).Draw(t, label("s"))) * time.Second)
				mu.Unlock()
			case "remote":
				d := drawDecision(t, label("remote"))
				mu.Lock()
				remote, fails = d, nil
				mu.Unlock()
			case "outage":
				mu.Lock()
				fails = rapid.SampledFrom([]error{errDown, ErrUndefined, context.DeadlineExceeded}).Draw(t, label("err"))
				mu.Unlock()
			case "local":
				d := drawDecision(t, label("local"))
				mu.Lock()
				local = d
				mu.Unlock()
			case "static":
				static = Static{
					Mode: alg.Mode(rapid.IntRange(1, 3).Draw(t, label("mode"))), ProduceHybrid: rapid.Bool().Draw(t, label("hybrid")),
					RolloutPercent: rapid.SampledFrom([]int{0, 50, 100}).Draw(t, label("percent")), AttestRequire: rapid.Bool().Draw(t, label("attest")),
					FailOpen: rapid.Bool().Draw(t, label("open")), AllowSignFallback: rapid.Bool().Draw(t, label("fallback")),
					GraceUntil: now.Add(time.Duration(rapid.IntRange(-60, 60).Draw(t, label("grace"))) * time.Second),
				}
				if err := e.SetStatic(static); err != nil {
					t.Fatal(err)
				}
			case "forget":
				e.Forget()
				mu.Lock()
				forgets++
				mu.Unlock()
			case "ask":
				kind := Kind(rapid.IntRange(0, 2).Draw(t, label("kind")))
				in := Input{
					Tenant: rapid.SampledFrom([]string{"acme", "beta"}).Draw(t, label("tenant")), Purpose: "release", Alg: "ed25519", Now: now,
					Method: []string{"KMS:SIGN", "KMS:VERIFY", "KMS:READ"}[kind], BodyBytes: int64(rapid.IntRange(0, 100).Draw(t, label("bytes"))),
				}
				a, err := e.Decide(context.Background(), in, kind)
				mu.Lock()
				known, ok := last[in.Tenant+in.Method]
				mu.Unlock()
				age := now.Sub(known.at)
				if err != nil {
					if !errors.Is(err, context.DeadlineExceeded) && !api.HasReason(err, api.ReasonPolicy) && !api.HasReason(err, api.ReasonPolicyDown) {
						t.Fatalf("an error outside of the table: %v", err)
					}
					if kind == Verify && !api.HasReason(err, api.ReasonPolicy) {
						t.Fatalf("verify depends on the decision point: %v", err)
					}
					continue
				}
				floors := map[string]Decision{"static": static.Decide(in.Tenant, in.Purpose, now), "local": local}
				if ok && age <= stale {
					floors["remote"] = known.decision
				}
				if kind != Verify && floors["remote"].Mode == 0 {
					t.Fatalf("kind %d passes without a decision: %+v", kind, a)
				}
				ttl := known.decision.TTL
				if ttl == 0 {
					ttl = defaultTTL
				}
				if kind == Private && (age > 0 && age >= min(ttl, maxTTL) || known.forgets != forgets) {
					t.Fatalf("a private operation passes by a decision of %v ago", age)
				}
				key, wish := alg.Mode(rapid.IntRange(1, 3).Draw(t, label("key"))), alg.Mode(rapid.IntRange(1, 3).Draw(t, label("wish")))
				floors["key"], floors["request"] = Decision{Allow: true, Mode: key, LegacyGrace: true, AllowSignFallback: true}, Decision{Allow: true, Mode: wish, LegacyGrace: true, AllowSignFallback: true}
				final := a.Decision
				final.Mode = final.Mode.Tighten(key).Tighten(wish)
				for name, floor := range floors {
					if parts := looser(final, floor); parts != nil {
						t.Fatalf("%v of %+v are looser than %s, %+v", parts, final, name, floor)
					}
					if m := floor.Limits.MaxBytes; m != 0 && in.BodyBytes > m {
						t.Fatalf("%d bytes pass, and %s has a limit of %d", in.BodyBytes, name, m)
					}
				}
			}
		}
	})
}

// Asking, failing, reloading and forgetting at once: for the race detector, and
// every answer is one that was given.
func TestEngineConcurrent(t *testing.T) {
	t.Parallel()
	modes := map[string]alg.Mode{"v1": alg.ModeOr, "v2": alg.ModePQOnly, "v3": alg.ModeAnd}
	var mu sync.Mutex
	n := 0
	e := newEngine(t, Options{Entries: 8, TTL: time.Microsecond, Remote: pointFunc(func(context.Context, Input) (Decision, error) {
		mu.Lock()
		defer mu.Unlock()
		n++
		if n%5 == 0 {
			return Decision{}, errDown
		}
		d := neutral()
		d.Version = fmt.Sprint("v", n%3+1)
		d.Mode = modes[d.Version]
		return d, nil
	})})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 200 {
				in, kind := sign(fmt.Sprint("t", i%3)), Kind(g%3)
				in.Purpose = fmt.Sprint("p", i%7)
				a, err := e.Decide(t.Context(), in, kind)
				if err == nil && !a.Degraded && a.Mode != modes[a.Version] {
					t.Errorf("%+v is none of the answers", a)
				}
				switch i % 50 {
				case 7:
					e.Forget()
				case 8:
					e.Status()
				case 9:
					if err := e.SetStatic(phase1); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
}
