package admit

import (
	"fmt"
	"maps"
	"math"
	"slices"
)

// Bounds of the limits.
const (
	MaxRate   = 1e9     // units per second
	MaxUnits  = 1 << 30 // units of a burst
	MaxPlaces = 1 << 20 // in flight, or queued
	MaxWeight = 100
)

// Quota is what one tenant may do.
type Quota struct {
	// Rate is how many units per second, above 0, up to MaxRate.
	Rate float64 `json:"rate,omitzero"`
	// Burst is how many units at once, 1 to MaxUnits.
	Burst int `json:"burst,omitzero"`
	// InFlight is how many operations from being admitted to being answered, 1
	// to MaxPlaces.
	InFlight int `json:"in_flight,omitzero"`
	// Queue is how many of them may wait for a worker, in each lane, 1 to
	// MaxPlaces.
	Queue int `json:"queue,omitzero"`
	// Weight is its part of the workers and of the global rate, beside that of
	// the others, 1 to MaxWeight.
	Weight int `json:"weight,omitzero"`
}

// Global is what all tenants together may do.
type Global struct {
	Rate     float64 `json:"rate,omitzero"`      // as Quota.Rate, in the long run
	Burst    int     `json:"burst,omitzero"`     // as Quota.Burst
	InFlight int     `json:"in_flight,omitzero"` // as Quota.InFlight; one tenant alone gets half
	Queue    int     `json:"queue,omitzero"`     // as Quota.Queue; one tenant alone gets half
	// MaxWaitMS is how long an operation may have to wait for a worker, in
	// milliseconds, 1 to 60000. What is estimated to wait longer is refused.
	MaxWaitMS int `json:"max_wait_ms,omitzero"`
}

// Limits are all limits. All of Default and Global must be set; start from
// [DefaultLimits]. In Tenants, 0 stands for what Default says.
type Limits struct {
	Default Quota            `json:"default"`
	Tenants map[string]Quota `json:"tenants,omitempty"`
	Global  Global           `json:"global"`
}

// DefaultLimits lets one tenant use about one and a half of the cores that the
// figures of docs/performance.md were measured on, and bounds the rest such that
// nothing waits for long.
func DefaultLimits() Limits {
	return Limits{
		Default: Quota{Rate: 50_000, Burst: 100_000, InFlight: 256, Queue: 128, Weight: 1},
		Global:  Global{Rate: 1_000_000, Burst: 1_000_000, InFlight: 1024, Queue: 512, MaxWaitMS: 2000},
	}
}

// Validate says what is not valid, and for whom.
func (l *Limits) Validate() error {
	if err := l.Default.validate(); err != nil {
		return fmt.Errorf("admit: default: %w", err)
	}
	g := l.Global
	if err := (Quota{g.Rate, g.Burst, g.InFlight, g.Queue, 1}).validate(); err != nil {
		return fmt.Errorf("admit: global: %w", err)
	}
	if g.MaxWaitMS < 1 || g.MaxWaitMS > 60_000 {
		return fmt.Errorf("admit: global: max_wait_ms is %d: want 1 to 60000", g.MaxWaitMS)
	}
	for _, name := range slices.Sorted(maps.Keys(l.Tenants)) {
		if name == "" {
			return fmt.Errorf("admit: tenants: a name is empty")
		}
		if err := l.quota(name).validate(); err != nil {
			return fmt.Errorf("admit: tenant %q: %w", name, err)
		}
	}
	return nil
}

func (q Quota) validate() error {
	if !(q.Rate > 0 && q.Rate <= MaxRate) || math.IsNaN(q.Rate) {
		return fmt.Errorf("rate is %g: want more than 0, up to %g units per second", q.Rate, float64(MaxRate))
	}
	for _, f := range []struct {
		name      string
		got, most int
	}{
		{"burst", q.Burst, MaxUnits}, {"in_flight", q.InFlight, MaxPlaces},
		{"queue", q.Queue, MaxPlaces}, {"weight", q.Weight, MaxWeight},
	} {
		if f.got < 1 || f.got > f.most {
			return fmt.Errorf("%s is %d: want 1 to %d", f.name, f.got, f.most)
		}
	}
	return nil
}

// quota is what holds for a tenant.
func (l *Limits) quota(name string) Quota {
	q, own := l.Default, l.Tenants[name]
	override(&q.Rate, own.Rate)
	override(&q.Burst, own.Burst)
	override(&q.InFlight, own.InFlight)
	override(&q.Queue, own.Queue)
	override(&q.Weight, own.Weight)
	return q
}

func override[T comparable](p *T, own T) {
	var zero T
	if own != zero {
		*p = own
	}
}

// clone makes the caller's later changes of the map harmless.
func (l Limits) clone() Limits {
	l.Tenants = maps.Clone(l.Tenants)
	return l
}
