package policy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rustyonions/ron-kms/core/api"
)

// Options are settings of an [Engine]. Zero values are the defaults.
type Options struct {
	// Static is the floor: nothing that another decision point says loosens it.
	Static Static
	// Local is a decision point that costs nothing to ask, as a [File]: it is
	// asked each time. Nil: none.
	Local Point
	// Remote is a decision point that costs something to ask, as [HTTP]: its
	// decisions are kept. Nil: none.
	Remote Point
	// Breaker guards Remote. Nil: none.
	Breaker Breaker

	Timeout    time.Duration // of one question to Remote; 0 is 500 ms
	TTL        time.Duration // of decisions of Remote that do not say theirs; 0 is 5 s
	MaxTTL     time.Duration // of those that do; 0 is 5 min
	StaleLimit time.Duration // how old the last known decision may be; 0 is 1 h
	Entries    int           // decisions kept; 0 is 4096
	InFlight   int           // questions under way at once, a quarter of them of one tenant; 0 is 64

	// TellKID and TellActor put the key and the capability into the question to
	// Remote. Without them it decides by the rest, and its decisions serve for
	// all keys and capabilities alike.
	TellKID, TellActor bool

	// Clock is the time; nil is time.Now. A clock that was set back makes kept
	// decisions expire.
	Clock func() time.Time
}

// Engine asks the decision points and says what holds. It is safe for
// concurrent use.
type Engine struct {
	static  atomic.Pointer[Static]
	o       Options
	base    context.Context // ends when the engine is closed
	cancel  context.CancelFunc
	running sync.WaitGroup // of questions

	mu         sync.Mutex // guards what follows
	closed     bool
	cache      *cache
	flights    map[Input]*flight
	generation int // of the cache: Forget begins another
	status     Status
}

// Status is the state of the remote decision point, for metrics and readiness.
type Status struct {
	Entries  int       // decisions kept
	Answered time.Time // when it last answered; zero if never
	Failed   time.Time // when it last did not; zero if never
	Err      error     // of the last question; nil if there was a decision
}

// An Answer is what holds for a question, and how current it is.
type Answer struct {
	Decision
	// Age is how long ago the remote decision point was asked; 0 if there is
	// none, or if it was asked now.
	Age time.Duration
	// Cached says that an earlier decision was used.
	Cached bool
	// Degraded says that the remote decision point did not answer: the last
	// known decision was used, or else the others alone.
	Degraded bool
}

// flight is a question under way, that several may wait for.
type flight struct {
	done     chan struct{}
	decision Decision // once done
	asked    time.Time
	err      error
}

const (
	// holdOff is how long nothing but private operations asks again for a
	// tenant, once a question went wrong.
	holdOff = time.Second
	// outage is how long after that nothing but private operations waits for
	// an answer.
	outage = 10 * holdOff
)

var (
	errClosed = errors.New("the engine is closed")
	errBusy   = errors.New("too many questions are under way")
	errOutage = errors.New("it did not answer a moment ago")
)

// NewEngine returns an engine. Close it to stop its questions.
func NewEngine(o Options) (*Engine, error) {
	if err := o.Static.Validate(); err != nil {
		return nil, err
	}
	for _, d := range []struct {
		v    *time.Duration
		none time.Duration
	}{{&o.Timeout, defaultTimeout}, {&o.TTL, 5 * time.Second}, {&o.MaxTTL, 5 * time.Minute}, {&o.StaleLimit, time.Hour}} {
		if *d.v < 0 {
			return nil, errors.New("policy: a duration is negative")
		}
		if *d.v == 0 {
			*d.v = d.none
		}
	}
	if o.Entries < 0 || o.InFlight < 0 {
		return nil, errors.New("policy: a number is negative")
	}
	if o.Entries == 0 {
		o.Entries = 4096
	}
	if o.InFlight == 0 {
		o.InFlight = 64
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	e := &Engine{o: o, cache: newCache(o.Entries), flights: make(map[Input]*flight)}
	e.static.Store(&o.Static)
	e.base, e.cancel = context.WithCancel(context.Background())
	return e, nil
}

// Static is the floor in force.
func (e *Engine) Static() Static { return *e.static.Load() }

// SetStatic changes the floor, from the next question on.
func (e *Engine) SetStatic(s Static) error {
	if err := s.Validate(); err != nil {
		return err
	}
	e.static.Store(&s)
	return nil
}

// Forget makes the remote decision point be asked anew about everything. What it
// said stays the last known.
func (e *Engine) Forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.generation++
	e.cache.expire(e.o.Clock())
}

