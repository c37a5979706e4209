package trustedtime_test

import (
	"errors"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rustyonions/ron-kms/core/trustedtime"
	"pgregory.net/rapid"
)

// hand is a clock set by hand. It has no monotonic reading.
type hand struct {
	mu sync.Mutex
	t  time.Time
}

func at(ms int64) *hand { return &hand{t: time.UnixMilli(ms)} }

func (h *hand) Now() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.t
}

func (h *hand) set(t time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.t = t
}

const now = int64(1_800_000_000_000)

func ptr(ms int64) *int64 { return &ms }

// exact at both ends and in both directions; a millisecond
// beyond the tolerance fails and says on which side.
func TestCheckBoundaries(t *testing.T) {
	t.Parallel()
	early, late := trustedtime.ErrSkew{Direction: trustedtime.Early}, trustedtime.ErrSkew{Direction: trustedtime.Late}
	for _, c := range []struct {
		name   string
		nb, na *int64
		tol    time.Duration
		want   error
	}{
		{"no window", nil, nil, 0, nil},
		{"inside", ptr(now - 1), ptr(now + 1), 0, nil},
		{"only now", ptr(now), ptr(now), 0, nil},

		{"not_before is now, no tolerance", ptr(now), nil, 0, nil},
		{"not_before a ms ahead, no tolerance", ptr(now + 1), nil, 0, early},
		{"not_before at the tolerance", ptr(now + 2000), nil, 2 * time.Second, nil},
		{"not_before a ms beyond", ptr(now + 2001), nil, 2 * time.Second, early},
		{"not_before long ago", ptr(math.MinInt64), nil, 0, nil},
		{"not_before long ago, tolerance", ptr(math.MinInt64), nil, time.Second, nil},
		{"not_before never", ptr(math.MaxInt64), nil, math.MaxInt64, early},

		{"not_after is now, no tolerance", nil, ptr(now), 0, nil},
		{"not_after a ms ago, no tolerance", nil, ptr(now - 1), 0, late},
		{"not_after at the tolerance", nil, ptr(now - 2000), 2 * time.Second, nil},
		{"not_after a ms beyond", nil, ptr(now - 2001), 2 * time.Second, late},
		{"not_after far ahead", nil, ptr(math.MaxInt64), 0, nil},
		{"not_after far ahead, tolerance", nil, ptr(math.MaxInt64), time.Second, nil},
		{"not_after before all", nil, ptr(math.MinInt64), math.MaxInt64, late},

		{"both at the tolerance, early", ptr(now + 5), ptr(now + 9), 5 * time.Millisecond, nil},
		{"both beyond, early", ptr(now + 6), ptr(now + 9), 5 * time.Millisecond, early},
		{"both at the tolerance, late", ptr(now - 9), ptr(now - 5), 5 * time.Millisecond, nil},
		{"both beyond, late", ptr(now - 9), ptr(now - 6), 5 * time.Millisecond, late},

		{"parts of a ms do not count", ptr(now + 2), nil, 2*time.Millisecond - 1, early},
		{"tolerance below zero is zero", ptr(now), ptr(now), -time.Hour, nil},
		{"tolerance below zero is zero, early", ptr(now + 1), nil, -time.Hour, early},
		{"tolerance below zero is zero, late", nil, ptr(now - 1), -time.Hour, late},
	} {
		// The clock is somewhere within its millisecond; that must not matter.
		for _, ns := range []time.Duration{0, 1, time.Millisecond - 1} {
			s := trustedtime.New(trustedtime.Options{Clock: &hand{t: time.UnixMilli(now).Add(ns)}})
			if err := s.Check(c.nb, c.na, c.tol); err != c.want {
				t.Errorf("%s, %d ns into the ms: %v, want %v", c.name, ns, err, c.want)
			}
		}
	}
}

// a clock that is off by no more than the tolerance accepts what a right
// one accepts; and what is accepted, some clock that near accepts.
func TestCheckProperty(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		tol := rapid.Int64Range(0, 20).Draw(rt, "tolerance")
		nb := now + rapid.Int64Range(-50, 50).Draw(rt, "not_before")
		na := nb + rapid.Int64Range(0, 30).Draw(rt, "length")
		s := trustedtime.New(trustedtime.Options{Clock: at(now)})
		err := s.Check(&nb, &na, time.Duration(tol)*time.Millisecond)
		want := false
		for true_ := now - tol; true_ <= now+tol; true_++ {
			want = want || nb <= true_ && true_ <= na
		}
		if (err == nil) != want {
			rt.Fatalf("[%d, %d] ± %d: %v", nb-now, na-now, tol, err)
		}
		var skew trustedtime.ErrSkew
		if err != nil && (!errors.As(err, &skew) || (skew.Direction == trustedtime.Early) != (nb > now)) {
			rt.Fatalf("[%d, %d] ± %d: wrong side: %v", nb-now, na-now, tol, err)
		}
	})
}

