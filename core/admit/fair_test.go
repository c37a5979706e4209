package admit

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Whatever arrives and when: while two tenants wait, what they are given differs
// from their weights by no more than one operation of each. (The theorem of
// start-time fair queueing, of work begun.)
//
func TestSharesFollowWeights(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		names := []string{"a", "b", "c", "d", "e"}[:rapid.IntRange(2, 5).Draw(t, "tenants")]
		limits := roomy()
		limits.Tenants = make(map[string]Quota)
		for _, n := range names {
			limits.Tenants[n] = Quota{Weight: rapid.IntRange(1, 20).Draw(t, "weight of "+n)}
		}
		s, err := newSim(limits, rapid.IntRange(1, 4).Draw(t, "slots"))
		if err != nil {
			t.Fatal(err)
		}
		const dearest = 12
		// given is work by weight; low and high are the least and the greatest
		// difference of two tenants since both have been waiting.
		given := make(map[string]float64)
		type pair struct{ a, b string }
		type span struct{ low, high float64 }
		spans := make(map[pair]span)
		look := func() { // after each arrival and each begin
			for i, a := range names {
				for _, b := range names[i+1:] {
					p := pair{a, b}
					both := len(s.waiting[a]) > 0 && len(s.waiting[b]) > 0
					d := given[a] - given[b]
					sp, ok := spans[p]
					if !ok && !both {
						continue
					}
					if !ok {
						sp = span{d, d}
					}
					sp = span{min(sp.low, d), max(sp.high, d)}
					w := func(n string) float64 { return float64(limits.Tenants[n].Weight) }
					// Tags are whole numbers: a trifle is lost with each operation.
					if bound := dearest/w(a) + dearest/w(b) + 0.1; sp.high-sp.low > bound {
						t.Fatalf("%s and %s are apart by %.2f, more than %.2f", a, b, sp.high-sp.low, bound)
					}
					spans[p] = sp
					if !both { // what just began was the last of one of them
						delete(spans, p)
					}
				}
			}
		}
		s.begins = func(op *simOp) {
			given[op.tenant] += float64(op.cost) / float64(limits.Tenants[op.tenant].Weight)
			look()
		}
		for range rapid.IntRange(1, 40).Draw(t, "bursts") {
			name := rapid.SampledFrom(names).Draw(t, "tenant")
			for range rapid.IntRange(1, 15).Draw(t, "burst") {
				if _, err := s.arrive(name, rapid.IntRange(1, dearest).Draw(t, "cost")); err != nil {
					t.Fatal(err)
				}
				look()
			}
			s.until(s.t.Add(time.Duration(rapid.IntRange(0, 200).Draw(t, "pause")) * quantum))
			if err := sound(s.c); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.drain(); err != nil {
			t.Fatal(err)
		}
	})
}

// Nobody starves: who comes with nothing waiting and no more used than its share
// begins after at most one operation of each other tenant that waits, however
// many operations these have queued.
//
func TestNewcomerWaitsForOneOfEach(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		limits := roomy()
		limits.Default.Weight = rapid.IntRange(1, 3).Draw(t, "weight")
		s, err := newSim(limits, rapid.IntRange(1, 3).Draw(t, "slots"))
		if err != nil {
			t.Fatal(err)
		}
		others := rapid.IntRange(1, 8).Draw(t, "others")
		for i := range others {
			for range rapid.IntRange(5, 40).Draw(t, "queued") {
				if _, err := s.arrive(fmt.Sprint("busy", i), rapid.IntRange(1, 9).Draw(t, "cost")); err != nil {
					t.Fatal(err)
				}
			}
		}
		s.until(s.t.Add(time.Duration(rapid.IntRange(0, 60).Draw(t, "pause")) * quantum))
		active := 0
		for _, ops := range s.waiting {
			if len(ops) > 0 {
				active++
			}
		}
		began, there := map[string]int{}, false
		s.begins = func(op *simOp) {
			there = there || op.tenant == "newcomer"
			if !there {
				began[op.tenant]++
			}
		}
		op, err := s.arrive("newcomer", 1)
		if err != nil {
			t.Fatal(err)
		}
		for !op.ticket.begun() {
			s.until(s.working[0].ends)
		}
		total := 0
		for name, n := range began {
			total += n
			if n > 1 {
				t.Fatalf("%d operations of %s began before the newcomer's", n, name)
			}
		}
		if total > active {
			t.Fatalf("%d operations began before the newcomer's, with %d tenants waiting", total, active)
		}
		s.begins = nil
		if err := s.drain(); err != nil {
			t.Fatal(err)
		}
	})
}

