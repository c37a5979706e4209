package audit

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rustyonions/ron-kms/audit/fsys/fsystest"
	"github.com/rustyonions/ron-kms/audit/keymap"
	"github.com/rustyonions/ron-kms/audit/notekey"
	"golang.org/x/mod/sumdb/note"
)

// grow appends n commits of one to three records.
func grow(tb testing.TB, l *Log, n int) {
	tb.Helper()
	for i := range n {
		recs := []*Record{operation(fmt.Sprint("k", i%3), i)}
		for range i % 3 {
			recs = append(recs, operation("k0", i))
		}
		mustAppend(tb, l, recs...)
	}
}

// bothRefuse checks that Open and Verify refuse d, and returns the verdict of Open.
func bothRefuse(t *testing.T, d *fsystest.Disk, what string) Verdict {
	t.Helper()
	o := testOptions(t)
	for _, mac := range []bool{true, false} {
		if _, err := verifySim(d, o.Keys, mac); verdict(err) == "" {
			t.Errorf("%s: Verify (mac key %v): %v", what, mac, err)
		}
	}
	l, err := tryOpenSim(d, o)
	if err == nil {
		l.Close()
	}
	if verdict(err) == "" {
		t.Errorf("%s: Open: %v", what, err)
	}
	return verdict(err)
}

// After a clean close, a change to any byte of any file is refused: records, headers, padding, tags, head, checkpoints
// and format..
func TestFlipAfterClose(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	d, l := newSimLog(t, o)
	grow(t, l, 4)
	mustClose(t, l)
	d = unpacked(t, d, o)
	ps := framesOf(t, d)
	end := ps[len(ps)-1].off + ps[len(ps)-1].n
	for name, f := range d.Files {
		n := len(f.Data)
		step := flipStep
		if name == segmentName(0) {
			n = end + sector
		} else if strings.HasPrefix(name, segmentPrefix) {
			step = 997 // all of it is zeros
		}
		for i := 0; i < n; i += step {
			x := byte(1) << (i % 8)
			f.Data[i] ^= x
			if l, err := tryOpenSim(d, o); verdict(err) == "" {
				if err == nil {
					l.Close()
				}
				t.Fatalf("%s byte %d ^ %#x: Open: %v", name, i, x, err)
			}
			// Open and Verify share their judgement; a part of the bytes shows that they do.
			if i%7 == 0 {
				if _, err := verifySim(d, o.Keys, true); verdict(err) == "" {
					t.Fatalf("%s byte %d ^ %#x: Verify: %v", name, i, x, err)
				}
			}
			// Without the MAC key the MACs of head and snapshot say nothing.
			if i%7 == 1 && name != headFile && name != snapshotFile {
				if _, err := verifySim(d, o.Keys, false); verdict(err) == "" {
					t.Fatalf("%s byte %d ^ %#x: Verify without mac key: %v", name, i, x, err)
				}
			}
			f.Data[i] ^= x
		}
	}
	mustClose(t, openSim(t, d, o)) // all restored
}

// After a crash, a flip is refused, or taken for a torn write and recorded as such; never passed over. No
// acknowledged record is ever lost to a flip. R-014.
func TestFlipAfterCrash(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	live, l := newSimLog(t, o)
	grow(t, l, 4)
	crashed := live.Killed()
	mustClose(t, l)
	ps := framesOf(t, crashed)
	end := ps[len(ps)-1].off + ps[len(ps)-1].n
	size := uint64(0)
	for _, p := range ps {
		size += p.recs
	}
	for name := range crashed.Files {
		n := len(crashed.Files[name].Data)
		if name == segmentName(0) {
			n = end + sector
		}
		step := 3 * flipStep
		if name != segmentName(0) && strings.HasPrefix(name, segmentPrefix) {
			step = 3989
		}
		for i := 0; i < n; i += step {
			d := crashed.Killed()
			d.Files[name].Data[i] ^= 1 << (i % 8)
			l, err := tryOpenSim(d, o)
			if err == nil {
				if l.Size() < size || len(recoveries(t, l)) != 1 {
					t.Fatalf("%s byte %d: opened with %d of %d records, %d recoveries", name, i, l.Size(), size, len(recoveries(t, l)))
				}
				l.Close()
			} else if verdict(err) == "" {
				t.Fatalf("%s byte %d: %v", name, i, err)
			}
			if err == nil && name == segmentName(0) && i < end {
				t.Fatalf("%s byte %d: a change to an acknowledged frame was put right", name, i)
			}
		}
	}
}

