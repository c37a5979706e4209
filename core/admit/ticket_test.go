package admit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func begin(t *testing.T, c *Controller, tenant string, lane Lane) *Ticket {
	t.Helper()
	ticket, err := c.Admit(background, Request{Tenant: tenant, Cost: 1, Items: 1, Lane: lane})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ticket.Begin(background); err != nil {
		t.Fatal(err)
	}
	return ticket
}

// Slots, places and units all come back, however operations end: done, given up
// while waiting, at the moment of being begun, between steps, or never begun.
//
func TestNothingLeaks(t *testing.T) {
	t.Parallel()
	for seed := range uint64(10) {
		synctest.Test(t, func(t *testing.T) {
			limits := roomy()
			limits.Default.Queue, limits.Global.Queue, limits.Global.MaxWaitMS = 20, 60, 50
			c := newController(t, limits, Options{Slots: 3, PublicSlots: 2, MutateSlots: 1})
			var running, most [laneCount]atomic.Int64
			var done, gaveUp, refused atomic.Int64
			var wg sync.WaitGroup
			for i := range 400 {
				wg.Go(func() {
					rnd := rand.New(rand.NewPCG(seed, uint64(i)))
					// Whole milliseconds, so that much happens at the same moment.
					ms := func(n int) time.Duration { return time.Duration(rnd.IntN(n)) * time.Millisecond }
					time.Sleep(ms(100))
					ctx, cancel := context.WithTimeout(background, ms(60))
					defer cancel()
					r := Request{Tenant: fmt.Sprint(rnd.IntN(6)), Cost: 1 + rnd.IntN(4), Items: 1 + rnd.IntN(3), Lane: Lane(rnd.IntN(int(laneCount)))}
					ticket, err := c.Admit(ctx, r)
					if err != nil {
						refused.Add(1)
						return
					}
					defer ticket.Release()
					time.Sleep(ms(3)) // policy
					if rnd.IntN(10) == 0 {
						return // refused by it
					}
					if _, err := ticket.Begin(ctx); err != nil {
						gaveUp.Add(1)
						return
					}
					for item := range r.Items {
						n := running[r.Lane].Add(1)
						for m := most[r.Lane].Load(); n > m && !most[r.Lane].CompareAndSwap(m, n); m = most[r.Lane].Load() {
						}
						time.Sleep(ms(5))
						running[r.Lane].Add(-1)
						if item < r.Items-1 {
							if err := ticket.Yield(ctx); err != nil {
								gaveUp.Add(1)
								return
							}
						}
					}
					ticket.End()
					time.Sleep(ms(3)) // its record
					done.Add(1)
				})
			}
			wg.Wait()
			if err := empty(c); err != nil {
				t.Error(err)
			}
			for lane, slots := range map[Lane]int64{LanePrivate: 3, LanePublic: 2, LaneMutate: 1} {
				if m := most[lane].Load(); m > slots {
					t.Errorf("%d ran at a time in the lane %s of %d slots", m, lane, slots)
				}
			}
			if done.Load() == 0 || gaveUp.Load() == 0 || refused.Load() == 0 {
				t.Errorf("done %d, given up %d, refused %d: this tests nothing", done.Load(), gaveUp.Load(), refused.Load())
			}
		})
	}
}

