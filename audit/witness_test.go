package audit

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	fnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"

	"github.com/rustyonions/ron-kms/audit/fsys/fsystest"
	"github.com/rustyonions/ron-kms/audit/witness"
)

// A testWitness is a witness of package witness behind HTTP, as the custodian uses it.
type testWitness struct {
	*witness.Client
	down atomic.Bool
	vkey string
}

var errDown = errors.New("the witness is down")

func (w *testWitness) Cosign(ctx context.Context, old uint64, prove func(uint64) ([][32]byte, error), checkpoint []byte) ([]byte, error) {
	if w.down.Load() {
		return nil, errDown
	}
	lines, err := w.Add(ctx, old, prove, checkpoint)
	var ahead *witness.RollbackError
	var fork *witness.ForkError
	switch {
	case errors.As(err, &ahead):
		err = fmt.Errorf("%w: %w", ErrWitnessAhead, err)
	case errors.As(err, &fork):
		err = fmt.Errorf("%w: %w", ErrWitnessForked, err)
	}
	return lines, err
}

// newWitness starts a witness that knows the log of the tests.
func newWitness(tb testing.TB) *testWitness {
	tb.Helper()
	dir := filepath.Join(tb.TempDir(), "witness")
	vkey, err := witness.Init(dir, "witness.example")
	if err != nil {
		tb.Fatal(err)
	}
	if err := witness.AddLog(dir, testOrigin, []string{testSet(tb).String()}); err != nil {
		tb.Fatal(err)
	}
	s, err := witness.Open(dir, witness.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	srv := httptest.NewServer(s)
	c, err := witness.NewClient(vkey, srv.URL, witness.ClientOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		c.Close()
		srv.Close()
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return &testWitness{Client: c, vkey: vkey}
}

// until waits for something that happens in the background.
func until(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			tb.Fatalf("it does not come about: %s", what)
		}
	}
}

// saidAtOpening returns what the latest open record says.
func saidAtOpening(tb testing.TB, l *Log) (said string) {
	tb.Helper()
	if err := l.Read(context.Background(), 0, func(_ uint64, r *Record) error {
		if r.Kind == KindOpen {
			said = string(r.Detail)
		}
		return nil
	}); err != nil {
		tb.Fatal(err)
	}
	return said
}

// A log shows its checkpoints to a witness and keeps the cosignatures; the witness refuses a log that was put back, and one that was forked,
// at opening and while it runs..
func TestWitness(t *testing.T) {
	t.Parallel()
	w := newWitness(t)
	o := testOptions(t)
	o.Witnesses, o.WitnessInterval = []WitnessOption{{Witness: w, Required: true}}, time.Millisecond
	d, l := newSimLog(t, o)
	seen := func() uint64 {
		sizes, faults := l.Witnesses()
		if err := faults[w.Name()]; err != nil {
			t.Fatal(err)
		}
		return sizes[w.Name()]
	}
	show := func() {
		t.Helper()
		if err := l.checkpointNow(false); err != nil {
			t.Fatal(err)
		}
		size := l.signed().size
		until(t, "the checkpoint is cosigned", func() bool { return seen() >= size })
	}
	grow(t, l, 5)
	show()
	early := d.Killed() // a log that was killed
	grow(t, l, 600)
	show()

	v, err := fnote.NewVerifierForCosignatureV1(w.vkey)
	if err != nil {
		t.Fatal(err)
	}
	for _, verifier := range []note.Verifier{v, foreignVerifier(t)} {
		n, err := note.Open(l.Cosigned(), note.VerifierList(verifier))
		if err != nil || !strings.HasPrefix(n.Text, fmt.Sprintf("%s\n%d\n", testOrigin, seen())) {
			t.Errorf("cosigned: %v, %v", n, err)
		}
	}
	if got := d.Killed().Files[cosignedFile].Data; len(got) == 0 {
		t.Error("the cosigned checkpoint is not kept")
	}
	mustClose(t, l)
	l = openSim(t, d, o)
	if got := saidAtOpening(t, l); !strings.Contains(got, "witness witness.example: continues\n") {
		t.Errorf("the open record says %q", got)
	}
	late := l.signed().size
	mustClose(t, l)

	was := early.Killed()
	if _, err := tryOpenSim(early, o); verdict(err) != VerdictStale {
		t.Errorf("put back: %v", err)
	}
	wantSame(t, "put back", was, early)

	// The same log, put back and grown longer than the witness knows, without asking it.
	alone := o
	alone.Witnesses = nil
	forked := early.Killed()
	f := openSim(t, forked, alone)
	for f.Size() < late+50 {
		mustAppend(t, f, operation("other", 1))
	}
	mustClose(t, f)
	for _, required := range []bool{true, false} {
		o.Witnesses[0].Required = required
		if _, err := tryOpenSim(forked.Killed(), o); verdict(err) != VerdictForked {
			t.Errorf("forked: %v", err)
		}
	}

	// A log that the witness was down for at opening is stopped when the witness is back and knows better.
	told := make(chan error, 1)
	o.OnFailure = func(err error) { told <- err }
	w.down.Store(true)
	l = openSim(t, forked.Killed(), o)
	w.down.Store(false)
	var ie *IntegrityError
	if err := <-told; !errors.As(err, &ie) || ie.Verdict != VerdictForked {
		t.Errorf("forked, found while running: %v", err)
	}
	if _, err := l.Append(context.Background(), operation("k", 1)); !errors.Is(err, ErrFailed) {
		t.Errorf("append: %v", err)
	}
	l.Close()
}

