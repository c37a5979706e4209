package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	fnote "github.com/transparency-dev/formats/note"

	"github.com/rustyonions/ron-kms/audit/fsys/fsystest"
	"github.com/rustyonions/ron-kms/audit/notekey"
)

// Snapshots are taken while many keys are in use. Killed or cut off at any operation of the disk, while segments are recycled and files of
// checkpoints begun and given up, the log knows of keys and intents what its records say, and its roots of the key map are right..
func TestFuzzySnapshots(t *testing.T) {
	t.Parallel()
	o := tinyRing(t)
	o.CheckpointRecords = 15
	d, l := newSimLog(t, o)
	l.disk.ckptsMax = 1200 // four checkpoints a file; none is being made
	type image struct {
		d     *fsystest.Disk
		acked uint64
		op    string
	}
	var images []image
	var a acked
	var enough atomic.Bool
	var one sync.Mutex
	rng := rand.New(rand.NewPCG(8, 1))
	most := 4 / min(flipStep, 4) // of each operation on each kind of file
	if soaking() {
		most = 20 // all images are in memory
	}
	taken := make(map[string]int)
	rare := []string{"rename snapshot", "remove checkpoints-", "sync data-", "sync level-"}
	d.Mu.Lock()
	d.Fail = func(op, name string, n int) (int, error) {
		if !one.TryLock() {
			return n, nil
		}
		defer one.Unlock()
		what := op + " " + strings.TrimRight(strings.TrimSuffix(name, ".tmp"), "0123456789")
		switch {
		case !slices.ContainsFunc(rare, func(op string) bool { return taken[op] < most }):
			enough.Store(true)
		case taken[what] < most && (rng.IntN(20) == 0 || slices.Contains(rare, what)):
			taken[what]++
			acked := a.Load()
			d.Mu.Unlock()
			for _, c := range [][]*fsystest.Disk{fsystest.Crash(rng, false, d), fsystest.Crash(rng, true, d)} {
				images = append(images, image{c[0], acked, what})
			}
			d.Mu.Lock()
		}
		return n, nil
	}
	d.Mu.Unlock()
	var wg sync.WaitGroup
	for w := range 4 {
		rng := rand.New(rand.NewPCG(uint64(w), 2))
		wg.Go(func() {
			for !enough.Load() {
				key := func() string { return fmt.Sprint("k", rng.IntN(300)) }
				got, err := l.Append(context.Background(), bulky(key(), rng.IntN(900)), &Record{Kind: KindIntent, Key: key()})
				if err != nil {
					t.Error(err)
					return
				}
				a.note(got)
				answer := operation(key(), 1)
				answer.Ref = got[1].Index + 1
				if got, err = l.Append(context.Background(), answer); err != nil {
					t.Error(err)
					return
				}
				a.note(got)
			}
		})
	}
	wg.Wait()
	d.Mu.Lock()
	d.Fail = nil
	d.Mu.Unlock()
	mustClose(t, l)
	for i, img := range images {
		if !wantWhole(t, fmt.Sprintf("image %d of %d, at %s", i, len(images), img.op), img.d, o, img.acked) {
			return
		}
	}
	wantWhole(t, "the log itself", d, o, a.Load())
}

// A snapshot that is being taken when a commit fails is not written: what it has copied speaks of records that are nowhere..
func TestSnapshotDuringFailure(t *testing.T) {
	t.Parallel()
	d, l := newSimLog(t, testOptions(t))
	was := bytes.Clone(d.Killed().Files[snapshotFile].Data)
	held, hold := make(chan struct{}), make(chan struct{})
	var once sync.Once
	d.Mu.Lock()
	d.Fail = func(op, name string, n int) (int, error) {
		if op == "sync" && strings.HasPrefix(name, segmentPrefix) {
			once.Do(func() { close(held); d.Mu.Unlock(); <-hold; d.Mu.Lock() })
			return 0, syscall.EIO
		}
		return n, nil
	}
	d.Mu.Unlock()
	l.mu.Lock()
	for i := range 20 * snapshotChunk { // so many that copying them takes a while
		l.keys.Slot(fmt.Sprint("other", i))
	}
	l.mu.Unlock()
	refused, taken := make(chan error, 1), make(chan error, 1)
	go func() { _, err := l.Append(context.Background(), operation("k", 1)); refused <- err }()
	<-held
	go func() { taken <- l.snapshot() }()
	for range 1000 { // until it copies, or has copied already
		if !l.mu.TryLock() {
			break
		}
		l.mu.Unlock()
		runtime.Gosched()
	}
	close(hold)
	if err := <-refused; !errors.Is(err, syscall.EIO) {
		t.Errorf("append: %v", err)
	}
	if err := <-taken; !errors.Is(err, syscall.EIO) {
		t.Errorf("snapshot: %v", err)
	}
	l.Close()
	if !bytes.Equal(d.Files[snapshotFile].Data, was) {
		t.Error("the snapshot was written")
	}
}