// The same with real goroutines and no clock that stands still, for the race
// detector.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	limits := roomy()
	c := newController(t, limits, Options{Slots: 2, MaxTenants: 8, MaxRates: 16})
	var wg sync.WaitGroup
	var running atomic.Int64
	for g := range 16 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(g)))
			for range 300 {
				ctx, cancel := context.WithCancel(background)
				r := Request{Tenant: fmt.Sprint(rnd.IntN(12)), Cost: 2, Items: 2, Lane: LanePrivate, Rates: []Rate{{[32]byte{byte(rnd.IntN(30))}, 1000, 1000}}}
				ticket, err := c.Admit(ctx, r)
				if err != nil {
					cancel()
					continue
				}
				if rnd.IntN(3) == 0 {
					go cancel()
				}
				if _, err := ticket.Begin(ctx); err == nil {
					if n := running.Add(1); n > 2 {
						t.Errorf("%d at work", n)
					}
					runtime.Gosched()
					running.Add(-1)
					if ticket.Yield(ctx) == nil {
						ticket.End()
					}
				}
				ticket.Release()
				cancel()
				if rnd.IntN(20) == 0 {
					if err := c.Reload(limits); err != nil {
						t.Error(err)
					}
					c.Stats()
					c.TenantStats(4)
				}
			}
		})
	}
	wg.Wait()
	if err := empty(c); err != nil {
		t.Error(err)
	}
}

// A context that ends in the moment in which the slot is given loses no slot.
func TestGivenWhileGivingUp(t *testing.T) {
	t.Parallel()
	c := newController(t, roomy(), Options{Slots: 1})
	begun, gaveUp := 0, 0
	for range 200 {
		first := begin(t, c, "a", LanePrivate)
		second, err := c.Admit(background, Request{Tenant: "b", Cost: 1, Items: 1, Lane: LanePrivate})
		if err != nil {
			t.Fatal(err)
		}
		if second.enter() {
			t.Fatal("a slot too many")
		}
		ctx, cancel := context.WithCancel(background)
		first.End() // the slot is the second's now
		cancel()    // and it does not want it any more
		if _, err := second.wait(ctx, c.now()); err == nil {
			begun++
		} else {
			gaveUp++
			if busy := c.Stats().Lanes[0].Busy; busy != 0 {
				t.Fatal("the slot stays with who gave up")
			}
		}
		first.Release()
		second.Release()
		if err := empty(c); err != nil {
			t.Fatal(err)
		}
	}
	if begun == 0 || gaveUp == 0 {
		t.Errorf("begun %d, given up %d: one of the ways was not taken", begun, gaveUp)
	}
}

// Within a tenant, who came first is first; who gives up is passed over.
func TestFIFO(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newController(t, roomy(), Options{Slots: 1})
		first := begin(t, c, "a", LanePrivate)
		var order []int
		var wg sync.WaitGroup
		for i := range 6 {
			ctx, cancel := context.WithCancel(background)
			defer cancel()
			ticket, err := c.Admit(ctx, Request{Tenant: "a", Cost: 1, Items: 1, Lane: LanePrivate})
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				defer ticket.Release()
				queued, err := ticket.Begin(ctx)
				if i%3 == 2 {
					if !errors.Is(err, context.Canceled) {
						t.Errorf("%d: %v", i, err)
					}
					return
				}
				if err != nil || queued < time.Second {
					t.Errorf("%d: queued for %s, %v", i, queued, err)
				}
				order = append(order, i)
				time.Sleep(time.Second)
			})
			synctest.Wait()
			if i%3 == 2 {
				cancel()
				synctest.Wait()
			}
		}
		time.Sleep(time.Second)
		first.Release()
		wg.Wait()
		if fmt.Sprint(order) != "[0 1 3 4]" {
			t.Errorf("begun in the order %v", order)
		}
		if l := c.Stats().Lanes[0]; l.Waits != 6 || l.Waited < 10*time.Second {
			t.Errorf("%+v", l)
		}
		if err := empty(c); err != nil {
			t.Error(err)
		}
	})
}

