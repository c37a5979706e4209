package audit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rustyonions/ron-kms/audit/fsys"
	"github.com/rustyonions/ron-kms/audit/fsys/fsystest"
)

// soaking asks for the long form of a test.
func soaking() bool { return os.Getenv("RONKMS_SOAK") == "1" }

// tinyRing are options under which segments are recycled and checkpoints made all the time.
func tinyRing(tb testing.TB) Options {
	o := testOptions(tb)
	o.RingSegments, o.CheckpointRecords = minSegments, 60
	return o
}

// bulky is an operation of about n bytes.
func bulky(key string, n int) *Record {
	r := operation(key, n)
	r.Detail = make([]byte, n)
	return r
}

// acked is how many records were acknowledged, by the receipt with the highest index.
type acked struct{ atomic.Uint64 }

func (a *acked) note(rs []Receipt) {
	for _, r := range rs {
		for {
			have := a.Load()
			if have > r.Index || a.CompareAndSwap(have, r.Index+1) {
				break
			}
		}
	}
}

// work appends operations, intents and answers until the log refuses or enough records are acknowledged, and returns the error.
func (a *acked) work(l *Log, rng *rand.Rand, enough uint64) error {
	for a.Load() < enough {
		key := fmt.Sprint("k", rng.IntN(40))
		intent := &Record{Kind: KindIntent, Op: "rotate", Key: key, Detail: make([]byte, rng.IntN(300))}
		got, err := l.Append(context.Background(), bulky(key, rng.IntN(1200)), intent)
		if err != nil {
			return err
		}
		a.note(got)
		if rng.IntN(4) == 0 {
			continue // never answered
		}
		answer := operation(key, 1)
		answer.Ref = got[1].Index + 1
		if got, err = l.Append(context.Background(), answer); err != nil {
			return err
		}
		a.note(got)
	}
	return nil
}

// wantWhole opens c and checks that it has at least the given records, that what it knows of keys and intents is what the records
// say, that it takes records again, and that a whole verification finds nothing.
func wantWhole(tb testing.TB, what string, c *fsystest.Disk, o Options, least uint64) bool {
	tb.Helper()
	l, err := tryOpenSim(c, o)
	if err != nil {
		tb.Errorf("%s: open: %v", what, err)
		return false
	}
	if l.Found() < least {
		tb.Errorf("%s: %d records, %d acknowledged", what, l.Found(), least)
	}
	wantState(tb, what, l)
	if _, err := l.Append(context.Background(), operation("k0", 1)); err != nil {
		tb.Errorf("%s: append: %v", what, err)
	}
	if err := l.Close(); err != nil {
		tb.Errorf("%s: close: %v", what, err)
	}
	rep, err := verifySim(c, o.Keys, true)
	if err != nil || !rep.Clean {
		tb.Errorf("%s: verify after recovery: %v", what, err)
		return false
	}
	return true
}

// wantState compares what l knows of keys and intents with what all its records say.
func wantState(tb testing.TB, what string, l *Log) {
	tb.Helper()
	type state struct{ seq, last, effect uint64 }
	keys, pending := make(map[string]state), make(map[uint64]bool)
	if err := l.Read(context.Background(), 0, func(i uint64, r *Record) error {
		if r.sequenced() {
			k := keys[r.Key]
			k.seq, k.last = k.seq+1, i+1
			if r.effective() {
				k.effect = max(k.effect, r.Ref)
			}
			keys[r.Key] = k
		}
		switch {
		case r.Kind == KindIntent:
			pending[i] = true
		case r.Kind == KindOperation && r.Ref > 0:
			delete(pending, r.Ref-1)
		}
		return nil
	}); err != nil {
		tb.Errorf("%s: read: %v", what, err)
		return
	}
	for name, want := range keys {
		if seq, last, effect := l.Key(name); (state{seq, last, effect}) != want {
			tb.Errorf("%s: key %s is %d/%d/%d, by the records %v", what, name, seq, last, effect, want)
		}
	}
	l.mu.Lock()
	n := l.keys.Len()
	l.mu.Unlock()
	if n != len(keys) {
		tb.Errorf("%s: %d keys, by the records %d", what, n, len(keys))
	}
	got := l.Pending()
	for i := range got {
		if !pending[i] {
			tb.Errorf("%s: intent %d is pending, by the records it is not", what, i)
		}
	}
	if len(got) != len(pending) {
		tb.Errorf("%s: %d intents are pending, by the records %d", what, len(got), len(pending))
	}
}

