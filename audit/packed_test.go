package audit

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/rustyonions/ron-kms/audit/fsys/fsystest"
	"github.com/rustyonions/ron-kms/audit/tiles"
)

// A packedState is a log whose segments were recycled many times: most of it is in tiles. It was closed and opened in between.
type packedState struct {
	o       Options
	older   *fsystest.Disk // closed, with about half of the records
	closed  *fsystest.Disk
	crashed *fsystest.Disk // killed some commits behind the snapshot
	other   *fsystest.Disk // another log with the same keys and the same history, closed
	size    uint64         // of closed
}

// packedLogs is made once: the tests work on copies.
var packedLogs = sync.OnceValue(func() *packedState {
	tb := new(testing.B)
	p := &packedState{o: tinyRing(tb)}
	p.o.CheckpointRecords = 200
	build := func() (d, older, crashed *fsystest.Disk, size uint64) {
		d, l := newSimLog(tb, p.o)
		l.disk.ckptsMax = 3000 // no checkpoint is being made
		for round := range 2 {
			for i := range 220 {
				recs := make([]*Record, 5)
				for j := range recs {
					recs[j] = operation(fmt.Sprint("key", (i+j)%30), i)
				}
				recs[0].Kind = KindIntent
				mustAppend(tb, l, recs...)
			}
			if round == 0 {
				mustClose(tb, l)
				older = d.Killed()
				l = openSim(tb, d, p.o)
				l.disk.ckptsMax = 3000
			}
		}
		// Some frames are behind the snapshot, and there is room behind the last one.
		for room := 0; room < 8*sector; {
			grow(tb, l, 5)
			crashed = d.Killed()
			if ps := behind(tb, crashed); len(ps) >= 12 {
				room = int(p.o.SegmentSize) - ps[len(ps)-1].off - ps[len(ps)-1].n
			}
		}
		mustClose(tb, l)
		return d, older, crashed, l.Size()
	}
	p.closed, p.older, p.crashed, p.size = build()
	p.other, _, _, _ = build()
	return p
})

