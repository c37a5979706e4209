package tiles

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rustyonions/ron-kms/audit/fsys/fsystest"
)

// unused reports whether a byte of a store of size records, all in volume 0, means nothing: what a crash left behind the
// end, and the offsets behind bundles that are not complete.
func unused(name string, off int, size uint64, end uint64) bool {
	switch name {
	case "level-0":
		return off >= int(size)*tlog.HashSize
	case "level-1":
		return off >= int(size/Width)*tlog.HashSize
	}
	table := tableStart + 8*(int(size/Width)+1)
	return off >= table && off < tableEnd || off >= int(end)
}

// A change of any byte of the files that means something is found by Open or by Scrub; those that mean nothing are exactly
// those that the format says so of, and are no reason to refuse a log. R-014.
func TestEveryByteCounts(t *testing.T) {
	t.Parallel()
	const size = Width + 3
	d := newSim(t, size)
	s := mustOpen(t, d, size)
	end := s.packer.volumes[0].table[1] + uint64(len(s.bundles[0])) // of the partial bundle
	grow(s, size+300)                                               // leftovers of a crash behind the end
	mustSync(t, s)
	var found, void int
	for name, f := range d.Files {
		for off := 0; off < len(f.Data); off += slower {
			if off%13 != 0 && (name == "level-0" || unused(name, off, size, end)) {
				continue // hashes are much the same
			}
			bit := byte(1) << (off % 8)
			f.Data[off] ^= bit
			err := openAndScrub(d, size)
			f.Data[off] ^= bit
			var damage *DamageError
			switch {
			case err != nil && !errors.As(err, &damage):
				t.Fatalf("%s at %d: %v", name, off, err)
			case err == nil && !unused(name, off, size, end):
				t.Errorf("%s: a change at %d is not found", name, off)
			case err != nil && unused(name, off, size, end):
				t.Errorf("%s: a change at %d, which means nothing: %v", name, off, err)
			case err != nil:
				found++
			default:
				void++
			}
		}
	}
	if found < 8000/slower || void < 500/slower {
		t.Errorf("%d changes were found, %d meant nothing", found, void)
	}
	if err := openAndScrub(d, size); err != nil {
		t.Errorf("unchanged: %v", err)
	}
}

func openAndScrub(d *fsystest.Disk, size uint64) error {
	s, err := Open(d, size)
	if err != nil {
		return err
	}
	return errors.Join(scrub(s), s.Close())
}

// Files that are missing or too short are damage at Open, not a smaller log. R-014.
func TestMissingAndShortFiles(t *testing.T) {
	t.Parallel()
	const size = volumeRecords + 700
	whole := newSim(t, size)
	for name := range whole.Files {
		d := whole.Killed()
		delete(d.Files, name)
		if name == "data-00000000" { // the same as a pruned one: who prunes remembers it
			if s := mustOpen(t, d, size); s.Kept() != volumeRecords {
				t.Errorf("kept from %d", s.Kept())
			}
			continue
		}
		wantDamage(t, "without "+name, openErr(d, size))

		d = whole.Killed()
		f := d.Files[name]
		f.Data = f.Data[:len(f.Data)-1]
		wantDamage(t, "short "+name, openErr(d, size))
	}
	for _, size := range []uint64{size + 1, 2*volumeRecords + 1, 3 * volumeRecords} {
		wantDamage(t, "a size beyond the files", openErr(whole, size))
	}
	three := newSim(t, 2*Width)
	three.Files["data-00000001"], three.Files["data-00000002"] = nil, nil
	delete(three.Files, "data-00000001")
	names, err := three.List()
	if err != nil || len(names) != 4 {
		t.Fatal(names, err)
	}
	s := &Store{dir: three, size: 2*volumeRecords + 1}
	wantDamage(t, "a hole in the row of volumes", s.loadVolumes())
}

func openErr(d *fsystest.Disk, size uint64) error {
	s, err := Open(d, size)
	if err == nil {
		err = s.Close()
	}
	return err
}

func wantDamage(t *testing.T, what string, err error) {
	t.Helper()
	var damage *DamageError
	if !errors.As(err, &damage) {
		t.Errorf("%s: %v", what, err)
	}
}