// Whatever operation on whatever file fails, once or for good: no acknowledged record is lost, after a kill, a power cut, or on the same
// machine, whose cache holds what never reached the disk; the next opening raises no alarm; and an error other than a full disk
// stops the log..
func TestFaultAnywhere(t *testing.T) {
	t.Parallel()
	all := []string{segmentPrefix, "level-", "data-", snapshotFile, checkpointPrefix, checkpointFile + fsys.TmpSuffix, headFile}
	places := []struct {
		op    string
		files []string
	}{
		{"write", all}, {"sync", all}, {"open", []string{segmentPrefix, "level-", "data-", snapshotFile, checkpointPrefix}},
		{"rename", []string{segmentPrefix, snapshotFile, checkpointFile + fsys.TmpSuffix}},
		{"remove", []string{segmentPrefix, checkpointPrefix}}, {"syncdir", []string{""}},
	}
	faults := []error{syscall.EIO, syscall.ENOSPC, syscall.EROFS, nil} // nil: a short write
	rounds := 1
	if soaking() {
		rounds = 40
	}
	hit := make(map[string]*atomic.Int32)
	for _, p := range places {
		hit[p.op] = new(atomic.Int32)
	}
	t.Run("all", func(t *testing.T) {
		for i, p := range places {
			for j, file := range p.files {
				for k, fault := range faults {
					// The race detector has seen enough after a part of them.
					if fault == nil && p.op != "write" || flipStep > 1 && i < 2 && (j+k)%3 > 0 {
						continue
					}
					t.Run(fmt.Sprint(p.op, " ", file, " ", fault), func(t *testing.T) {
						t.Parallel()
						for round := range rounds {
							rng := rand.New(rand.NewPCG(uint64(round), uint64(i*100+j*10+k)))
							if faultOnce(t, rng, p.op, file, fault) {
								hit[p.op].Add(1)
							}
						}
					})
				}
			}
		}
	})
	for op, n := range hit {
		if n.Load() == 0 {
			t.Errorf("no %s ever failed: the test has lost its point", op)
		}
	}
}

// faultOnce lets one operation fail, and reports whether that came about.
func faultOnce(t *testing.T, rng *rand.Rand, op, file string, fault error) bool {
	o := tinyRing(t)
	o.CheckpointRecords = 10
	d, l := newSimLog(t, o)
	l.disk.ckptsMax = 800 // no checkpoint is being made
	var failed atomic.Bool
	left, part := 1+rng.IntN(4), rng.IntN(4)
	if op == "sync" || op == "write" {
		left += rng.IntN(25)
	}
	d.Mu.Lock()
	d.Fail = func(was, name string, n int) (int, error) {
		if was != op || !strings.HasPrefix(name, file) || failed.Load() {
			return n, nil
		}
		if left--; left > 0 {
			return n, nil
		}
		failed.Store(true)
		return n * part / 4, fault
	}
	d.Mu.Unlock()
	var a acked
	err := a.work(l, rng, uint64(700/min(flipStep, 2)))
	if err != nil && !errors.Is(err, ErrFailed) && !errors.Is(err, ErrFull) {
		t.Errorf("append: %v", err)
	}
	closeErr := l.Close()
	if failed.Load() && !isFull(fault) && closeErr == nil {
		t.Error("the log passed over the failure")
	}
	d.Mu.Lock()
	d.Fail = nil
	d.Mu.Unlock()
	for i, c := range []*fsystest.Disk{d.PowerCut(rng), d.Inherited()} {
		if !wantWhole(t, fmt.Sprintf("image %d", i), c, o, a.Load()) {
			return true
		}
	}
	// The same machine goes on, and then loses its power.
	l, err = tryOpenSim(d, o)
	if err != nil {
		t.Errorf("reopen: %v", err)
		return true
	}
	if err := a.work(l, rng, a.Load()+30); err != nil {
		t.Errorf("after reopening: %v", err)
	}
	cut := d.PowerCut(rng)
	wantWhole(t, "power cut after reopening", cut, o, a.Load())
	if err := l.Close(); err != nil {
		t.Errorf("close after reopening: %v", err)
	}
	return failed.Load()
}

