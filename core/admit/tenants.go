package admit

import (
	"container/list"
	"strings"
	"time"
)

// idleAfter is how long, in nanoseconds, a tenant or a rate caveat is kept that
// has nothing to remember. It only saves making it anew.
const idleAfter = int64(time.Minute)

// looks is how many may be looked at to find room for a new one.
const looks = 8

// tenant is what is known of one. Controller.order has the one used last in
// front, but for those that could not be forgotten when they were looked at in
// the back.
type tenant struct {
	name     string
	quota    Quota
	rate     bucket
	share    bucket // its part of the global rate
	inFlight int
	flows    [laneCount]flow
	rejected uint64
	seen     int64
	place    *list.Element

	rates     map[[32]byte]*rateState // nil until there is one
	rateOrder list.List               // as Controller.order
}

// rateState is the bucket of a rate caveat, in items.
type rateState struct {
	bucket
	key       [32]byte
	perSecond float64
	seen      int64
	turn      uint64 // Controller.turn when it was last asked
	place     *list.Element
}

// tenant finds or makes a tenant. It returns nil if there are as many as may be
// and those that were used longest ago are in use still.
func (c *Controller) tenant(name string, now int64) *tenant {
	t := c.tenants[name]
	if t != nil {
		t.seen = now
		c.order.MoveToFront(t.place)
	}
	// Each call looks at one that may be gone, so that those who are do not keep
	// a share of the global rate.
	if back := c.order.Back(); back != nil && now-back.Value.(*tenant).seen > idleAfter {
		c.forgetOne(1, now)
	}
	if t != nil {
		return t
	}
	if len(c.tenants) >= c.maxTenants && !c.forgetOne(looks, now) {
		return nil
	}
	// The name is copied, so that it does not hold the request that it is from.
	t = &tenant{name: strings.Clone(name), quota: c.limits.quota(name), seen: now}
	t.rateOrder.Init()
	for i := range t.flows {
		t.flows[i] = flow{tenant: t, index: -1}
	}
	t.place = c.order.PushFront(t)
	c.tenants[t.name] = t
	c.weight += t.quota.Weight
	return t
}

// forgetOne looks at up to n tenants and forgets the first one that it may.
func (c *Controller) forgetOne(n int, now int64) bool {
	for range min(n, c.order.Len()) {
		back := c.order.Back()
		t := back.Value.(*tenant)
		if !c.idle(t, now) {
			c.order.MoveToFront(back)
			continue
		}
		c.order.Remove(back)
		delete(c.tenants, t.name)
		c.weight -= t.quota.Weight
		return true
	}
	return false
}

// idle reports whether a tenant is just as a new one would be.
func (c *Controller) idle(t *tenant, now int64) bool {
	t.settle(now, &c.limits.Global, c.part(t))
	if t.inFlight > 0 || t.rate.debt > 0 || t.share.debt > 0 {
		return false
	}
	for i := range t.flows {
		if t.flows[i].tag > c.lanes[i].vtime {
			return false
		}
	}
	for range min(looks, t.rateOrder.Len()) {
		if !c.forgetRate(t, 1, now) {
			return false
		}
	}
	return len(t.rates) == 0
}

// settle refills the tenant's buckets.
func (t *tenant) settle(now int64, g *Global, part float64) {
	t.rate.settle(now, t.quota.Rate)
	t.share.settle(now, g.Rate*part)
}

// checkRate says whether a rate caveat allows some items. It remembers the
// caveat, and takes nothing.
func (c *Controller) checkRate(t *tenant, r *Rate, items int, now int64) (Reason, time.Duration) {
	if r.PerSecond <= 0 || r.Burst <= 0 {
		return ReasonCapability, 0
	}
	s := t.rates[r.Key]
	if s != nil {
		s.settle(now, s.perSecond) // what is past was at the former rate
		s.turn = c.turn
		t.rateOrder.MoveToFront(s.place)
	}
	if back := t.rateOrder.Back(); back != nil && now-back.Value.(*rateState).seen > idleAfter {
		c.forgetRate(t, 1, now)
	}
	if s == nil {
		if len(t.rates) >= c.maxRates-c.rates && !c.forgetRate(t, looks, now) {
			return ReasonCapabilities, 0
		}
		if t.rates == nil {
			t.rates = make(map[[32]byte]*rateState)
		}
		s = &rateState{key: r.Key}
		s.place = t.rateOrder.PushFront(s)
		t.rates[r.Key] = s
		c.rates++
	}
	s.seen, s.turn, s.perSecond = now, c.turn, float64(r.PerSecond)
	if wait := s.wait(now, s.perSecond, float64(r.Burst), float64(items)); wait > 0 {
		return ReasonCapability, wait
	}
	return "", 0
}

// forgetRate looks at up to n rate caveats of a tenant and forgets the first whose
// bucket is full and that the present request does not have.
func (c *Controller) forgetRate(t *tenant, n int, now int64) bool {
	for range min(n, t.rateOrder.Len()) {
		back := t.rateOrder.Back()
		s := back.Value.(*rateState)
		if s.turn == c.turn || !s.full(now, s.perSecond) {
			t.rateOrder.MoveToFront(back)
			continue
		}
		t.rateOrder.Remove(back)
		delete(t.rates, s.key)
		c.rates--
		return true
	}
	return false
}
