package tiles

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rustyonions/ron-kms/audit/fsys"
)

// One goroutine appends, one packs, and others read, prove, scrub and prune beside them; each answer is right.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	d, err := fsys.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	const begin, end = volumeRecords - 1000, volumeRecords + 2000
	m := theModel()
	s := mustOpen(t, d, 0)
	grow(s, begin)
	mustSync(t, s)
	done := make(chan struct{})
	var readers sync.WaitGroup
	read := func(f func(rng *rand.Rand, size uint64) error) {
		readers.Go(func() {
			rng := rand.New(rand.NewPCG(1, 1))
			for {
				select {
				case <-done:
					return
				default:
				}
				if err := f(rng, s.Size()); err != nil && !errors.Is(err, ErrPruned) {
					t.Error(err)
					return
				}
			}
		})
	}
	wrong := errors.New("a wrong answer")
	read(func(rng *rand.Rand, size uint64) error {
		i := rng.Uint64N(size)
		r, err := s.Record(i)
		if err == nil && !bytes.Equal(r, testRecord(i)) {
			return wrong
		}
		return err
	})
	read(func(rng *rand.Rand, size uint64) error {
		i, root := rng.Uint64N(size), m.root(size)
		p, err := s.Inclusion(i, size, root)
		if err == nil {
			err = tlog.CheckRecord(p, int64(size), root, int64(i), m.leaves[i])
		}
		return err
	})
	read(func(rng *rand.Rand, size uint64) error {
		old := 1 + rng.Uint64N(size)
		got, err := s.Root(old)
		if err == nil && got != m.root(old) {
			return wrong
		}
		return err
	})
	read(func(rng *rand.Rand, size uint64) error {
		if err := scrubFrom(s, max(20, size/Width)-20); err != nil {
			return err
		}
		_, err := s.Prune(size)
		return err
	})
	var packer sync.WaitGroup
	packer.Go(func() {
		for s.Size() < end {
			if err := s.Flush(); err != nil {
				t.Error(err)
			}
			if _, err := s.Sync(); err != nil {
				t.Error(err)
			}
		}
	})
	for i := s.Size(); i < end; i++ {
		s.Append(testRecord(i), m.leaves[i])
		if i%16 == 0 {
			runtime.Gosched()
		}
	}
	packer.Wait()
	close(done)
	readers.Wait()
	mustSync(t, s)
	if kept, err := s.Prune(end); err != nil || kept != volumeRecords {
		t.Errorf("Prune = %d, %v", kept, err)
	}
	checkStore(t, s, end)
	if err := scrub(s); err != nil {
		t.Error(err)
	}
}

// A bundle and its tile are a few allocations for 256 records.
func TestAppendAllocates(t *testing.T) {
	s := NewMemory(0)
	record, leaf := make([]byte, 300), [32]byte{}
	per := testing.AllocsPerRun(20, func() {
		for range Width {
			s.Append(record, leaf)
		}
	})
	if per > 4 {
		t.Errorf("%g allocations for %d records", per, Width)
	}
}

func BenchmarkAppend(b *testing.B) {
	s := NewMemory(4096)
	record := bytes.Repeat([]byte("record"), 50)
	leaf := tlog.RecordHash(record)
	b.SetBytes(int64(len(record)))
	b.ReportAllocs()
	for b.Loop() {
		s.Append(record, leaf)
	}
}

// BenchmarkPack appends and syncs 4096 records of 300 bytes, a checkpoint's worth, on a real disk.
func BenchmarkPack(b *testing.B) {
	d, err := fsys.Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	s := mustOpen(b, d, 0)
	record := bytes.Repeat([]byte("record"), 50)
	leaf := tlog.RecordHash(record)
	b.SetBytes(4096 * int64(len(record)))
	for b.Loop() {
		for range 4096 {
			s.Append(record, leaf)
		}
		mustSync(b, s)
	}
}
