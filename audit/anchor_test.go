package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rustyonions/ron-kms/audit/fsys/fsystest"
)

var anchorModes = []AnchorMode{AnchorCheckpoint, AnchorAsync, AnchorStrict}

// withAnchor returns o with an anchor on the given disk. A log closes its anchors, so each opening needs its own.
func withAnchor(o Options, d *fsystest.Disk, mode AnchorMode) Options {
	o.Anchors = []AnchorOption{{Anchor: newDirAnchor("dir:/anchor", d, o.MACKey), Mode: mode}}
	return o
}

// newAnchored creates and opens a log with an anchor.
func newAnchored(tb testing.TB, o Options, mode AnchorMode) (d, anchor *fsystest.Disk, l *Log) {
	tb.Helper()
	d, l = newSimLog(tb, o)
	mustClose(tb, l)
	for name := range d.Files { // a new one: what was opened before is not
		delete(d.Files, name)
	}
	p, err := o.withDefaults(true)
	if err == nil {
		err = createIn(d, p)
	}
	if err != nil {
		tb.Fatal(err)
	}
	anchor = fsystest.New()
	return d, anchor, openSim(tb, d, withAnchor(o, anchor, mode))
}

// Each way to put the log or its anchor back, alone or both, has the stated outcome. That both together are not noticed is the limit of
// one machine; a witness is for that..
func TestRollbackMatrix(t *testing.T) {
	t.Parallel()
	for _, mode := range anchorModes {
		for _, crashed := range []bool{false, true} {
			t.Run(fmt.Sprint(mode, " crashed ", crashed), func(t *testing.T) {
				t.Parallel()
				o := testOptions(t)
				d, anchor, l := newAnchored(t, o, mode)
				// age returns a state of both: of a log that was closed, or that was killed.
				age := func() (*fsystest.Disk, *fsystest.Disk) {
					grow(t, l, 5)
					if err := l.checkpointNow(false); err != nil {
						t.Fatal(err)
					}
					grow(t, l, 2)
					both := fsystest.Crash(nil, false, d, anchor)
					mustClose(t, l)
					if !crashed {
						both = fsystest.Crash(nil, false, d, anchor)
					}
					l = openSim(t, d, withAnchor(o, anchor, mode))
					return both[0], both[1]
				}
				log1, anchor1 := age()
				age()
				log2, anchor2 := age()
				mustClose(t, l)
				// Another history of the same log, of the same length.
				forked := log1.Killed()
				l = openSim(t, forked, withAnchor(o, anchor1.Killed(), mode))
				for l.Size() < 200 {
					grow(t, l, 1)
				}
				mustClose(t, l)
				other, otherAnchor, l := newAnchored(t, o, mode)
				grow(t, l, 90)
				mustClose(t, l)
				_ = other
				flipped := anchor2.Killed()
				for i := range flipped.Files[anchorFile].Data {
					flipped.Files[anchorFile].Data[i] ^= byte(i % 3) // both slots
				}
				shorter := anchor2.Killed()
				shorter.Files[anchorFile].Data = shorter.Files[anchorFile].Data[:700]

				for _, tt := range []struct {
					name        string
					log, anchor *fsystest.Disk
					want        Verdict
				}{
					{"both as they are", log2, anchor2, ""},
					{"both put back", log1, anchor1, ""},
					{"log put back", log1, anchor2, VerdictStale},
					{"anchor put back", log2, anchor1, VerdictAnchor},
					{"another history", forked, anchor2, VerdictForked},
					{"anchor of another log", log2, otherAnchor, VerdictAnchor},
					{"anchor emptied", log2, fsystest.New(), VerdictAnchor},
					{"anchor damaged", log2, flipped, "error"},
					{"anchor cut short", log2, shorter, "error"},
				} {
					c, a := tt.log.Killed(), tt.anchor.Killed()
					before, beforeAnchor := c.Killed(), a.Killed()
					l, err := tryOpenSim(c, withAnchor(o, a, mode))
					if err == nil {
						l.Close()
					}
					switch tt.want {
					case "":
						if err != nil {
							t.Errorf("%s: %v", tt.name, err)
						}
						continue
					case "error":
						if err == nil || verdict(err) != "" {
							t.Errorf("%s: %v", tt.name, err)
						}
					default:
						if verdict(err) != tt.want {
							t.Errorf("%s: %v, want %s", tt.name, err, tt.want)
						}
					}
					// What is refused is left as it was.
					wantSame(t, tt.name+": log", before, c)
					wantSame(t, tt.name+": anchor", beforeAnchor, a)
				}
				// An anchor that is added to a log may be empty, if that is said.
				p := withAnchor(o, fsystest.New(), mode)
				p.Anchors[0].Fresh = true
				l, err := tryOpenSim(log2.Killed(), p)
				if err != nil {
					t.Fatalf("fresh anchor: %v", err)
				}
				mustClose(t, l)
			})
		}
	}
}

