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
func bothRefuse(t *testing.T, d *simDisk, what string) Verdict {
	t.Helper()
	o := testOptions(t)
	for _, mac := range []bool{true, false} {
		if _, err := verifySim(d, o.Verifier, mac); verdict(err) == "" {
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
	o.Verifier = &cachingVerifier{Verifier: o.Verifier}
	d, l := newSimLog(t, o)
	grow(t, l, 4)
	mustClose(t, l)
	ps := framesOf(t, d)
	end := ps[len(ps)-1].off + ps[len(ps)-1].n
	for name, f := range d.files {
		n := len(f.data)
		if name == segmentName(0) {
			n = end + sector
		}
		for i := 0; i < n; i += flipStep {
			x := byte(1) << (i % 8)
			f.data[i] ^= x
			if l, err := tryOpenSim(d, o); verdict(err) == "" {
				if err == nil {
					l.Close()
				}
				t.Fatalf("%s byte %d ^ %#x: Open: %v", name, i, x, err)
			}
			// Open and Verify share their judgement; a part of the bytes shows that they do.
			if i%7 == 0 {
				if _, err := verifySim(d, o.Verifier, true); verdict(err) == "" {
					t.Fatalf("%s byte %d ^ %#x: Verify: %v", name, i, x, err)
				}
			}
			// Without the MAC key the MAC of the head says nothing.
			if i%7 == 1 && name != headFile {
				if _, err := verifySim(d, o.Verifier, false); verdict(err) == "" {
					t.Fatalf("%s byte %d ^ %#x: Verify without mac key: %v", name, i, x, err)
				}
			}
			f.data[i] ^= x
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
	crashed := live.killed()
	mustClose(t, l)
	ps := framesOf(t, crashed)
	end := ps[len(ps)-1].off + ps[len(ps)-1].n
	size := uint64(0)
	for _, p := range ps {
		size += p.recs
	}
	for name := range crashed.files {
		n := len(crashed.files[name].data)
		if name == segmentName(0) {
			n = end + sector
		}
		for i := 0; i < n; i += 3 * flipStep {
			d := crashed.killed()
			d.files[name].data[i] ^= 1 << (i % 8)
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
	crashed := d0.killed()
	mustClose(t, l)
	// Another log with the same keys and the same history.
	other, l := newSimLog(t, o)
	grow(t, l, 250)
	mustClose(t, l)

	type edit func(d *simDisk, ps []place)
	swap := func(d *simDisk, a, b place) {
		x, y := d.bytesAt(a), d.bytesAt(b)
		copy(d.files[a.seg].data[a.off:], y)
		copy(d.files[b.seg].data[b.off:], x)
	}
	cut := func(n int) edit {
		return func(d *simDisk, ps []place) {
			for _, p := range ps[len(ps)-n:] {
				d.wipe(p)
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
		{"all frames", VerdictTruncated, VerdictTruncated, func(d *simDisk, ps []place) { cut(len(ps))(d, ps) }},
		{"all but the first", VerdictTruncated, VerdictTruncated, func(d *simDisk, ps []place) { cut(len(ps)-1)(d, ps) }},
		{"frame in the middle", VerdictHole, VerdictHole, func(d *simDisk, ps []place) { d.wipe(ps[100]) }},
		{"first frame", VerdictHole, VerdictHole, func(d *simDisk, ps []place) { d.wipe(ps[0]) }},
		{"last but one", VerdictHole, VerdictHole, func(d *simDisk, ps []place) { d.wipe(ps[len(ps)-2]) }},
		{"half the last frame", VerdictTampered, VerdictTampered, func(d *simDisk, ps []place) {
			p := ps[len(ps)-1]
			clear(d.files[p.seg].data[p.off+p.n-100 : p.off+p.n])
		}},
		{"last segment", VerdictTruncated, VerdictTruncated, func(d *simDisk, ps []place) {
			for _, name := range d.segments() { // and those that are prepared after it
				if name >= ps[len(ps)-1].seg {
					delete(d.files, name)
				}
			}
		}},
		{"middle segment", VerdictMissing, VerdictMissing, func(d *simDisk, _ []place) { delete(d.files, segmentName(1)) }},
		{"first segment", VerdictMissing, VerdictMissing, func(d *simDisk, _ []place) { delete(d.files, segmentName(0)) }},
		{"segments swapped", VerdictHole, VerdictHole, func(d *simDisk, _ []place) {
			a, b := d.files[segmentName(0)], d.files[segmentName(1)]
			a.data, b.data = b.data, a.data
		}},
		{"segment shortened", VerdictTampered, VerdictTampered, func(d *simDisk, _ []place) {
			f := d.files[segmentName(1)]
			f.data = f.data[:len(f.data)-sector]
		}},
		{"frames swapped", VerdictHole, VerdictHole, func(d *simDisk, ps []place) { swap(d, ps[20], ps[23]) }},
		{"last frames swapped", VerdictHole, VerdictHole, func(d *simDisk, ps []place) { swap(d, ps[len(ps)-1], ps[len(ps)-2]) }},
		{"frame repeated at the end", VerdictTampered, VerdictTampered, func(d *simDisk, ps []place) {
			p := ps[len(ps)-1]
			copy(d.files[p.seg].data[p.off+p.n:], d.bytesAt(p))
		}},
		{"frame of the other log", VerdictForked, VerdictForked, func(d *simDisk, ps []place) {
			copy(d.files[segmentName(0)].data[ps[50].off:], other.bytesAt(framesOf(t, other)[50]))
		}},
		{"all segments of the other log", VerdictForked, VerdictForked, func(d *simDisk, ps []place) {
			for _, name := range d.segments() {
				if f := other.files[name]; f != nil {
					copy(d.files[name].data, f.data)
				} else {
					clear(d.files[name].data)
				}
			}
		}},
		{"frame inserted", VerdictTampered, VerdictTampered, func(d *simDisk, ps []place) {
			p := ps[20]
			b := d.files[p.seg].data
			moved := bytes.Clone(b[p.off : len(b)-p.n])
			copy(b[p.off+p.n:], moved)
			copy(b[p.off:], d.bytesAt(ps[19]))
		}},
		{"bytes far behind the end", VerdictTampered, VerdictTampered, func(d *simDisk, ps []place) {
			name := segmentName(len(d.segments()))
			d.files[name] = &simFile{data: make([]byte, o.SegmentSize)}
			d.files[name].data[9000] = 1
			p := ps[len(ps)-1]
			d.files[p.seg].data[p.off+p.n] = 1
		}},
		{"bytes behind the end", VerdictClosed, "", func(d *simDisk, ps []place) {
			p := ps[len(ps)-1]
			copy(d.files[p.seg].data[p.off+p.n:], "torn")
		}},
		{"head of the other log", VerdictHead, VerdictHead, func(d *simDisk, _ []place) {
			d.files[headFile].data = bytes.Clone(other.files[headFile].data)
		}},
		{"slots of the head exchanged", VerdictHead, VerdictHead, func(d *simDisk, _ []place) {
			b := d.files[headFile].data
			d.files[headFile].data = append(bytes.Clone(b[sector:]), b[:sector]...)
		}},
		{"last frame moved to a segment of its own", VerdictForked, VerdictForked, func(d *simDisk, ps []place) {
			p := ps[len(ps)-1]
			f := &simFile{data: make([]byte, o.SegmentSize)}
			copy(f.data, d.bytesAt(p))
			d.wipe(p)
			d.files[segmentName(len(framesBySegment(ps)))] = f
		}},
		{"format of the other log", VerdictHead, VerdictHead, func(d *simDisk, _ []place) {
			d.files[formatFile].data = bytes.Clone(other.files[formatFile].data)
		}},
		{"checkpoints of the other log", VerdictForked, VerdictForked, func(d *simDisk, _ []place) {
			d.files[checkpointsFile].data = bytes.Clone(other.files[checkpointsFile].data)
		}},
		{"checkpoint of the other log", VerdictCheckpoint, VerdictCheckpoint, func(d *simDisk, _ []place) {
			d.files[checkpointFile].data = bytes.Clone(other.files[checkpointFile].data)
		}},
		{"list of checkpoints emptied", VerdictCheckpoint, VerdictCheckpoint, func(d *simDisk, _ []place) {
			d.files[checkpointsFile].data = nil
		}},
		{"both slots of the head", VerdictHead, VerdictHead, func(d *simDisk, _ []place) { clear(d.files[headFile].data) }},
		{"last frame and the slot that counts it", VerdictTruncated, VerdictHead, func(d *simDisk, ps []place) {
			cut(1)(d, ps)
			b := d.files[headFile].data
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
				d    *simDisk
				want Verdict
			}{{"closed", d0, tt.closed}, {"crashed", crashed, tt.crashed}} {
				d := base.d.killed()
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
	crashed := d.killed() // with the checkpoint made at opening as its latest
	mustClose(t, l)
	skey, vkey, err := note.GenerateKey(nil, testOrigin)
	if err != nil {
		t.Fatal(err)
	}
	forger, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	c, err := parseCheckpoint(d.files[checkpointFile].data, testOrigin)
	if err != nil {
		t.Fatal(err)
	}
	forged, err := signCheckpoint(testOrigin, c.size, c.root, forger, v)
	if err != nil {
		t.Fatal(err)
	}
	list := d.files[checkpointsFile].data
	d.files[checkpointsFile].data = append(list[:len(list)-len(c.raw)-1:len(list)-len(c.raw)-1], string(forged.raw)+"\n"...)
	d.files[checkpointFile].data = forged.raw
	if got := bothRefuse(t, d, "another key"); got != VerdictCheckpoint {
		t.Errorf("closed: %s", got)
	}
	// Appended to a log that crashed: validly formed, over the right root, and not ours.
	var rep *Report
	if rep, err = verifySim(crashed, o.Verifier, true); err != nil {
		t.Fatal(err)
	}
	if forged, err = signCheckpoint(testOrigin, rep.Size, rep.Root, forger, v); err != nil {
		t.Fatal(err)
	}
	f := crashed.files[checkpointsFile]
	f.data = append(f.data, string(forged.raw)+"\n"...)
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
	old := d.killed()
	l = openSim(t, d, o)
	grow(t, l, 5)
	mustClose(t, l)
	kept, err := parseCheckpoint(l.Checkpoint(), testOrigin)
	if err != nil {
		t.Fatal(err)
	}
	rep, err := verifySim(old, o.Verifier, true)
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
		d     *simDisk
		acked uint64
	}
	var images []image
	var acked atomic.Uint64
	var full atomic.Bool
	rng := rand.New(rand.NewPCG(3, 4))
	var one sync.Mutex // one image at a time, since taking one lets go of the disk's lock
	d.mu.Lock()
	d.testOnlyFail = func(_, _ string, n int) (int, error) {
		if !one.TryLock() {
			return n, nil
		}
		defer one.Unlock()
		if len(images) >= 120/min(flipStep, 4) {
			full.Store(true)
		} else if rng.IntN(6) == 0 {
			acked := acked.Load()
			d.mu.Unlock()
			images = append(images, image{d.killed(), acked}, image{d.powerCut(rng), acked})
			d.mu.Lock()
		}
		return n, nil
	}
	d.mu.Unlock()
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
		if rep, err := verifySim(img.d, o.Verifier, true); err != nil || !rep.Clean {
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
	torn := d.killed()
	copy(torn.files[last.seg].data[last.off+last.n:], strings.Repeat("torn", 2000))
	notes := torn.files[checkpointsFile]
	notes.data = append(notes.data, strings.Repeat("half a note", 200)...)
	// A note of which a sector was lost.
	lost := d.killed()
	notes = lost.files[checkpointsFile]
	notes.data = append(notes.data, string(make([]byte, 100))+"\n\n— sig\n\n"...)
	// A crash between the two places of a checkpoint.
	before := bytes.Clone(d.files[checkpointFile].data)
	if err := l.checkpointNow(false); err != nil {
		t.Fatal(err)
	}
	behind := d.killed()
	behind.files[checkpointFile].data = before
	mustClose(t, l)
	rng := rand.New(rand.NewPCG(5, 6))
	for _, base := range []*simDisk{d, torn, lost, behind} {
		d := base.killed()
		var copies []*simDisk
		d.testOnlyFail = func(_, _ string, n int) (int, error) {
			d.mu.Unlock()
			copies = append(copies, d.killed(), d.powerCut(rng), d.powerCut(rng))
			d.mu.Lock()
			return n, nil
		}
		l := openSim(t, d, o)
		mustAppend(t, l, operation("k", 1))
		mustClose(t, l)
		d.testOnlyFail = nil
		if rep, err := verifySim(d, o.Verifier, true); err != nil || !rep.Clean {
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
		{"gap in a key's sequence", VerdictTampered, func(l *Log) { l.keys["k0"] = keyState{l.keys["k0"].seq + 1, l.keys["k0"].last} }},
		{"sequence begins again", VerdictTampered, func(l *Log) { delete(l.keys, "k0") }},
		{"wrong link", VerdictTampered, func(l *Log) { l.keys["k0"] = keyState{l.keys["k0"].seq, l.keys["k0"].last - 1} }},
		{"leaf dropped from the tree", VerdictTampered, func(l *Log) { l.tree = newTree() }},
		{"another checkpoint named", VerdictCheckpoint, func(l *Log) {
			l.enqueue(l.cur, []*Record{{Kind: KindCheckpoint, Time: time.Now(), Ref: 1, InputHash: [32]byte{1}}})
		}},
		{"checkpoint over another root", VerdictForked, func(l *Log) { l.root[0]++ }},
		{"checkpoint that no record names", VerdictCheckpoint, func(l *Log) {
			c, err := signCheckpoint(o.Origin, l.size, l.root, o.Signer, o.Verifier)
			if err == nil {
				err = l.disk.writeCheckpoint(c)
			}
			if err != nil {
				t.Fatal(err)
			}
		}},
		{"genesis again", VerdictFormat, func(l *Log) { l.enqueue(l.cur, []*Record{{Kind: KindGenesis, Time: time.Now()}}) }},
		{"answer to a later record", VerdictTampered, func(l *Log) {
			r := &Record{Kind: KindNoise, Time: time.Now()}
			l.enqueue(l.cur, []*Record{r})
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
			for _, mac := range []bool{true, false} {
				if _, err := verifySim(d, o.Verifier, mac); verdict(err) == "" {
					t.Errorf("Verify (mac key %v): %v", mac, err)
				}
			}
			if _, err := tryOpenSim(d, o); verdict(err) != tt.want {
				t.Errorf("Open: %v, want %s", err, tt.want)
			}
		})
	}
}

func mustEncode(tb testing.TB, r *Record) []byte {
	b, err := r.AppendBinary(nil)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}
