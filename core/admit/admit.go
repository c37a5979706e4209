// Package admit decides whether an operation may be done now, before anything is
// looked up or computed for it: rates, bounds of what is in flight, fair
// sharing of the workers, and refusal of what would wait too long. Beside it
// stands a [Breaker] for backends and other peers that can fail.
//
// # One operation's way
//
//	ticket, err := controller.Admit(ctx, request) // never waits; err is *Rejected
//	defer ticket.Release()                        // when all is done, its record too
//	...                                           // policy
//	_, err = ticket.Begin(ctx)                    // waits for a worker, for a bounded time
//	...                                           // the work
//	ticket.End()                                  // gives the worker back
//	...                                           // the record, the answer
//
// Admit decides everything; Begin only waits, and fails only when the context
// ends. So whoever is refused has cost a look into one map and a handful of
// comparisons under one lock, and has taken nothing: a refusal uses up neither a
// rate nor a place.
//
// # Cost
//
// Rates and the sharing of workers count units; one unit is about one Ed25519
// signature. [Costs] says what an operation costs. A bucket of tokens that holds
// the cost of an operation, or is full, lets it pass and is then in debt: an
// operation dearer than the burst is slow, not impossible.
//
// # Fairness
//
// Workers are slots, in lanes: one for operations on private keys, one for those
// that need none, so that a backend that hangs does not take verification with
// it, and one for changes of keys, which wait for the disk. When the slots of a
// lane are busy, who waits is served by start-time fair queueing (Goyal, Vin,
// Cheng, SIGCOMM 1996; with several slots: Jin, Chase, Kaur, SIGMETRICS 2004):
// while two tenants wait, the units they are given differ from their weights by
// no more than one operation of each; a tenant that had nothing to do is behind
// at most one operation of each other tenant, however much they have asked for.
// Operations are not interrupted: long ones must be done in steps, see
// [Ticket.Yield].
//
// Bounds that tenants share are not first come, first served either. Of places
// (in flight, queued) a tenant gets no more than are still free (Choudhury,
// Hahne, Dynamic Queue Length Thresholds, 1998), so that there is always one for
// a tenant that has none; one that is alone gets half. Of the global rate each
// tenant is sure of its share by weight; what others leave is for whoever comes.
//
// # Memory
//
// It is bounded by the number of tenants and capabilities that are remembered. One
// is forgotten only when it has nothing under way and all its buckets are full:
// being forgotten gives nobody a fresh bucket.
package admit

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync"
	"time"
)

// Lane says which workers an operation needs.
type Lane uint8

// The lanes. LaneNone is for what takes no worker: reads of what is in memory.
const (
	LaneNone    Lane = iota
	LanePrivate      // uses a private key
	LanePublic       // computes with public keys alone: verify
	LaneMutate       // changes a key, and waits for the disk

	laneCount
)

// String returns "none", "private", "public", "mutate" or "invalid".
func (l Lane) String() string {
	switch l {
	case LaneNone:
		return "none"
	case LanePrivate:
		return "private"
	case LanePublic:
		return "public"
	case LaneMutate:
		return "mutate"
	}
	return "invalid"
}

// Bounds of a request.
const (
	MaxCost  = 1 << 12 // units of one item
	MaxItems = 1 << 12 // items of one operation
	MaxRates = 64      // rate caveats of one capability
)

// A Request is what is asked for, by an authenticated caller.
type Request struct {
	// Tenant is whose quota is used. It must be authenticated: a tenant is
	// remembered when it is first seen.
	Tenant string
	// Cost is the units that one item costs, 1 to MaxCost.
	Cost int
	// Items is how many items there are, 1 to MaxItems: 1 but for batches.
	Items int
	// Lane is the workers that it needs.
	Lane Lane
	// Rates are the rate caveats of the capability; all must hold. At most
	// MaxRates, of different keys.
	Rates []Rate
}

// Rate is a rate caveat of a capability. It counts items, not units. One that is
// not positive allows nothing.
type Rate struct {
	// Key is what the caveat's bucket is remembered by, for the tenant. Whoever
	// derives capabilities from one another must not get another key by that.
	Key       [32]byte
	PerSecond int
	Burst     int
}

func (r *Request) check() error {
	switch {
	case r.Tenant == "":
		return errors.New("admit: no tenant")
	case r.Cost < 1 || r.Cost > MaxCost:
		return fmt.Errorf("admit: a cost of %d units: want 1 to %d", r.Cost, MaxCost)
	case r.Items < 1 || r.Items > MaxItems:
		return fmt.Errorf("admit: %d items: want 1 to %d", r.Items, MaxItems)
	case r.Lane >= laneCount:
		return fmt.Errorf("admit: lane %d does not exist", r.Lane)
	case len(r.Rates) > MaxRates:
		return fmt.Errorf("admit: %d rates: want at most %d", len(r.Rates), MaxRates)
	}
	return nil
}