// A process that dies between write and sync leaves records that the next one finds, and anchors; then the power goes. What was anchored
// is durable.
func TestInheritedFrameIsHardened(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	d, l := newSimLog(t, o)
	grow(t, l, 3)
	if err := l.checkpointNow(false); err != nil {
		t.Fatal(err)
	}
	var left *fsystest.Disk
	d.Mu.Lock()
	d.Fail = func(op, name string, n int) (int, error) {
		if left == nil && op == "sync" && strings.HasPrefix(name, segmentPrefix) {
			d.Mu.Unlock()
			left = d.Inherited()
			d.Mu.Lock()
		}
		return n, nil
	}
	d.Mu.Unlock()
	mustAppend(t, l, bulky("k", 3000))
	size := l.Size()
	d.Fail = nil
	mustClose(t, l)

	anchor := fsystest.New()
	o.Anchors = []AnchorOption{{Anchor: newDirAnchor("dir:a", anchor, testMAC), Mode: AnchorStrict, Fresh: true}}
	var cut []*fsystest.Disk
	rng := rand.New(rand.NewPCG(1, 2))
	// The power goes as soon as the anchor is written.
	anchor.Fail = func(op, name string, n int) (int, error) {
		if op == "syncdir" && cut == nil {
			anchor.Mu.Unlock()
			cut = fsystest.Crash(rng, true, left, anchor)
			anchor.Mu.Lock()
		}
		return n, nil
	}
	l = openSim(t, left, o)
	if l.Found() != size {
		t.Fatalf("%d records, want %d: the test has lost its point", l.Found(), size)
	}
	mustClose(t, l)
	o.Anchors = []AnchorOption{{Anchor: newDirAnchor("dir:a", cut[1], testMAC), Mode: AnchorStrict}}
	wantWhole(t, "after the power cut", cut[0], o, size)
}

// A small ring, a slow and then full disk, answers and offers without bound, and Close at any moment: nothing hangs. R-274, D-8.
func TestNoDeadlock(t *testing.T) {
	t.Parallel()
	rounds := 6
	if soaking() {
		rounds = 300
	}
	for round := range rounds {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(uint64(round), 77))
			o := tinyRing(t)
			o.CheckpointInterval, o.Heartbeat, o.ScrubInterval = time.Millisecond, 2*time.Millisecond, time.Millisecond
			d, l := newSimLog(t, o)
			var full atomic.Bool
			d.Mu.Lock()
			d.Fail = func(op, name string, n int) (int, error) {
				if full.Load() && op == "write" && name != headFile && (!strings.HasPrefix(name, segmentPrefix) || strings.HasSuffix(name, fsys.TmpSuffix)) {
					return 0, syscall.ENOSPC
				}
				if strings.HasPrefix(name, "data-") || op == "rename" { // the packer is slower than the writers
					d.Mu.Unlock()
					time.Sleep(200 * time.Microsecond)
					d.Mu.Lock()
				}
				return n, nil
			}
			d.Mu.Unlock()
			var a acked
			var wg sync.WaitGroup
			for w := range 4 {
				wg.Go(func() {
					for i := 0; ; i++ {
						r := bulky(fmt.Sprint("k", w), 12000)
						if w%2 == 0 {
							r.Ref = 1 // may use the reserve
						}
						got, err := l.Append(context.Background(), r)
						if err == nil {
							a.note(got)
							l.Offer(bulky(fmt.Sprint("o", w), 9000))
						} else if !errors.Is(err, ErrFull) {
							return
						}
					}
				})
			}
			time.Sleep(time.Duration(rng.IntN(60)) * time.Millisecond)
			full.Store(round%2 == 1)
			time.Sleep(time.Duration(rng.IntN(60)) * time.Millisecond)
			done := make(chan error, 1)
			go func() {
				err := l.Close()
				wg.Wait()
				done <- err
			}()
			select {
			case err := <-done:
				if err != nil && !full.Load() {
					t.Errorf("close: %v", err)
				}
			case <-time.After(time.Minute):
				panic("the log hangs")
			}
			full.Store(false)
			d.Mu.Lock()
			d.Fail = nil
			d.Mu.Unlock()
			wantWhole(t, "after all", d, tinyRing(t), a.Load())
		})
	}
}

