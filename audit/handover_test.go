package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/rustyonions/ron-kms/audit/fsys/fsystest"
	"github.com/rustyonions/ron-kms/audit/notekey"
)

// keysNumbered are keys of the test log, made from fixed bytes; number 0 are those of testOptions.
func keysNumbered(tb testing.TB, n int) (*notekey.Set, note.Signer) {
	tb.Helper()
	skey, vkey := testKeys()
	if n > 0 {
		var err error
		seed := strings.Repeat(fmt.Sprintf("test seed number %d of the audit. ", n), 4)
		if skey, vkey, err = note.GenerateKey(strings.NewReader(seed), testOrigin); err != nil {
			tb.Fatal(err)
		}
	}
	set, err := notekey.ParseSet(vkey)
	if err != nil {
		tb.Fatal(err)
	}
	s, err := note.NewSigner(skey)
	if err != nil {
		tb.Fatal(err)
	}
	return set, s
}

// optionsOf are testOptions with keys number n.
func optionsOf(tb testing.TB, n int) Options {
	o := testOptions(tb)
	set, s := keysNumbered(tb, n)
	o.Keys, o.Signers = set, []note.Signer{s}
	return o
}

// change replaces the keys number from of the log on d by number to.
func change(tb testing.TB, d *fsystest.Disk, from, to int) error {
	tb.Helper()
	o, err := optionsOf(tb, from).withDefaults(true)
	if err != nil {
		tb.Fatal(err)
	}
	set, s := keysNumbered(tb, to)
	return handoverIn(context.Background(), d, o, set, append(o.Signers, s)...)
}

func mustChange(tb testing.TB, d *fsystest.Disk, from, to int) {
	tb.Helper()
	if err := change(tb, d, from, to); err != nil {
		tb.Fatal(err)
	}
}

