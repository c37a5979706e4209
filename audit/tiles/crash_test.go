package tiles

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/rustyonions/ron-kms/audit/fsys/fsystest"
)

// Whatever operation a crash hits, and whatever of the unsynced sectors a power cut keeps, the store opens at the size of
// the last Sync, goes on, and becomes the same tree..
func TestCrashes(t *testing.T) {
	t.Parallel()
	seam := newSim(t, seamSize)
	for seed := range uint64(150 / slower) {
		rng := rand.New(rand.NewPCG(seed, 1))
		d := fsystest.New()
		size, synced := uint64(0), uint64(0)
		var begin uint64  // of what is worth reading back
		if seed%20 == 0 { // at the seam of two volumes
			d, size, synced = seam.Killed(), seamSize, seamSize
			begin = seamSize/Width - 2
		}
		s := mustOpen(t, d, synced)
		for range 4 {
			failures(d, rng, rng.IntN(40), 1<<30)
			for {
				size += rng.Uint64N(400)
				grow(s, size)
				var err error
				if rng.IntN(3) == 0 {
					err = s.Flush()
				} else if n, e := s.Sync(); e == nil {
					synced = n
				} else {
					err = e
				}
				if err != nil {
					break
				}
			}
			d.Fail = nil
			if rng.IntN(2) == 0 {
				d = d.Killed()
			} else {
				d = d.PowerCut(rng)
			}
			s = mustOpen(t, d, synced)
			if root, err := s.Root(synced); err != nil || root != theModel().root(synced) {
				t.Fatalf("seed %d: root of %d after a crash: %v", seed, synced, err)
			}
			if err := scrubFrom(s, begin); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			// The ring gives again what it holds, which may be less than was written.
			size = synced + rng.Uint64N(size-synced+1)
		}
		grow(s, size+1)
		mustSync(t, s)
		if err := scrubFrom(s, begin); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if root, err := s.Root(size + 1); err != nil || root != theModel().root(size+1) {
			t.Fatalf("seed %d: root of %d: %v", seed, size+1, err)
		}
	}
}

// seamSize is some records before the second volume.
const seamSize = volumeRecords - 300

// Other records than those that a crash left behind may follow: what was not synced does not bind.
func TestOtherRecordsAfterCrash(t *testing.T) {
	t.Parallel()
	d := fsystest.New()
	s := mustOpen(t, d, 0)
	other := func(n uint64) {
		for i := range n {
			s.Append([]byte("something else that is longer than most"), theModel().leaves[i])
		}
	}
	other(600)
	mustSync(t, s) // durable, but who opens it does not know
	s = mustOpen(t, d, 0)
	grow(s, 300)
	mustSync(t, s)
	checkStore(t, mustOpen(t, d, 300), 300)
	other(900)
	mustSync(t, s)
	s = mustOpen(t, d, 300)
	grow(s, 1000)
	mustSync(t, s)
	s = mustOpen(t, d, 1000)
	checkStore(t, s, 1000)
	if err := scrub(s); err != nil {
		t.Error(err)
	}
}

// After writes, syncs and opens that fail, the next Sync writes everything again that no successful one covered: a
// power cut right after it loses nothing. R-016.
func TestFailuresForgetNothing(t *testing.T) {
	t.Parallel()
	for seed := range uint64(150 / slower) {
		rng := rand.New(rand.NewPCG(seed, 2))
		d := fsystest.New()
		s := mustOpen(t, d, 0)
		var synced uint64
		for range 6 {
			grow(s, s.Size()+rng.Uint64N(700))
			failures(d, rng, rng.IntN(12), 1+rng.IntN(3))
			for try := 0; ; try++ {
				if rng.IntN(3) == 0 {
					if err := s.Flush(); err != nil && !errors.Is(err, errDisk) {
						t.Fatalf("seed %d: %v", seed, err)
					}
				}
				n, err := s.Sync()
				if err == nil {
					synced = n
					break
				}
				if !errors.Is(err, errDisk) || n != synced || try > 10 {
					t.Fatalf("seed %d: Sync = %d, %v; synced %d", seed, n, err, synced)
				}
				if records, bytes := s.Pending(); records != s.Size()-synced || records > 0 && bytes == 0 {
					t.Fatalf("seed %d: %d records, %d bytes pending of %d", seed, records, bytes, s.Size()-synced)
				}
				grow(s, s.Size()+rng.Uint64N(50))
			}
			if synced == 0 {
				continue
			}
			cut := mustOpen(t, d.PowerCut(rng), synced)
			if err := compare(cut, synced); err != nil {
				t.Fatalf("seed %d: after a power cut: %v", seed, err)
			}
		}
	}
}