// Status is the state of the remote decision point.
func (e *Engine) Status() Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.status
	s.Entries = e.cache.entries
	return s
}

// Close ends the questions under way and waits for them. After it, nothing is
// asked.
func (e *Engine) Close() {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.cancel()
	e.running.Wait()
}

// Decide says what holds for an operation, and for how much the answer may be
// relied on. Errors are of the table: PolicyDenied, or PolicyUnavailable if it
// could not be had and the kind does not go on without; or the context's.
func (e *Engine) Decide(ctx context.Context, in Input, kind Kind) (Answer, error) {
	if in.Tenant == "" || !slices.Contains(methods, in.Method) {
		return Answer{}, api.NewError(api.ReasonInternal, "the question for the policy is not complete")
	}
	if in.Now.IsZero() {
		in.Now = e.o.Clock() // else the grace of old versions would never end
	}
	a := Answer{Decision: e.static.Load().Decide(in.Tenant, in.Purpose, in.Now)}
	if e.o.Local != nil {
		d, err := e.o.Local.Decide(ctx, in)
		if err == nil {
			err = d.check()
		}
		switch {
		case err == nil:
			a.Decision = a.Tighten(d)
		case kind == Verify:
			a.Degraded = true
		default:
			return Answer{}, refusal(err)
		}
	}
	// What is denied already needs no second opinion.
	if e.o.Remote != nil && a.Allow {
		if err := e.askRemote(ctx, in, kind, &a); err != nil {
			return Answer{}, err
		}
	}
	if a.Version == "" {
		a.Version = "static"
	}
	if a.Allow && a.Limits.MaxBytes > 0 && in.BodyBytes > a.Limits.MaxBytes {
		a.Allow, a.Reason = false, "body too large (limits)"
	}
	if !a.Allow {
		return Answer{}, api.WrapError(api.ReasonPolicy, "policy does not allow this", fmt.Errorf("policy %s: %s", a.Version, a.Reason))
	}
	return a, nil
}

// refusal is the error of an operation that does not go on without a decision.
func refusal(err error) error {
	if errors.Is(err, ErrUndefined) {
		return api.WrapError(api.ReasonPolicy, "policy does not allow this", err)
	}
	return api.WrapError(api.ReasonPolicyDown, "there is no decision by the policy", err)
}

// askRemote tightens a by what the remote decision point says, or said.
func (e *Engine) askRemote(ctx context.Context, in Input, kind Kind, a *Answer) error {
	q := e.question(in)
	now := e.o.Clock()
	e.mu.Lock()
	known := e.cache.get(q)
	if known != nil && !now.Before(known.asked) && now.Before(known.expires) {
		a.use(known, now)
		e.mu.Unlock()
		return nil
	}
	last := (*entry)(nil)
	if kind != Private && known != nil && !now.Before(known.asked) && now.Sub(known.asked) <= e.o.StaleLimit {
		kept := *known // Forget may change it
		last = &kept
	}
	f, wait, err := e.start(q, now, kind)
	e.mu.Unlock()

	if f != nil && wait {
		select {
		case <-f.done:
			if err = f.err; err == nil {
				a.Decision = a.Tighten(f.decision)
				a.Age = max(e.o.Clock().Sub(f.asked), 0)
				return nil
			}
		case <-ctx.Done():
			return fmt.Errorf("policy: %w", ctx.Err())
		}
	}
	switch {
	case last != nil:
		a.use(last, now)
		a.Degraded = true
	case kind == Verify:
		a.Degraded = true
	default:
		return refusal(err)
	}
	return nil
}

