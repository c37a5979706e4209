package admit

import (
	"container/heap"
	"time"
)

const (
	// firstPerUnit is what a unit is taken to cost until it is measured, in
	// nanoseconds: an Ed25519 signature of docs/performance.md.
	firstPerUnit = 32e3
	// smoothing is the weight of a new measurement in the mean.
	smoothing = 1.0 / 16
	// tagScale is virtual time per unit at weight 1. Weights up to 100 round by
	// less than 2 %. 64 cores reach the end of int64 after some 20 years of work
	// without a pause.
	tagScale = 1 << 12
)

// A lane shares a number of slots among tenants by start-time fair queueing.
// While tickets wait, no slot is free.
type lane struct {
	slots   int
	busy    int
	waiting flows // that have a ticket waiting, smallest tag first
	vtime   int64 // tag of the operation begun last
	last    int64 // greatest tag given
	order   uint64

	pending int     // tickets reserved or waiting
	units   int     // of them, and what those at work have not begun yet
	running int     // units of the steps at work
	weight  int     // of flows that have units
	perUnit float64 // ns that a unit takes, smoothed

	waited time.Duration // in all
	waits  uint64
}

// A flow is a tenant's use of a lane.
type flow struct {
	tenant     *tenant
	tag        int64 // virtual time at which the next operation starts
	order      uint64
	head, tail *Ticket // waiting
	index      int     // in lane.waiting, -1 if it is not there
	pending    int
	units      int
	counted    int // its part of lane.weight
}

// check says whether an operation may be queued, or begin at once.
func (l *lane) check(f *flow, r *Request, q *Quota, g *Global, left time.Duration) (Reason, time.Duration) {
	free := l.slots - l.busy
	if l.pending < free {
		return "", 0
	}
	wait := l.estimate(f, r.Cost, q.Weight)
	switch room := g.Queue + free - l.pending; {
	case f.pending >= q.Queue+free:
		return ReasonTenantQueue, wait
	case f.pending >= room:
		return ReasonQueue, wait
	case wait > time.Duration(g.MaxWaitMS)*time.Millisecond:
		return ReasonWait, wait
	case wait > left-time.Duration(float64(r.Cost*r.Items)*l.perUnit):
		return ReasonDeadline, wait
	}
	return "", 0
}

// estimate is how long a new operation would wait: for what runs, and for what
// others may do until the flow has been given what it asked for before. That is
// no more than their part by weight, nor than all there is.
func (l *lane) estimate(f *flow, step, weight int) time.Duration {
	all := l.weight
	if f.counted == 0 {
		all += weight
	}
	ahead := min(float64(l.units), float64(f.units+step)*float64(all)/float64(weight))
	return time.Duration((float64(l.running) + ahead) * l.perUnit / float64(l.slots))
}

// reserve gives an admitted ticket its place.
func (l *lane) reserve(t *Ticket) {
	l.pend(t, 1)
	l.addUnits(t.flow, t.left)
}

func (l *lane) pend(t *Ticket, n int) {
	l.pending += n
	t.flow.pending += n
}

func (l *lane) addUnits(f *flow, n int) {
	l.units += n
	f.units += n
	switch {
	case f.units > 0 && f.counted == 0:
		f.counted = f.tenant.quota.Weight
		l.weight += f.counted
	case f.units == 0:
		l.weight -= f.counted
		f.counted = 0
	}
}

// enter begins a ticket if a slot is free, and queues it otherwise. One that has
// begun before stays ahead of the flow's others.
func (l *lane) enter(t *Ticket, now int64) bool {
	if l.busy < l.slots {
		l.begin(t, now)
		return true
	}
	l.queue(t, false)
	return false
}

func (l *lane) queue(t *Ticket, front bool) {
	f := t.flow
	t.state = waiting
	if t.ready == nil {
		t.ready = make(chan struct{}, 1)
	}
	f.push(t, front)
	if f.index < 0 {
		f.tag = max(f.tag, l.vtime)
		l.order++
		f.order = l.order
		heap.Push(&l.waiting, f)
	}
}