// Each sync that fails alone is repeated with the pages before it.
func TestEverySyncCounts(t *testing.T) {
	t.Parallel()
	for _, file := range []string{"level-0", "level-1", "data-00000000"} {
		d := fsystest.New()
		s := mustOpen(t, d, 0)
		grow(s, 100)
		mustSync(t, s)
		grow(s, 700)
		d.Fail = func(op, name string, n int) (int, error) {
			if op == "sync" && name == file {
				return 0, errDisk
			}
			return n, nil
		}
		if n, err := s.Sync(); n != 100 || !errors.Is(err, errDisk) {
			t.Fatalf("%s: Sync = %d, %v", file, n, err)
		}
		d.Fail = nil
		none := rand.New(rand.NewPCG(0, 0))
		checkStore(t, mustOpen(t, d.PowerCut(none), 100), 100)
		mustSync(t, s)
		checkStore(t, mustOpen(t, d.PowerCut(none), 700), 700)
	}
}

// The names of new files are made durable too, and again if that failed.
func TestDirectoryIsSynced(t *testing.T) {
	t.Parallel()
	d := fsystest.New()
	s := mustOpen(t, d, 0)
	calls := 0
	var fail error
	d.Fail = func(op, _ string, n int) (int, error) {
		if op == "syncdir" {
			calls++
			return 0, fail
		}
		return n, nil
	}
	step := func(size uint64, want int, wantErr bool) {
		t.Helper()
		calls = 0
		grow(s, size)
		if _, err := s.Sync(); (err != nil) != wantErr || calls != want {
			t.Fatalf("at %d the directory was synced %d times, want %d: %v", size, calls, want, err)
		}
	}
	fail = errDisk
	step(10, 1, true)
	fail = nil
	step(10, 1, false)
	step(20, 0, false)
	step(20, 0, false)
	step(256, 1, false) // level-1
	step(600, 0, false)
}

// Memory of what is durable is given back: beyond the partial bundle and tiles nothing stays.
func TestMemoryIsGivenBack(t *testing.T) {
	t.Parallel()
	s := mustOpen(t, fsystest.New(), 0)
	for size := uint64(1000); size <= 66000; size += 13000 {
		grow(s, size)
		if n, _ := s.Pending(); n == 0 {
			t.Error("nothing is pending")
		}
		mustSync(t, s)
		if len(s.bundles) > 1 || len(s.hashes[0].tiles) > 1 || len(s.hashes[1].tiles) > 1 || len(s.packer.volumes) > 1 {
			t.Fatalf("at %d: %d bundles, %d and %d tiles, %d volumes", size, len(s.bundles), len(s.hashes[0].tiles), len(s.hashes[1].tiles), len(s.packer.volumes))
		}
	}
}

// A Sync costs what is new: the durable part of a partial bundle is not written again.
func TestSyncWritesWhatIsNew(t *testing.T) {
	t.Parallel()
	d := fsystest.New()
	s := mustOpen(t, d, 0)
	grow(s, 200)
	mustSync(t, s)
	s = mustOpen(t, d, 200)
	written := make(map[string]int)
	d.Fail = func(op, name string, n int) (int, error) {
		if op == "write" {
			written[name] += n
		}
		return n, nil
	}
	grow(s, 201)
	mustSync(t, s)
	mustSync(t, s)
	if want := 2 + len(testRecord(200)) + headerBytes; written["data-00000000"] != want || written["level-0"] != 32 || len(written) != 2 {
		t.Errorf("one record more: %v written, want %d and 32", written, want)
	}
}
