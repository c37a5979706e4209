package tpm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// The connection is lost before or after each single command of a write, the
// one between the two NV writes included. The anchor then holds the state before
// or the new one, is never called tampered with, and can be written again; and
// the TPM does not fill with what was left in it.
func TestWriteInterruptedAnywhere(t *testing.T) {
	t.Parallel()
	e := startTPM(t)
	r := unixRelay(t, e)
	c := testConfig(r.device(), 1)
	a := mustCreate(t, c)
	mustWrite(t, a, testState(1))
	r.set(nil)
	mustWrite(t, a, testState(2))
	total := r.commands()
	if total < 6 {
		t.Fatalf("%d commands seen in a write", total)
	}
	between := 0
	n := uint64(3)
	for cut := 1; cut <= total; cut++ {
		for _, after := range []bool{false, true} {
			before, next := testState(n-1), testState(n)
			n++
			var seen int
			r.set(func(code tpm2.TPMCC, _ []byte, forward func() []byte) []byte {
				seen++
				if seen == cut {
					if after {
						forward()
					}
					return nil
				}
				return forward()
			})
			err := a.Write(t.Context(), next)
			r.set(nil)
			// The last command gives a session back: losing that is no
			// failure of the write.
			if err == nil && cut != total {
				t.Errorf("cut %d after %t: no error", cut, after)
			}
			got, readErr := mustOpen(t, c).Read(t.Context())
			if readErr != nil || got != before && got != next || err == nil && got != next {
				t.Fatalf("cut %d after %t: read %+v, %v; before %+v, next %+v", cut, after, got, readErr, before, next)
			}
			if count, data := e.contents(a); binary.BigEndian.Uint64(data[8:]) == count+1 {
				between++
			}
			wantState(t, a, got)
			mustWrite(t, a, next)
			wantState(t, a, next)
		}
	}
	if between != 2 { // after the NV write was answered, and before the increment
		t.Errorf("%d cuts between the two writes; want 2", between)
	}
	// One session may be left: the one whose handle was in the lost answer.
	if h := e.loaded(); len(h) > 1 {
		t.Errorf("left in the tpm: %x", h)
	}
}

// A creation that loses its connection takes back what it did, over another.
// What a dead process left is not an anchor, and RemoveAnchor takes it away.
func TestCreateInterruptedAnywhere(t *testing.T) {
	t.Parallel()
	for _, dies := range []bool{false, true} {
		t.Run(fmt.Sprintf("process dies %t", dies), func(t *testing.T) {
			t.Parallel()
			e := startTPM(t)
			r := unixRelay(t, e)
			c := testConfig(r.device(), 1)
			whole := 0
			for cut := 1; ; cut++ {
				var seen int
				dead := false
				r.set(func(_ tpm2.TPMCC, _ []byte, forward func() []byte) []byte {
					if dead {
						return nil
					}
					if seen++; seen == cut {
						dead = dies
						forward()
						return nil
					}
					return forward()
				})
				_, err := CreateAnchor(t.Context(), c)
				r.set(nil)
				if err == nil { // only the giving back was cut
					if cut < 8 {
						t.Errorf("created in %d commands", cut)
					}
					break
				}
				if a, err := OpenAnchor(t.Context(), c); err == nil && dies {
					// Only the last answer was lost: it is whole.
					_, err = a.Read(t.Context())
					wantErr(t, fmt.Sprintf("cut %d: read", cut), err, ErrAbsent)
					a.Close()
					whole++
				} else {
					wantErr(t, fmt.Sprintf("cut %d: open", cut), err, ErrMissing)
				}
				err = RemoveAnchor(t.Context(), c)
				if err != nil && !errors.Is(err, ErrMissing) {
					t.Fatalf("cut %d: remove: %v", cut, err)
				}
				if !dies {
					wantErr(t, fmt.Sprintf("cut %d: it was not taken back", cut), err, ErrMissing)
				}
				mustCreate(t, c).Close()
				if err := RemoveAnchor(t.Context(), c); err != nil {
					t.Fatal(err)
				}
				// A dead process frees nothing. On a machine the kernel
				// does it (tpmrm0); here a restart.
				r.restart(e)
			}
			if whole > 1 {
				t.Errorf("%d creations were whole before their end", whole)
			}
		})
	}
}