// Options are what does not change while a controller lives. Zero values take
// the defaults.
type Options struct {
	// Slots is how many operations on private keys run at a time. Default:
	// GOMAXPROCS, for keys in memory.
	Slots int
	// PublicSlots is the same for operations without one. Default: GOMAXPROCS.
	PublicSlots int
	// MutateSlots is the same for changes of keys. Default: 8.
	MutateSlots int
	// MaxTenants bounds how many tenants are remembered. Default: 16384, of
	// about a kilobyte each.
	MaxTenants int
	// MaxRates bounds how many rate caveats are remembered, for all tenants; one
	// tenant alone gets half. Default: 65536, of about 200 bytes each.
	MaxRates int
	// Now is the clock. It should not jump; the default, time.Now, does not.
	Now func() time.Time
}

// A Controller admits operations. Its methods may be called concurrently. It
// starts no goroutine and needs no closing.
type Controller struct {
	now        func() time.Time
	epoch      time.Time
	maxTenants int
	maxRates   int

	// mu guards what follows and all that hangs from it, the unexported fields
	// of tickets too. It is held for some hundred nanoseconds.
	mu       sync.Mutex
	limits   Limits
	tenants  map[string]*tenant
	order    *list.List // of tenants, see tenants.go
	weight   int        // of all in tenants
	rates    int        // rate caveats of all in tenants
	turn     uint64     // number of the request that is decided about
	global   bucket
	inFlight int
	lanes    [laneCount]lane
	admitted uint64
	rejected map[Reason]uint64
}

