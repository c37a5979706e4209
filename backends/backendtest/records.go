package backendtest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/rustyonions/ron-kms/backends"
	"github.com/rustyonions/ron-kms/core/alg"
)

// contents loads all records.
func contents(t *testing.T, b backends.Backend) map[string]string {
	t.Helper()
	all := make(map[string]string)
	if _, err := b.Load(ctx, func(k string, v []byte) error { all[k] = string(v); return nil }); err != nil {
		t.Fatal(err)
	}
	return all
}

func put(k, v string) backends.Put { return backends.Put{Key: k, Value: []byte(v)} }

// records: commits are compare-and-swap, and all or nothing..
func (s suite) records(t *testing.T) {
	b := s.fresh(t)
	if rev, err := b.Load(ctx, func(string, []byte) error { return errors.New("a record") }); err != nil || rev != 0 {
		t.Fatalf("an empty store: revision %d, %v", rev, err)
	}
	if v, err := b.Get(ctx, "a"); v != nil || err != nil {
		t.Fatalf("a record that is not there: %q, %v", v, err)
	}
	value := []byte("one")
	rev, err := b.Commit(ctx, 0, backends.Put{Key: "a", Value: value}, put("b", "two"))
	if err != nil || rev != 1 {
		t.Fatalf("first commit: revision %d, %v", rev, err)
	}
	copy(value, "xxx") // the store has its own copy
	if v, err := b.Get(ctx, "a"); string(v) != "one" || err != nil {
		t.Fatalf("get: %q, %v", v, err)
	} else {
		copy(v, "yyy") // and lends none
	}
	if v, _ := b.Get(ctx, "a"); string(v) != "one" {
		t.Fatalf("a caller changed the store: %q", v)
	}
	for _, stale := range []uint64{0, 2, 1 << 63} {
		if _, err := b.Commit(ctx, stale, put("a", "stale"), put("new", "x"), backends.Put{Key: "b"}); !errors.Is(err, backends.ErrConflict) {
			t.Fatalf("commit at revision %d of 1: %v, want ErrConflict", stale, err)
		}
	}
	if got := contents(t, b); len(got) != 2 || got["a"] != "one" || got["b"] != "two" {
		t.Fatalf("a refused commit left something: %v", got)
	}
	rev, err = b.Commit(ctx, 1, backends.Put{Key: "a"}, put("c", ""), backends.Put{Key: "never"})
	if err != nil || rev != 2 {
		t.Fatalf("second commit: revision %d, %v", rev, err)
	}
	if got := contents(t, b); len(got) != 2 || got["b"] != "two" {
		t.Fatalf("after a deletion: %v", got)
	}
	if v, err := b.Get(ctx, "a"); v != nil || err != nil {
		t.Fatalf("a deleted record: %q, %v", v, err)
	}
	if v, err := b.Get(ctx, "c"); v == nil || len(v) != 0 || err != nil {
		t.Fatalf("an empty record: %v, %v; it is not a missing one", v, err)
	}
	if rev, err = b.Commit(ctx, 2); err != nil || rev != 3 {
		t.Fatalf("an empty commit: revision %d, %v", rev, err)
	}
	stop := errors.New("stop")
	if _, err := b.Load(ctx, func(string, []byte) error { return stop }); !errors.Is(err, stop) {
		t.Fatalf("load does not return the error of its function: %v", err)
	}
	if s.reopen != nil {
		b = s.reopen(t, b)
		if rev, err := b.Load(ctx, func(string, []byte) error { return nil }); rev != 3 || err != nil {
			t.Fatalf("after reopening: revision %d, %v", rev, err)
		}
	}
}