// begin gives a ticket a slot that is free.
func (l *lane) begin(t *Ticket, now int64) {
	l.pend(t, -1)
	l.busy++
	l.running += t.step
	t.state = working
	l.charge(t, now)
}

// charge moves virtual time on for one step of a ticket that has a slot.
func (l *lane) charge(t *Ticket, now int64) {
	f := t.flow
	f.tag = max(f.tag, l.vtime)
	l.vtime = f.tag
	f.tag += int64(t.step * tagScale / f.tenant.quota.Weight)
	l.last = max(l.last, f.tag)
	if f.index >= 0 {
		heap.Fix(&l.waiting, f.index)
	}
	n := min(t.step, t.left)
	t.left -= n
	l.addUnits(f, -n)
	t.began = now
}

// leave takes a ticket's slot away and gives it to the next that waits.
func (l *lane) leave(t *Ticket, now int64) {
	l.measure(t, now)
	l.busy--
	l.running -= t.step
	l.next(now)
}

// end is leave for a ticket that does not come back.
func (l *lane) end(t *Ticket, now int64) {
	l.addUnits(t.flow, -t.left)
	t.left = 0
	t.state = ended
	l.leave(t, now)
}

// next begins what waits, as long as there are slots.
func (l *lane) next(now int64) {
	for l.busy < l.slots && len(l.waiting) > 0 {
		f := l.waiting[0]
		t := f.head
		f.remove(t)
		if f.head == nil {
			heap.Pop(&l.waiting)
		}
		l.begin(t, now)
		t.ready <- struct{}{} // it has room for the one
	}
	if l.busy == 0 {
		l.vtime = l.last // nobody is ahead of anybody who comes later
	}
}

// yield ends a step and begins the next one if no other flow is due before it.
func (l *lane) yield(t *Ticket, now int64) bool {
	if len(l.waiting) == 0 || l.waiting[0].tag >= t.flow.tag {
		l.measure(t, now)
		l.charge(t, now)
		return true
	}
	l.pend(t, 1)
	l.queue(t, true)
	l.leave(t, now)
	return false
}

// cancel removes a ticket that waits or is reserved.
func (l *lane) cancel(t *Ticket) {
	if t.state == waiting {
		t.flow.remove(t)
		if t.flow.head == nil {
			heap.Remove(&l.waiting, t.flow.index)
		}
	}
	l.pend(t, -1)
	l.addUnits(t.flow, -t.left)
	t.left = 0
	t.state = ended
}

func (l *lane) measure(t *Ticket, now int64) {
	if sample := float64(now-t.began) / float64(t.step); sample > 0 {
		l.perUnit += smoothing * (sample - l.perUnit)
	}
}

// push puts a ticket to the flow's end, or its front.
func (f *flow) push(t *Ticket, front bool) {
	switch {
	case f.head == nil:
		f.head, f.tail = t, t
	case front:
		t.next, f.head.prev = f.head, t
		f.head = t
	default:
		t.prev, f.tail.next = f.tail, t
		f.tail = t
	}
}

func (f *flow) remove(t *Ticket) {
	if t.prev != nil {
		t.prev.next = t.next
	} else {
		f.head = t.next
	}
	if t.next != nil {
		t.next.prev = t.prev
	} else {
		f.tail = t.prev
	}
	t.prev, t.next = nil, nil
}

// flows is a heap of flows by tag, and by who came first.
type flows []*flow

func (h flows) Len() int { return len(h) }
func (h flows) Less(i, j int) bool {
	if h[i].tag != h[j].tag {
		return h[i].tag < h[j].tag
	}
	return h[i].order < h[j].order
}
func (h flows) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *flows) Push(x any) {
	f := x.(*flow)
	f.index = len(*h)
	*h = append(*h, f)
}
func (h *flows) Pop() any {
	last := len(*h) - 1
	f := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	f.index = -1
	return f
}