// Open itself refuses a right edge that does not fit together; it does not leave that to Scrub..
func TestOpenChecksTheEdge(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		what, file string
		size       uint64
		off        int
	}{
		{"a record of the partial bundle", "data-00000000", 300, -1},
		{"a record of the last complete bundle", "data-00000000", 256, -1},
		{"a leaf of the partial tile", "level-0", 300, -1},
		{"a leaf of the last complete tile", "level-0", 300, 0},
		{"the hash above it", "level-1", 300, 0},
		{"the header", "data-00000000", 300, 0},
	} {
		d := newSim(t, c.size)
		b := d.Files[c.file].Data
		b[(c.off+len(b))%len(b)] ^= 1
		wantDamage(t, c.what, openErr(d, c.size))
	}
}

// No offset in a header makes the reader read elsewhere, or a great deal. R-014.
func TestOffsets(t *testing.T) {
	t.Parallel()
	const size = 2*Width + 3
	d := newSim(t, size)
	h := d.Files["data-00000000"].Data
	for j := range 3 {
		slot := h[tableStart+8*j:][:8]
		right := binary.BigEndian.Uint64(slot)
		for _, off := range []uint64{0, 1, headerBytes - 1, right - 1, right + 1, uint64(len(h)), 1 << 40, 1<<63 - 1, 1 << 63, 1<<64 - 1} {
			binary.BigEndian.PutUint64(slot, off)
			err := openErr(d, size)
			if err == nil { // each of the bundles beside it alone is enough
				s := mustOpen(t, d, size)
				for n := j - 1; n <= j; n++ {
					wantDamage(t, fmt.Sprintf("offset %d is %d", j, off), second(s.Scrub(context.Background(), uint64(n), 1)))
				}
			} else {
				wantDamage(t, fmt.Sprintf("offset %d is %d", j, off), err)
			}
		}
		binary.BigEndian.PutUint64(slot, right)
	}
	if err := openAndScrub(d, size); err != nil {
		t.Error(err)
	}
}

// A disk that fails is not damage. R-014.
func TestDiskErrorIsNotDamage(t *testing.T) {
	t.Parallel()
	d := newSim(t, 600)
	d.Fail = func(op, _ string, n int) (int, error) { return 0, errDisk }
	var damage *DamageError
	if err := openErr(d, 600); !errors.Is(err, errDisk) || errors.As(err, &damage) {
		t.Errorf("Open: %v", err)
	}
}

// Who changes a record and also all hashes that lead to the edge is found by Scrub against the memory, and by proofs. At
// the next Open it is the root that tells..
func TestConsistentForgery(t *testing.T) {
	t.Parallel()
	const size = 2*Width + 3
	d := newSim(t, size)
	root := theModel().root(size)
	s := mustOpen(t, d, size)

	leaves := d.Files["level-0"].Data
	at := headerBytes + 2 // first byte of record 0
	data := d.Files["data-00000000"].Data
	data[at] ^= 1
	forged := tlog.RecordHash(data[at : at+len(testRecord(0))])
	wantDamage(t, "record", second(s.Record(0)))
	wantDamage(t, "bundle", second(s.Bundle(0, Width)))
	copy(leaves, forged[:])
	if _, err := s.Record(0); err != nil {
		t.Errorf("the record has its leaf hash now: %v", err)
	}
	wantDamage(t, "tile", scrub(s))
	for _, i := range []uint64{1, 200} {
		if p, err := s.Inclusion(i, size, root); !errors.Is(err, ErrRoot) {
			t.Errorf("inclusion of %d with a forged leaf in its tile: %d hashes, %v", i, len(p), err)
		}
	}
	if _, err := s.Consistency(100, size, root); !errors.Is(err, ErrRoot) {
		t.Errorf("consistency with a forged leaf: %v", err)
	}
	above := subtree(leaves[:tileBytes])
	copy(d.Files["level-1"].Data, above[:])
	wantDamage(t, "edge", scrub(s))

	s = mustOpen(t, d, size)
	if err := scrub(s); err != nil {
		t.Errorf("nothing in the files shows it now: %v", err)
	}
	if got, err := s.Root(size); err != nil || got == root {
		t.Errorf("the root is the same: %v", err)
	}
	if _, err := s.Inclusion(0, size, root); !errors.Is(err, ErrRoot) {
		t.Errorf("inclusion: %v", err)
	}
}

