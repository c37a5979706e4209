package keymap

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"testing/iotest"
)

func encoded(t testing.TB, n int) []byte {
	t.Helper()
	table := NewTable()
	fill(table, n)
	var b bytes.Buffer
	if err := EncodeSlots(&b, allSlots(table, chunkSlots+7)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Decoding gives the table back, with nothing read beyond it; encoding that gives the same bytes.
func TestSnapshotIdentity(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 2, chunkSlots - 1, chunkSlots, chunkSlots + 1, 3*chunkSlots + 5} {
		want := NewTable()
		fill(want, n)
		b := encoded(t, n)
		r := io.MultiReader(iotest.HalfReader(bytes.NewReader(b)), strings.NewReader("tag"))
		got, err := Decode(r, uint64(n))
		if err != nil {
			t.Fatal(err)
		}
		if rest, _ := io.ReadAll(r); string(rest) != "tag" {
			t.Errorf("%d slots: %q is left", n, rest)
		}
		if got.Len() != n || got.Effects() != want.Effects() {
			t.Errorf("%d slots: %d with %d effects", n, got.Len(), got.Effects())
		}
		for i := range n {
			slot, s, ok := got.Lookup(keyName(i))
			if wantSlot, wantState, _ := want.Lookup(keyName(i)); !ok || slot != wantSlot || s != wantState {
				t.Fatalf("slot %d of %d is %+v", i, n, s)
			}
		}
		// All of a decoded table is news for a map.
		if a, b := mapOf(t, want), mapOf(t, got); a.Root() != b.Root() || a.Len() != n || b.Len() != n {
			t.Errorf("%d slots: the maps differ", n)
		}
		var again bytes.Buffer
		if err := EncodeSlots(&again, allSlots(got, chunkSlots)); err != nil || !bytes.Equal(again.Bytes(), b) {
			t.Errorf("%d slots: encoded otherwise, %v", n, err)
		}
	}
}

// A snapshot cut anywhere is refused, and so is a count that it does not have.
func TestDecodeRefusesTruncation(t *testing.T) {
	t.Parallel()
	b := encoded(t, 3)
	for i := range b {
		if _, err := Decode(bytes.NewReader(b[:i]), 3); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut at %d: %v", i, err)
		}
	}
	long := encoded(t, chunkSlots) // ends where a read begins
	for _, n := range []uint64{chunkSlots + 1, 1 << 20, maxSlots} {
		if _, err := Decode(bytes.NewReader(long), n); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d slots: %v", n, err)
		}
	}
	for _, n := range []uint64{maxSlots + 1, math.MaxUint64} {
		if _, err := Decode(bytes.NewReader(b), n); err == nil || errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d slots: %v", n, err)
		}
	}
	broken := errors.New("broken disk")
	if _, err := Decode(io.MultiReader(bytes.NewReader(b), iotest.ErrReader(broken)), 4); !errors.Is(err, broken) {
		t.Errorf("a read error became %v", err)
	}
}

// States that no log leads to are refused on the way out and on the way in.
func TestImpossibleStatesAreRefused(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		s    State
		ok   bool
	}{
		{"first record of the log", State{1, 1, 0}, true},
		{"its own effect", State{1, 1, 1}, true},
		{"the largest", State{math.MaxUint64, math.MaxUint64, math.MaxUint64}, true},
		{"nothing", State{}, false},
		{"a record without a number", State{0, 1, 0}, false},
		{"a number without a record", State{1, 0, 0}, false},
		{"more records than the log had", State{8, 7, 0}, false},
		{"an effect after the latest record", State{1, 7, 8}, false},
	} {
		b := encoded(t, 3)
		for i, v := range []uint64{tc.s.Seq, tc.s.Last, tc.s.Effect} {
			binary.BigEndian.PutUint64(b[SlotSize+32+8*i:], v)
		}
		got, err := Decode(bytes.NewReader(b), 3)
		if tc.ok != (err == nil) || !tc.ok && !errors.Is(err, errState) {
			t.Errorf("%s: decoded with %v", tc.name, err)
		}
		if tc.ok && got.at(1).State != tc.s {
			t.Errorf("%s: became %+v", tc.name, got.at(1).State)
		}
		// The bad slot comes after many good ones, of which nothing may be written either.
		slots := make([]Slot, 2*chunkSlots)
		for i := range slots {
			slots[i].State = State{1, 1, 0}
		}
		slots[len(slots)-1].State = tc.s
		var w bytes.Buffer
		err = EncodeSlots(&w, slots)
		if tc.ok != (err == nil) || !tc.ok && (!errors.Is(err, errState) || w.Len() != 0) {
			t.Errorf("%s: %d bytes encoded with %v", tc.name, w.Len(), err)
		}
	}
}

func TestEncodeReturnsTheWritersError(t *testing.T) {
	t.Parallel()
	r, w := io.Pipe()
	full := errors.New("disk full")
	r.CloseWithError(full)
	if err := EncodeSlots(w, []Slot{{State: State{1, 1, 0}}}); !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
}

// Whatever Decode accepts is encoded as it was. R-403.
func FuzzDecode(f *testing.F) {
	f.Add(encoded(f, 0))
	f.Add(encoded(f, 3))
	f.Add(encoded(f, 3)[:100])
	f.Add(append(encoded(f, 2), encoded(f, 2)...))
	f.Add(make([]byte, 2*SlotSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := uint64(len(b)+SlotSize-1) / SlotSize
		table, err := Decode(bytes.NewReader(b), n)
		if err != nil {
			return
		}
		var w bytes.Buffer
		if err := EncodeSlots(&w, allSlots(table, 3)); err != nil || !bytes.Equal(w.Bytes(), b) {
			t.Fatalf("%x\nbecame\n%x, %v", b, w.Bytes(), err)
		}
	})
}
