package admit

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Each limit refuses, with its own reason and scope, and lets pass what is just
// within it.
//
func TestEachLimit(t *testing.T) {
	t.Parallel()
	id := [32]byte{1}
	rated := func(perSecond, burst, items int) Request {
		return Request{Tenant: "a", Cost: 1, Items: items, Rates: []Rate{{id, perSecond, burst}}}
	}
	private := Request{Tenant: "a", Cost: 1, Items: 1, Lane: LanePrivate}
	for _, c := range []struct {
		name    string
		limits  func(*Limits)
		options Options
		// passes are admitted and kept, one after the other; refused is not.
		passes  []Request
		refused Request
		reason  Reason
		scope   Scope
		retry   time.Duration
	}{
		{
			name: "rate", limits: func(l *Limits) { l.Default.Rate, l.Default.Burst = 10, 2 },
			passes: []Request{one("a"), one("a")}, refused: one("a"),
			reason: ReasonTenantRate, scope: ScopeTenant, retry: 100 * time.Millisecond,
		},
		{
			name: "rate counts units", limits: func(l *Limits) { l.Default.Rate, l.Default.Burst = 10, 12 },
			passes: []Request{{Tenant: "a", Cost: 5, Items: 2}}, refused: Request{Tenant: "a", Cost: 3, Items: 1},
			reason: ReasonTenantRate, scope: ScopeTenant, retry: 100 * time.Millisecond,
		},
		{
			name: "dearer than the burst", limits: func(l *Limits) { l.Default.Rate, l.Default.Burst = 10, 2 },
			passes: []Request{{Tenant: "a", Cost: 6, Items: 1}}, refused: one("a"),
			reason: ReasonTenantRate, scope: ScopeTenant, retry: 500 * time.Millisecond,
		},
		{
			name: "own quota", limits: func(l *Limits) { l.Tenants = map[string]Quota{"a": {Rate: 1, Burst: 1}} },
			passes: []Request{one("b"), one("b"), one("a")}, refused: one("a"),
			reason: ReasonTenantRate, scope: ScopeTenant, retry: time.Second,
		},
		{
			name: "in flight", limits: func(l *Limits) { l.Default.InFlight = 2 },
			passes: []Request{one("a"), one("b"), one("a")}, refused: one("a"),
			reason: ReasonTenantInFlight, scope: ScopeTenant, retry: time.Second,
		},
		{
			name: "in flight in all: half for one", limits: func(l *Limits) { l.Global.InFlight = 4 },
			passes: []Request{one("a"), one("a"), one("b")}, refused: one("b"),
			reason: ReasonInFlight, scope: ScopeGlobal, retry: time.Second,
		},
		{
			name: "in flight in all: none left", limits: func(l *Limits) { l.Global.InFlight = 2 },
			passes: []Request{one("a"), one("b")}, refused: one("c"),
			reason: ReasonInFlight, scope: ScopeGlobal, retry: time.Second,
		},
		{
			name: "queue", limits: func(l *Limits) { l.Default.Queue = 2 }, options: Options{Slots: 1},
			passes: []Request{private, private, private}, refused: private,
			reason: ReasonTenantQueue, scope: ScopeTenant, retry: time.Second,
		},
		{
			name: "queue in all: half for one", limits: func(l *Limits) { l.Global.Queue = 4 }, options: Options{Slots: 1},
			passes: []Request{private, private, private}, refused: private,
			reason: ReasonQueue, scope: ScopeGlobal, retry: time.Second,
		},
		{
			name: "wait", limits: func(l *Limits) { l.Global.MaxWaitMS = 1 }, options: Options{Slots: 1},
			passes:  []Request{{Tenant: "b", Cost: 100, Items: 1, Lane: LanePrivate}},
			refused: private, reason: ReasonWait, scope: ScopeGlobal, retry: time.Second,
		},
		{
			name: "rate in all", limits: func(l *Limits) { l.Global.Rate, l.Global.Burst = 10, 4 },
			passes: []Request{one("a"), one("a"), one("a"), one("a")}, refused: one("a"),
			reason: ReasonRate, scope: ScopeGlobal, retry: time.Second,
		},
		{
			name: "tenants", options: Options{MaxTenants: 2},
			passes: []Request{one("a"), one("b")}, refused: one("c"),
			reason: ReasonTenants, scope: ScopeGlobal, retry: time.Second,
		},
		{
			name:   "capability",
			passes: []Request{rated(10, 2, 1), rated(10, 2, 1)}, refused: rated(10, 2, 1),
			reason: ReasonCapability, scope: ScopeCapability, retry: 100 * time.Millisecond,
		},
		{
			name:   "capability counts items",
			passes: []Request{rated(10, 5, 4)}, refused: rated(10, 5, 2),
			reason: ReasonCapability, scope: ScopeCapability, retry: 100 * time.Millisecond,
		},
		{
			name:   "capability with another rate in the same bucket",
			passes: []Request{rated(10, 2, 2)}, refused: rated(20, 2, 1),
			reason: ReasonCapability, scope: ScopeCapability, retry: 50 * time.Millisecond,
		},
		{
			name: "second caveat", passes: []Request{one("a")},
			refused: Request{Tenant: "a", Cost: 1, Items: 3, Rates: []Rate{{id, 10, 8}, {[32]byte{2}, 0, 1}}},
			reason:  ReasonCapability, scope: ScopeCapability,
		},
		{
			name: "capability of rate 0", passes: []Request{one("a")}, refused: rated(0, 5, 1),
			reason: ReasonCapability, scope: ScopeCapability,
		},
		{
			name: "capability of a negative rate", passes: []Request{one("a")}, refused: rated(-1, 5, 1),
			reason: ReasonCapability, scope: ScopeCapability,
		},
		{
			name: "capability of burst 0", passes: []Request{one("a")}, refused: rated(5, 0, 1),
			reason: ReasonCapability, scope: ScopeCapability,
		},
		{
			name: "capabilities", options: Options{MaxRates: 2}, passes: []Request{rated(1, 2, 1)},
			refused: Request{Tenant: "a", Cost: 1, Items: 1, Rates: []Rate{{[32]byte{2}, 1, 1}}},
			reason:  ReasonCapabilities, scope: ScopeCapability, retry: time.Second,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			limits := roomy()
			if c.limits != nil {
				c.limits(&limits)
			}
			now := newClock()
			c.options.Now = now.now
			ctl := newController(t, limits, c.options)
			var tickets []*Ticket
			for i, r := range c.passes {
				ticket, err := ctl.Admit(background, r)
				if err != nil {
					t.Fatalf("request %d: %v", i, err)
				}
				if r.Lane != LaneNone {
					ticket.enter()
				}
				tickets = append(tickets, ticket)
			}
			before := fmt.Sprint(debts(ctl))
			_, err := ctl.Admit(background, c.refused)
			var r *Rejected
			if !errors.As(err, &r) {
				t.Fatalf("got %v, want a refusal", err)
			}
			if r.Reason != c.reason || r.Scope != c.scope || r.RetryAfter.Round(time.Millisecond) != c.retry {
				t.Errorf("got %+v, want %s, %s, %s", r, c.reason, c.scope, c.retry)
			}
			if got := ctl.Stats().Rejected; len(got) != 1 || got[c.reason] != 1 {
				t.Errorf("counted %v", got)
			}
			if after := fmt.Sprint(debts(ctl)); after != before {
				t.Errorf("the refusal took something: %s, before %s", after, before)
			}
			for _, ticket := range tickets {
				ticket.Release()
				ticket.Release()
			}
			if err := empty(ctl); err != nil {
				t.Error(err)
			}
			if c.retry == 0 {
				return
			}
			if limits.Default.InFlight == 2 || c.reason.Scope() == ScopeGlobal || c.reason == ReasonCapabilities {
				now.advance(2 * time.Second)
			} else {
				now.advance(r.RetryAfter)
			}
			if _, err := ctl.Admit(background, c.refused); err != nil {
				t.Errorf("after RetryAfter: %v", err)
			}
		})
	}
}

