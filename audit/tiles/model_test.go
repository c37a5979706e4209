package tiles

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/rustyonions/ron-kms/audit/fsys"
	"github.com/rustyonions/ron-kms/audit/fsys/fsystest"
)

var sizes = []uint64{1, 2, 3, 255, 256, 257, 511, 512, 1000, 65535, 65536, 65537, 65792, 70000}

// Tiles, bundles and roots are those of an independent implementation (package tlog) at every size, before they are
// synced, after, and after they are opened again. R-270.
func TestStoreAgreesWithModel(t *testing.T) {
	t.Parallel()
	d := fsystest.New()
	s := mustOpen(t, d, 0)
	for _, size := range sizes {
		grow(s, size)
		if size < 2000 || size == 65537 {
			checkStore(t, s, size)
		}
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
		mustSync(t, s)
		if records, bytes := s.Pending(); records != 0 || bytes != 0 {
			t.Errorf("after Sync %d records, %d bytes are pending", records, bytes)
		}
		s = mustOpen(t, d.Killed(), size)
		if size < 2000 || size >= 65537 {
			checkStore(t, s, size)
		} else if root, err := s.Root(size); err != nil || root != theModel().root(size) {
			t.Fatalf("root of %d: %v", size, err)
		}
		if err := scrub(s); err != nil {
			t.Fatal(err)
		}
		s = mustOpen(t, d, size) // go on with the disk
	}
	for _, size := range append(sizes, 0) { // roots of the past
		if root, err := s.Root(size); err != nil || root != theModel().root(size) {
			t.Errorf("root of %d: %v", size, err)
		}
	}
	for range 100 {
		i := rand.Uint64N(modelSize)
		if r, err := s.Record(i); err != nil || !bytes.Equal(r, testRecord(i)) {
			t.Fatalf("record %d: %v", i, err)
		}
	}
}

// The same on a real disk, with records of the longest and the shortest kind.
func TestStoreOnDisk(t *testing.T) {
	t.Parallel()
	d, err := fsys.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	s := mustOpen(t, d, 0)
	var hashes []tlog.Hash
	add := func(n int) {
		r := bytes.Repeat([]byte{byte(len(hashes))}, n)
		hashes = append(hashes, tlog.RecordHash(r))
		s.Append(r, hashes[len(hashes)-1])
	}
	for range 260 {
		add(1)
	}
	mustSync(t, s)
	for range 260 {
		add(MaxRecord)
	}
	mustSync(t, s)
	root, _ := s.Root(520)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Sync(); err == nil {
		t.Error("Sync after Close succeeds")
	}
	s = mustOpen(t, d, 520)
	if got, err := s.Root(520); err != nil || got != root {
		t.Fatalf("root differs: %v", err)
	}
	if err := scrub(s); err != nil {
		t.Fatal(err)
	}
	for _, i := range []uint64{0, 259, 260, 511, 512, 519} {
		r, err := s.Record(i)
		if err != nil || tlog.RecordHash(r) != hashes[i] {
			t.Errorf("record %d: %v", i, err)
		}
	}
	for _, n := range []int{0, MaxRecord + 1} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("a record of %d bytes is taken", n)
				}
			}()
			s.Append(make([]byte, n), hashes[0])
		}()
	}
}