// with the system's clock a window opens and closes at its
// millisecond, as time passes.
func TestCheckAsTimePasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const tol = 2 * time.Second
		s := trustedtime.New(trustedtime.Options{})
		start := time.Now().UnixMilli()
		nb, na := start+5000, start+6000
		for _, c := range []struct {
			at   int64 // ms after start
			want error
		}{
			{0, trustedtime.ErrSkew{Direction: trustedtime.Early}},
			{2999, trustedtime.ErrSkew{Direction: trustedtime.Early}},
			{3000, nil},
			{5500, nil},
			{8000, nil},
			{8001, trustedtime.ErrSkew{Direction: trustedtime.Late}},
		} {
			time.Sleep(time.Until(time.UnixMilli(start + c.at)))
			if err := s.Check(&nb, &na, tol); err != c.want {
				t.Errorf("after %d ms: %v, want %v", c.at, err, c.want)
			}
		}
	})
}

func TestErrSkew(t *testing.T) {
	t.Parallel()
	var early, late error = trustedtime.ErrSkew{Direction: trustedtime.Early}, trustedtime.ErrSkew{Direction: trustedtime.Late}
	if errors.Is(early, late) || early.Error() == late.Error() {
		t.Errorf("%v and %v are the same", early, late)
	}
	if e, l := trustedtime.Early.String(), trustedtime.Late.String(); e != "early" || l != "late" {
		t.Errorf("%s, %s", e, l)
	}
}

// D-20, R-091: a clock behind a time that has passed by no more than the
// tolerance is fine; a millisecond more is not.
func TestFloorBoundaries(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		floor int64
		tol   time.Duration
		ok    bool
	}{
		{"long ago", 0, 0, true},
		{"now", now, 0, true},
		{"a ms ahead", now + 1, 0, false},
		{"at the tolerance", now + 2000, 2 * time.Second, true},
		{"a ms beyond", now + 2001, 2 * time.Second, false},
		{"tolerance below zero is zero", now + 1, -time.Hour, false},
		{"far ahead", math.MaxInt64 / 2, time.Hour, false},
	} {
		s := trustedtime.New(trustedtime.Options{Clock: at(now)})
		err := s.Floor(time.UnixMilli(c.floor), c.tol)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, trustedtime.ErrBehind) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// D-20: the floor stays where it was put: an earlier time does not lower it, and
// a clock that is set back is found out, also without a new time.
func TestFloorIsKept(t *testing.T) {
	t.Parallel()
	clock := at(now)
	s := trustedtime.New(trustedtime.Options{Clock: clock})
	if err := s.Floor(time.Time{}, 0); err != nil {
		t.Errorf("no floor yet: %v", err)
	}
	if err := s.Floor(time.UnixMilli(now), 0); err != nil {
		t.Error(err)
	}
	clock.set(time.UnixMilli(now - 1001))
	for _, floor := range []time.Time{{}, time.UnixMilli(now - 5000)} {
		if err := s.Floor(floor, time.Second); !errors.Is(err, trustedtime.ErrBehind) {
			t.Errorf("set back: %v", err)
		}
	}
	clock.set(time.UnixMilli(now - 1000))
	if err := s.Floor(time.Time{}, time.Second); err != nil {
		t.Errorf("caught up: %v", err)
	}
}

// stuck is a clock that always says now.
type stuck struct{}

func (stuck) Now() time.Time { return time.UnixMilli(now) }

