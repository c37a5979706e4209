package keymap

import (
	"errors"
	"math/bits"
	"slices"
	"testing"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
)

type tester interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

// checkMap compares m with a tree over the slots of table that is made from scratch, by the library alone.
func checkMap(t tester, m *Map, table *Table) {
	t.Helper()
	r := (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)
	for i, s := range allSlots(table, chunkSlots) {
		if got, err := m.State(uint32(i)); err != nil || got != s.State {
			t.Fatalf("slot %d of the map is %+v, %v; want %+v", i, got, err, s.State)
		}
		leaf := rfc6962.DefaultHasher.HashLeaf(appendSlot([]byte(leafDomain), &s))
		if err := r.Append(leaf, nil); err != nil {
			t.Fatal(err)
		}
	}
	want := rfc6962.DefaultHasher.EmptyRoot()
	if r.End() > 0 {
		var err error
		if want, err = r.GetRootHash(nil); err != nil {
			t.Fatal(err)
		}
	}
	if root := m.Root(); root != [32]byte(want) || m.Len() != table.Len() {
		t.Fatalf("root %x over %d; want %x over %d", root, m.Len(), want, table.Len())
	}
}

// At every size and for every slot the proof verifies, and it does so for nothing else: not for another key, number,
// link, effect, slot or root, nor with a bit of it changed, nor shortened or lengthened..
func TestProofs(t *testing.T) {
	t.Parallel()
	for n := 1; n <= 20; n++ {
		table := NewTable()
		fill(table, n)
		m := mapOf(t, table)
		root := m.Root()
		for slot := range uint32(n) {
			name := keyName(int(slot))
			s, err := m.State(slot)
			if err != nil {
				t.Fatal(err)
			}
			path, err := m.Proof(slot)
			if err != nil {
				t.Fatal(err)
			}
			if err := VerifyProof(root, uint64(n), slot, name, s, path); err != nil {
				t.Fatalf("slot %d of %d: %v", slot, n, err)
			}
			if len(path) > bits.Len(uint(n)) {
				t.Errorf("slot %d of %d: a proof of %d hashes", slot, n, len(path))
			}
			refused := func(what string, root [32]byte, n int, slot uint32, name string, s State, path [][32]byte, is bool) {
				t.Helper()
				err := VerifyProof(root, uint64(n), slot, name, s, path)
				if err == nil || errors.Is(err, ErrProof) != is {
					t.Errorf("slot %d of %d, %s: %v", slot, n, what, err)
				}
			}
			for _, other := range []string{"", name + "0", name[:len(name)-1], "T" + name[1:]} {
				refused("another name", root, n, slot, other, s, path, true)
			}
			for b := range 64 {
				for _, other := range []State{{s.Seq ^ 1<<b, s.Last, s.Effect}, {s.Seq, s.Last ^ 1<<b, s.Effect}, {s.Seq, s.Last, s.Effect ^ 1<<b}} {
					refused("another state", root, n, slot, name, other, path, true)
				}
			}
			refused("exchanged numbers", root, n, slot, name, State{s.Last, s.Seq, s.Effect}, path, true)
			for i := range 32 {
				altered := root
				altered[i] ^= 0x80
				refused("another root", altered, n, slot, name, s, path, true)
				for k := range path {
					altered := slices.Clone(path)
					altered[k][i] ^= 1
					refused("another path", root, n, slot, name, s, altered, true)
				}
			}
			for other := range uint32(n) {
				if other != slot {
					if err := VerifyProof(root, uint64(n), other, name, s, path); err == nil {
						t.Errorf("slot %d of %d passes for slot %d", slot, n, other)
					}
				}
			}
			refused("a slot beyond", root, n, uint32(n), name, s, path, false)
			refused("no slots", root, 0, slot, name, s, path, false)
			refused("a longer path", root, n, slot, name, s, append(slices.Clone(path), root), false)
			if len(path) > 0 {
				refused("a shorter path", root, n, slot, name, s, path[1:], false)
				refused("a shorter path", root, n, slot, name, s, path[:len(path)-1], false)
			}
			if len(path) > 1 {
				altered := slices.Clone(path)
				slices.Reverse(altered)
				refused("a path backwards", root, n, slot, name, s, altered, true)
			}
		}
		if _, err := m.Proof(uint32(n)); err == nil {
			t.Errorf("a proof of slot %d of %d", n, n)
		}
		if _, err := m.State(uint32(n)); err == nil {
			t.Errorf("a state of slot %d of %d", n, n)
		}
	}
	// A tree larger than any map, with a proof that is right for it.
	path := make([][32]byte, 33)
	h := leafHash(&Slot{ID: ID("k")})
	for i := range path {
		h = nodeHash(&h, &path[i])
	}
	if err := VerifyProof(h, maxSlots, 0, "k", State{}, path[:32]); !errors.Is(err, ErrProof) {
		t.Errorf("the largest map: %v", err)
	}
	if err := VerifyProof(h, maxSlots+1, 0, "k", State{}, path); err == nil {
		t.Error("a proof in a tree larger than any map")
	}
}

// One operation left out of the sequence of one key shows in the root, and the true count is not provable under it.
//
func TestHiddenOperationContradictsTheRoot(t *testing.T) {
	t.Parallel()
	honest, lying := NewTable(), NewTable()
	fill(honest, 9)
	fill(lying, 9)
	slot, truth := honest.Slot(keyName(4))
	lying.Set(slot, State{truth.Seq - 1, truth.Last, truth.Effect})
	h, l := mapOf(t, honest), mapOf(t, lying)
	path, err := l.Proof(slot)
	if err != nil {
		t.Fatal(err)
	}
	if h.Root() == l.Root() {
		t.Error("both have the same root")
	}
	if err := VerifyProof(l.Root(), 9, slot, keyName(4), truth, path); !errors.Is(err, ErrProof) {
		t.Errorf("got %v", err)
	}
}

// Changes that would leave a gap are refused whole; of two changes of a slot the later counts; and a map keeps what it
// has, whatever becomes of the table or of the changes.
func TestApply(t *testing.T) {
	t.Parallel()
	table := NewTable()
	fill(table, 5)
	changes := table.TakeDirty()
	m := new(Map)
	if err := m.Apply(changes[:3]); err != nil {
		t.Fatal(err)
	}
	root := m.Root()
	altered := changes[0]
	altered.State.Seq++
	for _, bad := range [][]Change{{changes[4]}, {altered, changes[4]}, {altered, changes[4], changes[3]}} {
		if err := m.Apply(bad); err == nil {
			t.Errorf("%+v was applied", bad)
		}
		if s, _ := m.State(0); m.Root() != root || m.Len() != 3 || s != changes[0].State {
			t.Errorf("%+v left a trace", bad)
		}
	}
	if err := m.Apply(nil); err != nil || m.Root() != root {
		t.Errorf("no change was one: %v", err)
	}
	wrong := changes[4]
	wrong.State.Last++
	if err := m.Apply([]Change{changes[3], wrong, altered, changes[0], changes[4]}); err != nil {
		t.Fatal(err)
	}
	checkMap(t, m, table)

	root = m.Root()
	changes[0].State.Seq = 99
	table.Set(2, State{Seq: 99, Last: 99})
	if m.Root() != root {
		t.Error("the map shares memory with the table")
	}
	if table.TakeDirty()[0].Slot != 2 || table.TakeDirty() != nil {
		t.Error("one slot was changed")
	}
	if err := new(Map).Apply(changes[1:]); err == nil {
		t.Error("a map without its first slot")
	}
}