// snapshotOf reads the snapshot of d.
func snapshotOf(tb testing.TB, d *fsystest.Disk) *snapshot {
	tb.Helper()
	f, err := parseFormat(d.Files[formatFile].Data)
	if err != nil {
		tb.Fatal(err)
	}
	s, err := parseSnapshot(d.Files[snapshotFile].Data, f.id, testMAC32)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// behind returns the frames of d that the snapshot does not cover.
func behind(tb testing.TB, d *fsystest.Disk) (ps []place) {
	tb.Helper()
	at := snapshotOf(tb, d).at
	for _, f := range framesOf(tb, d) {
		if f.seg > segmentName(at.segment) || f.seg == segmentName(at.segment) && int64(f.off) >= at.off {
			ps = append(ps, f)
		}
	}
	return ps
}

var testMAC32 = borrowedMAC(testMAC)

// harmless says why a change to the byte of a file at off, or to all of it from there on, need not be found: nothing reads it, or what
// it says is overwritten before it is read. It returns "" for everything else.
func harmless(d *fsystest.Disk, s *snapshot, name string, off int64) string {
	var n int
	switch {
	case strings.HasPrefix(name, segmentPrefix):
		if fmt.Sscanf(name, segmentPrefix+"%d", &n); n < s.at.segment {
			return "a segment before the snapshot, which waits to be recycled"
		}
	case strings.HasPrefix(name, "level-"):
		fmt.Sscanf(name, "level-%d", &n)
		if off >= 32*int64(s.at.size>>(8*n)) {
			return "hashes that the snapshot does not cover, which the ring has"
		}
	case name == "data-00000000":
		// The table has the offsets of the bundles, and that behind the last complete one.
		complete := int64(s.at.size / tiles.Width)
		if off >= 16+8*(complete+1) && off < 2072 {
			return "offsets of bundles that are not complete"
		}
		b := d.Files[name].Data
		end := int64(binary.BigEndian.Uint64(b[16+8*complete:]))
		for range s.at.size % tiles.Width {
			end += 2 + int64(binary.BigEndian.Uint16(b[end:]))
		}
		if off >= end {
			return "records that the snapshot does not cover, which the ring has"
		}
	}
	return ""
}

// found returns what notices that d is not what it was: a whole verification with the MAC key, or the opening.
func found(d *fsystest.Disk, o Options) (Verdict, error) {
	if _, err := verifySim(d, o.Keys, true); err != nil {
		return verdict(err), err
	}
	l, err := tryOpenSim(d.Killed(), o)
	if err == nil {
		err = l.Close()
	}
	return verdict(err), err
}

// wantUnharmed checks that d is as good as it was: the log opens with all records, which are all right.
func wantUnharmed(t *testing.T, what string, d *fsystest.Disk, o Options, size uint64) {
	t.Helper()
	if !wantWhole(t, what, d, o, size) {
		t.Errorf("%s: was taken for harmless", what)
	}
}

// Every file of a packed log, closed or killed: a byte that is changed is found, or put right and recorded as what a crash leaves behind the
// end, or it is one of those that mean nothing..
func TestPackedFlip(t *testing.T) {
	t.Parallel()
	p := packedLogs()
	samples := 40 / min(flipStep, 5)
	for _, base := range []struct {
		name string
		d    *fsystest.Disk
	}{{"closed", p.closed}, {"crashed", p.crashed}} {
		s := snapshotOf(t, base.d)
		rep, err := verifySim(base.d, p.o.Keys, true)
		if err != nil {
			t.Fatal(err)
		}
		for name, f := range base.d.Files {
			t.Run(base.name+" "+name, func(t *testing.T) {
				t.Parallel()
				d := base.d.Killed()
				data := d.Files[name].Data
				step := max(1, len(f.Data)/samples|1)
				if soaking() {
					step = 1 + len(f.Data)/(1<<15)
				}
				for i := 0; i < len(data); i += step {
					data[i] ^= 1 << (i % 8)
					v, err := found(d, p.o)
					why := harmless(base.d, s, name, int64(i))
					switch {
					case v != "":
						if why != "" {
							t.Errorf("byte %d: %s is found after all: %v", i, why, err)
						}
					case err != nil:
						t.Errorf("byte %d: %v", i, err)
					case why != "":
						if i%16 == 0 {
							wantUnharmed(t, fmt.Sprint("byte ", i), d.Killed(), p.o, rep.Size)
						}
					default:
						l := openSim(t, d.Killed(), p.o)
						if base.name == "closed" || l.Found() < rep.Size || len(recoveries(t, l)) != 1 {
							t.Errorf("byte %d: not found; %d of %d records", i, l.Found(), rep.Size)
						}
						mustClose(t, l)
					}
					data[i] ^= 1 << (i % 8)
				}
			})
		}
	}
}

// Every file of a packed log cut short, made longer, emptied, removed, put back to an earlier state, taken from another log, and exchanged with
// each other one..
func TestPackedFiles(t *testing.T) {
	t.Parallel()
	p := packedLogs()
	names := slices.Sorted(maps.Keys(p.closed.Files))
	for _, base := range []struct {
		name string
		d    *fsystest.Disk
	}{{"closed", p.closed}, {"crashed", p.crashed}} {
		s := snapshotOf(t, base.d)
		rep, err := verifySim(base.d, p.o.Keys, true)
		if err != nil {
			t.Fatal(err)
		}
		last := base.d.Segments()[len(base.d.Segments())-1]
		spare := func(name string) bool { // ready and not used yet
			return strings.HasPrefix(name, segmentPrefix) && name > segmentName(s.at.segment) && allZero(base.d.Files[name].Data)
		}
		old := func(name string) bool {
			return harmless(base.d, s, name, 0) != "" || strings.HasPrefix(name, checkpointPrefix) && name < checkpointsName(s.ckpt.gen)
		}
		// try makes a change to a copy, of which why says that it is harmless, if it is.
		try := func(t *testing.T, what, why string, change func(d *fsystest.Disk)) {
			t.Helper()
			d := base.d.Killed()
			change(d)
			same := len(d.Files) == len(base.d.Files)
			for name, f := range d.Files {
				g := base.d.Files[name]
				same = same && g != nil && bytes.Equal(f.Data, g.Data)
			}
			if same {
				return
			}
			v, err := found(d, p.o)
			switch {
			case v == "" && err != nil:
				t.Errorf("%s: %v", what, err)
			case v == "" && why == "":
				l := openSim(t, d.Killed(), p.o)
				if base.name == "closed" || l.Found() < rep.Size || len(recoveries(t, l)) != 1 {
					t.Errorf("%s: not found", what)
				}
				mustClose(t, l)
			case v == "":
				wantUnharmed(t, what+" ("+why+")", d, p.o, rep.Size)
			}
		}
		for _, name := range names {
			if base.d.Files[name] == nil {
				continue
			}
			t.Run(base.name+" "+name, func(t *testing.T) {
				t.Parallel()
				size := len(base.d.Files[name].Data)
				free, behind := "", ""
				if old(name) {
					free = "not read any more"
				}
				if strings.HasPrefix(name, "level-") || strings.HasPrefix(name, "data-") {
					behind = "bytes behind what the snapshot covers"
				}
				set := func(b []byte) func(d *fsystest.Disk) {
					return func(d *fsystest.Disk) { d.Files[name].Data = bytes.Clone(b) }
				}
				data := base.d.Files[name].Data
				for i, n := range []int{0, size / 2, size - 1, 1, size - sector} {
					if n < 0 || flipStep > 1 && i > 2 {
						continue
					}
					why := free
					if why == "" {
						why = harmless(base.d, s, name, int64(n))
					}
					try(t, fmt.Sprint("cut to ", n), why, set(data[:n]))
				}
				why := free + behind
				try(t, "a byte more", why, set(append(bytes.Clone(data), 1)))
				try(t, "a sector of zeros more", why, set(append(bytes.Clone(data), zeroSector[:]...)))
				why = free
				if spare(name) && name == last {
					why = "a spare that nobody has used"
				}
				try(t, "removed", why, func(d *fsystest.Disk) { delete(d.Files, name) })
				if f := p.older.Files[name]; f != nil {
					try(t, "put back", free, set(f.Data))
				}
				if f := p.other.Files[name]; f != nil {
					why := free
					if spare(name) && allZero(f.Data) {
						why = "zeros for zeros"
					}
					try(t, "of another log", why, set(f.Data))
				}
				for i, to := range names {
					if to <= name || base.d.Files[to] == nil || !soaking() && i%min(flipStep, 3) > 0 && to[:4] != name[:4] {
						continue
					}
					why := ""
					if old(name) && old(to) {
						why = "both are not read any more"
					}
					try(t, "exchanged with "+to, why, func(d *fsystest.Disk) { d.Files[name], d.Files[to] = d.Files[to], d.Files[name] })
				}
			})
		}
	}
}

// Records taken from the end of a packed log, put into it and moved in it, with all hashes made anew by somebody who has no key: refused by the
// opening already, in constant time..
func TestPackedRewrite(t *testing.T) {
	t.Parallel()
	p := packedLogs()
	read := func(d *fsystest.Disk) (recs [][]byte) {
		l := openSim(t, d.Killed(), p.o)
		if err := l.Read(context.Background(), 0, func(_ uint64, r *Record) error {
			recs = append(recs, mustEncode(t, r))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		mustClose(t, l)
		return recs[:l.Found()]
	}
	recs, foreign := read(p.closed), read(p.other)
	cut := func(n int) func([][]byte) [][]byte { return func(r [][]byte) [][]byte { return r[:len(r)-n] } }
	for _, tt := range []struct {
		name string
		edit func(recs [][]byte) [][]byte
	}{
		{"the last one gone", cut(1)},
		{"the last ten gone", cut(10)},
		{"the last bundle gone", cut(int(p.size % tiles.Width))},
		{"over a checkpoint", cut(300)},
		{"all but the first", func(r [][]byte) [][]byte { return r[:1] }},
		{"one in the middle gone", func(r [][]byte) [][]byte { return slices.Delete(r, 700, 701) }},
		{"a whole bundle gone", func(r [][]byte) [][]byte { return slices.Delete(r, 512, 768) }},
		{"one more", func(r [][]byte) [][]byte { return slices.Insert(r, 700, r[699]) }},
		{"two exchanged", func(r [][]byte) [][]byte { r[10], r[11] = r[11], r[10]; return r }},
		{"bundles exchanged", func(r [][]byte) [][]byte {
			return slices.Concat(r[:256], r[512:768], r[256:512], r[768:])
		}},
		{"one altered", func(r [][]byte) [][]byte { r[5] = bytes.Clone(r[5]); r[5][len(r[5])-1] ^= 1; return r }},
		{"one of another log", func(r [][]byte) [][]byte { r[900] = foreign[900]; return r }},
		{"a bundle of another log", func(r [][]byte) [][]byte { copy(r[256:512], foreign[256:512]); return r }},
		{"all of another log", func([][]byte) [][]byte { return slices.Clone(foreign) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			edited := tt.edit(slices.Clone(recs))
			made := fsystest.New()
			store, err := tiles.Open(made, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range edited {
				store.Append(r, leafHash(r))
			}
			if _, err := store.Sync(); err != nil {
				t.Fatal(err)
			}
			d := p.closed.Killed()
			for name := range d.Files {
				if strings.HasPrefix(name, "level-") || strings.HasPrefix(name, "data-") {
					delete(d.Files, name)
				}
			}
			maps.Copy(d.Files, made.Killed().Files)
			if v := bothRefuse(t, d, tt.name); v != VerdictTampered {
				t.Errorf("%s", v)
			}
			// The bundles alone, and the hashes alone.
			for _, prefix := range []string{"level-", "data-"} {
				d := p.closed.Killed()
				for name, f := range made.Killed().Files {
					if strings.HasPrefix(name, prefix) {
						d.Files[name] = f
					}
				}
				_, err := verifySim(d, p.o.Keys, true)
				if verdict(err) != VerdictTampered {
					t.Errorf("%s only: %v", prefix, err)
				}
			}
			if err := store.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// The ring behind the snapshot of a killed log: frames taken from its end, from inside, moved, and brought from another log..
func TestPackedRing(t *testing.T) {
	t.Parallel()
	p := packedLogs()
	ps := behind(t, p.crashed)
	for n := 1; n <= len(ps); n += 1 + n/4 {
		d := p.crashed.Killed()
		for _, f := range ps[len(ps)-n:] {
			wipe(d, f)
		}
		if v := bothRefuse(t, d, fmt.Sprint("the last ", n)); v != VerdictTruncated {
			t.Errorf("the last %d: %s", n, v)
		}
	}
	for name, tt := range map[string]struct {
		want Verdict
		edit func(d *fsystest.Disk)
	}{
		"one in the middle": {VerdictHole, func(d *fsystest.Disk) { wipe(d, ps[4]) }},
		"the first":         {VerdictHole, func(d *fsystest.Disk) { wipe(d, ps[0]) }},
		"a packed one again": {VerdictTampered, func(d *fsystest.Disk) {
			all := framesOf(t, d)
			f := ps[len(ps)-1]
			for _, g := range all {
				if g.seg == f.seg && g.off == 0 {
					copy(d.Files[f.seg].Data[f.off+f.n:], bytesAt(d, g))
				}
			}
		}},
		"the frame before the place altered": {VerdictTampered, func(d *fsystest.Disk) {
			at := snapshotOf(t, d).at
			if at.off == 0 {
				t.Fatal("the snapshot is at the start of a segment")
			}
			d.Files[segmentName(at.segment)].Data[100] ^= 1
		}},
	} {
		d := p.crashed.Killed()
		tt.edit(d)
		if _, err := tryOpenSim(d, p.o); verdict(err) != tt.want {
			t.Errorf("%s: Open: %v, want %s", name, err, tt.want)
		}
		if _, err := verifySim(d, p.o.Keys, true); verdict(err) != tt.want {
			t.Errorf("%s: Verify: %v, want %s", name, err, tt.want)
		}
	}
}

// A log whose segments were recycled many times is whole, and a flip in what was packed long ago is found by the scrubber while it runs. With
// RONKMS_SOAK=1 it has more than two volumes.
func TestPackedVolumes(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	o.RingSegments = minSegments
	o.ScrubInterval = 1
	d, l := newSimLog(t, o)
	n := 3000
	if soaking() {
		n = 2*65536 + 500
	}
	recs := make([]*Record, 20)
	for l.Size() < uint64(n) {
		for j := range recs {
			recs[j] = operation(fmt.Sprint("key", j%7), j)
		}
		mustAppend(t, l, recs...)
	}
	until(t, "something is packed", func() bool { return l.Scrubbed() > 4 })
	d.Mu.Lock()
	d.Files["data-00000000"].Data[9000] ^= 1
	d.Mu.Unlock()
	<-l.failed
	var ie *IntegrityError
	if err := l.Err(); !errors.As(err, &ie) || ie.Verdict != VerdictTampered {
		t.Errorf("the scrubber says %v", err)
	}
	l.Close()
	d.Files["data-00000000"].Data[9000] ^= 1
	wantWhole(t, "put right", d, o, uint64(n))
}