// A long batch gives way between its items: another tenant waits for one item, not
// for all, and the batch goes on before its own tenant's later operations.
//
func TestBatchGivesWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newController(t, roomy(), Options{Slots: 1})
		const item = 5 * time.Millisecond
		batch, err := c.Admit(background, Request{Tenant: "a", Cost: 5, Items: 100, Lane: LanePrivate})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := batch.Begin(background); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		var ended time.Time
		wg.Go(func() {
			defer batch.Release()
			for i := range 100 {
				time.Sleep(item)
				if i < 99 {
					if err := batch.Yield(background); err != nil {
						t.Error(err)
					}
				}
			}
			ended = time.Now()
		})
		wg.Go(func() {
			time.Sleep(12 * time.Millisecond)
			later, err := c.Admit(background, Request{Tenant: "a", Cost: 5, Items: 1, Lane: LanePrivate})
			if err != nil {
				t.Error(err)
				return
			}
			defer later.Release()
			if _, err := later.Begin(background); err != nil {
				t.Error(err)
			}
			if ended.IsZero() {
				t.Error("a later operation of the same tenant overtook the batch")
			}
		})
		for range 20 {
			time.Sleep(21 * time.Millisecond)
			other, err := c.Admit(background, Request{Tenant: "b", Cost: 5, Items: 1, Lane: LanePrivate})
			if err != nil {
				t.Fatal(err)
			}
			queued, err := other.Begin(background)
			if err != nil || queued > item {
				t.Errorf("waited for %s behind a batch, more than for an item; %v", queued, err)
			}
			time.Sleep(item)
			other.Release()
		}
		wg.Wait()
		if err := empty(c); err != nil {
			t.Error(err)
		}
	})
}

// Private operations that hang hold up neither verification nor what needs no
// worker.
//
func TestLanesAreApart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		limits := roomy()
		limits.Default.Queue = 3
		c := newController(t, limits, Options{Slots: 2, PublicSlots: 1})
		hung := []*Ticket{begin(t, c, "a", LanePrivate), begin(t, c, "a", LanePrivate)}
		for {
			ticket, err := c.Admit(background, Request{Tenant: "a", Cost: 1, Items: 1, Lane: LanePrivate})
			if err != nil {
				break
			}
			hung = append(hung, ticket)
		}
		if len(hung) != 5 {
			t.Fatalf("%d are in the private lane", len(hung))
		}
		time.Sleep(time.Hour)
		for _, lane := range []Lane{LanePublic, LaneMutate, LaneNone} {
			begin(t, c, "a", lane).Release()
		}
		for _, ticket := range hung {
			ticket.Release()
		}
		// The hour is in the mean now. It refuses nothing beside a free slot, and
		// so is corrected.
		for range 500 {
			ticket := begin(t, c, "a", LanePrivate)
			time.Sleep(time.Millisecond)
			ticket.Release()
		}
		if per := c.Stats().Lanes[0].PerUnit; per > 2*time.Millisecond {
			t.Errorf("a unit is taken to last %s", per)
		}
		if err := empty(c); err != nil {
			t.Error(err)
		}
	})
}

// Tickets that are used out of order fail, and lose nothing.
func TestTicketMisuse(t *testing.T) {
	t.Parallel()
	var none *Ticket
	none.End()
	none.Release()
	for _, lane := range []Lane{LaneNone, LanePrivate} {
		c := newController(t, roomy(), Options{Slots: 1})
		ticket, err := c.Admit(background, Request{Tenant: "a", Cost: 1, Items: 1, Lane: lane})
		if err != nil {
			t.Fatal(err)
		}
		if err := ticket.Yield(background); !errors.Is(err, ErrTicket) {
			t.Errorf("yielded before it began: %v", err)
		}
		if _, err := ticket.Begin(background); err != nil {
			t.Fatal(err)
		}
		if _, err := ticket.Begin(background); !errors.Is(err, ErrTicket) {
			t.Errorf("begun twice: %v", err)
		}
		for range 5 { // more than it has items
			if err := ticket.Yield(background); err != nil {
				t.Error(err)
			}
		}
		ticket.End()
		ticket.End()
		if err := ticket.Yield(background); !errors.Is(err, ErrTicket) {
			t.Errorf("yielded after its end: %v", err)
		}
		ticket.Release()
		ticket.Release()
		if _, err := ticket.Begin(background); !errors.Is(err, ErrTicket) {
			t.Errorf("begun after its release: %v", err)
		}
		if err := empty(c); err != nil {
			t.Error(err)
		}
	}
}