// Whole frames and files removed, moved, repeated and brought from elsewhere..
func TestTamper(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	d0, l := newSimLog(t, o)
	grow(t, l, 250)
	if err := l.checkpointNow(false); err != nil {
		t.Fatal(err)
	}
	grow(t, l, 3)
	crashed := d0.Killed()
	mustClose(t, l)
	d0, crashed = unpacked(t, d0, o), unpacked(t, crashed, o)
	// Another log with the same keys and the same history.
	other, l := newSimLog(t, o)
	grow(t, l, 250)
	mustClose(t, l)
	other = unpacked(t, other, o)

	type edit func(d *fsystest.Disk, ps []place)
	swap := func(d *fsystest.Disk, a, b place) {
		x, y := bytesAt(d, a), bytesAt(d, b)
		copy(d.Files[a.seg].Data[a.off:], y)
		copy(d.Files[b.seg].Data[b.off:], x)
	}
	cut := func(n int) edit {
		return func(d *fsystest.Disk, ps []place) {
			for _, p := range ps[len(ps)-n:] {
				wipe(d, p)
			}
		}
	}
	for _, tt := range []struct {
		name            string
		closed, crashed Verdict
		edit            edit
	}{
		{"last frame", VerdictTruncated, VerdictTruncated, cut(1)},
		{"last three frames", VerdictTruncated, VerdictTruncated, cut(3)},
		{"last frames over a checkpoint", VerdictTruncated, VerdictTruncated, cut(30)},
		{"all frames", VerdictTruncated, VerdictTruncated, func(d *fsystest.Disk, ps []place) { cut(len(ps))(d, ps) }},
		{"all but the first", VerdictTruncated, VerdictTruncated, func(d *fsystest.Disk, ps []place) { cut(len(ps)-1)(d, ps) }},
		{"frame in the middle", VerdictHole, VerdictHole, func(d *fsystest.Disk, ps []place) { wipe(d, ps[100]) }},
		{"first frame", VerdictHole, VerdictHole, func(d *fsystest.Disk, ps []place) { wipe(d, ps[0]) }},
		{"last but one", VerdictHole, VerdictHole, func(d *fsystest.Disk, ps []place) { wipe(d, ps[len(ps)-2]) }},
		{"half the last frame", VerdictTampered, VerdictTampered, func(d *fsystest.Disk, ps []place) {
			p := ps[len(ps)-1]
			clear(d.Files[p.seg].Data[p.off+p.n-100 : p.off+p.n])
		}},
		{"last segment", VerdictTruncated, VerdictTruncated, func(d *fsystest.Disk, ps []place) {
			for _, name := range d.Segments() { // and those that are prepared after it
				if name >= ps[len(ps)-1].seg {
					delete(d.Files, name)
				}
			}
		}},
		{"middle segment", VerdictMissing, VerdictMissing, func(d *fsystest.Disk, _ []place) { delete(d.Files, segmentName(1)) }},
		{"first segment", VerdictMissing, VerdictMissing, func(d *fsystest.Disk, _ []place) { delete(d.Files, segmentName(0)) }},
		{"segments swapped", VerdictHole, VerdictHole, func(d *fsystest.Disk, _ []place) {
			a, b := d.Files[segmentName(0)], d.Files[segmentName(1)]
			a.Data, b.Data = b.Data, a.Data
		}},
		{"segment shortened", VerdictTampered, VerdictTampered, func(d *fsystest.Disk, _ []place) {
			f := d.Files[segmentName(1)]
			f.Data = f.Data[:len(f.Data)-sector]
		}},
		{"frames swapped", VerdictHole, VerdictHole, func(d *fsystest.Disk, ps []place) { swap(d, ps[20], ps[23]) }},
		{"last frames swapped", VerdictHole, VerdictHole, func(d *fsystest.Disk, ps []place) { swap(d, ps[len(ps)-1], ps[len(ps)-2]) }},
		{"frame repeated at the end", VerdictTampered, VerdictTampered, func(d *fsystest.Disk, ps []place) {
			p := ps[len(ps)-1]
			copy(d.Files[p.seg].Data[p.off+p.n:], bytesAt(d, p))
		}},
		{"frame of the other log", VerdictForked, VerdictForked, func(d *fsystest.Disk, ps []place) {
			copy(d.Files[segmentName(0)].Data[ps[50].off:], bytesAt(other, framesOf(t, other)[50]))
		}},
		{"all segments of the other log", VerdictForked, VerdictForked, func(d *fsystest.Disk, ps []place) {
			for _, name := range d.Segments() {
				if f := other.Files[name]; f != nil {
					copy(d.Files[name].Data, f.Data)
				} else {
					clear(d.Files[name].Data)
				}
			}
		}},
		{"frame inserted", VerdictTampered, VerdictTampered, func(d *fsystest.Disk, ps []place) {
			p := ps[20]
			b := d.Files[p.seg].Data
			moved := bytes.Clone(b[p.off : len(b)-p.n])
			copy(b[p.off+p.n:], moved)
			copy(b[p.off:], bytesAt(d, ps[19]))
		}},
		{"bytes far behind the end", VerdictTampered, VerdictTampered, func(d *fsystest.Disk, ps []place) {
			name := segmentName(len(d.Segments()))
			d.Files[name] = &fsystest.File{Data: make([]byte, o.SegmentSize)}
			d.Files[name].Data[9000] = 1
			p := ps[len(ps)-1]
			d.Files[p.seg].Data[p.off+p.n] = 1
		}},
		{"bytes behind the end", VerdictClosed, "", func(d *fsystest.Disk, ps []place) {
			p := ps[len(ps)-1]
			copy(d.Files[p.seg].Data[p.off+p.n:], "torn")
		}},
		{"head of the other log", VerdictHead, VerdictHead, func(d *fsystest.Disk, _ []place) {
			d.Files[headFile].Data = bytes.Clone(other.Files[headFile].Data)
		}},
		{"slots of the head exchanged", VerdictHead, VerdictHead, func(d *fsystest.Disk, _ []place) {
			b := d.Files[headFile].Data
			d.Files[headFile].Data = append(bytes.Clone(b[sector:]), b[:sector]...)
		}},
		{"last frame moved to a segment of its own", VerdictForked, VerdictForked, func(d *fsystest.Disk, ps []place) {
			p := ps[len(ps)-1]
			f := &fsystest.File{Data: make([]byte, o.SegmentSize)}
			copy(f.Data, bytesAt(d, p))
			wipe(d, p)
			d.Files[segmentName(len(framesBySegment(ps)))] = f
		}},
		{"format of the other log", VerdictHead, VerdictHead, func(d *fsystest.Disk, _ []place) {
			d.Files[formatFile].Data = bytes.Clone(other.Files[formatFile].Data)
		}},
		{"checkpoints of the other log", VerdictForked, VerdictForked, func(d *fsystest.Disk, _ []place) {
			d.Files[checkpointsName(0)].Data = bytes.Clone(other.Files[checkpointsName(0)].Data)
		}},
		{"checkpoint of the other log", VerdictCheckpoint, VerdictCheckpoint, func(d *fsystest.Disk, _ []place) {
			d.Files[checkpointFile].Data = bytes.Clone(other.Files[checkpointFile].Data)
		}},
		{"list of checkpoints emptied", VerdictCheckpoint, VerdictCheckpoint, func(d *fsystest.Disk, _ []place) {
			d.Files[checkpointsName(0)].Data = nil
		}},
		{"both slots of the head", VerdictHead, VerdictHead, func(d *fsystest.Disk, _ []place) { clear(d.Files[headFile].Data) }},
		{"last frame and the slot that counts it", VerdictTruncated, VerdictHead, func(d *fsystest.Disk, ps []place) {
			cut(1)(d, ps)
			b := d.Files[headFile].Data
			a, _ := parseHead(b[:sector], 0, [16]byte(b[88:]), nil)
			z, _ := parseHead(b[sector:], 1, [16]byte(b[88:]), nil)
			if a.gen > z.gen {
				b[0]++
			} else {
				b[sector]++
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, base := range []struct {
				name string
				d    *fsystest.Disk
				want Verdict
			}{{"closed", d0, tt.closed}, {"crashed", crashed, tt.crashed}} {
				d := base.d.Killed()
				tt.edit(d, framesOf(t, d))
				if base.want == "" {
					l, err := tryOpenSim(d, o)
					if err != nil {
						t.Fatal(err)
					}
					if len(recoveries(t, l)) != 1 {
						t.Errorf("%s: put right without a record", base.name)
					}
					mustClose(t, l)
					continue
				}
				if got := bothRefuse(t, d, base.name); got != base.want {
					t.Errorf("%s: %s, want %s", base.name, got, base.want)
				}
			}
		})
	}
}

// The latest checkpoint, which no record names yet, stands on its signature alone: another key's is refused..
func TestForgedCheckpoint(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	d, l := newSimLog(t, o)
	grow(t, l, 5)
	crashed := d.Killed() // with the checkpoint made at opening as its latest
	mustClose(t, l)
	skey, vkey, err := note.GenerateKey(nil, testOrigin)
	if err != nil {
		t.Fatal(err)
	}
	forger, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	v, err := notekey.ParseSet(vkey)
	if err != nil {
		t.Fatal(err)
	}
	c, err := parseCheckpoint(d.Files[checkpointFile].Data, testOrigin)
	if err != nil {
		t.Fatal(err)
	}
	forged, err := signCheckpoint(testOrigin, c.size, c.root, []note.Signer{forger}, v)
	if err != nil {
		t.Fatal(err)
	}
	list := d.Files[checkpointsName(0)].Data
	d.Files[checkpointsName(0)].Data = append(list[:len(list)-len(c.raw)-1:len(list)-len(c.raw)-1], string(forged.raw)+"\n"...)
	d.Files[checkpointFile].Data = forged.raw
	if got := bothRefuse(t, d, "another key"); got != VerdictCheckpoint {
		t.Errorf("closed: %s", got)
	}
	// Appended to a log that crashed: validly formed, over the right root, and not ours.
	var rep *Report
	if rep, err = verifySim(crashed, o.Keys, true); err != nil {
		t.Fatal(err)
	}
	if forged, err = signCheckpoint(testOrigin, rep.Size, rep.Root, []note.Signer{forger}, v); err != nil {
		t.Fatal(err)
	}
	f := crashed.Files[checkpointsName(0)]
	f.Data = append(f.Data, string(forged.raw)+"\n"...)
	if got := bothRefuse(t, crashed, "appended"); got != VerdictCheckpoint {
		t.Errorf("crashed: %s", got)
	}
}

// What one directory cannot know: all of it put back to an earlier state. The checkpoint that somebody kept tells.
// This test states the limit, so that nobody believes otherwise. R-050.
func TestWholeRollbackIsInvisibleInside(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	d, l := newSimLog(t, o)
	grow(t, l, 5)
	mustClose(t, l)
	old := d.Killed()
	l = openSim(t, d, o)
	grow(t, l, 5)
	mustClose(t, l)
	kept, err := parseCheckpoint(l.Checkpoint(), testOrigin)
	if err != nil {
		t.Fatal(err)
	}
	rep, err := verifySim(old, o.Keys, true)
	if err != nil {
		t.Fatalf("an earlier state is a whole log: %v", err)
	}
	if rep.CheckpointSize >= kept.size {
		t.Error("a kept checkpoint does not tell the rollback")
	}
}

// Copies taken at any moment under load, as a killed process and as a power cut leave them, open without a false
// alarm and with every acknowledged record..
func TestCrashUnderLoad(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	o.CheckpointRecords = 40
	d, l := newSimLog(t, o)
	type image struct {
		d     *fsystest.Disk
		acked uint64
	}
	var images []image
	var acked atomic.Uint64
	var full atomic.Bool
	rng := rand.New(rand.NewPCG(3, 4))
	var one sync.Mutex // one image at a time, since taking one lets go of the disk's lock
	d.Mu.Lock()
	d.Fail = func(op, name string, n int) (int, error) {
		if !one.TryLock() {
			return n, nil
		}
		defer one.Unlock()
		if len(images) >= 120/min(flipStep, 4) {
			full.Store(true)
		} else if rng.IntN(6) == 0 || op == "sync" && strings.HasPrefix(name, segmentPrefix) && rng.IntN(2) == 0 { // a frame is on its way
			acked := acked.Load()
			d.Mu.Unlock()
			images = append(images, image{d.Killed(), acked}, image{d.PowerCut(rng), acked})
			d.Mu.Lock()
		}
		return n, nil
	}
	d.Mu.Unlock()
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := 0; !full.Load(); i++ {
				r := operation(fmt.Sprint("k", w), i)
				r.Detail = bytes.Repeat([]byte{byte(i)}, i*37%2000)
				got, err := l.Append(context.Background(), r)
				if err != nil {
					t.Error(err)
					return
				}
				for {
					a := acked.Load()
					if a > got[0].Index || acked.CompareAndSwap(a, got[0].Index+1) {
						break
					}
				}
			}
		})
	}
	wg.Wait()
	mustClose(t, l)
	torn := 0
	for i, img := range images {
		l, err := tryOpenSim(img.d, o)
		if err != nil {
			t.Errorf("image %d: %v", i, err)
			break
		}
		if l.Size() < img.acked {
			t.Errorf("image %d: %d records, %d acknowledged", i, l.Size(), img.acked)
		}
		torn += len(recoveries(t, l))
		mustAppend(t, l, operation("k0", 1))
		mustClose(t, l)
		if rep, err := verifySim(img.d, o.Keys, true); err != nil || !rep.Clean {
			t.Errorf("image %d after recovery: %v", i, err)
		}
	}
	if torn == 0 {
		t.Error("no image was torn: the test has lost its point")
	}
}