// use tightens an answer by a decision of before.
func (a *Answer) use(e *entry, now time.Time) {
	a.Decision = a.Tighten(e.decision)
	a.Age, a.Cached = now.Sub(e.asked), true
}

// question is what the remote decision point is told, and what its decisions are
// kept by. Only the time is added, which the decision's TTL bounds. The size of
// the body is left out: Limits.MaxBytes is for that.
func (e *Engine) question(in Input) Input {
	in.BodyBytes, in.Now = 0, time.Time{}
	if !e.o.TellKID {
		in.KID = ""
	}
	if !e.o.TellActor {
		in.ActorID = ""
	}
	return in
}

// start puts a question, or joins who has. wait says whether to wait for the
// answer; without a flight, err says why there is none. The caller holds mu.
func (e *Engine) start(q Input, now time.Time, kind Kind) (f *flight, wait bool, err error) {
	t := e.cache.tenant(q.Tenant)
	wait = true
	since := now.Sub(t.failed)
	if kind != Private && !t.failed.IsZero() && since >= 0 && since < outage {
		wait = false // it would be in vain, or else the next one has it
		if since < holdOff {
			return nil, false, errOutage
		}
		t.failed = now // the one question of this interval
		if e.flights[q] != nil {
			return nil, false, errOutage
		}
	}
	if f := e.flights[q]; f != nil {
		return f, wait, nil
	}
	switch {
	case e.closed:
		return nil, false, errClosed
	case len(e.flights) >= e.o.InFlight || t.inFlight >= max(e.o.InFlight/4, 1):
		return nil, false, errBusy
	}
	f = &flight{done: make(chan struct{}), asked: now}
	e.flights[q] = f
	t.inFlight++
	e.running.Add(1)
	go e.fly(f, q, e.generation)
	return f, wait, nil
}

// fly asks the remote decision point. It does so on behalf of all who wait, so
// it does not end when one of them gives up.
func (e *Engine) fly(f *flight, q Input, generation int) {
	defer e.running.Done()
	ctx, cancel := context.WithTimeout(e.base, e.o.Timeout)
	defer cancel()
	told := q
	told.Now = f.asked
	f.decision, f.err = e.askOnce(ctx, told)

	now := e.o.Clock()
	e.mu.Lock()
	defer e.mu.Unlock()
	defer close(f.done)
	delete(e.flights, q)
	t := e.cache.tenant(q.Tenant)
	t.inFlight--
	e.status.Err = f.err
	if f.err != nil && !errors.Is(f.err, ErrUndefined) {
		t.failed, e.status.Failed = now, now
		return
	}
	t.failed, e.status.Answered = time.Time{}, now
	if f.err != nil {
		return
	}
	ttl := f.decision.TTL
	if ttl == 0 {
		ttl = e.o.TTL
	}
	known := &entry{question: q, decision: f.decision, asked: f.asked, expires: f.asked.Add(min(ttl, e.o.MaxTTL))}
	if generation != e.generation {
		known.expires = f.asked // it may be of before what Forget was called for
	}
	e.cache.put(known)
}

func (e *Engine) askOnce(ctx context.Context, in Input) (Decision, error) {
	done := func(error) {}
	if e.o.Breaker != nil {
		var err error
		if done, err = e.o.Breaker.Allow(); err != nil {
			return Decision{}, err
		}
	}
	d, err := e.o.Remote.Decide(ctx, in)
	if err == nil {
		err = d.check()
	}
	if err != nil {
		d = Decision{}
	}
	if errors.Is(err, ErrUndefined) {
		done(nil) // it is in order
	} else {
		done(err)
	}
	return d, err
}