// Whatever the order in which the floors arrive, the highest one holds.
func TestFloorConcurrent(t *testing.T) {
	t.Parallel()
	const workers = 4
	for range 20 {
		s := trustedtime.New(trustedtime.Options{Clock: stuck{}})
		var wg sync.WaitGroup
		for w := range int64(workers) {
			wg.Go(func() {
				for i := range int64(50) {
					s.Floor(time.UnixMilli(now+i*workers+w), time.Hour)
				}
			})
		}
		wg.Wait()
		const highest = 50*workers - 1
		if err := s.Floor(time.Time{}, highest*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		if err := s.Floor(time.Time{}, (highest-1)*time.Millisecond); !errors.Is(err, trustedtime.ErrBehind) {
			t.Fatalf("the highest floor is not kept: %v", err)
		}
	}
}

// the sequence goes up by every call, also while the wall clock stands
// still or is set back.
func TestSequenceNeverGoesBack(t *testing.T) {
	t.Parallel()
	clock := at(now)
	s := trustedtime.New(trustedtime.Options{Clock: clock})
	rapid.Check(t, func(rt *rapid.T) {
		last := s.Sequence()
		for _, step := range rapid.SliceOfN(rapid.Int64Range(-1e12, 1e12), 1, 20).Draw(rt, "steps") {
			clock.set(clock.Now().Add(time.Duration(step)))
			next := s.Sequence()
			if next <= last {
				rt.Fatalf("%d after %d", next, last)
			}
			last = next
		}
	})
}

// with the system's clock, numbers are as far apart as the moments.
func TestSequenceKeepsDistance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := trustedtime.New(trustedtime.Options{})
		time.Sleep(time.Second)
		a := s.Sequence()
		time.Sleep(3 * time.Second)
		b := s.Sequence()
		if a != int64(time.Second) || b != int64(4*time.Second) {
			t.Errorf("%d and %d", a, b)
		}
		if c := s.Sequence(); c != b+1 {
			t.Errorf("%d follows %d at the same moment", c, b)
		}
	})
}

// no two callers get the same number, even from a clock that stands still.
func TestSequenceConcurrent(t *testing.T) {
	t.Parallel()
	const workers, each = 4, 1000
	s := trustedtime.New(trustedtime.Options{Clock: stuck{}})
	var wg sync.WaitGroup
	got := make([][]int64, workers)
	for w := range workers {
		wg.Go(func() {
			for range each {
				got[w] = append(got[w], s.Sequence())
			}
		})
	}
	wg.Wait()
	seen := map[int64]bool{}
	for _, list := range got {
		for i, n := range list {
			if i > 0 && n <= list[i-1] {
				t.Fatalf("%d after %d", n, list[i-1])
			}
			seen[n] = true
		}
	}
	if len(seen) != workers*each {
		t.Errorf("%d different numbers of %d", len(seen), workers*each)
	}
}

// between is a clock that lets something happen just before it is read.
type between struct {
	clock trustedtime.Clock
	do    func()
}

func (b *between) Now() time.Time {
	if do := b.do; do != nil {
		b.do = nil
		do()
	}
	return b.clock.Now()
}

// a caller that is overtaken in the middle of its call still gets a number
// of its own.
func TestSequenceOvertaken(t *testing.T) {
	t.Parallel()
	clock := &between{clock: stuck{}}
	s := trustedtime.New(trustedtime.Options{Clock: clock})
	var inner int64
	clock.do = func() { inner = s.Sequence() }
	if outer := s.Sequence(); inner != 1 || outer != 2 {
		t.Errorf("%d, overtaken by %d", outer, inner)
	}
}

// the clock is the one given, in UTC.
func TestNow(t *testing.T) {
	t.Parallel()
	s := trustedtime.New(trustedtime.Options{Clock: &hand{t: time.UnixMilli(now).In(time.FixedZone("x", 3600))}})
	if got := s.Now(); got.UnixMilli() != now || got.Location() != time.UTC {
		t.Errorf("%v", got)
	}
}

// the status is passed on with the moment it was asked at; who cannot be
// asked counts as not synchronised, whatever else it said.
func TestStatus(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	for _, c := range []struct {
		ok   bool
		ms   int64
		err  error
		want trustedtime.Status
	}{
		{true, 3, nil, trustedtime.Status{Synchronized: true, MaxErrorMS: 3}},
		{false, 16_000, nil, trustedtime.Status{MaxErrorMS: 16_000}},
		{true, 3, boom, trustedtime.Status{}},
	} {
		s := trustedtime.New(trustedtime.Options{
			Clock: at(now),
			Sync:  func() (bool, int64, error) { return c.ok, c.ms, c.err },
		})
		c.want.Checked = time.UnixMilli(now).UTC()
		if got, err := s.Status(); got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%+v, %v, want %+v, %v", got, err, c.want, c.err)
		}
	}
	// The machine's own word: whatever it is, it is well-formed.
	if st, err := trustedtime.New(trustedtime.Options{}).Status(); st.Checked.IsZero() || err != nil && st.Synchronized {
		t.Errorf("%+v, %v", st, err)
	}
}