// A crash while a log is opened, closed or recovered is as harmless as any: the disk is copied before every
// operation that changes it.
func TestCrashInCeremonies(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	d, l := newSimLog(t, o)
	grow(t, l, 3)
	p := framesOf(t, d)
	last := p[len(p)-1]
	// A torn frame and a note cut short, longer than what will overwrite it.
	torn := d.Killed()
	copy(torn.Files[last.seg].Data[last.off+last.n:], strings.Repeat("torn", 2000))
	notes := torn.Files[checkpointsName(0)]
	notes.Data = append(notes.Data, strings.Repeat("half a note", 200)...)
	// A note of which a sector was lost.
	lost := d.Killed()
	notes = lost.Files[checkpointsName(0)]
	notes.Data = append(notes.Data, string(make([]byte, 100))+"\n\n— sig\n\n"...)
	// A crash between the two places of a checkpoint.
	before := bytes.Clone(d.Files[checkpointFile].Data)
	if err := l.checkpointNow(false); err != nil {
		t.Fatal(err)
	}
	behind := d.Killed()
	behind.Files[checkpointFile].Data = before
	mustClose(t, l)
	rng := rand.New(rand.NewPCG(5, 6))
	for _, base := range []*fsystest.Disk{d, torn, lost, behind} {
		d := base.Killed()
		var copies []*fsystest.Disk
		d.Fail = func(_, _ string, n int) (int, error) {
			d.Mu.Unlock()
			copies = append(copies, d.Killed(), d.PowerCut(rng), d.PowerCut(rng))
			d.Mu.Lock()
			return n, nil
		}
		l := openSim(t, d, o)
		mustAppend(t, l, operation("k", 1))
		mustClose(t, l)
		d.Fail = nil
		if rep, err := verifySim(d, o.Keys, true); err != nil || !rep.Clean {
			t.Errorf("after all: %v", err)
		}
		for i, c := range copies {
			l, err := tryOpenSim(c, o)
			if err != nil {
				t.Errorf("copy %d of %d: %v", i, len(copies), err)
				continue
			}
			mustClose(t, l)
		}
	}
}