// load lets tenants ask at random, each with a mean number of units per second
// that is a part of what the slots can do, for a while.
func load(s *sim, slots int, parts map[string]float64, cost func() int, mean float64, lasting time.Duration, seed uint64) (offered, refused map[string]int) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	offered, refused = map[string]int{}, map[string]int{}
	capacity := float64(slots) / quantum.Seconds() / mean // operations per second
	names := sortedKeys(parts)
	next := make([]time.Time, len(names))
	gap := func(i int) time.Duration {
		return time.Duration(rnd.ExpFloat64() / (capacity * parts[names[i]]) * 1e9)
	}
	for i := range names {
		next[i] = s.t.Add(gap(i))
	}
	end := s.t.Add(lasting)
	for {
		first := 0
		for i := range names {
			if next[i].Before(next[first]) {
				first = i
			}
		}
		if next[first].After(end) {
			s.until(end)
			return offered, refused
		}
		s.until(next[first])
		offered[names[first]]++
		if _, err := s.arrive(names[first], cost()); err != nil {
			refused[names[first]]++
		}
		next[first] = s.t.Add(gap(first))
	}
}

// A tenant at ten times its normal load hardly moves another's p95: counted in
// quanta of service, not in time.
//
func TestTenTimesTheLoad(t *testing.T) {
	t.Parallel()
	limits := roomy()
	limits.Default.Queue, limits.Global.Queue, limits.Global.MaxWaitMS = 128, 512, 100
	// Two slots, four tenants with an eighth of the capacity each: half of it is
	// used. Then one of them asks for ten times as much: 160 % in all.
	const slots, part = 2, 0.125
	for _, c := range []struct {
		name string
		cost func(*rand.Rand) int
		mean float64
	}{
		{"all ML-DSA", func(*rand.Rand) int { return 5 }, 5},
		{"Ed25519, ML-DSA and hybrid", func(r *rand.Rand) int { return []int{1, 5, 6}[r.IntN(3)] }, 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			run := func(parts map[string]float64) (*sim, map[string]int) {
				s, err := newSim(limits, slots)
				if err != nil {
					t.Fatal(err)
				}
				rnd := rand.New(rand.NewPCG(7, 7))
				_, refused := load(s, slots, parts, func() int { return c.cost(rnd) }, c.mean, 5*time.Second, 3)
				if err := s.drain(); err != nil {
					t.Fatal(err)
				}
				return s, refused
			}
			parts := map[string]float64{"noisy": part, "b": part, "c": part, "d": part}
			calm, _ := run(parts)
			parts["noisy"] *= 10
			loud, refused := run(parts)
			if refused["noisy"] == 0 {
				t.Error("the flood was not refused: this is no overload")
			}
			for _, tenant := range []string{"b", "c", "d"} {
				before, after := calm.p95(tenant, (*simOp).latency), loud.p95(tenant, (*simOp).latency)
				ratio := float64(after) / float64(before)
				t.Logf("%s: p95 %.1f quanta, with the flood %.1f: %.2f times; p95 of the wait %.1f and %.1f", tenant,
					float64(before)/float64(quantum), float64(after)/float64(quantum), ratio,
					float64(calm.p95(tenant, (*simOp).wait))/float64(quantum), float64(loud.p95(tenant, (*simOp).wait))/float64(quantum))
				if ratio > 2 {
					t.Errorf("%s: p95 is %.2f times what it was", tenant, ratio)
				}
				if refused[tenant] > 0 {
					t.Errorf("%s: %d were refused", tenant, refused[tenant])
				}
			}
		})
	}
}

