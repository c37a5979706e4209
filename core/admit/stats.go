package admit

import (
	"maps"
	"time"
)

// Stats is the state of a controller, for metrics.
type Stats struct {
	Tenants  int // remembered
	Rates    int // rate caveats remembered
	InFlight int
	Admitted uint64            // since New
	Rejected map[Reason]uint64 // since New
	Lanes    []LaneStats       // private, public, mutate
}

// LaneStats is the state of one lane.
type LaneStats struct {
	Lane    Lane
	Slots   int
	Busy    int
	Queued  int           // admitted and not begun
	Backlog int           // units of these
	PerUnit time.Duration // that a unit takes, smoothed
	Waits   uint64        // operations, or steps of them, that had to wait
	Waited  time.Duration // how long, in all
}

// TenantStats is the state of one tenant. It is for the operator: tenants are
// not to learn of each other.
type TenantStats struct {
	Tenant   string
	InFlight int
	Queued   int    // in all lanes
	Rejected uint64 // since it was remembered; may start again from 0
}

// Stats returns the state.
func (c *Controller) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Stats{Tenants: len(c.tenants), Rates: c.rates, InFlight: c.inFlight, Admitted: c.admitted, Rejected: maps.Clone(c.rejected)}
	for i := LaneNone + 1; i < laneCount; i++ {
		l := &c.lanes[i]
		s.Lanes = append(s.Lanes, LaneStats{
			Lane: i, Slots: l.slots, Busy: l.busy, Queued: l.pending, Backlog: l.units,
			PerUnit: time.Duration(l.perUnit), Waits: l.waits, Waited: l.waited,
		})
	}
	return s
}

// TenantStats returns the state of up to n tenants, those seen last first.
// Nothing is admitted while it looks.
func (c *Controller) TenantStats(n int) []TenantStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []TenantStats
	for e := c.order.Front(); e != nil && len(all) < n; e = e.Next() {
		t := e.Value.(*tenant)
		s := TenantStats{Tenant: t.name, InFlight: t.inFlight, Rejected: t.rejected}
		for i := range t.flows {
			s.Queued += t.flows[i].pending
		}
		all = append(all, s)
	}
	return all
}