// debts is all that has been taken, sorted. Who has taken nothing may come and go.
func debts(c *Controller) []string {
	all := []string{fmt.Sprint("all ", c.global.debt, c.inFlight)}
	for _, t := range c.tenants {
		if t.inFlight > 0 || t.rate.debt > 0 || t.share.debt > 0 {
			all = append(all, fmt.Sprint(t.name, t.rate.debt, t.share.debt, t.inFlight))
		}
		for _, s := range t.rates {
			if s.debt > 0 {
				all = append(all, fmt.Sprint(t.name, s.key[:2], s.debt))
			}
		}
	}
	slices.Sort(all)
	return all
}

// What cannot be done by its deadline is refused at once; what can, or has a free
// slot, is not.
//
func TestDeadline(t *testing.T) {
	t.Parallel()
	now := newClock()
	c := newController(t, roomy(), Options{Slots: 1, Now: now.now})
	busy := Request{Tenant: "b", Cost: 1000, Items: 1, Lane: LanePrivate}
	r := Request{Tenant: "a", Cost: 1, Items: 1, Lane: LanePrivate}
	in := func(d time.Duration) context.Context {
		return deadline{background, now.t.Add(d)}
	}
	if _, err := c.Admit(in(time.Nanosecond), r); err != nil {
		t.Fatalf("beside a free slot: %v", err)
	}
	ticket, err := c.Admit(background, busy)
	if err != nil || !ticket.enter() {
		t.Fatal("no slot for the first", err)
	}
	if _, err := c.Admit(in(20*time.Millisecond), r); reasonOf(t, err) != ReasonDeadline {
		t.Errorf("behind 32 ms of work, with 20 ms left: %v", err)
	}
	if _, err := c.Admit(in(40*time.Millisecond), r); err != nil {
		t.Errorf("behind 32 ms of work, with 40 ms left: %v", err)
	}
	ended, cancel := context.WithCancel(background)
	cancel()
	if _, err := c.Admit(ended, r); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
}