// Proofs hold for two independent checkers, for every record near an edge and pairs of sizes. R-273.
func TestProofs(t *testing.T) {
	t.Parallel()
	m := theModel()
	s := mustOpen(t, fsystest.New(), 0)
	grow(s, 65800)
	mustSync(t, s)
	grow(s, modelSize) // partly in memory only
	h := rfc6962.DefaultHasher
	raw := func(p []tlog.Hash) (b [][]byte) {
		for i := range p {
			b = append(b, p[i][:])
		}
		return b
	}
	for _, size := range sizes {
		root := m.root(size)
		for _, i := range []uint64{0, 1, 254, 255, 256, 300, 65535, 65536, size - 1, size / 2} {
			if i >= size {
				continue
			}
			p, err := s.Inclusion(i, size, root)
			if err != nil {
				t.Fatalf("inclusion of %d in %d: %v", i, size, err)
			}
			if err := tlog.CheckRecord(p, int64(size), root, int64(i), m.leaves[i]); err != nil {
				t.Errorf("inclusion of %d in %d: %v", i, size, err)
			}
			if err := proof.VerifyInclusion(h, i, size, m.leaves[i][:], raw(p), root[:]); err != nil {
				t.Errorf("inclusion of %d in %d: %v", i, size, err)
			}
		}
		for _, old := range sizes {
			if old > size {
				continue
			}
			oldRoot := m.root(old)
			p, err := s.Consistency(old, size, root)
			if err != nil {
				t.Fatalf("consistency of %d with %d: %v", old, size, err)
			}
			if err := tlog.CheckTree(p, int64(size), root, int64(old), oldRoot); err != nil {
				t.Errorf("consistency of %d with %d: %v", old, size, err)
			}
			if err := proof.VerifyConsistency(h, old, size, raw(p), oldRoot[:], root[:]); err != nil {
				t.Errorf("consistency of %d with %d: %v", old, size, err)
			}
		}
	}
}

// There is no proof for a root that the hashes do not lead to, also where the proof would be empty. R-273.
func TestProofsNeedTheRoot(t *testing.T) {
	t.Parallel()
	s := mustOpen(t, fsystest.New(), 0)
	grow(s, 1000)
	mustSync(t, s)
	wrong := theModel().root(999)
	for _, size := range []uint64{1, 256, 1000} {
		if _, err := s.Inclusion(0, size, wrong); !errors.Is(err, ErrRoot) {
			t.Errorf("inclusion in %d: %v", size, err)
		}
		for _, old := range []uint64{1, size} {
			if _, err := s.Consistency(old, size, wrong); !errors.Is(err, ErrRoot) {
				t.Errorf("consistency of %d with %d: %v", old, size, err)
			}
		}
	}
	root := theModel().root(1000)
	for _, c := range []struct{ index, size uint64 }{{1000, 1000}, {0, 1001}, {1, 1}, {0, 1 << 63}} {
		if _, err := s.Inclusion(c.index, c.size, root); !errors.Is(err, ErrNotFound) {
			t.Errorf("inclusion of %d in %d: %v", c.index, c.size, err)
		}
	}
	for _, c := range []struct{ old, size uint64 }{{0, 1000}, {1000, 1001}, {1000, 999}} {
		if _, err := s.Consistency(c.old, c.size, root); !errors.Is(err, ErrNotFound) {
			t.Errorf("consistency of %d with %d: %v", c.old, c.size, err)
		}
	}
	if _, err := HashReader(s, 0, [32]byte{}).ReadHashes(nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("hashes of no tree: %v", err)
	}
	if _, err := HashReader(s, 1000, root).ReadHashes([]int64{tlog.StoredHashIndex(0, 1000)}); !errors.Is(err, ErrNotFound) {
		t.Errorf("hash beyond the tree: %v", err)
	}
}

// What is beyond the end, or no tile at all, is not found.
func TestNotFound(t *testing.T) {
	t.Parallel()
	s := mustOpen(t, fsystest.New(), 0)
	grow(s, 600)
	mustSync(t, s)
	for _, c := range []struct {
		level int
		n     uint64
		width int
	}{
		{0, 2, 89}, {0, 2, 256}, {0, 3, 1}, {1, 0, 3}, {2, 0, 1}, {8, 0, 1}, {63, 0, 1}, {-2, 0, 1},
		{0, 0, 0}, {0, 0, 257}, {0, 0, -1}, {0, 1 << 56, 1}, {0, 1<<64 - 1, 256}, {7, 1 << 56, 1},
	} {
		if _, err := s.Tile(c.level, c.n, c.width); !errors.Is(err, ErrNotFound) {
			t.Errorf("tile %v: %v", c, err)
		}
		if c.level == 0 {
			if _, err := s.Bundle(c.n, c.width); !errors.Is(err, ErrNotFound) {
				t.Errorf("bundle %v: %v", c, err)
			}
		}
	}
	for _, i := range []uint64{600, 1 << 56, 1<<64 - 1} {
		if _, err := s.Record(i); !errors.Is(err, ErrNotFound) {
			t.Errorf("record %d: %v", i, err)
		}
	}
	if _, err := s.Root(601); !errors.Is(err, ErrNotFound) {
		t.Errorf("root: %v", err)
	}
}