// Damage that comes after Open is found by Scrub also in the partial tiles, which are served from memory. R-014.
func TestScrubReadsTheFiles(t *testing.T) {
	t.Parallel()
	const size = volumeRecords + 700
	d := newSim(t, size)
	s := mustOpen(t, d, size)
	for _, c := range []struct {
		file   string
		off    int
		bundle uint64 // by which it must be found
	}{
		{"level-0", 0, 0}, {"level-0", volumeRecords * 32, 256}, {"level-0", size*32 - 1, 258},
		{"level-1", 0, 0}, {"level-1", 255 * 32, 255}, {"level-1", 257*32 + 31, 257}, {"level-2", 31, 255},
		{"data-00000000", 0, 0}, {"data-00000000", headerBytes + 2, 0}, {"data-00000001", tableEnd, 256},
		{"data-00000001", len(d.Files["data-00000001"].Data) - 1, 258},
	} {
		d.Files[c.file].Data[c.off] ^= 0x80
		wantDamage(t, c.file, second(s.Scrub(context.Background(), c.bundle, 1)))
		d.Files[c.file].Data[c.off] ^= 0x80
	}
	if err := scrub(s); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if next, err := s.Scrub(ctx, 7, 10); next != 7 || !errors.Is(err, context.Canceled) {
		t.Errorf("Scrub = %d, %v", next, err)
	}
	if next, err := s.Scrub(context.Background(), 7, 10); next != 17 || err != nil {
		t.Errorf("Scrub = %d, %v", next, err)
	}
}

// Pruned volumes are gone for good, their hashes and all proofs stay, and the store opens and goes on. R-274.
func TestPrune(t *testing.T) {
	t.Parallel()
	d := newSim(t, modelSize)
	s := mustOpen(t, d, modelSize)
	root := theModel().root(modelSize)
	if kept, err := s.Prune(volumeRecords - 1); kept != 0 || err != nil {
		t.Fatalf("Prune = %d, %v", kept, err)
	}
	for range 2 { // the second time there is nothing to do: the last volume stays
		if kept, err := s.Prune(1 << 60); kept != volumeRecords || err != nil {
			t.Fatalf("Prune = %d, %v", kept, err)
		}
	}
	for range 2 {
		if _, err := s.Record(volumeRecords - 1); !errors.Is(err, ErrPruned) {
			t.Errorf("record: %v", err)
		}
		if _, err := s.ReadTile("tile/entries/000"); !errors.Is(err, ErrPruned) || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("bundle: %v", err)
		}
		p, err := s.Inclusion(5, modelSize, root)
		if err != nil || tlog.CheckRecord(p, modelSize, root, 5, theModel().leaves[5]) != nil {
			t.Errorf("inclusion: %v", err)
		}
		if err := scrub(s); err != nil {
			t.Error(err)
		}
		s = mustOpen(t, d.Killed(), modelSize)
	}
	checkStore(t, s, modelSize)
	d.Files["level-0"].Data[100] ^= 1 // of a pruned record
	wantDamage(t, "hash of a pruned record", scrub(mustOpen(t, d, modelSize)))

	exact := newSim(t, volumeRecords)
	s = mustOpen(t, exact, volumeRecords)
	if kept, err := s.Prune(volumeRecords); kept != 0 || err != nil {
		t.Errorf("Prune = %d, %v", kept, err)
	}
	grow(s, volumeRecords+1) // not durable: nothing may go for its sake
	if kept, err := s.Prune(volumeRecords); kept != 0 || err != nil {
		t.Errorf("Prune = %d, %v", kept, err)
	}
	mustSync(t, s)
	exact.Fail = func(op, _ string, n int) (int, error) {
		if op == "syncdir" {
			return 0, errDisk
		}
		return n, nil
	}
	if kept, err := s.Prune(volumeRecords); kept != volumeRecords || !errors.Is(err, errDisk) {
		t.Errorf("Prune = %d, %v", kept, err)
	}
}

// The error says where, in the names that a reader of the log knows.
func TestDamageErrorNames(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  DamageError
		want string
	}{
		{DamageError{2, 1234, "gone"}, "tile/2/x001/234: gone"},
		{DamageError{Entries, 5, "gone"}, "tile/entries/005: gone"},
	} {
		if got := c.err.Error(); !strings.HasSuffix(got, c.want) {
			t.Errorf("%q", got)
		}
	}
}