// The file of checkpoints that the snapshot begins with stays, however many are made after it: an idle log signs its silence and
// makes no snapshots.
func TestCheckpointFilesOfAnIdleLog(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	d, l := newSimLog(t, o)
	l.disk.ckptsMax = 500 // no checkpoint is being made
	for i := range 60 {
		mustAppend(t, l, operation("k", i))
		if err := l.checkpointNow(false); err != nil {
			t.Fatal(err)
		}
		if i%10 == 5 {
			l.wake()
		}
	}
	until(t, "old files of checkpoints are given up", func() bool {
		l.wake()
		names, err := d.List()
		return err == nil && len(slices.DeleteFunc(names, func(n string) bool { return !strings.HasPrefix(n, checkpointPrefix) })) <= 2*checkpointFiles
	})
	c := d.Killed()
	mustClose(t, l)
	wantWhole(t, "killed", c, o, 60)

	// Before the keeper could look: the snapshot is that of the opening.
	d, l = newSimLog(t, o)
	l.disk.ckptsMax = 500
	at := snapshotOf(t, d).ckpt.gen
	for i := range 60 {
		mustAppend(t, l, operation("k", i))
		if err := l.checkpointNow(false); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.disk.trimCheckpoints(at - checkpointFiles); err != nil {
		t.Fatal(err)
	}
	c = d.Killed()
	mustClose(t, l)
	wantWhole(t, "killed before a snapshot", c, o, 60)
}

// A log whose signatures are hybrid, and long, survives the loss of any sector of a checkpoint that was being written..
func TestTornHybridCheckpoint(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	skey, vkey, err := fnote.GenerateMLDSAKey(testOrigin)
	if err != nil {
		t.Fatal(err)
	}
	second, err := fnote.NewMLDSASigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	if o.Keys, err = notekey.ParseSet(o.Keys.String() + " " + vkey); err != nil {
		t.Fatal(err)
	}
	o.Signers = append(o.Signers, second)
	d, l := newSimLog(t, o)
	grow(t, l, 3)
	list := bytes.Clone(d.Killed().Files[checkpointsName(0)].Data)
	left := d.Killed()
	if err := l.checkpointNow(false); err != nil {
		t.Fatal(err)
	}
	whole := d.Killed().Files[checkpointsName(0)].Data
	mustClose(t, l)
	if len(whole)-len(list) < 4*sector {
		t.Fatalf("the checkpoint has only %d bytes", len(whole)-len(list))
	}
	for at := len(list) / sector * sector; at < len(whole); at += sector {
		torn := append(bytes.Clone(list), whole[len(list):]...)
		clear(torn[max(at, len(list)):min(at+sector, len(torn))])
		c := left.Killed()
		c.Files[checkpointsName(0)].Data = torn
		l, err := tryOpenSim(c, o)
		if err != nil {
			t.Errorf("sector %d: %v", at/sector, err)
			continue
		}
		if rs := recoveries(t, l); len(rs) != 1 || rs[0].Op != "checkpoints" {
			t.Errorf("sector %d: %d recoveries", at/sector, len(rs))
		}
		mustClose(t, l)
	}
}

// A checkpoint that could not be finished because the disk was full leaves nothing that a crash can mix with the next one.
func TestCheckpointAfterFullDisk(t *testing.T) {
	t.Parallel()
	for _, op := range []string{"write", "rename", "syncdir"} {
		o := testOptions(t)
		d, l := newSimLog(t, o)
		grow(t, l, 3)
		rng := rand.New(rand.NewPCG(4, 4))
		var images []*fsystest.Disk
		full := true
		d.Mu.Lock()
		d.Fail = func(was, name string, n int) (int, error) {
			if full && was == op && (name == checkpointFile+".tmp" || op == "syncdir") {
				return 0, syscall.ENOSPC
			}
			if strings.HasPrefix(name, "checkpoint") {
				d.Mu.Unlock()
				for range 6 / min(flipStep, 3) {
					images = append(images, fsystest.Crash(rng, true, d)[0])
				}
				d.Mu.Lock()
			}
			return n, nil
		}
		d.Mu.Unlock()
		err := l.checkpointNow(false)
		if (err != nil) != (op == "syncdir") {
			t.Errorf("%s: %v", op, err)
		}
		if err == nil {
			grow(t, l, 2)
		}
		full = false
		size := l.Size()
		if err == nil {
			if err := l.checkpointNow(false); err != nil {
				t.Fatal(err)
			}
		}
		d.Mu.Lock()
		d.Fail = nil
		d.Mu.Unlock()
		l.Close()
		for i, c := range append(images, d.Killed()) {
			least := size
			if i < len(images) {
				least = 6
			}
			if !wantWhole(t, fmt.Sprintf("%s: image %d of %d", op, i, len(images)), c, o, least) {
				break
			}
		}
	}
}