// A log whose ring is at its end and whose disk is full says so when it is opened, and opens when there is place.
func TestOpenWhenFull(t *testing.T) {
	t.Parallel()
	o := tinyRing(t)
	d, l := newSimLog(t, o)
	full := true
	d.Mu.Lock()
	d.Fail = func(op, name string, n int) (int, error) {
		if full && op == "write" && name != headFile && (!strings.HasPrefix(name, segmentPrefix) || strings.HasSuffix(name, fsys.TmpSuffix)) {
			return 0, syscall.ENOSPC
		}
		return n, nil
	}
	d.Mu.Unlock()
	var a acked
	var at Receipt
	for {
		got, err := l.Append(context.Background(), &Record{Kind: KindIntent, Key: "k"})
		if err != nil {
			break
		}
		at = got[0]
		a.note(got)
	}
	// Answers take what is kept free, to the last byte, and then the log stops rather than wait for ever.
	var err error
	for err == nil {
		r := bulky("k", 20000)
		r.Ref = at.Index + 1
		var got []Receipt
		if got, err = l.Append(context.Background(), r); err == nil {
			a.note(got)
		}
	}
	if !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("at the end: %v", err)
	}
	l.Close()
	opened := make(chan error, 1)
	go func() {
		l, err := tryOpenSim(d, o)
		if err == nil {
			err = l.Close()
		}
		opened <- err
	}()
	select {
	case err := <-opened:
		if err == nil || verdict(err) != "" || !isFull(err) {
			t.Errorf("open with a full disk: %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("opening hangs")
	}
	d.Mu.Lock()
	full = false
	d.Mu.Unlock()
	wantWhole(t, "with place", d, o, a.Load())
}

// Offered records do not take the place that is kept for the answers to what was begun: when there is no other, they are counted as lost. D-8.
func TestOffersLeaveTheReserve(t *testing.T) {
	t.Parallel()
	o := tinyRing(t)
	d, l := newSimLog(t, o)
	full := true
	d.Mu.Lock()
	d.Fail = func(op, name string, n int) (int, error) {
		if full && op == "write" && name != headFile && (!strings.HasPrefix(name, segmentPrefix) || strings.HasSuffix(name, fsys.TmpSuffix)) {
			return 0, syscall.ENOSPC
		}
		return n, nil
	}
	d.Mu.Unlock()
	intent := mustAppend(t, l, &Record{Kind: KindIntent, Key: "k"})[0]
	for err := error(nil); err == nil; {
		if _, err = l.Append(context.Background(), bulky("k", 5000)); err != nil && !errors.Is(err, ErrFull) {
			t.Fatal(err)
		}
	}
	const n = 60
	for range n {
		l.Offer(bulky("k", 9000))
	}
	until(t, "the offers are lost", func() bool { return l.Lost() == n })
	answer := operation("k", 1)
	answer.Ref = intent.Index + 1
	mustAppend(t, l, answer)
	d.Mu.Lock()
	full = false
	d.Mu.Unlock()
	until(t, "the place is found", func() bool { return l.Full() == nil })
	mustClose(t, l)
	if rep, err := verifySim(d, o.Keys, true); err != nil || rep.Gaps != n {
		t.Errorf("%d records in gaps: %v", rep.Gaps, err)
	}
}