// A TPM that says it is busy is asked again, with the same bytes; one that
// stays busy fails the call when its context ends.
func TestBusyIsRetried(t *testing.T) {
	t.Parallel()
	e := startTPM(t)
	r := unixRelay(t, e)
	c := testConfig(r.device(), 1)
	a := mustCreate(t, c)
	busyFor := func(times int, rc tpm2.TPMRC) {
		left := times
		r.set(func(_ tpm2.TPMCC, _ []byte, forward func() []byte) []byte {
			if left != 0 {
				left--
				return warning(rc)
			}
			left = times
			return forward()
		})
	}
	for i, rc := range []tpm2.TPMRC{tpm2.TPMRCRetry, tpm2.TPMRCNVRate, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCSessionMemory} {
		busyFor(2, rc)
		mustWrite(t, a, testState(uint64(i)))
		wantState(t, a, testState(uint64(i)))
	}
	ctx, cancel := context.WithCancel(t.Context())
	asked := 0
	r.set(func(tpm2.TPMCC, []byte, func() []byte) []byte {
		if asked++; asked == 5 {
			cancel()
		}
		return warning(tpm2.TPMRCNVRate)
	})
	err := a.Write(ctx, testState(100))
	wantErr(t, "always busy", err, context.Canceled)
	if asked != 5 {
		t.Errorf("asked %d times", asked)
	}
	r.set(nil)
	wantState(t, a, testState(4))
}

// A TPM that hangs is given up when the context ends, and serves again when it
// goes on. Nothing that was sent in between overtakes.
func TestHangIsBoundedByTheContext(t *testing.T) {
	t.Parallel()
	e := startTPM(t)
	c := testConfig(e.device(), 1)
	a := mustCreate(t, c)
	mustWrite(t, a, testState(1))
	e.signal(syscall.SIGSTOP)
	for range 2 {
		// Canceled, and not the DeadlineExceeded of the package's own limit.
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(50*time.Millisecond, cancel)
		wantErr(t, "write", a.Write(ctx, testState(2)), context.Canceled)
		_, err := a.Read(ctx)
		wantErr(t, "read", err, context.Canceled)
	}
	e.signal(syscall.SIGCONT)
	mustWrite(t, a, testState(3))
	wantState(t, a, testState(3))
}

// the TPM is killed while it is written to. The writer hears of it at
// once; after a restart what was acknowledged is there, and no alarm.
func TestKilledWhileWriting(t *testing.T) {
	t.Parallel()
	e := startTPM(t)
	c := testConfig(e.device(), 1)
	a := mustCreate(t, c)
	n := uint64(0)
	for range 8 {
		acked := make(chan uint64, 1<<16)
		failed := make(chan error, 1)
		first := n + 1
		go func() {
			for i := first; ; i++ {
				if err := a.Write(context.Background(), testState(i)); err != nil {
					failed <- err
					return
				}
				acked <- i
			}
		}()
		for range 1 + n%4 {
			n = <-acked
		}
		e.kill()
		if err := <-failed; errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the writer waited: %v", err)
		}
		_, err := a.Read(t.Context())
		if err == nil || errors.Is(err, ErrAbsent) || errors.Is(err, ErrMissing) || errors.Is(err, ErrTampered) {
			t.Errorf("read without a tpm: %v", err)
		}
		close(acked)
		for i := range acked {
			n = i
		}
		e.start()
		got, err := a.Read(t.Context())
		if err != nil || got != testState(n) && got != testState(n+1) {
			t.Fatalf("acknowledged %d, read %+v, %v", n, got, err)
		}
		n = got.Size / 10
	}
}