// Under ten times the load that the workers can do, they do nine tenths of their
// best in time, nothing waits for longer than it may, and what is queued is
// bounded.
//
func TestGoodputUnderOverload(t *testing.T) {
	t.Parallel()
	limits := roomy()
	limits.Default.Queue, limits.Global.Queue, limits.Global.MaxWaitMS = 64, 200, 20
	const slots = 4
	parts := map[string]float64{}
	for i := range 20 {
		parts[fmt.Sprint("t", i)] = 0.5
	}
	s, err := newSim(limits, slots)
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(11, 11))
	const lasting = time.Second
	offered, refused := load(s, slots, parts, func() int { return []int{1, 5, 6}[rnd.IntN(3)] }, 4, lasting, 5)
	inTime, units, asked, no := 0, 0, 0, 0
	longest := time.Duration(0)
	for _, op := range s.done {
		longest = max(longest, op.wait())
		if op.wait() <= 25*time.Millisecond {
			inTime++
			units += op.cost
		}
	}
	for tenant := range parts {
		asked += offered[tenant]
		no += refused[tenant]
	}
	best := float64(slots) * float64(lasting/quantum)
	t.Logf("asked %d, refused %d, done %d, in time %d; goodput %.1f %% of the best; longest wait %s",
		asked, no, len(s.done), inTime, 100*float64(units)/best, longest)
	if float64(units) < 0.9*best {
		t.Errorf("goodput is %.1f %% of the best", 100*float64(units)/best)
	}
	if longest > 2*20*time.Millisecond {
		t.Errorf("an operation waited for %s", longest)
	}
	if l := s.c.Stats().Lanes[0]; l.Queued > 200+slots {
		t.Errorf("%d are queued", l.Queued)
	}
	// The excess of a flood is spread evenly as well.
	least, most := math.Inf(1), 0.0
	given := map[string]float64{}
	for _, op := range s.done {
		given[op.tenant] += float64(op.cost)
	}
	for tenant := range parts {
		least, most = min(least, given[tenant]), max(most, given[tenant])
	}
	if most > 1.1*least {
		t.Errorf("equals were given %g to %g units", least, most)
	}
	if err := s.drain(); err != nil {
		t.Fatal(err)
	}
}

// However many flood, who has nothing queued finds a place.
//
func TestFloodsLeaveAPlace(t *testing.T) {
	t.Parallel()
	limits := roomy()
	limits.Global.Queue, limits.Global.InFlight = 64, 64
	s, err := newSim(limits, 1)
	if err != nil {
		t.Fatal(err)
	}
	for range 200 {
		for i := range 10 {
			s.arrive(fmt.Sprint("flood", i), 1)
		}
	}
	if _, err := s.arrive("newcomer", 1); err != nil {
		t.Errorf("the newcomer: %v", err)
	}
	if got := s.c.Stats(); got.InFlight > 64 {
		t.Errorf("%d are in flight", got.InFlight)
	}
	if err := s.drain(); err != nil {
		t.Fatal(err)
	}
}

// Of two that have nothing queued, who comes first is first, whatever they did
// before; and being idle earns nothing.
func TestIdlenessEarnsNothing(t *testing.T) {
	t.Parallel()
	s, err := newSim(roomy(), 1)
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	for range 5 {
		s.arrive("often", 3)
	}
	s.arrive("once", 1)
	for range 100 {
		s.arrive("busy", 3)
	}
	for len(s.waiting["busy"]) > 50 {
		s.until(s.working[0].ends)
	}
	s.begins = func(op *simOp) { order = append(order, op.tenant) }
	for range 3 {
		s.arrive("often", 3)
	}
	for range 3 {
		s.arrive("once", 3)
	}
	for len(order) < 9 {
		s.until(s.working[0].ends)
	}
	for i := 0; i < 9; i += 3 {
		round := fmt.Sprint(order[i : i+3])
		if round != "[often once busy]" && round != "[busy often once]" {
			t.Fatalf("the order is %v", order)
		}
	}
	if err := s.drain(); err != nil {
		t.Fatal(err)
	}
}
