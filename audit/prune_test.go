package audit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rustyonions/ron-kms/audit/fsys/fsystest"
	"github.com/rustyonions/ron-kms/audit/keymap"
)

const prunePolicy = "one year, then gone"

func pruneOptions(tb testing.TB) Options {
	o := testOptions(tb)
	o.SegmentSize, o.RingSegments = 1<<19, minSegments
	return o
}

// longDisk is a log of two volumes and some records, closed; with keys whose records stand in all of them.
var longDisk = sync.OnceValue(func() *fsystest.Disk {
	tb := new(testing.B)
	d, l := newSimLog(tb, pruneOptions(tb))
	for n := 0; l.Size() < 2*VolumeRecords+1000; n++ {
		recs := make([]*Record, 4000)
		for i := range recs {
			recs[i] = &Record{Kind: KindNoise, Count: uint64(n + 1)}
		}
		recs[0], recs[2000] = operation("a", n), operation(fmt.Sprint("b", n%5), n)
		if _, err := l.Append(context.Background(), recs...); err != nil {
			panic(err)
		}
	}
	if err := l.Close(); err != nil {
		panic(err)
	}
	return d
})

func volumes(d *fsystest.Disk) (names []string) {
	d.Mu.Lock()
	defer d.Mu.Unlock()
	for name := range maps.Keys(d.Files) {
		if strings.HasPrefix(name, "data-") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func mustPrune(tb testing.TB, l *Log, before uint64) uint64 {
	tb.Helper()
	kept, err := l.Prune(context.Background(), before, prunePolicy)
	if err != nil {
		tb.Fatal(err)
	}
	return kept
}

// Whole volumes go, and a record says so. What is kept stays provable, also to who kept a checkpoint from before; the sequences of keys
// go on; Verify says what it could not check..
func TestPrune(t *testing.T) {
	t.Parallel()
	o := pruneOptions(t)
	d := longDisk().Killed()
	full, err := verifySim(d, o.Keys, true)
	if err != nil {
		t.Fatal(err)
	}
	l := openSim(t, d, o)
	old, err := parseCheckpoint(l.Checkpoint(), testOrigin)
	if err != nil {
		t.Fatal(err)
	}
	if kept := mustPrune(t, l, VolumeRecords-1); kept != 0 || len(volumes(d)) != 3 {
		t.Fatalf("kept %d, volumes %v", kept, volumes(d))
	}
	if kept := mustPrune(t, l, 2*VolumeRecords-1); kept != VolumeRecords || l.Kept() != kept || len(volumes(d)) != 2 {
		t.Fatalf("kept %d, volumes %v", kept, volumes(d))
	}
	if kept := mustPrune(t, l, VolumeRecords); kept != VolumeRecords {
		t.Fatalf("kept %d", kept)
	}
	var stated []*Record
	if err := l.Read(context.Background(), VolumeRecords, func(_ uint64, r *Record) error {
		if r.Kind == KindPrune {
			stated = append(stated, r)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(stated) != 1 || stated[0].Count != VolumeRecords || string(stated[0].Detail) != prunePolicy {
		t.Errorf("on record: %+v", stated)
	}
	for _, gone := range []uint64{0, VolumeRecords - 1} {
		if err := l.Read(context.Background(), gone, nil); !errors.Is(err, ErrNotKept) {
			t.Errorf("read %d: %v", gone, err)
		}
		if _, err := l.Prove(gone); !errors.Is(err, ErrNotKept) {
			t.Errorf("prove %d: %v", gone, err)
		}
	}
	mustAppend(t, l, operation("a", 1), operation("c", 1))
	if err := l.awaitCheckpoint(context.Background(), l.Size()); err != nil {
		t.Fatal(err)
	}
	checkProofs(t, l, old, VolumeRecords, VolumeRecords+777, l.Size()-2)
	mustClose(t, l)
	for _, mac := range []bool{true, false} {
		rep, err := verifySim(d, o.Keys, mac)
		if err != nil || rep.Pruned != VolumeRecords || !rep.Clean || rep.Kinds[KindNoise] >= full.Kinds[KindNoise] || rep.Keys != full.Keys+1 {
			t.Fatalf("mac %v: %+v, %v", mac, rep, err)
		}
	}
	// The rest goes too, all but the volume of the latest record; a key whose records all went goes on.
	l = openSim(t, d, o)
	if kept := mustPrune(t, l, l.Size()); kept != 2*VolumeRecords || len(volumes(d)) != 1 {
		t.Fatalf("kept %d, volumes %v", kept, volumes(d))
	}
	mustAppend(t, l, operation("b3", 1))
	mustClose(t, l)
	if rep, err := verifySim(d, o.Keys, false); err != nil || rep.Pruned != 2*VolumeRecords {
		t.Fatalf("%+v, %v", rep, err)
	}
}

// checkProofs checks that records are in the tree of the latest checkpoint, and that this continues an old one, by x/mod.
func checkProofs(t *testing.T, l *Log, old *checkpoint, indexes ...uint64) {
	t.Helper()
	consistent, raw, err := l.ProveConsistency(old.size)
	if err != nil {
		t.Fatal(err)
	}
	c, err := parseCheckpoint(raw, testOrigin)
	if err != nil {
		t.Fatal(err)
	}
	if err := tlog.CheckTree(consistent, int64(c.size), c.root, int64(old.size), old.root); err != nil {
		t.Errorf("consistency: %v", err)
	}
	for _, i := range indexes {
		p, err := l.Prove(i)
		if err != nil {
			t.Errorf("prove %d: %v", i, err)
			continue
		}
		if err := tlog.CheckRecord(p.Hashes, int64(c.size), c.root, int64(i), tlog.RecordHash(p.Record)); err != nil {
			t.Errorf("record %d: %v", i, err)
		}
	}
}

// What goes is refused where something still needs it, or where nobody could tell why it went.
func TestPruneRefused(t *testing.T) {
	t.Parallel()
	o := pruneOptions(t)
	d := longDisk().Killed()
	l := openSim(t, d, o)
	ctx := context.Background()
	for name, policy := range map[string]string{"empty": "", "long": strings.Repeat("x", 1025), "control": "a\nb", "not text": "\xff"} {
		if _, err := l.Prune(ctx, VolumeRecords, policy); err == nil {
			t.Errorf("%s policy: accepted", name)
		}
	}
	if _, err := l.Prune(ctx, l.Size()+1, prunePolicy); !errors.Is(err, ErrBeyond) {
		t.Errorf("beyond the end: %v", err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := l.Prune(gone, VolumeRecords, prunePolicy); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	if l.Kept() != 0 || len(volumes(d)) != 3 {
		t.Errorf("kept %d, %v", l.Kept(), volumes(d))
	}
	if _, err := l.Append(ctx, &Record{Kind: KindPrune, Count: 5}); err == nil {
		t.Error("a caller wrote that records were given up")
	}
	// An intent that was never answered, made to stand in the first volume.
	l.mu.Lock()
	l.pending[VolumeRecords-1] = &Record{Kind: KindIntent}
	l.mu.Unlock()
	if _, err := l.Prune(ctx, VolumeRecords, prunePolicy); err == nil || !strings.Contains(err.Error(), "intent") {
		t.Errorf("with an open intent: %v", err)
	}
	l.mu.Lock()
	delete(l.pending, VolumeRecords-1)
	l.mu.Unlock()
	mustClose(t, l)
	if _, err := l.Prune(ctx, VolumeRecords, prunePolicy); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	m, err := NewMemory(o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Prune(ctx, 0, prunePolicy); err == nil {
		t.Error("a log in memory was pruned")
	}
	mustClose(t, m)
}

// Volumes that vanish without a word, or one more than was stated, are missed: by Open, and by Verify with and without the MAC
// key; so is a snapshot that was made to state more than the records do..
func TestPruneUnstated(t *testing.T) {
	t.Parallel()
	o := pruneOptions(t)
	plain := longDisk()
	pruned := plain.Killed()
	l := openSim(t, pruned, o)
	mustPrune(t, l, VolumeRecords)
	mustClose(t, l)
	restate := func(d *fsystest.Disk, kept uint64) {
		f, err := parseFormat(d.Files[formatFile].Data)
		if err != nil {
			t.Fatal(err)
		}
		s, err := parseSnapshot(d.Files[snapshotFile].Data, f.id, borrowedMAC(testMAC))
		if err != nil {
			t.Fatal(err)
		}
		s.kept = kept
		slots := make([]keymap.Slot, s.keys.Len())
		s.keys.CopySlots(0, slots)
		// The MAC of whoever does not have the key.
		b, err := s.encode(f.id, slots, func([]byte) ([32]byte, error) { return [32]byte{1}, nil })
		if err != nil {
			t.Fatal(err)
		}
		d.Files[snapshotFile] = &fsystest.File{Data: b, Durable: b}
	}
	for _, tt := range []struct {
		name    string
		from    *fsystest.Disk
		change  func(*fsystest.Disk)
		open    Verdict // also of Verify with the key
		outside Verdict // of Verify without it
	}{
		{"first volume", plain, func(d *fsystest.Disk) { delete(d.Files, "data-00000000") }, VerdictMissing, VerdictMissing},
		{"one more", pruned, func(d *fsystest.Disk) { delete(d.Files, "data-00000001") }, VerdictMissing, VerdictMissing},
		{"in the middle", plain, func(d *fsystest.Disk) { delete(d.Files, "data-00000001") }, VerdictTampered, VerdictTampered},
		{"stated by the snapshot alone", plain, func(d *fsystest.Disk) {
			delete(d.Files, "data-00000000")
			restate(d, VolumeRecords)
		}, VerdictSnapshot, VerdictMissing},
		{"one more stated by the snapshot alone", pruned, func(d *fsystest.Disk) {
			delete(d.Files, "data-00000001")
			restate(d, 2*VolumeRecords)
		}, VerdictSnapshot, VerdictMissing},
		{"a leaf hash of what is gone", pruned, func(d *fsystest.Disk) { d.Files["level-0"].Data[5] ^= 1 }, "", VerdictForked},
	} {
		d := tt.from.Killed()
		tt.change(d)
		if _, err := verifySim(d, o.Keys, false); verdict(err) != tt.outside {
			t.Errorf("%s: verify: %v", tt.name, err)
		}
		if tt.open == "" { // Open does not read what was packed long ago; the scrubber does
			continue
		}
		if _, err := verifySim(d, o.Keys, true); verdict(err) != tt.open {
			t.Errorf("%s: verify with the key: %v", tt.name, err)
		}
		l, err := tryOpenSim(d, o)
		if err == nil {
			l.Close()
		}
		if verdict(err) != tt.open {
			t.Errorf("%s: open: %v", tt.name, err)
		}
	}
}

// The program dies, or the machine, or the disk fails, at each operation of Prune. Afterwards either nothing has gone or all of what was
// stated, the log opens without an alarm, and it can be pruned again..
func TestPruneCrashes(t *testing.T) {
	t.Parallel()
	o := pruneOptions(t)
	rng := rand.New(rand.NewPCG(3, 1))
	// A checkpoint that finds no place is made with the next tick.
	o.CheckpointInterval = 5 * time.Millisecond
	step := 1 + flipStep/3 // each operation, but where the race detector makes that slow
	ops := 0               // of Prune, about: what the log does by itself at that moment is among them
	for _, fault := range []error{nil, syscall.EIO, syscall.ENOSPC} {
		for at := 0; fault == nil || at < ops; at += step {
			d := longDisk().Killed()
			l := openSim(t, d, o)
			var states []*fsystest.Disk
			n := 0
			d.Mu.Lock()
			d.Fail = func(op, name string, size int) (int, error) {
				if op == "open" {
					return size, nil
				}
				if n++; n-1 != at {
					return size, nil
				}
				d.Mu.Unlock()
				if fault == nil {
					states = append(states, d.Killed(), d.PowerCut(rng))
				}
				d.Mu.Lock()
				if fault != nil {
					return 0, fault
				}
				return size, nil
			}
			d.Mu.Unlock()
			kept, err := l.Prune(context.Background(), 2*VolumeRecords, prunePolicy)
			d.Mu.Lock()
			d.Fail = nil
			hit := n > at
			d.Mu.Unlock()
			if err == nil && kept != 2*VolumeRecords || fault == nil && err != nil || fault == syscall.EIO && hit && at == 0 && err == nil {
				t.Fatalf("%v at %d: kept %d, %v", fault, at, kept, err)
			}
			states = append(states, d.Killed())
			l.Close()
			if !hit && fault == nil {
				break
			}
			if fault == nil {
				ops = at + 1
			}
			for i, c := range states {
				checkPrunable(t, fmt.Sprintf("%v at %d, state %d", fault, at, i), c, o)
			}
		}
	}
	if ops < 15 {
		t.Errorf("only %d operations", ops)
	}
}

// No volume goes before the record that says so is covered by a checkpoint on the disk, and before the snapshot says so too.
func TestPruneOrder(t *testing.T) {
	t.Parallel()
	o := pruneOptions(t)
	d := longDisk().Killed()
	l := openSim(t, d, o)
	f, err := parseFormat(d.Files[formatFile].Data)
	if err != nil {
		t.Fatal(err)
	}
	stated := l.Size() // the index of the record, or less
	var removed []string
	d.Mu.Lock()
	d.Fail = func(op, name string, size int) (int, error) {
		if op != "remove" || !strings.HasPrefix(name, "data-") {
			return size, nil
		}
		removed = append(removed, name)
		c, err := parseCheckpoint(d.Files[checkpointFile].Durable, testOrigin)
		if err != nil || c.size <= stated {
			t.Errorf("%s goes: checkpoint %+v, %v", name, c, err)
		}
		s, err := parseSnapshot(d.Files[snapshotFile].Durable, f.id, borrowedMAC(testMAC))
		if err != nil || s.kept != 2*VolumeRecords {
			t.Errorf("%s goes: snapshot %+v, %v", name, s, err)
		}
		return size, nil
	}
	d.Mu.Unlock()
	mustPrune(t, l, 2*VolumeRecords)
	mustClose(t, l)
	if !slices.Equal(removed, []string{"data-00000000", "data-00000001"}) {
		t.Errorf("removed %v", removed)
	}
}

// checkPrunable checks that a log that was interrupted while it was pruned is whole.
func checkPrunable(t *testing.T, name string, d *fsystest.Disk, o Options) {
	t.Helper()
	l, err := tryOpenSim(d, o)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	defer l.Close()
	if k := l.Kept(); k != 0 && k != 2*VolumeRecords {
		t.Errorf("%s: half pruned: kept %d, %v", name, k, volumes(d))
	}
	if kept := mustPrune(t, l, 2*VolumeRecords); kept != 2*VolumeRecords || len(volumes(d)) != 1 {
		t.Errorf("%s: pruned again: kept %d, %v", name, kept, volumes(d))
	}
}

// Verify runs beside the writer while that prunes: no false alarm.
func TestPruneBesideVerify(t *testing.T) {
	t.Parallel()
	o := pruneOptions(t)
	d := longDisk().Killed()
	l := openSim(t, d, o)
	done := make(chan uint64, 1)
	pruned := false
	_, err := verifyIn(context.Background(), d, VerifyOptions{Keys: o.Keys, MACKey: testMAC, OnRecord: func(i uint64, _ *Record) error {
		if i == 300 && !pruned {
			pruned = true
			kept, err := l.Prune(context.Background(), 2*VolumeRecords, prunePolicy)
			done <- kept
			return err
		}
		return nil
	}})
	if err != nil {
		t.Errorf("verify: %v", err)
	}
	if kept := <-done; kept != 2*VolumeRecords {
		t.Errorf("kept %d", kept)
	}
	mustClose(t, l)
}