// deadline is a context with a deadline on another clock.
type deadline struct {
	context.Context
	t time.Time
}

func (d deadline) Deadline() (time.Time, bool) { return d.t, true }

// Requests and limits that are not valid are errors, and not refusals.
func TestInvalid(t *testing.T) {
	t.Parallel()
	c := newController(t, roomy(), Options{})
	for _, r := range []Request{
		{Cost: 1, Items: 1},
		{Tenant: "a", Items: 1}, {Tenant: "a", Cost: -1, Items: 1}, {Tenant: "a", Cost: MaxCost + 1, Items: 1},
		{Tenant: "a", Cost: 1}, {Tenant: "a", Cost: 1, Items: MaxItems + 1},
		{Tenant: "a", Cost: 1, Items: 1, Lane: laneCount},
		{Tenant: "a", Cost: 1, Items: 1, Rates: make([]Rate, MaxRates+1)},
	} {
		_, err := c.Admit(background, r)
		var refused *Rejected
		if err == nil || errors.As(err, &refused) {
			t.Errorf("%+v: %v", r, err)
		}
	}
	for _, l := range []struct {
		change func(*Limits)
		want   string
	}{
		{func(l *Limits) { l.Default.Rate = 0 }, "default: rate is 0"},
		{func(l *Limits) { l.Default.Rate = math.NaN() }, "default: rate is NaN"},
		{func(l *Limits) { l.Default.Rate = math.Inf(1) }, "default: rate is +Inf"},
		{func(l *Limits) { l.Default.Burst = -1 }, "default: burst is -1"},
		{func(l *Limits) { l.Default.InFlight = MaxPlaces + 1 }, "in_flight is 1048577"},
		{func(l *Limits) { l.Default.Queue = 0 }, "queue is 0"},
		{func(l *Limits) { l.Default.Weight = 101 }, "weight is 101"},
		{func(l *Limits) { l.Global.Rate = -1 }, "global: rate is -1"},
		{func(l *Limits) { l.Global.MaxWaitMS = 0 }, "global: max_wait_ms is 0"},
		{func(l *Limits) { l.Tenants = map[string]Quota{"x": {Weight: -3}} }, `tenant "x": weight is -3`},
		{func(l *Limits) { l.Tenants = map[string]Quota{"": {}} }, "a name is empty"},
		{func(l *Limits) { *l = Limits{} }, "default: rate is 0"},
	} {
		limits := roomy()
		l.change(&limits)
		if _, err := New(limits, Options{}); err == nil || !strings.Contains(err.Error(), l.want) {
			t.Errorf("got %v, want %q", err, l.want)
		}
		if err := c.Reload(limits); err == nil || !strings.Contains(err.Error(), l.want) {
			t.Errorf("reload: got %v, want %q", err, l.want)
		}
	}
	if _, err := New(roomy(), Options{Slots: -1}); err == nil {
		t.Error("a negative number of slots is accepted")
	}
	standard := DefaultLimits()
	if err := standard.Validate(); err != nil {
		t.Error(err)
	}
	if err := DefaultCosts().Validate(); err != nil {
		t.Error(err)
	}
	if err := (Costs{{"sign", ""}: 0}).Validate(); err == nil {
		t.Error("a cost of 0 is accepted")
	}
}