// Another process writes twice between two reads of one snapshot, wherever that
// is: the reader sees a whole state, and no rollback.
func TestReadBesideAWriter(t *testing.T) {
	t.Parallel()
	e := startTPM(t)
	r := unixRelay(t, e)
	a := mustCreate(t, testConfig(r.device(), 1))
	mustWrite(t, a, testState(1))
	n := uint64(1)
	for before := 1; before <= 3; before++ { // counter, data, counter
		reads := 0
		r.set(func(code tpm2.TPMCC, _ []byte, forward func() []byte) []byte {
			if code != tpm2.TPMCCNVRead {
				return forward()
			}
			if reads++; reads != before {
				return forward()
			}
			l := &link{ctx: t.Context(), channel: direct{r}}
			defer l.flush()
			s, err := l.session(tpm2.Auth(a.auth))
			if err != nil {
				t.Error(err)
				return nil
			}
			for range 2 {
				count, err := l.count(a.counter, s)
				n++
				record := newRecord(testState(n), count+1).encode(a.logID)
				if err := errors.Join(err, l.write(a.data, s, record), l.increment(a.counter, s)); err != nil {
					t.Error(err)
				}
			}
			return forward()
		})
		wantState(t, a, testState(n+2))
		if reads < 3 || reads > 6 {
			t.Errorf("%d reads for a snapshot", reads)
		}
	}
}

// Goroutines share one anchor, and processes read beside the writer, on a TPM
// that runs their commands in any order. Nobody is told of a rollback, and
// nobody sees a state go back.
func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	e := startTPM(t)
	r := unixRelay(t, e)
	c := testConfig(r.device(), 1)
	a := mustCreate(t, c)
	mustWrite(t, a, testState(1))
	const writes = 60
	done := make(chan struct{})
	var writers, readers sync.WaitGroup
	var mu sync.Mutex
	next := uint64(2)
	for range 3 {
		writers.Go(func() {
			for {
				mu.Lock()
				n := next
				next++
				mu.Unlock()
				if n > writes {
					return
				}
				// Another may have been faster with a later one.
				if err := a.Write(t.Context(), testState(n)); err != nil && !errors.Is(err, ErrBackward) {
					t.Errorf("write %d: %v", n, err)
				}
			}
		})
	}
	for i := range 3 {
		reader := a
		if i > 0 {
			reader = mustOpen(t, c)
		}
		readers.Go(func() {
			var last State
			for {
				select {
				case <-done:
					return
				default:
				}
				s, err := reader.Read(t.Context())
				if errors.Is(err, ErrAbsent) || errors.Is(err, ErrMissing) || errors.Is(err, ErrTampered) || err == nil && s.Size < last.Size {
					t.Errorf("read %+v after %+v, %v", s, last, err)
					return
				}
				if err == nil {
					last = s
				}
			}
		})
	}
	writers.Wait()
	close(done)
	readers.Wait()
	wantState(t, a, testState(writes))
}

// Many anchors wait for the one connection that an emulator serves.
func TestManyAnchorsOnOneSocket(t *testing.T) {
	t.Parallel()
	e := startTPM(t)
	var all sync.WaitGroup
	for i := range byte(12) {
		a := mustCreate(t, testConfig(e.device(), i))
		all.Go(func() {
			for n := uint64(1); n <= 5; n++ {
				if err := a.Write(t.Context(), testState(n)); err != nil {
					t.Error(err)
				}
			}
			wantState(t, a, testState(5))
		})
	}
	all.Wait()
}

func TestClose(t *testing.T) {
	t.Parallel()
	e := startTPM(t)
	c := testConfig(e.device(), 1)
	a := mustCreate(t, c)
	mustWrite(t, a, testState(1))
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(a.auth, make([]byte, 32)) {
		t.Error("the auth value is still there")
	}
	if bytes.Equal(c.Auth, make([]byte, 32)) {
		t.Error("the caller's auth value is gone")
	}
	_, err := a.Read(t.Context())
	wantErr(t, "read", err, ErrClosed)
	wantErr(t, "write", a.Write(t.Context(), testState(2)), ErrClosed)
	wantErr(t, "close", a.Close(), ErrClosed)
	wantState(t, mustOpen(t, c), testState(1))
}

// What is no TPM is an error that says so.
func TestNoTPM(t *testing.T) {
	t.Parallel()
	file := t.TempDir() + "/file"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for device, want := range map[string]string{
		"/dev/nonexistent":    "no such file",
		file:                  "not a character device",
		"/dev/null":           io.EOF.Error(),
		"unix:" + file + ".x": "no such file",
	} {
		_, err := OpenAnchor(t.Context(), testConfig(device, 1))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want: %s", device, err, want)
		}
		for _, verdict := range []error{ErrAbsent, ErrMissing, ErrTampered} {
			if errors.Is(err, verdict) {
				t.Errorf("%s: %v", device, err)
			}
		}
	}
}
