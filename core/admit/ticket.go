package admit

import (
	"context"
	"errors"
	"time"
)

// ErrTicket is for a ticket that is used out of order: begun twice, or yielded
// without having begun.
var ErrTicket = errors.New("admit: ticket is used out of order")

type state uint8

const (
	reserved state = iota
	waiting
	working
	ended
	released
)

// A Ticket is an operation that was admitted. It belongs to one goroutine. A nil
// ticket may be ended and released.
type Ticket struct {
	c    *Controller
	flow *flow
	lane Lane
	step int // units of one item

	// Guarded by Controller.mu.
	left       int // units not begun
	state      state
	began      int64
	ready      chan struct{} // of one place; a value is the right to a slot
	prev, next *Ticket       // in the flow, while waiting
}

// Begin waits for a worker and returns how long that took. It fails if the
// context ends, or did before; the ticket is only to be released then.
func (t *Ticket) Begin(ctx context.Context) (queued time.Duration, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	c := t.c
	start := c.now()
	c.mu.Lock()
	if t.state != reserved {
		c.mu.Unlock()
		return 0, ErrTicket
	}
	if t.lane == LaneNone {
		t.state = working
		c.mu.Unlock()
		return 0, nil
	}
	begun := c.lanes[t.lane].enter(t, c.instant(start))
	c.mu.Unlock()
	if begun {
		return 0, nil
	}
	return t.wait(ctx, start)
}

// Yield is for operations of several items: called between two of them, it ends
// one step of Request.Cost units and begins the next. If another tenant is due,
// it gives the worker up and waits for the next one. It fails as Begin does.
func (t *Ticket) Yield(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c := t.c
	start := c.now()
	c.mu.Lock()
	if t.state != working {
		c.mu.Unlock()
		return ErrTicket
	}
	on := t.lane == LaneNone || c.lanes[t.lane].yield(t, c.instant(start))
	c.mu.Unlock()
	if on {
		return nil
	}
	_, err := t.wait(ctx, start)
	return err
}

func (t *Ticket) wait(ctx context.Context, start time.Time) (time.Duration, error) {
	var err error
	select {
	case <-t.ready:
	case <-ctx.Done():
		err = ctx.Err()
	}
	c := t.c
	now := c.now()
	took := now.Sub(start)
	c.mu.Lock()
	defer c.mu.Unlock()
	l := &c.lanes[t.lane]
	l.waits++
	l.waited += took
	switch {
	case err == nil:
		t.began = c.instant(now) // waking up is not part of the work
	case t.state == waiting:
		l.cancel(t)
	default: // the slot was given while the context ended
		t.began = c.instant(now) // no work to measure
		l.end(t, c.instant(now))
	}
	return took, err
}

// End gives the worker back, before the operation's record is written. It does
// nothing if there is none.
func (t *Ticket) End() {
	if t == nil {
		return
	}
	now := t.c.now()
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	t.end(t.c.instant(now))
}

func (t *Ticket) end(now int64) {
	if t.state != working {
		return
	}
	if t.lane == LaneNone {
		t.state = ended
		return
	}
	t.c.lanes[t.lane].end(t, now)
}

// Release gives back everything that the ticket still has. It may be called
// again.
func (t *Ticket) Release() {
	if t == nil {
		return
	}
	now := t.c.now()
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	if t.state == released {
		return
	}
	t.end(t.c.instant(now))
	if t.state == reserved && t.lane != LaneNone {
		t.c.lanes[t.lane].cancel(t)
	}
	t.state = released
	t.flow.tenant.inFlight--
	t.c.inFlight--
}