// wantSame checks that no file of a disk has changed.
func wantSame(t *testing.T, what string, was, is *fsystest.Disk) {
	t.Helper()
	for name, f := range was.Files {
		if g := is.Files[name]; g == nil || !bytes.Equal(f.Data, g.Data) {
			t.Errorf("%s: %s has changed", what, name)
		}
	}
	if len(was.Files) != len(is.Files) {
		t.Errorf("%s: %d files were %d", what, len(is.Files), len(was.Files))
	}
}

// With a strict anchor no acknowledged record can be taken from the end: not one, whatever state of the log of all that there were is
// put back..
func TestStrictAnchorLeavesNoWindow(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	d, anchor, l := newAnchored(t, o, AnchorStrict)
	var older []*fsystest.Disk
	for range 40 {
		older = append(older, d.Killed())
		grow(t, l, 1)
	}
	both := fsystest.Crash(nil, false, d, anchor)
	mustClose(t, l)
	for i, c := range older {
		if _, err := tryOpenSim(c, withAnchor(o, both[1].Killed(), AnchorStrict)); verdict(err) != VerdictStale {
			t.Fatalf("state %d: %v", i, err)
		}
	}
	wantAnchored(t, "the last state", both, o, AnchorStrict, l.Size()-4)
}

// wantAnchored is wantWhole with an anchor on both[1].
func wantAnchored(t *testing.T, what string, both []*fsystest.Disk, o Options, mode AnchorMode, least uint64) bool {
	t.Helper()
	o = withAnchor(o, both[1], mode)
	l, err := tryOpenSim(both[0], o)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return false
	}
	if l.Found() < least {
		t.Errorf("%s: %d records, %d acknowledged", what, l.Found(), least)
	}
	mustAppend(t, l, operation("k", 1))
	mustClose(t, l)
	l, err = tryOpenSim(both[0], withAnchor(o, both[1], mode))
	if err != nil {
		t.Errorf("%s: once more: %v", what, err)
		return false
	}
	mustClose(t, l)
	return true
}

// Kills and power cuts that hit the disk of the log and that of the anchor at one instant, under load, at opening and at closing: no false
// alarm, no acknowledged record lost. An anchor is never ahead of what survives of the log, because the log is synced before..
func TestAnchorCrashes(t *testing.T) {
	t.Parallel()
	most, seeds := 60/min(flipStep, 3), 1
	if soaking() {
		most, seeds = 100, 20
	}
	for _, mode := range anchorModes {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			for seed := range seeds {
				rng := rand.New(rand.NewPCG(uint64(seed), 5))
				o := tinyRing(t)
				o.CheckpointRecords = 20
				d, anchor, l := newAnchored(t, o, mode)
				type image struct {
					disks []*fsystest.Disk
					acked uint64
				}
				var images []image
				var a acked
				var one sync.Mutex
				var enough, always atomic.Bool
				snap := func(self *fsystest.Disk) {
					if !one.TryLock() {
						return
					}
					defer one.Unlock()
					if len(images) >= most && !always.Load() {
						enough.Store(true)
					} else if always.Load() || rng.IntN(8) == 0 {
						n := a.Load() // before: what is acknowledged later need not be there
						self.Mu.Unlock()
						images = append(images, image{fsystest.Crash(rng, rng.IntN(3) > 0, d, anchor), n})
						self.Mu.Lock()
					}
				}
				for _, disk := range []*fsystest.Disk{d, anchor} {
					disk.Mu.Lock()
					disk.Fail = func(_, _ string, n int) (int, error) { snap(disk); return n, nil }
					disk.Mu.Unlock()
				}
				var wg sync.WaitGroup
				for w := range 3 {
					wg.Go(func() {
						for i := 0; !enough.Load(); i++ {
							got, err := l.Append(context.Background(), bulky(fmt.Sprint("k", w), i*37%1500))
							if err != nil {
								t.Error(err)
								return
							}
							a.note(got)
						}
					})
				}
				wg.Wait()
				always.Store(true)
				mustClose(t, l)
				l = openSim(t, d, withAnchor(o, anchor, mode))
				mustClose(t, l)
				for i, img := range images {
					if !wantAnchored(t, fmt.Sprintf("seed %d image %d of %d", seed, i, len(images)), img.disks, o, mode, img.acked) {
						return
					}
				}
			}
		})
	}
}