// New makes a controller. An error says which limit is not valid.
func New(l Limits, o Options) (*Controller, error) {
	if err := l.Validate(); err != nil {
		return nil, err
	}
	set := func(p *int, standard int) {
		if *p == 0 {
			*p = standard
		}
	}
	set(&o.Slots, runtime.GOMAXPROCS(0))
	set(&o.PublicSlots, runtime.GOMAXPROCS(0))
	set(&o.MutateSlots, 8)
	set(&o.MaxTenants, 16384)
	set(&o.MaxRates, 65536)
	if min(o.Slots, o.PublicSlots, o.MutateSlots, o.MaxTenants, o.MaxRates) < 1 {
		return nil, errors.New("admit: negative options")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	c := &Controller{
		now: o.Now, epoch: o.Now(), maxTenants: o.MaxTenants, maxRates: o.MaxRates,
		limits: l.clone(), tenants: make(map[string]*tenant), order: list.New(), rejected: make(map[Reason]uint64, len(Reasons)),
	}
	for i, slots := range [laneCount]int{LanePrivate: o.Slots, LanePublic: o.PublicSlots, LaneMutate: o.MutateSlots} {
		c.lanes[i] = lane{slots: slots, perUnit: firstPerUnit}
	}
	return c, nil
}

// Reload puts other limits in force, all at once, or none if they are not valid.
// What is admitted stays admitted; what tenants have used of their rates stays
// used.
func (c *Controller) Reload(l Limits) error {
	if err := l.Validate(); err != nil {
		return err
	}
	l = l.clone()
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.instant(c.now())
	c.global.settle(now, c.limits.Global.Rate) // at the rate that held until now
	for _, t := range c.tenants {
		t.settle(now, &c.limits.Global, c.part(t))
	}
	c.limits, c.weight = l, 0
	for _, t := range c.tenants {
		t.quota = l.quota(t.name)
		c.weight += t.quota.Weight
	}
	return nil
}

// instant is a time in nanoseconds since the controller was made.
func (c *Controller) instant(t time.Time) int64 { return int64(t.Sub(c.epoch)) }

// Admit decides about an operation. It never waits. The error is a *Rejected if
// limits say no, the context's if that has ended, and another one if the request
// is not valid. The ticket must be released.
func (c *Controller) Admit(ctx context.Context, r Request) (*Ticket, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	wall := c.now()
	left := time.Duration(math.MaxInt64)
	if deadline, ok := ctx.Deadline(); ok {
		left = deadline.Sub(wall)
	}
	now := c.instant(wall)

	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.tenant(r.Tenant, now)
	if t == nil {
		c.rejected[ReasonTenants]++
		return nil, newRejected(ReasonTenants, 0)
	}
	reason, wait, own := c.decide(t, &r, now, left)
	if reason != "" {
		c.rejected[reason]++
		t.rejected++
		return nil, newRejected(reason, wait)
	}
	return c.take(t, &r, own), nil
}

// decide says whether a tenant's request may pass, and takes nothing. Own says
// that it does so by the tenant's own share of the global rate.
func (c *Controller) decide(t *tenant, r *Request, now int64, left time.Duration) (reason Reason, wait time.Duration, own bool) {
	c.turn++
	for i := range r.Rates {
		if reason, wait := c.checkRate(t, &r.Rates[i], r.Items, now); reason != "" {
			return reason, wait, false
		}
	}
	g, cost := &c.limits.Global, float64(r.Cost*r.Items)
	if wait := t.rate.wait(now, t.quota.Rate, float64(t.quota.Burst), cost); wait > 0 {
		return ReasonTenantRate, wait, false
	}
	if t.inFlight >= t.quota.InFlight {
		return ReasonTenantInFlight, 0, false
	}
	if t.inFlight >= g.InFlight-c.inFlight {
		return ReasonInFlight, 0, false
	}
	if r.Lane != LaneNone {
		if reason, wait := c.lanes[r.Lane].check(&t.flows[r.Lane], r, &t.quota, g, left); reason != "" {
			return reason, wait, false
		}
	}
	part := c.part(t)
	share := t.share.wait(now, g.Rate*part, max(1, float64(g.Burst)*part), cost)
	rest := c.global.wait(now, g.Rate, float64(g.Burst), cost)
	if share > 0 && rest > 0 {
		return ReasonRate, min(share, rest), false
	}
	return "", 0, share == 0
}

// part is a tenant's part of the global rate.
func (c *Controller) part(t *tenant) float64 { return float64(t.quota.Weight) / float64(c.weight) }

// take uses up what decide has found to be there. The global bucket pays for
// shares too, if need be by debt: then there are no leavings for anybody.
func (c *Controller) take(t *tenant, r *Request, own bool) *Ticket {
	cost := float64(r.Cost * r.Items)
	for i := range r.Rates {
		t.rates[r.Rates[i].Key].take(float64(r.Items))
	}
	t.rate.take(cost)
	if own {
		t.share.take(cost)
	}
	c.global.take(cost)
	t.inFlight++
	c.inFlight++
	c.admitted++
	ticket := &Ticket{c: c, flow: &t.flows[r.Lane], lane: r.Lane, step: r.Cost, left: r.Cost * r.Items}
	if r.Lane != LaneNone {
		c.lanes[r.Lane].reserve(ticket)
	}
	return ticket
}

// Reason is why an operation was refused. It is for operators: a caller is not
// told which of the limits that tenants share it met.
type Reason string

// The reasons.
const (
	ReasonCapability     Reason = "capability-rate"  // a rate caveat
	ReasonCapabilities   Reason = "capability-count" // more rate caveats in use than can be remembered
	ReasonTenantRate     Reason = "tenant-rate"
	ReasonTenantInFlight Reason = "tenant-in-flight"
	ReasonTenantQueue    Reason = "tenant-queue"
	ReasonTenants        Reason = "tenant-count" // more tenants in use than can be remembered
	ReasonRate           Reason = "global-rate"
	ReasonInFlight       Reason = "global-in-flight"
	ReasonQueue          Reason = "global-queue"
	ReasonWait           Reason = "wait"     // would wait longer than MaxWaitMS
	ReasonDeadline       Reason = "deadline" // would not be done by its deadline
)

// Reasons are all of them, for metrics that show zeros.
var Reasons = [...]Reason{
	ReasonCapability, ReasonCapabilities, ReasonTenantRate, ReasonTenantInFlight, ReasonTenantQueue, ReasonTenants,
	ReasonRate, ReasonInFlight, ReasonQueue, ReasonWait, ReasonDeadline,
}

// Scope is whose limit a refusal was about.
type Scope string

// The scopes.
const (
	ScopeCapability Scope = "capability"
	ScopeTenant     Scope = "tenant"
	ScopeGlobal     Scope = "global"
)

// Scope returns whose limit it is.
func (r Reason) Scope() Scope {
	switch {
	case strings.HasPrefix(string(r), "capability-"):
		return ScopeCapability
	case strings.HasPrefix(string(r), "tenant-") && r != ReasonTenants:
		return ScopeTenant
	}
	return ScopeGlobal
}

// Rejected is the refusal of an operation.
type Rejected struct {
	Reason Reason
	Scope  Scope
	// RetryAfter is when it may be worth trying again; 0 is no advice. For a
	// rate of the caller's own it is exact. Else it is in whole seconds, so that
	// it tells little about what other tenants do.
	RetryAfter time.Duration
}

// maxRetryAfter bounds the advice: a tiny rate in deep debt would say years.
const maxRetryAfter = time.Hour

func newRejected(reason Reason, wait time.Duration) *Rejected {
	wait = min(wait, maxRetryAfter)
	switch reason {
	case ReasonCapability, ReasonTenantRate:
	default:
		wait = max(time.Second, (wait+time.Second-1)/time.Second*time.Second)
	}
	return &Rejected{Reason: reason, Scope: reason.Scope(), RetryAfter: wait}
}

// Error names the limit.
func (r *Rejected) Error() string { return "admit: refused: " + string(r.Reason) }
