package admit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"
)

// clock is a clock that stands still until it is told to move.
type clock struct{ t time.Time }

func newClock() *clock { return &clock{time.Unix(1_800_000_000, 0)} }

func (c *clock) now() time.Time          { return c.t }
func (c *clock) advance(d time.Duration) { c.t = c.t.Add(d) }

// roomy are limits that nothing in a test meets unless it lowers them.
func roomy() Limits {
	return Limits{
		Default: Quota{Rate: MaxRate, Burst: MaxUnits, InFlight: MaxPlaces / 4, Queue: MaxPlaces / 4, Weight: 1},
		Global:  Global{Rate: MaxRate, Burst: MaxUnits, InFlight: MaxPlaces, Queue: MaxPlaces, MaxWaitMS: 60_000},
	}
}

func newController(t testing.TB, l Limits, o Options) *Controller {
	t.Helper()
	c, err := New(l, o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func one(tenant string) Request { return Request{Tenant: tenant, Cost: 1, Items: 1} }

// reasonOf is the reason of a refusal, "" for none.
func reasonOf(t interface{ Fatalf(string, ...any) }, err error) Reason {
	if err == nil {
		return ""
	}
	var r *Rejected
	if !errors.As(err, &r) {
		t.Fatalf("%v is not a refusal", err)
	}
	return r.Reason
}

// sound checks what must hold whenever nobody is inside the controller.
func sound(c *Controller) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	inFlight, rates, weight := 0, 0, 0
	for _, t := range c.tenants {
		inFlight += t.inFlight
		rates += len(t.rates)
		weight += t.quota.Weight
		if t.inFlight < 0 || t.rate.debt < 0 || t.share.debt < 0 || len(t.rates) != t.rateOrder.Len() {
			return fmt.Errorf("tenant %s: %d in flight, debts %g and %g", t.name, t.inFlight, t.rate.debt, t.share.debt)
		}
	}
	if inFlight != c.inFlight || rates != c.rates || weight != c.weight || len(c.tenants) != c.order.Len() {
		return fmt.Errorf("in flight %d, counted %d; rates %d, %d; weight %d, %d", c.inFlight, inFlight, c.rates, rates, c.weight, weight)
	}
	for i := range c.lanes {
		l := &c.lanes[i]
		pending, units := 0, 0
		for _, t := range c.tenants {
			f := &t.flows[i]
			pending += f.pending
			units += f.units
			queued := 0
			for q := f.head; q != nil; q = q.next {
				queued++
			}
			if (f.head != nil) != (f.index >= 0) || queued > f.pending || f.units < 0 {
				return fmt.Errorf("lane %d: flow %s: %d queued, %d pending, %d units, index %d", i, t.name, queued, f.pending, f.units, f.index)
			}
		}
		if pending != l.pending || units != l.units || l.busy < 0 || l.busy > l.slots || l.running < 0 {
			return fmt.Errorf("lane %d: pending %d, counted %d; units %d, counted %d; busy %d, running %d", i, l.pending, pending, l.units, units, l.busy, l.running)
		}
		if len(l.waiting) > 0 && l.busy < l.slots {
			return fmt.Errorf("lane %d: %d flows wait beside a free slot", i, len(l.waiting))
		}
	}
	return nil
}

// empty checks that nothing at all is held.
func empty(c *Controller) error {
	if err := sound(c); err != nil {
		return err
	}
	s := c.Stats()
	for _, l := range s.Lanes {
		if l.Busy != 0 || l.Queued != 0 || l.Backlog != 0 {
			return fmt.Errorf("left over: %+v", l)
		}
	}
	for i := range c.lanes {
		if c.lanes[i].weight != 0 || c.lanes[i].running != 0 {
			return fmt.Errorf("lane %d: weight %d, running %d left over", i, c.lanes[i].weight, c.lanes[i].running)
		}
	}
	if s.InFlight != 0 {
		return fmt.Errorf("%d in flight are left over", s.InFlight)
	}
	return nil
}

// enter is Begin without the waiting, for tests that are the scheduler.
func (t *Ticket) enter() bool {
	c := t.c
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lanes[t.lane].enter(t, c.instant(c.now()))
}

// begun reports whether a ticket has a slot.
func (t *Ticket) begun() bool {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	return t.state == working
}

var background = context.Background()

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