// order: records load in key order, whatever their number and size.
func (s suite) order(t *testing.T) {
	b := s.fresh(t)
	want := make(map[string]string)
	rev := uint64(0)
	for round := range 12 {
		var puts []backends.Put
		for i := range 40 {
			k := fmt.Sprintf("key/%03d", (i*37+round*101)%400)
			v := fmt.Sprintf("%d/%d/%s", round, i, bytes.Repeat([]byte("v"), (i*i*13)%9000))
			puts = append(puts, put(k, v))
			want[k] = v
			if i%7 == 3 {
				puts = append(puts, backends.Put{Key: k})
				delete(want, k)
			}
		}
		var err error
		if rev, err = b.Commit(ctx, rev, puts...); err != nil {
			t.Fatal(err)
		}
	}
	if s.reopen != nil {
		b = s.reopen(t, b)
	}
	var keys []string
	got := make(map[string][]byte)
	if _, err := b.Load(ctx, func(k string, v []byte) error {
		keys = append(keys, k)
		got[k] = v // the function may keep it
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if !slices.IsSorted(keys) || len(keys) != len(want) {
		t.Fatalf("%d records, sorted %t; want %d", len(keys), slices.IsSorted(keys), len(want))
	}
	for k, v := range want {
		if string(got[k]) != v {
			t.Fatalf("record %s is another one", k)
		}
	}
}

// concurrentCommits: of those who commit at one revision, one wins.
func (s suite) concurrentCommits(t *testing.T) {
	b := s.fresh(t)
	var wins, conflicts atomic.Int64
	const workers, each = 4, 8
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for done := 0; done < each; {
				rev, err := b.Load(ctx, func(string, []byte) error { return nil })
				if err != nil {
					t.Error(err)
					return
				}
				next, err := b.Commit(ctx, rev, put(fmt.Sprintf("%d/%d", w, done), "x"))
				switch {
				case err == nil && next == rev+1:
					wins.Add(1)
					done++
				case errors.Is(err, backends.ErrConflict):
					conflicts.Add(1)
				default:
					t.Errorf("commit: revision %d after %d, %v", next, rev, err)
					return
				}
			}
		})
	}
	wg.Wait()
	rev, err := b.Load(ctx, func(string, []byte) error { return nil })
	if err != nil || rev != workers*each || len(contents(t, b)) != workers*each {
		t.Errorf("revision %d with %d records, %v; want %d (%d conflicts)", rev, len(contents(t, b)), err, workers*each, conflicts.Load())
	}
}

// concurrent: signing, forgetting and evicting side by side, in an arena for
// three keys: every signature holds and none fails for want of room.
func (s suite) concurrent(t *testing.T) {
	b := s.fresh(t)
	refs := signable(b)
	type pair struct {
		backends.Ref
		backends.Material
	}
	var keys []pair
	for i := range 10 {
		r := refs[i%len(refs)]
		r = ref(r.KID.Alg, r.Track)
		keys = append(keys, pair{r, generate(t, b, r)})
	}
	before := b.Arena().Stats()
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 12 {
				k := keys[(w*5+i*3)%len(keys)]
				if err := check(b, k.Ref, k.Material); err != nil {
					t.Errorf("%s: %v", k.Track, err)
					return
				}
				switch i % 4 {
				case 1:
					b.Forget(k.Ref)
				case 2:
					if _, err := b.Generate(ctx, ref(k.KID.Alg, k.Track)); err != nil {
						t.Errorf("generate: %v", err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	for _, k := range keys {
		b.Forget(k.Ref)
	}
	if got := b.Arena().Stats(); got.Used > before.Used {
		t.Errorf("%d bytes of the arena are lost", got.Used-before.Used)
	}
}

// closed: nothing works after Close, and everything says so.
func (s suite) closed(t *testing.T) {
	b := s.fresh(t)
	r := signable(b)[0]
	m := generate(t, b, r)
	must(t, b, r, m)
	uncached := ref(r.KID.Alg, r.Track)
	sealed := generate(t, b, uncached).Sealed
	for range 2 {
		if err := b.Close(); err != nil {
			t.Fatalf("close: %v", err)
		}
	}
	if b.Arena().Stats().Locked {
		t.Error("the arena outlives its backend")
	}
	calls := map[string]func() error{
		"generate":    func() error { _, err := b.Generate(ctx, r); return err },
		"sign":        func() error { _, err := b.Sign(ctx, r, alg.SchemeV1, m.Sealed, []byte("m")); return err },
		"sign, fresh": func() error { _, err := b.Sign(ctx, uncached, alg.SchemeV1, sealed, []byte("m")); return err },
		"load":        func() error { _, err := b.Load(ctx, func(string, []byte) error { return nil }); return err },
		"get":         func() error { _, err := b.Get(ctx, "a"); return err },
		"commit":      func() error { _, err := b.Commit(ctx, 0, put("a", "b")); return err },
		"derive":      func() error { _, err := b.StoreKey("a", 32); return err },
	}
	for name, call := range calls {
		if err := call(); !errors.Is(err, backends.ErrClosed) {
			t.Errorf("%s after Close: %v, want ErrClosed", name, err)
		}
	}
	b.Forget(r)
	b.Caps()
}

// closeWhileBusy: Close beside running calls ends each of them with its result
// or with ErrClosed.
func (s suite) closeWhileBusy(t *testing.T) {
	b := s.fresh(t)
	r := signable(b)[0]
	m := generate(t, b, r)
	var wg sync.WaitGroup
	var started atomic.Int64
	for w := range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				var err error
				switch (w + i) % 4 {
				case 0:
					err = check(b, r, m)
				case 1:
					_, err = b.Load(ctx, func(string, []byte) error { return nil })
				case 2:
					_, err = b.Get(ctx, "a")
				case 3:
					_, err = b.Generate(ctx, ref(r.KID.Alg, r.Track))
				}
				started.Add(1)
				if errors.Is(err, backends.ErrClosed) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for started.Load() < 20 {
		b.Caps()
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}