// keyRecords returns the indices of the KindKeys records of an open log.
func keyRecords(tb testing.TB, l *Log) (at []uint64) {
	tb.Helper()
	err := l.Read(context.Background(), 0, func(i uint64, r *Record) error {
		if r.Kind == KindKeys {
			at = append(at, i)
			if r.InputHash != sha256.Sum256(r.Detail) || !bytes.HasPrefix(r.Detail, []byte("ron-kms audit handover v1\n")) {
				tb.Errorf("record %d: %x, %q", i, r.InputHash, r.Detail)
			}
		}
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return at
}

// The keys of a log are replaced twice. The log then wants the newest, and is verified whole by whoever trusts any of them, and
// by nobody else; each handover stands in the record right after the last one that the old keys signed for. R-271.
func TestHandover(t *testing.T) {
	t.Parallel()
	d, l := newSimLog(t, optionsOf(t, 0))
	var want []uint64
	for n := range 2 {
		grow(t, l, 5)
		mustClose(t, l)
		want = append(want, l.Size())
		mustChange(t, d, n, n+1)
		for old := range n + 1 {
			if _, err := tryOpenSim(d.Killed(), optionsOf(t, old)); verdict(err) != VerdictFormat {
				t.Fatalf("opened with the old keys: %v", err)
			}
		}
		l = openSim(t, d, optionsOf(t, n+1))
		if got := keyRecords(t, l); !slices.Equal(got, want) {
			t.Fatalf("handovers are in the records %v, want %v", got, want)
		}
	}
	grow(t, l, 5)
	mustClose(t, l)
	for n := range 4 {
		set, _ := keysNumbered(t, n)
		for _, mac := range []bool{false, true} {
			_, err := verifySim(d, set, mac)
			if n < 3 && err != nil || n == 3 && verdict(err) != VerdictFormat {
				t.Errorf("verified with keys %d: %v", n, err)
			}
		}
	}
	mustClose(t, openSim(t, d, optionsOf(t, 2)))
	if err := change(t, d, 2, 1); err == nil {
		t.Error("a retired key came back")
	}
	if err := change(t, d, 1, 3); verdict(err) != VerdictFormat {
		t.Errorf("keys that are not the log's were replaced: %v", err)
	}
}

// A log that is in use, or was not closed, keeps its keys. So does one that has not recorded its last handover.
func TestHandoverWantsAClosedLog(t *testing.T) {
	t.Parallel()
	d, l := newSimLog(t, optionsOf(t, 0))
	grow(t, l, 3)
	killed := d.Killed()
	if err := change(t, d, 0, 1); !errors.Is(err, ErrBusy) {
		t.Errorf("in use: %v", err)
	}
	mustClose(t, l)
	if err := change(t, killed, 0, 1); err == nil {
		t.Error("the keys of a log that was not closed were replaced")
	}
	mustChange(t, d, 0, 1)
	if err := change(t, d, 1, 2); err == nil {
		t.Error("keys that signed nothing were replaced")
	}
	mustClose(t, openSim(t, d, optionsOf(t, 1)))
}

// Handovers that are removed, cut, changed, forged, of a fork, or of another time of the log are refused, by who has the old keys
// and by who has the new ones..
func TestHandoverTampered(t *testing.T) {
	t.Parallel()
	d, l := newSimLog(t, optionsOf(t, 0))
	grow(t, l, 5)
	mustClose(t, l)
	before := d.Killed()
	mustChange(t, d, 0, 1)
	changed := d.Killed()
	l = openSim(t, d, optionsOf(t, 1))
	grow(t, l, 5)
	mustClose(t, l)

	longer := before.Killed()
	mustClose(t, openSim(t, longer, optionsOf(t, 0)))
	fork := before.Killed()
	mustChange(t, fork, 0, 2)
	later := longer.Killed()
	mustChange(t, later, 0, 1)
	// Killed when the handover was on record, and before the new keys signed anything.
	unsigned, heads := changed.Killed(), 0 // the second head is written behind the record
	unsigned.Fail = func(op, name string, n int) (int, error) {
		if op == "write" && strings.HasPrefix(name, checkpointPrefix) && heads > 1 {
			return 0, syscall.EIO
		}
		if op == "write" && name == headFile {
			heads++
		}
		return n, nil
	}
	if _, err := tryOpenSim(unsigned, optionsOf(t, 1)); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	unsigned.Fail = nil
	mustClose(t, openSim(t, unsigned.Killed(), optionsOf(t, 1)))
	set1, signer1 := keysNumbered(t, 1)
	file := func(d *fsystest.Disk) []byte { return bytes.Clone(d.Files[handoverFile].Data) }
	put := func(d *fsystest.Disk, b []byte) {
		d.Files[handoverFile] = &fsystest.File{Data: bytes.Clone(b), Durable: bytes.Clone(b)}
	}
	// What somebody without the old keys can make: their note has only the new signature.
	_, signer2 := keysNumbered(t, 2)
	stolen := func() []byte {
		o := optionsOf(t, 2)
		d, l := newSimLog(t, o)
		mustClose(t, l)
		opts, err := o.withDefaults(true)
		if err != nil {
			t.Fatal(err)
		}
		if err := handoverIn(context.Background(), d, opts, set1, signer2, signer1); err != nil {
			t.Fatal(err)
		}
		return file(d)
	}()

	for _, tt := range []struct {
		name string
		from *fsystest.Disk
		new  int // the keys that the store has
		harm func(d *fsystest.Disk)
	}{
		{"removed", d, 1, func(d *fsystest.Disk) { delete(d.Files, handoverFile) }},
		{"removed before the new keys signed", unsigned, 0, func(d *fsystest.Disk) { delete(d.Files, handoverFile) }},
		{"emptied", d, 1, func(d *fsystest.Disk) { put(d, nil) }},
		{"cut", d, 1, func(d *fsystest.Disk) { put(d, file(d)[:300]) }},
		{"doubled", d, 1, func(d *fsystest.Disk) { put(d, append(file(d), file(d)...)) }},
		{"removed before it is recorded, yet the store has the new keys", changed, 1, func(d *fsystest.Disk) { delete(d.Files, handoverFile) }},
		{"by other old keys", d, 1, func(d *fsystest.Disk) { put(d, stolen) }},
		{"another one by the old keys", d, 2, func(d *fsystest.Disk) { put(d, file(fork)) }},
		{"of a log that went on with the old keys", longer, 1, func(d *fsystest.Disk) { put(d, file(changed)) }},
		{"of a longer log", before, 1, func(d *fsystest.Disk) { put(d, file(later)) }},
		{"of a longer log with a record", d, 1, func(d *fsystest.Disk) { put(d, file(later)) }},
	} {
		c := tt.from.Killed()
		tt.harm(c)
		if l, err := tryOpenSim(c, optionsOf(t, tt.new)); verdict(err) == "" {
			if err == nil {
				l.Close()
			}
			t.Errorf("%s: opened: %v", tt.name, err)
		}
		refused := 0
		for n := range 2 {
			set, _ := keysNumbered(t, n)
			if _, err := verifySim(c, set, true); verdict(err) != "" {
				refused++
			} else if err != nil {
				t.Errorf("%s: verify: %v", tt.name, err)
			}
		}
		// Without its handover, a log is right in the eyes of who has the first keys, until the handover is on record.
		if want := 2; refused != want && !strings.HasPrefix(tt.name, "removed before") {
			t.Errorf("%s: %d of 2 auditors refuse it", tt.name, refused)
		}
	}
	b := file(d)
	for i := 0; i < len(b); i += 3 {
		c := d.Killed()
		flipped := bytes.Clone(b)
		flipped[i] ^= 1
		put(c, flipped)
		if _, err := verifySim(c, optionsOf(t, 0).Keys, false); verdict(err) == "" {
			t.Fatalf("byte %d: %v", i, err)
		}
	}
}

// Whatever write or sync fails while keys are replaced, and whatever a power cut leaves then: the log has the old keys or the new ones
// by its own account, opens with those, and the handover is on record once or not at all..
func TestHandoverCutOff(t *testing.T) {
	t.Parallel()
	base, l := newSimLog(t, optionsOf(t, 0))
	grow(t, l, 3)
	mustClose(t, l)
	rng := rand.New(rand.NewPCG(1, 2))
	outcomes := make(map[int]int)
	for step := 0; ; step++ {
		d := base.Killed()
		left, hit := step, false
		d.Fail = func(op, name string, n int) (int, error) {
			if left--; left < 0 {
				hit = true
				return 0, syscall.EIO
			}
			return n, nil
		}
		err := change(t, d, 0, 1)
		if err == nil {
			var l *Log
			if l, err = tryOpenSim(d, optionsOf(t, 1)); err == nil {
				err = l.Close()
			}
		}
		if hit != (err != nil) {
			t.Fatalf("step %d: %v", step, err)
		}
		d.Fail = nil
		for _, c := range []*fsystest.Disk{d.Killed(), d.PowerCut(rng)} {
			s := &scanner{st: c}
			if err := s.begin(); err != nil {
				t.Fatalf("step %d: %v", step, err)
			}
			n := len(s.chain) - 1
			outcomes[n]++
			l := openSim(t, c, optionsOf(t, n))
			if got := len(keyRecords(t, l)); got != n {
				t.Errorf("step %d: %d handovers on record, want %d", step, got, n)
			}
			mustClose(t, l)
			if _, err := verifySim(c, optionsOf(t, 0).Keys, true); err != nil {
				t.Errorf("step %d: %v", step, err)
			}
		}
		if !hit {
			break
		}
	}
	if !slices.Equal(slices.Sorted(maps.Keys(outcomes)), []int{0, 1}) {
		t.Errorf("outcomes %v", outcomes)
	}
}