// What is returned is the caller's: changing it changes nothing in the store.
func TestAnswersAreCopies(t *testing.T) {
	t.Parallel()
	s := NewMemory(1000)
	grow(s, 300)
	for range 2 {
		for _, read := range []func() ([]byte, error){
			func() ([]byte, error) { return s.Tile(0, 1, 44) },
			func() ([]byte, error) { return s.Bundle(1, 44) },
			func() ([]byte, error) { return s.Record(280) },
		} {
			b, err := read()
			if err != nil {
				t.Fatal(err)
			}
			clear(b)
		}
	}
	checkStore(t, s, 300)
}

// A store in memory keeps the hashes above the leaves, and of records and leaves the last ones. R-100.
func TestMemory(t *testing.T) {
	t.Parallel()
	s := NewMemory(1000)
	grow(s, 70000)
	if n, err := s.Sync(); n != 70000 || err != nil || s.Flush() != nil {
		t.Errorf("Sync = %d, %v", n, err)
	}
	if n, bytes := s.Pending(); n != 0 || bytes != 0 {
		t.Errorf("%d records, %d bytes are pending", n, bytes)
	}
	if kept := s.Kept(); kept != 70000/Width*Width-4*Width {
		t.Errorf("kept from %d", kept)
	}
	if len(s.bundles) != 5 || len(s.hashes[0].tiles) != 5 || len(s.hashes[1].tiles) != 2 {
		t.Errorf("%d bundles, %d and %d tiles in memory", len(s.bundles), len(s.hashes[0].tiles), len(s.hashes[1].tiles))
	}
	root := theModel().root(70000)
	if got, err := s.Root(70000); err != nil || got != root {
		t.Errorf("root: %v", err)
	}
	for i := s.Kept(); i < 70000; i++ {
		if r, err := s.Record(i); err != nil || !bytes.Equal(r, testRecord(i)) {
			t.Fatalf("record %d: %v", i, err)
		}
	}
	if p, err := s.Inclusion(s.Kept(), 70000, root); err != nil || tlog.CheckRecord(p, 70000, root, int64(s.Kept()), theModel().leaves[s.Kept()]) != nil {
		t.Errorf("inclusion: %v", err)
	}
	if p, err := s.Consistency(65536, 70000, root); err != nil || tlog.CheckTree(p, 70000, root, 65536, theModel().root(65536)) != nil {
		t.Errorf("consistency: %v", err)
	}
	for name, err := range map[string]error{
		"record":      second(s.Record(s.Kept() - 1)),
		"bundle":      second(s.Bundle(0, Width)),
		"leaves":      second(s.Tile(0, 0, Width)),
		"inclusion":   second(s.Inclusion(0, 70000, root)),
		"consistency": second(s.Consistency(1001, 70000, root)),
	} {
		if !errors.Is(err, ErrPruned) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := scrub(s); err != nil {
		t.Error(err)
	}
	if kept, err := s.Prune(70000); err != nil || kept != s.Kept() {
		t.Errorf("Prune = %d, %v", kept, err)
	}
	none := NewMemory(0)
	grow(none, 513)
	if none.Kept() != 512 {
		t.Errorf("kept from %d", none.Kept())
	}
}

func second[T any](_ T, err error) error { return err }
