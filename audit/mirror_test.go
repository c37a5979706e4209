package audit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/rustyonions/ron-kms/audit/fsys/fsystest"
)

// mirroredLog creates and opens a log with a mirror on another disk.
func mirroredLog(tb testing.TB, o Options) (d, m *fsystest.Disk, l *Log) {
	tb.Helper()
	d, m = fsystest.New(), fsystest.New()
	o2, err := o.withDefaults(true)
	if err != nil {
		tb.Fatal(err)
	}
	if err := createIn(d, o2); err != nil {
		tb.Fatal(err)
	}
	l, err = openMirrored(d, m, o, true)
	if err != nil {
		tb.Fatal(err)
	}
	return d, m, l
}

func openMirrored(d, m *fsystest.Disk, o Options, fresh bool) (*Log, error) {
	o.Anchors = []AnchorOption{{Anchor: newDirAnchor("dir:mirror", m, o.MACKey), Mode: AnchorMirror, Fresh: fresh}}
	return tryOpenSim(d, o)
}

// A disk that lost acknowledged records, although it said that it had them, gets them back from the mirror, on record. The same log without
// its mirror is refused..
func TestMirrorHeals(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	for _, tt := range []struct {
		name   string
		frames int // cut from the end
		torn   bool
	}{{"one frame", 1, false}, {"several", 7, false}, {"over segments", 200, false}, {"half a frame", 2, true}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d, m, l := mirroredLog(t, o)
			grow(t, l, 300)
			acked := l.Size()
			d, m = d.Killed(), m.Killed()
			l.Close()
			ps := framesOf(t, d)
			for i, p := range ps[len(ps)-tt.frames:] {
				wipe(d, p)
				if tt.torn && i == 0 {
					copy(d.Files[p.seg].Data[p.off:], "RKAF and no more")
				}
			}
			if _, err := tryOpenSim(d.Killed(), o); verdict(err) == "" {
				t.Errorf("without its mirror: %v", err)
			}
			l, err := openMirrored(d, m, o, false)
			if err != nil {
				t.Fatal(err)
			}
			if l.Found() < acked {
				t.Errorf("%d records of %d", l.Found(), acked)
			}
			healed := 0
			for _, r := range recoveries(t, l) {
				if r.Op == "mirror" && r.Count > 0 {
					healed++
				}
			}
			if healed != 1 {
				t.Errorf("healed %d times on record", healed)
			}
			mustAppend(t, l, operation("k0", 1))
			mustClose(t, l)
			if rep, err := verifySim(d, o.Keys, true); err != nil || !rep.Clean {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

// A log that was put back with its snapshot, or changed, is refused beside its mirror: a mirror only continues what ends where it begins.
//
func TestMirrorDoesNotExcuse(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	d, m, l := mirroredLog(t, o)
	grow(t, l, 20)
	mustClose(t, l)
	old := d.Killed()
	l, err := openMirrored(d, m, o, false)
	if err != nil {
		t.Fatal(err)
	}
	grow(t, l, 20)
	mustClose(t, l)
	if l, err = openMirrored(old.Killed(), m.Killed(), o, false); verdict(err) == "" {
		// Its own end is where frames of the mirror go on: what was put back is healed, to the last acknowledged record.
		if err != nil || l.Found() < 40 {
			t.Errorf("put back: %v", err)
		}
		l.Close()
	}
	empty := fsystest.New()
	if _, err := openMirrored(d.Killed(), empty, o, false); verdict(err) != VerdictAnchor {
		t.Errorf("an emptied mirror: %v", err)
	}
	changed := d.Killed()
	for name, f := range changed.Files {
		if strings.HasPrefix(name, "data-") {
			f.Data[len(f.Data)-20] ^= 1
		}
	}
	if _, err := openMirrored(changed, m.Killed(), o, false); verdict(err) == "" {
		t.Errorf("a packed record changed: %v", err)
	}
	behind := m.Killed()
	for name := range behind.Files {
		if strings.HasPrefix(name, mirrorPrefix) {
			delete(behind.Files, name)
		}
	}
	delete(behind.Files, anchorFile)
	if _, err := openMirrored(d.Killed(), behind, o, false); verdict(err) != VerdictAnchor {
		t.Errorf("a mirror without its files: %v", err)
	}
}

// Whatever a power cut leaves of both disks, nothing acknowledged is lost and nothing is refused..
func TestMirrorCrashes(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	o.CheckpointRecords = 30
	for seed := range uint64(20 / min(flipStep, 4)) {
		rng := rand.New(rand.NewPCG(seed, 1))
		d, m, l := mirroredLog(t, o)
		for i := range 40 {
			mustAppend(t, l, operation(fmt.Sprint("k", i%3), i))
		}
		acked := l.Size()
		for _, c := range [][2]*fsystest.Disk{{d.Killed(), m.Killed()}, {d.PowerCut(rng), m.PowerCut(rng)}, {d.PowerCut(rng), m.Killed()}} {
			l, err := openMirrored(c[0], c[1], o, false)
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if l.Found() < acked {
				t.Errorf("seed %d: %d records of %d", seed, l.Found(), acked)
			}
			mustAppend(t, l, operation("k0", 1))
			mustClose(t, l)
		}
		mustClose(t, l)
	}
}

// A mirror that cannot be written stops the log before anything is acknowledged, and files whose frames are packed go. R-016.
func TestMirrorFails(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	d, m, l := mirroredLog(t, o)
	grow(t, l, 600)
	if err := l.keep(); err != nil {
		t.Fatal(err)
	}
	if err := l.snapshot(); err != nil {
		t.Fatal(err)
	}
	if err := l.keep(); err != nil {
		t.Fatal(err)
	}
	names, _ := m.List()
	files := 0
	for _, name := range names {
		if strings.HasPrefix(name, mirrorPrefix) {
			files++
		}
	}
	if files > 2 {
		t.Errorf("%d files, all but the last packed: %v", files, names)
	}
	m.Mu.Lock()
	m.Fail = func(op, name string, n int) (int, error) {
		if op == "sync" && strings.HasPrefix(name, mirrorPrefix) {
			return 0, errInjected
		}
		return n, nil
	}
	m.Mu.Unlock()
	if _, err := l.Append(context.Background(), operation("k0", 1)); !errors.Is(err, ErrFailed) || !errors.Is(err, errInjected) {
		t.Errorf("append: %v", err)
	}
	l.Close()
	m.Mu.Lock()
	m.Fail = nil
	m.Mu.Unlock()
	l, err := openMirrored(d, m, o, false)
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
}