// Frames that are authentic and yet wrong, as a faulty or subverted writer with the MAC key makes them, are refused by everyone: their
// content is judged on its own..
func TestFaultyWriter(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	for _, tt := range []struct {
		name   string
		want   Verdict
		tamper func(l *Log)
	}{
		{"gap in a key's sequence", VerdictTampered, func(l *Log) { bend(l, func(k *keymap.State) { k.Seq++ }) }},
		{"sequence begins again", VerdictTampered, func(l *Log) { bend(l, func(k *keymap.State) { k.Seq, k.Last = 0, 0 }) }},
		{"wrong link", VerdictTampered, func(l *Log) { bend(l, func(k *keymap.State) { k.Last-- }) }},
		{"leaf dropped from the tree", VerdictTampered, func(l *Log) { l.tiles.Append([]byte{1}, [32]byte{1}) }},
		{"another checkpoint named", VerdictCheckpoint, func(l *Log) {
			slip(t, l, &Record{Kind: KindCheckpoint, Time: time.Now(), Ref: 1, InputHash: [32]byte{1}})
		}},
		{"checkpoint over another root", VerdictForked, func(l *Log) { l.root[0]++ }},
		{"checkpoint that no record names", VerdictCheckpoint, func(l *Log) {
			c, err := signCheckpoint(o.Origin, l.end.size, l.root, o.Signers, o.Keys)
			if err == nil {
				err = l.disk.writeCheckpoint(c)
			}
			if err != nil {
				t.Fatal(err)
			}
		}},
		{"genesis again", VerdictFormat, func(l *Log) { slip(t, l, &Record{Kind: KindGenesis, Time: time.Now()}) }},
		{"answer to a later record", VerdictTampered, func(l *Log) {
			r := &Record{Kind: KindNoise, Time: time.Now()}
			slip(t, l, r)
			b := l.cur.buf
			b = binary.BigEndian.AppendUint64(append(b, tagRef, 0, 8), 1<<40)
			b[len(b)-11-len(mustEncode(t, r))-1] += 11 // the record's length
			l.cur.buf = b
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, l := newSimLog(t, o)
			grow(t, l, 7)
			l.mu.Lock()
			tt.tamper(l)
			l.mu.Unlock()
			if tt.want == VerdictForked {
				if err := l.checkpointNow(false); err != nil {
					t.Fatal(err)
				}
			}
			mustAppend(t, l, operation("k0", 1))
			mustClose(t, l)
			if _, err := verifySim(d, o.Keys, true); verdict(err) == "" {
				t.Errorf("Verify of the packed log: %v", err)
			}
			d = unpacked(t, d, o)
			for _, mac := range []bool{true, false} {
				if _, err := verifySim(d, o.Keys, mac); verdict(err) == "" {
					t.Errorf("Verify (mac key %v): %v", mac, err)
				}
			}
			if _, err := tryOpenSim(d, o); verdict(err) != tt.want {
				t.Errorf("Open: %v, want %s", err, tt.want)
			}
		})
	}
}

// bend changes what the writer knows of key k0.
func bend(l *Log, f func(*keymap.State)) {
	slot, k := l.keys.Slot("k0")
	f(&k)
	l.keys.Set(slot, k)
}

// slip puts a record into the next commit that the log would not write.
func slip(tb testing.TB, l *Log, r *Record) {
	e := new(encoding)
	if _, err := e.add(r); err != nil {
		tb.Fatal(err)
	}
	if _, err := l.enqueue(l.cur, []*Record{r}, e); err != nil {
		tb.Fatal(err)
	}
}

func mustEncode(tb testing.TB, r *Record) []byte {
	b, err := r.AppendBinary(nil)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}
