package receipts

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// service is a log that many call at once: as the custodian does, it gives each
// record the next index and its key the next sequence, under one lock.
type service struct {
	mu   sync.Mutex
	next uint64
	size uint64 // of the latest checkpoint
	seqs map[string]uint64
}

func (s *service) call(kid string) Receipt {
	s.mu.Lock()
	defer s.mu.Unlock()
	if rand.IntN(4) == 0 {
		s.size = s.next
	}
	s.seqs[kid]++
	r := Receipt{"log", s.next, s.seqs[kid], s.size}
	s.next++
	return r
}

func (s *service) backup() *service {
	c := &service{next: s.next, size: s.size, seqs: make(map[string]uint64)}
	for k, n := range s.seqs {
		c.seqs[k] = n
	}
	return c
}

// A service that only goes on is never refused, however its answers overtake
// each other; and what the book knows at the end is what the service is.
func TestConcurrentCallsAreNotRefused(t *testing.T) {
	t.Parallel()
	for range 20 {
		s, b := &service{next: 2, seqs: make(map[string]uint64)}, new(Book)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 50 {
					kid := fmt.Sprint("key", rand.IntN(3))
					// Two calls at once, which return in the other order.
					outer, inner := b.Mark(), b.Mark()
					first := s.call(kid)
					second := s.call(kid)
					if err := errors.Join(b.Check(inner, kid, second), b.Check(outer, kid, first)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if l := b.logs[0]; l.next != s.next || l.size != s.size || l.stopped {
			t.Fatalf("the book has %+v; the service %d, %d", l, s.next, s.size)
		}
		for kid, seq := range s.seqs {
			if k := b.keys[kid].Value.(keyState); k.seq != seq {
				t.Errorf("%s: %+v, want %d", kid, k, seq)
			}
		}
	}
}

// a service that was put back is refused at the next call, by
// clients of every key, unless it has meanwhile grown past what the client saw.
func TestRollbackIsNoticed(t *testing.T) {
	t.Parallel()
	for range 200 {
		s, b := &service{next: 2, seqs: make(map[string]uint64)}, new(Book)
		use := func(kid string) error {
			m := b.Mark()
			return b.Check(m, kid, s.call(kid))
		}
		for range 1 + rand.IntN(20) {
			s.call("other")
		}
		backup := s.backup()
		for range 1 + rand.IntN(20) {
			if err := use("key"); err != nil {
				t.Fatal(err)
			}
		}
		lost := s.next - backup.next
		s = backup
		for range rand.Uint64N(lost) { // others are served first
			s.call("other")
		}
		err := use([]string{"key", "new"}[rand.IntN(2)])
		var e *RollbackError
		if !errors.As(err, &e) || e.Reason != ReasonIndex {
			t.Fatalf("%d records lost: %v", lost, err)
		}
		for range 100 { // a client that tries again
			if err := use("key"); !errors.As(err, &e) || e.Reason != ReasonStopped {
				t.Fatalf("trying again: %v", err)
			}
		}
	}
}

// a log that grew past the mark by the records of others is still
// refused for a key that lost its own.
func TestLostOperationsOfAKeyAreNoticed(t *testing.T) {
	t.Parallel()
	s, b := &service{next: 2, seqs: make(map[string]uint64)}, new(Book)
	backup := s.backup()
	for range 5 {
		m := b.Mark()
		if err := b.Check(m, "key", s.call("key")); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		backup.call("other")
	}
	var e *RollbackError
	if err := b.Check(b.Mark(), "key", backup.call("key")); !errors.As(err, &e) || e.Reason != ReasonKey {
		t.Fatalf("got %v", err)
	}
}

func TestErrorsSayWhatHappened(t *testing.T) {
	t.Parallel()
	b := new(Book)
	if err := b.Check(Mark{}, "key#v2", Receipt{"log", 9, 2, 3}); err != nil {
		t.Fatal(err)
	}
	err := b.Check(b.Mark(), "key#v2", Receipt{"log", 9, 3, 3})
	if want := `receipts: rollback of log (index): record 9, sequence 3 of key "key", checkpoint over 3`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	err = b.Check(b.Mark(), "", Receipt{"new", 9, 0, 3})
	if want := `receipts: log changed from "log" to "new"`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	for _, n := range []int{-1, MaxKeys + 1} {
		if _, err := New(Options{MaxKeys: n}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%d keys: %v", n, err)
		}
		if _, err := Create(filepath.Join(t.TempDir(), "book"), Options{MaxKeys: n}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%d keys: %v", n, err)
		}
	}
	b := new(Book)
	m := b.Mark()
	for i := range uint64(DefaultMaxKeys + 10) {
		if err := b.Check(m, fmt.Sprint("key", i), Receipt{"log", i, 1, 0}); err != nil {
			t.Fatal(err)
		}
	}
	if len(b.keys) != DefaultMaxKeys || b.order.Len() != DefaultMaxKeys || b.keys["key9"] != nil || b.keys["key10"] == nil {
		t.Errorf("%d keys are remembered", len(b.keys))
	}
}

func TestFileAfterClose(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "book")
	if _, err := Open(path, Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("opening nothing: %v", err)
	}
	b, err := Create(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, Options{}); !errors.Is(err, ErrLocked) {
		t.Errorf("opening twice: %v", err)
	}
	if err := errors.Join(b.Accept("log"), b.Close(), b.Close()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.Accept("other"), b.Save()); !errors.Is(err, ErrClosed) {
		t.Errorf("saving after close: %v", err)
	}
	again, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if l := again.logs; len(l) != 1 || l[0].origin != "log" {
		t.Errorf("the file has %+v", l)
	}
}

// Saving while others check writes a book that can be read, and loses nothing.
func TestSaveDuringChecks(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "book")
	b, err := Create(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	m := b.Mark()
	var wg sync.WaitGroup
	for i := range uint64(4) {
		wg.Go(func() {
			for n := range uint64(25) {
				err := b.Check(m, fmt.Sprint("key", i), Receipt{"log", 4*n + i, n + 1, 0})
				if n%10 == 0 {
					err = errors.Join(err, b.Save())
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.logs[0].next != 100 || len(again.keys) != 4 {
		t.Errorf("read %+v and %d keys", again.logs[0], len(again.keys))
	}
}

// What parses encodes to the same bytes again.
func FuzzDecode(f *testing.F) {
	const good = "ron-kms receipts 1\nlog a left 1 2\nlog b current 3 4\nkey k 1 2\nkey l 1 3\nend\n"
	for _, s := range []string{good, strings.ReplaceAll(good, "current", "stopped"), "ron-kms receipts 1\nend\n",
		strings.ReplaceAll(good, " 1 2", " 01 2"), strings.ReplaceAll(good, "key l", "key k"), good[:len(good)-1]} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		b := new(Book)
		if err := b.decode(text); err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("%v is no ErrCorrupt", err)
			}
			return
		}
		if got := b.encode(); !slices.Equal(got, []byte(text)) {
			t.Errorf("%q encodes to %q", text, got)
		}
	})
}