func TestCosts(t *testing.T) {
	t.Parallel()
	c := DefaultCosts()
	for _, w := range []struct {
		verb, family string
		want         int
	}{
		{"sign", "ed25519", 1}, {"sign", "ml-dsa", 5}, {"sign", "hybrid", 6}, {"sign", "none", 6}, {"sign", "later", 6},
		{"get", "ed25519", 1}, {"create", "hybrid", 10},
	} {
		if got := c.Of(w.verb, w.family); got != w.want {
			t.Errorf("%s %s costs %d, want %d", w.verb, w.family, got, w.want)
		}
	}
}

// The bucket lets pass just what a plain model of one does, whatever comes.
func TestBucket(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		rate := float64(rapid.SampledFrom([]int{1, 10, 1000, 50_000}).Draw(t, "rate"))
		burst := float64(rapid.IntRange(1, 50).Draw(t, "burst"))
		var b bucket
		var now int64
		tokens := burst // the model: exact at these rates up to rounding
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			step := rapid.Int64Range(0, 2e9).Draw(t, "step")
			now += step
			tokens = min(burst, tokens+float64(step)*rate/1e9)
			n := float64(rapid.IntRange(1, 80).Draw(t, "n"))
			missing := min(n, burst) - tokens
			wait := b.wait(now, rate, burst, n)
			if math.Abs(missing) > 1e-6 && (wait > 0) != (missing > 0) {
				t.Fatalf("wait %s for %g with %g tokens", wait, n, tokens)
			}
			if wait == 0 {
				b.take(n)
				tokens -= n
				continue
			}
			if want := missing / rate * 1e9; math.Abs(float64(wait)-want) > 1e3 && wait < maxRetryAfter {
				t.Fatalf("wait %s, want %g ns", wait, want)
			}
			later := b
			if wait < maxRetryAfter && later.wait(now+int64(wait), rate, burst, n) != 0 {
				t.Fatalf("after waiting %s as told it is too early still", wait)
			}
		}
	})
}

// Being forgotten gives nobody a fresh bucket: tenants and capabilities are
// forgotten only when theirs are full. Memory is bounded all the while.
//
func TestForgetting(t *testing.T) {
	t.Parallel()
	limits := roomy()
	limits.Default.Rate, limits.Default.Burst = 10, 100
	now := newClock()
	c := newController(t, limits, Options{MaxTenants: 4, MaxRates: 8, Now: now.now})
	admit := func(r Request) error {
		ticket, err := c.Admit(background, r)
		if err == nil && r.Lane != LaneNone {
			ticket.enter()
		}
		ticket.Release()
		return err
	}
	// One has used up its own rate, the other the rate of a capability.
	spent := Request{Tenant: "spent", Cost: 100, Items: 1, Lane: LanePrivate}
	capped := Request{Tenant: "capped", Cost: 1, Items: 10, Rates: []Rate{{[32]byte{1}, 1, 10}}}
	for _, r := range []Request{spent, capped} {
		if err := admit(r); err != nil {
			t.Fatal(err)
		}
	}
	refused := 0
	for i := range 4000 { // 2 s of spraying
		now.advance(500 * time.Microsecond)
		r := one(fmt.Sprint("spray", i))
		r.Rates = []Rate{{[32]byte{2, byte(i), byte(i >> 8)}, 1000, 1}}
		switch reason := reasonOf(t, admit(r)); reason {
		case "":
		case ReasonTenants:
			refused++
		default:
			t.Fatal(reason)
		}
		r.Tenant = "capped" // it sprays capabilities, too
		if reason := reasonOf(t, admit(r)); reason != "" && reason != ReasonCapabilities && reason != ReasonTenantRate {
			t.Fatal(reason)
		}
		if s := c.Stats(); s.Tenants > 4 || s.Rates > 8 {
			t.Fatalf("%d tenants and %d rates are remembered", s.Tenants, s.Rates)
		}
	}
	spent.Cost, capped.Items = 30, 5
	if reason := reasonOf(t, admit(spent)); reason != ReasonTenantRate {
		t.Errorf("the tenant's empty bucket is full: %q", reason)
	}
	if reason := reasonOf(t, admit(capped)); reason != ReasonCapability {
		t.Errorf("the capability's empty bucket is full: %q", reason)
	}
	if refused == 0 {
		t.Error("the table was never full: this tests nothing")
	}
	if err := sound(c); err != nil {
		t.Fatal(err)
	}
	// In time all are forgotten but who is there.
	now.advance(time.Hour)
	for range 20 {
		if err := admit(one("last")); err != nil {
			t.Fatal(err)
		}
	}
	if s := c.Stats(); s.Tenants != 1 || s.Rates != 0 {
		t.Errorf("%d tenants and %d rates are remembered after an hour", s.Tenants, s.Rates)
	}
}

