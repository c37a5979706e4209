package admit

import (
	"container/heap"
	"fmt"
	"slices"
	"time"
)

// quantum is how long a unit takes in a simulation.
const quantum = 100 * time.Microsecond

// A sim drives a controller by a virtual clock, with no goroutines: every run of
// the same operations is the same.
type sim struct {
	*clock
	c       *Controller
	waiting map[string][]*simOp // by tenant, in the order of arrival
	working simOps
	done    []*simOp
	// begins is called for each operation that gets a slot.
	begins func(*simOp)
}

// simOp is an operation.
type simOp struct {
	tenant  string
	cost    int
	arrived time.Time
	began   time.Time
	ends    time.Time
	ticket  *Ticket
}

func (o *simOp) wait() time.Duration    { return o.began.Sub(o.arrived) }
func (o *simOp) latency() time.Duration { return o.ends.Sub(o.arrived) }

func newSim(l Limits, slots int) (*sim, error) {
	s := &sim{clock: newClock(), waiting: make(map[string][]*simOp)}
	var err error
	s.c, err = New(l, Options{Slots: slots, Now: s.now})
	if err != nil {
		return nil, err
	}
	s.c.lanes[LanePrivate].perUnit = float64(quantum) // as if measured before
	return s, nil
}

// arrive asks for an operation now, and reports whether it was admitted.
func (s *sim) arrive(tenant string, cost int) (*simOp, error) {
	ticket, err := s.c.Admit(background, Request{Tenant: tenant, Cost: cost, Items: 1, Lane: LanePrivate})
	if err != nil {
		return nil, err
	}
	op := &simOp{tenant: tenant, cost: cost, arrived: s.t, ticket: ticket}
	if ticket.enter() {
		s.begin(op)
	} else {
		s.waiting[tenant] = append(s.waiting[tenant], op)
	}
	return op, nil
}

func (s *sim) begin(op *simOp) {
	op.began = s.t
	op.ends = s.t.Add(time.Duration(op.cost) * quantum)
	heap.Push(&s.working, op)
	if s.begins != nil {
		s.begins(op)
	}
}

// until lets time pass, and what is at work end.
func (s *sim) until(t time.Time) {
	for len(s.working) > 0 && !s.working[0].ends.After(t) {
		op := heap.Pop(&s.working).(*simOp)
		s.t = op.ends
		op.ticket.End()
		op.ticket.Release()
		s.done = append(s.done, op)
		for tenant, ops := range s.waiting {
			// Within a tenant the first come is the first served.
			if len(ops) > 0 && ops[0].ticket.begun() {
				s.waiting[tenant] = ops[1:]
				s.begin(ops[0])
				break // one ended, one begins
			}
		}
	}
	s.t = t
}

// drain lets all end.
func (s *sim) drain() error {
	for len(s.working) > 0 {
		s.until(s.working[0].ends)
	}
	for tenant, ops := range s.waiting {
		if len(ops) > 0 {
			return fmt.Errorf("%d operations of %s never began", len(ops), tenant)
		}
	}
	return empty(s.c)
}

// p95 is a quantile of what of gives for a tenant's operations that are done.
func (s *sim) p95(tenant string, of func(*simOp) time.Duration) time.Duration {
	var all []time.Duration
	for _, op := range s.done {
		if op.tenant == tenant {
			all = append(all, of(op))
		}
	}
	slices.Sort(all)
	return all[len(all)*95/100]
}

// simOps is a heap by the time of ending.
type simOps []*simOp

func (h simOps) Len() int           { return len(h) }
func (h simOps) Less(i, j int) bool { return h[i].ends.Before(h[j].ends) }
func (h simOps) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *simOps) Push(x any)        { *h = append(*h, x.(*simOp)) }
func (h *simOps) Pop() any {
	last := len(*h) - 1
	op := (*h)[last]
	*h = (*h)[:last]
	return op
}
