package admit

import (
	"fmt"
	"testing"
)

// refusers ask for what is refused, each for another reason.
func refusers(t testing.TB) map[Reason]func() error {
	all := map[Reason]func() error{}
	add := func(want Reason, l Limits, o Options, r Request) {
		c := newController(t, l, o)
		refuse := func() error {
			_, err := c.Admit(background, r)
			return err
		}
		for range 100 { // until it is
			ticket, err := c.Admit(background, r)
			if err == nil && r.Lane != LaneNone {
				ticket.enter()
			}
		}
		if got := reasonOf(t, refuse()); got != want {
			t.Fatalf("refused for %q, want %s", got, want)
		}
		all[want] = refuse
	}
	slow := roomy()
	slow.Default.Rate, slow.Default.Burst = 1e-6, 1
	add(ReasonTenantRate, slow, Options{}, one("a"))
	few := roomy()
	few.Default.InFlight = 1
	add(ReasonTenantInFlight, few, Options{}, one("a"))
	short := roomy()
	short.Default.Queue = 1
	add(ReasonTenantQueue, short, Options{Slots: 1}, Request{Tenant: "a", Cost: 1, Items: 1, Lane: LanePrivate})
	shared := roomy()
	shared.Global.Rate, shared.Global.Burst = 1e-6, 1
	add(ReasonRate, shared, Options{}, one("a"))
	add(ReasonCapability, roomy(), Options{}, Request{Tenant: "a", Cost: 1, Items: MaxItems, Rates: []Rate{{[32]byte{1}, 1, 8}, {[32]byte{2}, 1, 8}}})
	crowd := newController(t, roomy(), Options{MaxTenants: 64})
	for i := range 64 {
		if _, err := crowd.Admit(background, one(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	all[ReasonTenants] = func() error {
		_, err := crowd.Admit(background, one("new"))
		return err
	}
	return all
}

// A refusal makes one object, its error, whatever the reason.
//
func TestRefusalAllocatesOnlyItsError(t *testing.T) {
	for reason, refuse := range refusers(t) {
		if n := testing.AllocsPerRun(200, func() { refuse() }); n > 1 {
			t.Errorf("%s: %g allocations", reason, n)
		}
	}
}

func BenchmarkRefuse(b *testing.B) {
	for reason, refuse := range refusers(b) {
		b.Run(string(reason), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if refuse() == nil {
					b.Fatal("admitted")
				}
			}
		})
	}
}

func BenchmarkRefuseParallel(b *testing.B) {
	l := roomy()
	l.Default.Rate, l.Default.Burst = 1e-6, 1
	c := newController(b, l, Options{})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		r := one("a")
		for pb.Next() {
			c.Admit(background, r)
		}
	})
}

// BenchmarkAdmit is the whole way of an operation that need not wait.
func BenchmarkAdmit(b *testing.B) {
	c := newController(b, roomy(), Options{Slots: 1 << 10})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		r := Request{Tenant: "a", Cost: 1, Items: 1, Lane: LanePrivate, Rates: []Rate{{[32]byte{1}, 1 << 31, 1 << 31}}}
		for pb.Next() {
			ticket, err := c.Admit(background, r)
			if err != nil {
				b.Error(err)
				return
			}
			if _, err := ticket.Begin(background); err != nil {
				b.Error(err)
			}
			ticket.End()
			ticket.Release()
		}
	})
}