// A tenant that floods the global rate leaves another its share, and takes what
// is left over; the cap holds in the long run.
//
func TestGlobalRateIsShared(t *testing.T) {
	t.Parallel()
	limits := roomy()
	limits.Global.Rate, limits.Global.Burst = 1000, 100
	limits.Tenants = map[string]Quota{"heavy": {Weight: 3}}
	now := newClock()
	c := newController(t, limits, Options{Now: now.now})
	got := map[string]int{}
	ask := func(tenant string, n int) {
		for range n {
			if ticket, err := c.Admit(background, one(tenant)); err == nil {
				got[tenant]++
				ticket.Release()
			}
		}
	}
	const seconds = 20
	for i := range seconds * 1000 {
		now.advance(time.Millisecond)
		ask("flood", 10)
		if i%10 < 2 {
			ask("heavy", 1) // 200 per second: its share is 600
		}
		if i%20 == 0 {
			ask("light", 1) // 50 per second: its share is 200
		}
	}
	if got["light"] != 50*seconds || got["heavy"] != 200*seconds {
		t.Errorf("those within their share were refused: %v", got)
	}
	all := got["light"] + got["heavy"] + got["flood"]
	if most := 1000*seconds + 4*100; all > most {
		t.Errorf("%d were let through, more than %d", all, most)
	}
	if all < 1000*seconds*95/100 {
		t.Errorf("%d were let through: the rate is not used", all)
	}
}

// A refusal takes nothing, whatever the limits and whoever asks; and what is
// taken comes back.
//
func TestRefusalTakesNothing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		small := func(most int, name string) int { return rapid.IntRange(1, most).Draw(t, name) }
		limits := Limits{
			Default: Quota{Rate: float64(small(100, "rate")), Burst: small(50, "burst"), InFlight: small(6, "in flight"), Queue: small(4, "queue"), Weight: small(5, "weight")},
			Global:  Global{Rate: float64(small(200, "all rate")), Burst: small(100, "all burst"), InFlight: small(12, "all in flight"), Queue: small(8, "all queue"), MaxWaitMS: small(10, "wait")},
		}
		now := newClock()
		c, err := New(limits, Options{Slots: small(3, "slots"), MaxTenants: small(5, "tenants"), MaxRates: small(6, "rates"), Now: now.now})
		if err != nil {
			t.Fatal(err)
		}
		var held []*Ticket
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				if err := sound(c); err != nil {
					t.Fatal(err)
				}
			},
			"admit": func(t *rapid.T) {
				r := Request{
					Tenant: rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f", "g"}).Draw(t, "tenant"),
					Cost:   rapid.IntRange(1, 20).Draw(t, "cost"), Items: rapid.IntRange(1, 3).Draw(t, "items"),
					Lane: Lane(rapid.IntRange(0, int(laneCount)-1).Draw(t, "lane")),
				}
				for i := range rapid.IntRange(0, 2).Draw(t, "caveats") {
					r.Rates = append(r.Rates, Rate{[32]byte{byte(i), rapid.Byte().Draw(t, "id") % 4}, 2, 3})
				}
				c.tenant(r.Tenant, c.instant(now.t)) // which may forget another
				ticket, err := c.Admit(background, r)
				if err == nil {
					if ticket.lane != LaneNone && rapid.Bool().Draw(t, "enter") {
						ticket.enter()
					}
					held = append(held, ticket)
					return
				}
				before := fmt.Sprint(debts(c))
				reasonOf(t, err)
				if _, err := c.Admit(background, r); err == nil {
					t.Fatal("what was refused is admitted a moment later, with nothing given back")
				}
				if after := fmt.Sprint(debts(c)); after != before {
					t.Fatalf("a refusal took: %s, before %s", after, before)
				}
			},
			"release": func(t *rapid.T) {
				if len(held) == 0 {
					return
				}
				i := rapid.IntRange(0, len(held)-1).Draw(t, "which")
				if held[i].state == waiting { // its owner would be in Begin
					c.mu.Lock()
					c.lanes[held[i].lane].cancel(held[i])
					c.mu.Unlock()
				}
				held[i].Release()
				held = append(held[:i], held[i+1:]...)
			},
			"time": func(t *rapid.T) {
				now.advance(time.Duration(rapid.Int64Range(0, int64(3*time.Second)).Draw(t, "d")))
			},
			"reload": func(t *rapid.T) {
				limits.Default.Weight = rapid.IntRange(1, 9).Draw(t, "new weight")
				limits.Default.Rate = float64(rapid.IntRange(1, 90).Draw(t, "new rate"))
				limits.Tenants = map[string]Quota{"a": {Weight: rapid.IntRange(1, 9).Draw(t, "weight of a")}}
				if err := c.Reload(limits); err != nil {
					t.Fatal(err)
				}
			},
		})
		for len(held) > 0 {
			for i, ticket := range held {
				if !ticket.begun() && ticket.state == waiting {
					continue
				}
				ticket.Release()
				held = append(held[:i], held[i+1:]...)
				break
			}
		}
		if err := empty(c); err != nil {
			t.Fatal(err)
		}
	})
}