// An anchor that cannot be written stops the log, at the latest with the next checkpoint, and the next opening is without alarm. R-016.
func TestAnchorFails(t *testing.T) {
	t.Parallel()
	for _, mode := range anchorModes {
		for _, op := range []string{"write", "sync"} {
			t.Run(fmt.Sprint(mode, " ", op), func(t *testing.T) {
				t.Parallel()
				o := testOptions(t)
				o.CheckpointRecords = 10
				d, anchor, l := newAnchored(t, o, mode)
				grow(t, l, 2)
				anchor.Mu.Lock()
				anchor.Fail = func(was, _ string, n int) (int, error) {
					if was == op {
						return n / 2, syscall.EIO
					}
					return n, nil
				}
				anchor.Mu.Unlock()
				var err error
				var a acked
				for i := 0; err == nil; i++ {
					if i == 20 {
						<-l.failed // with the checkpoint that is due
					}
					var got []Receipt
					if got, err = l.Append(context.Background(), operation("k", i)); err == nil {
						a.note(got)
					}
				}
				if !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), "dir:/anchor") {
					t.Errorf("append: %v", err)
				}
				state, readErr := newDirAnchor("", anchor, o.MACKey).Read(context.Background())
				if readErr != nil || mode == AnchorStrict && state.Size < l.Size() {
					t.Errorf("the anchor has %d records of %d: %v", state.Size, l.Size(), readErr)
				}
				l.Close()
				if _, err := tryOpenSim(d.Killed(), withAnchor(o, anchor, mode)); !errors.Is(err, syscall.EIO) || verdict(err) != "" {
					t.Errorf("open while the anchor fails: %v", err)
				}
				anchor.Mu.Lock()
				anchor.Fail = nil
				anchor.Mu.Unlock()
				rng := rand.New(rand.NewPCG(1, 1))
				for _, power := range []bool{false, true} {
					wantAnchored(t, fmt.Sprint("power cut ", power), fsystest.Crash(rng, power, d, anchor), o, mode, a.Load())
				}
			})
		}
	}
}

// An anchor that fails while the log is closed does not make the next opening cry wolf.
func TestAnchorFailsAtClose(t *testing.T) {
	t.Parallel()
	for _, mode := range anchorModes {
		o := testOptions(t)
		d, anchor, l := newAnchored(t, o, mode)
		grow(t, l, 3)
		left := 2 // the last checkpoint, and that it was closed
		if mode == AnchorStrict {
			left += 1 // and the record of it
		}
		anchor.Mu.Lock()
		anchor.Fail = func(op, _ string, n int) (int, error) {
			if op == "write" {
				if left--; left <= 0 {
					return 0, syscall.EIO
				}
			}
			return n, nil
		}
		anchor.Mu.Unlock()
		if err := l.Close(); !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: close: %v", mode, err)
		}
		anchor.Fail = nil
		wantAnchored(t, string(mode), fsystest.Crash(nil, false, d, anchor), o, mode, l.Size())
	}
}

// An asynchronous anchor follows the commits by itself.
func TestAsyncAnchorFollows(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	d, anchor, l := newAnchored(t, o, AnchorAsync)
	old := d.Killed()
	grow(t, l, 20)
	for deadline := time.Now().Add(time.Minute); l.AnchorLag()["dir:/anchor"] > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the anchor does not follow")
		}
	}
	if _, err := tryOpenSim(old, withAnchor(o, anchor.Killed(), AnchorAsync)); verdict(err) != VerdictStale {
		t.Errorf("put back without a checkpoint in between: %v", err)
	}
	mustClose(t, l)
}

// An anchor of the checkpoint before the latest is too old once a record names the latest: the anchor was written before that record.
func TestAnchorBehindANamedCheckpoint(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	d, anchor, l := newAnchored(t, o, AnchorCheckpoint)
	checkpoint := func() {
		grow(t, l, 2)
		if err := l.checkpointNow(false); err != nil {
			t.Fatal(err)
		}
	}
	checkpoint()
	old := anchor.Killed()
	checkpoint()
	unnamed := d.Killed()
	grow(t, l, 1)
	named := d.Killed()
	mustClose(t, l)
	wantAnchored(t, "not named yet", []*fsystest.Disk{unnamed, old.Killed()}, o, AnchorCheckpoint, 1)
	if _, err := tryOpenSim(named, withAnchor(o, old, AnchorCheckpoint)); verdict(err) != VerdictAnchor {
		t.Errorf("named: %v", err)
	}
}
