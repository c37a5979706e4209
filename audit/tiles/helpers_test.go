package tiles

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rustyonions/ron-kms/audit/fsys"
	"github.com/rustyonions/ron-kms/audit/fsys/fsystest"
)

// testRecord returns record i of the logs of these tests: 1 to 40 bytes, and now and then some thousand.
func testRecord(i uint64) []byte {
	n := 1 + i*7919%40
	if i%1000 == 999 {
		n = 5000
	}
	return bytes.Repeat(binary.BigEndian.AppendUint64(nil, i*0x9E3779B97F4A7C15), int(n/8+1))[:n]
}

// model is the same log made by package tlog alone.
type model struct {
	leaves []tlog.Hash
	hashes []tlog.Hash
}

const modelSize = 70000

var theModel = sync.OnceValue(func() *model {
	m := new(model)
	for i := range uint64(modelSize) {
		leaf := tlog.RecordHash(testRecord(i))
		h, err := tlog.StoredHashesForRecordHash(int64(i), leaf, m)
		if err != nil {
			panic(err)
		}
		m.leaves = append(m.leaves, leaf)
		m.hashes = append(m.hashes, h...)
	}
	return m
})

func (m *model) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	h := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		h[i] = m.hashes[x]
	}
	return h, nil
}

func (m *model) root(size uint64) tlog.Hash {
	h, err := tlog.TreeHash(int64(size), m)
	if err != nil {
		panic(err)
	}
	return h
}

// grow appends records of the model until there are size.
func grow(s *Store, size uint64) {
	m := theModel()
	for i := s.Size(); i < size; i++ {
		s.Append(testRecord(i), m.leaves[i])
	}
}

func mustSync(t testing.TB, s *Store) {
	t.Helper()
	if n, err := s.Sync(); err != nil || n != s.Size() {
		t.Fatalf("Sync = %d, %v; size %d", n, err, s.Size())
	}
}

func mustOpen(t testing.TB, d fsys.Dir, size uint64) *Store {
	t.Helper()
	s, err := Open(d, size)
	if err != nil {
		t.Fatalf("Open at %d: %v", size, err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// newSim returns a disk with a store of size records, synced and closed.
func newSim(t testing.TB, size uint64) *fsystest.Disk {
	t.Helper()
	d := fsystest.New()
	s := mustOpen(t, d, 0)
	grow(s, size)
	mustSync(t, s)
	return d
}

func scrub(s *Store) error { return scrubFrom(s, 0) }

func scrubFrom(s *Store, bundle uint64) error {
	for next := bundle; ; {
		var err error
		if next, err = s.Scrub(context.Background(), next, 100); err != nil || next == 0 {
			return err
		}
	}
}

// checkStore compares all that is durable or in memory with the model.
func checkStore(t testing.TB, s *Store, size uint64) {
	t.Helper()
	if err := compare(s, size); err != nil {
		t.Fatal(err)
	}
}

func compare(s *Store, size uint64) error {
	m := theModel()
	if s.Size() != size {
		return fmt.Errorf("size %d, want %d", s.Size(), size)
	}
	if root, err := s.Root(size); err != nil || root != m.root(size) {
		return fmt.Errorf("root of %d is wrong: %v", size, err)
	}
	for level := 0; size>>(8*level) > 0; level++ {
		for n := range files(level, size) {
			w := int(min(Width, size>>(8*level)-n*Width))
			want, err := tlog.ReadTileData(tlog.Tile{H: 8, L: level, N: int64(n), W: w}, m)
			if err != nil {
				return err
			}
			if got, err := s.Tile(level, n, w); err != nil || !bytes.Equal(got, want) {
				return fmt.Errorf("%s of %d differs: %v", Path(level, n, w), size, err)
			}
		}
	}
	for n := range files(Entries, size) {
		w := int(min(Width, size-n*Width))
		b, err := s.Bundle(n, w)
		if n*Width < s.Kept() {
			if !errors.Is(err, ErrPruned) {
				return fmt.Errorf("bundle %d was pruned: %v", n, err)
			}
			continue
		}
		if err != nil {
			return err
		}
		var want []byte
		for i := n * Width; i < n*Width+uint64(w); i++ {
			r := testRecord(i)
			want = append(binary.BigEndian.AppendUint16(want, uint16(len(r))), r...)
		}
		if !bytes.Equal(b, want) {
			return fmt.Errorf("bundle %d of %d differs", n, size)
		}
	}
	return nil
}

// failures makes a disk fail from the given operation on, for the given number of operations.
func failures(d *fsystest.Disk, rng *rand.Rand, after, count int) {
	d.Fail = func(op, _ string, n int) (int, error) {
		if after--; after >= 0 {
			return n, nil
		}
		if count--; count < 0 {
			return n, nil
		}
		if op == "write" && n > 0 {
			return rng.IntN(n), errDisk
		}
		return 0, errDisk
	}
}

var errDisk = errors.New("the disk fails")