// Without its witness a log opens and says so, unless the witness is required: then it does not open, and that is no verdict.
func TestWitnessDown(t *testing.T) {
	t.Parallel()
	w := newWitness(t)
	w.down.Store(true)
	o := testOptions(t)
	d, l := newSimLog(t, o)
	mustClose(t, l)
	o.Witnesses, o.WitnessInterval = []WitnessOption{{Witness: w, Required: true}}, time.Millisecond
	was := d.Killed()
	if _, err := tryOpenSim(d, o); !errors.Is(err, errDown) || verdict(err) != "" {
		t.Errorf("required: %v", err)
	}
	wantSame(t, "required", was, d)
	o.Witnesses[0].Required = false
	l = openSim(t, d, o)
	if got := saidAtOpening(t, l); got != "witness witness.example: no answer\n" {
		t.Errorf("the open record says %q", got)
	}
	until(t, "the fault is told", func() bool { _, faults := l.Witnesses(); return errors.Is(faults[w.Name()], errDown) })
	mustAppend(t, l, operation("k", 1)) // the log goes on
	w.down.Store(false)
	until(t, "the witness cosigns", func() bool { return l.Cosigned() != nil })
	mustClose(t, l)
	wantWhole(t, "after all", d, o, l.Size())
}

// A process dies right behind the write of a checkpoint, the next one shows it to the witness, and the power goes: what the witness knows
// is there.
func TestWitnessedCheckpointIsDurable(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	d, l := newSimLog(t, o)
	grow(t, l, 3)
	var left *fsystest.Disk
	d.Mu.Lock()
	d.Fail = func(op, name string, n int) (int, error) {
		if left == nil && op == "sync" && strings.HasPrefix(name, checkpointPrefix) {
			d.Mu.Unlock()
			left = d.Inherited()
			d.Mu.Lock()
		}
		return n, nil
	}
	d.Mu.Unlock()
	if err := l.checkpointNow(false); err != nil {
		t.Fatal(err)
	}
	d.Fail = nil
	mustClose(t, l)

	w := newWitness(t)
	cut := new(cuttingWitness)
	cut.testWitness, cut.cut = w, func() {
		cut.after = &fsystest.Disk{Files: map[string]*fsystest.File{}}
		for name, f := range left.Files { // nothing survives that was not synced
			cut.after.Files[name] = &fsystest.File{Data: append([]byte(nil), f.Durable...), Durable: append([]byte(nil), f.Durable...)}
		}
	}
	o.Witnesses = []WitnessOption{{Witness: cut, Required: true}}
	l = openSim(t, left, o)
	mustClose(t, l)
	o.Witnesses = []WitnessOption{{Witness: w, Required: true}}
	wantWhole(t, "after the power cut", cut.after, o, 3)
}

// A cuttingWitness takes an image of the disk once it has answered.
type cuttingWitness struct {
	*testWitness
	cut   func()
	after *fsystest.Disk
}

func (w *cuttingWitness) Cosign(ctx context.Context, old uint64, prove func(uint64) ([][32]byte, error), checkpoint []byte) ([]byte, error) {
	lines, err := w.testWitness.Cosign(ctx, old, prove, checkpoint)
	if w.after == nil {
		w.cut()
	}
	return lines, err
}