// Reload holds at once and for all, keeps what was used, and does not follow the
// caller's later changes.
func TestReload(t *testing.T) {
	t.Parallel()
	now := newClock()
	limits := roomy()
	limits.Default.Rate, limits.Default.Burst = 1, 10
	limits.Tenants = map[string]Quota{"b": {Burst: 20}}
	c := newController(t, limits, Options{Slots: 1, Now: now.now})
	ticket, err := c.Admit(background, Request{Tenant: "a", Cost: 10, Items: 1, Lane: LanePrivate})
	if err != nil || !ticket.enter() {
		t.Fatal(err)
	}
	limits.Tenants["b"] = Quota{Burst: 1}
	if ticket, err := c.Admit(background, Request{Tenant: "b", Cost: 20, Items: 1}); err != nil {
		t.Errorf("the caller's map is used: %v", err)
	} else {
		ticket.Release()
	}
	limits.Default.Rate, limits.Default.Burst, limits.Default.InFlight = 100, 12, 1
	if err := c.Reload(limits); err != nil {
		t.Fatal(err)
	}
	if !ticket.begun() {
		t.Error("who is at work lost the slot")
	}
	if _, err := c.Admit(background, Request{Tenant: "a", Cost: 3, Items: 1}); reasonOf(t, err) != ReasonTenantRate {
		t.Errorf("what was used is forgotten: %v", err)
	}
	now.advance(10 * time.Millisecond) // one unit at the new rate
	if _, err := c.Admit(background, Request{Tenant: "a", Cost: 3, Items: 1}); reasonOf(t, err) != ReasonTenantInFlight {
		t.Errorf("the new limits do not hold: %v", err)
	}
	ticket.Release()
	if _, err := c.Admit(background, Request{Tenant: "a", Cost: 3, Items: 1}); err != nil {
		t.Error(err)
	}
	if s := c.TenantStats(10); len(s) != 2 || s[0].Tenant != "a" || s[0].Rejected != 2 {
		t.Errorf("%+v", s)
	}
}

// What has been refilled until a reload was refilled at the rate that held then.
func TestReloadSettles(t *testing.T) {
	t.Parallel()
	for _, global := range []bool{false, true} {
		now := newClock()
		limits := roomy()
		set := func(rate float64) {
			if global {
				limits.Global.Rate, limits.Global.Burst = rate, 10
			} else {
				limits.Default.Rate, limits.Default.Burst = rate, 10
			}
		}
		set(1)
		c := newController(t, limits, Options{Now: now.now})
		if _, err := c.Admit(background, Request{Tenant: "a", Cost: 10, Items: 1}); err != nil {
			t.Fatal(err)
		}
		now.advance(3 * time.Second)
		set(1000)
		if err := c.Reload(limits); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Admit(background, Request{Tenant: "a", Cost: 4, Items: 1}); err == nil {
			t.Errorf("global %t: 4 units were there after 3 s at 1 per second", global)
		}
		if _, err := c.Admit(background, Request{Tenant: "a", Cost: 3, Items: 1}); err != nil {
			t.Errorf("global %t: %v", global, err)
		}
	}
}
