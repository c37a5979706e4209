package keymap

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// fill gives t the keys "t1/k0" … "t1/k(n-1)", each with a state of its own.
func fill(t *Table, n int) {
	for i := range n {
		slot, s := t.Slot(keyName(i))
		s = State{Seq: s.Seq + uint64(i) + 1, Last: 10 * uint64(i+1)}
		if i%2 == 1 {
			s.Effect = s.Last - 1
		}
		t.Set(slot, s)
	}
}

func keyName(i int) string { return fmt.Sprintf("t1/k%d", i) }

// allSlots copies the slots of t in pieces of size.
func allSlots(t *Table, size int) []Slot {
	var all []Slot
	buf := make([]Slot, size)
	for {
		k := t.CopySlots(len(all), buf)
		if k == 0 {
			return all
		}
		all = append(all, buf[:k]...)
	}
}

func mapOf(t testing.TB, table *Table) *Map {
	t.Helper()
	m := new(Map)
	if err := m.Apply(table.TakeDirty()); err != nil {
		t.Fatal(err)
	}
	return m
}

// The formats, as computed by another program: Python's hashlib, and RFC 6962 §2.1 as a recursion. R-402.
func TestKnownAnswers(t *testing.T) {
	t.Parallel()
	if got := ID("t1/k0"); hex.EncodeToString(got[:]) != "3e75ab4b4e02d5e7609ae3879a3d7827f40d2cfc7267e4f741f90044e2b9889c" {
		t.Errorf("id: %x", got)
	}
	if got := ID(strings.Repeat("k", 2000)); hex.EncodeToString(got[:]) != "f2433826cf4e97f65681e7ace03dab889019a43d63f134c8a8c5f816d256ddd7" {
		t.Errorf("id of a long name: %x", got)
	}
	table := NewTable()
	fill(table, 7)
	var snapshot bytes.Buffer
	if err := EncodeSlots(&snapshot, allSlots(table, 100)); err != nil {
		t.Fatal(err)
	}
	const slot1 = "9f3af8d98be96806fcc1cdeb0c80f473a8e8fd6863e7ac6b908332f91558bfb0" + "0000000000000002" + "0000000000000014" + "0000000000000013"
	if got := hex.EncodeToString(snapshot.Bytes()[SlotSize : 2*SlotSize]); got != slot1 || snapshot.Len() != 7*SlotSize {
		t.Errorf("slot 1 of %d bytes: %s", snapshot.Len(), got)
	}
	m := new(Map)
	changes := table.TakeDirty()
	for n, want := range []string{
		"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
		"138085a6de2c50868817d3ad73560a178436d64334109f0ec870894e29d94201",
		"271ff2aad6bcf866a0c309dd87d9e6660c02399d9edc9d60e5afee64d9bd9f58",
		"de49519aa21ed65e66d810b6c0c9099e76f10c716e99b0fc5ee793efca378dcf",
		"271aadfb81cd35ff21f95fcb9e77cbb3e6d1708e31325695e7a96ad37007b061",
		"54482178f6ecd567f7fd5bfd603fa54f20fdf5713a999885868836ed32663f5d",
		"2e94b30e9d80d7df70805926187a2e8c21c310157315bec4b269a40593aefb10",
		"6561fa9c398c08e25dee2abe273d5c78267fac7d916c8e0634812a216d3e40ec",
	} {
		if got := m.Root(); hex.EncodeToString(got[:]) != want {
			t.Errorf("root over %d: %x", n, got)
		}
		if n < len(changes) {
			if err := m.Apply(changes[n : n+1]); err != nil {
				t.Fatal(err)
			}
		}
	}
	path, err := m.Proof(5)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%x", path); got != "[e831e5908ea570faea74f9fdb72b61abf59e13c92c0d7d23b146476970813fc5"+
		" 4595142992291229f5e62a77d86be4095ff0382d00accf5045edf4efb2de3460"+
		" 271aadfb81cd35ff21f95fcb9e77cbb3e6d1708e31325695e7a96ad37007b061]" {
		t.Errorf("proof of slot 5: %s", got)
	}
}

// A table answers like a plain map of names, and the map that follows it has the root that a tree made from scratch
// has..
func TestModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		table, tree := NewTable(), new(Map)
		model := make(map[string]State)
		order := []string{} // names by slot
		dirty := make(map[string]bool)
		put := func(name string, s State) {
			slot, old := table.Slot(name)
			if _, known := model[name]; !known {
				order = append(order, name)
			}
			if old != model[name] || order[slot] != name {
				t.Fatalf("%q: slot %d, state %+v; want %+v", name, slot, old, model[name])
			}
			table.Set(slot, s)
			model[name], dirty[name] = s, true
		}
		state := rapid.Custom(func(t *rapid.T) State {
			last := rapid.Uint64Min(1).Draw(t, "last")
			return State{rapid.Uint64Range(1, last).Draw(t, "seq"), last, rapid.Uint64Range(0, last).Draw(t, "effect")}
		})
		name := rapid.StringMatching(`k[0-9]{1,2}`)
		for i := range rapid.SampledFrom([]int{0, 1, chunkSlots - 2, 2 * chunkSlots}).Draw(t, "before") {
			put(keyName(i), State{Seq: 1, Last: uint64(i + 1), Effect: uint64(i % 2)})
		}
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) { put(name.Draw(t, "name"), state.Draw(t, "state")) },
			"set old": func(t *rapid.T) {
				if len(order) > 0 {
					put(rapid.SampledFrom(order).Draw(t, "name"), state.Draw(t, "state"))
				}
			},
			"lookup": func(t *rapid.T) {
				name := name.Draw(t, "name")
				want, known := model[name]
				slot, s, ok := table.Lookup(name)
				if ok != known || s != want || ok && order[slot] != name || !ok && slot != 0 {
					t.Fatalf("%q: slot %d, state %+v, %t; want %+v", name, slot, s, ok, want)
				}
			},
			"take": func(t *rapid.T) {
				changes := table.TakeDirty()
				for _, c := range changes {
					name := order[c.Slot]
					if !dirty[name] || c.ID != ID(name) || c.State != model[name] {
						t.Fatalf("change %+v of %q, which has %+v", c, name, model[name])
					}
					delete(dirty, name)
				}
				if len(dirty) != 0 {
					t.Fatalf("not among the changes: %v", dirty)
				}
				if err := tree.Apply(changes); err != nil {
					t.Fatal(err)
				}
				checkMap(t, tree, table)
			},
			"": func(t *rapid.T) {
				effects := 0
				for _, s := range model {
					if s.Effect != 0 {
						effects++
					}
				}
				if table.Len() != len(model) || table.Effects() != effects {
					t.Fatalf("%d slots and %d effects; want %d and %d", table.Len(), table.Effects(), len(model), effects)
				}
			},
		})
		for i, s := range allSlots(table, rapid.IntRange(1, 3*chunkSlots).Draw(t, "piece")) {
			if s.ID != ID(order[i]) || s.State != model[order[i]] {
				t.Fatalf("slot %d is %+v", i, s)
			}
			delete(model, order[i])
		}
		if len(model) != 0 {
			t.Fatalf("not copied: %v", slices.Sorted(maps.Keys(model)))
		}
	})
}

// A snapshot that was copied in pieces, with records numbered between them, becomes the exact table again when the
// records from its beginning on are replayed. R-274.
func TestFuzzySnapshotCatchesUp(t *testing.T) {
	t.Parallel()
	type record struct {
		name   string
		effect bool // this record says that the one before of the key succeeded
	}
	play := func(t *Table, i uint64, r record) {
		slot, s := t.Slot(r.name)
		if s.Last > i {
			return
		}
		if r.effect {
			s.Effect = s.Last
		}
		s.Seq++
		s.Last = i + 1
		t.Set(slot, s)
	}
	rapid.Check(t, func(t *rapid.T) {
		log := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) record {
			return record{rapid.StringMatching(`[a-z]`).Draw(t, "name"), rapid.Bool().Draw(t, "effect")}
		}), 1, 200).Draw(t, "log")
		live := NewTable()
		size := 0
		more := func(k int) {
			for ; k > 0 && size < len(log); k-- {
				play(live, uint64(size), log[size])
				size++
			}
		}
		more(rapid.IntRange(0, len(log)).Draw(t, "records before"))
		from, n := size, live.Len()
		var snapshot bytes.Buffer
		for done := 0; done < n; {
			buf := make([]Slot, min(n-done, rapid.IntRange(1, 4).Draw(t, "piece")))
			k := live.CopySlots(done, buf)
			if err := EncodeSlots(&snapshot, buf[:k]); err != nil {
				t.Fatal(err)
			}
			done += k
			more(rapid.IntRange(0, 20).Draw(t, "records between"))
		}
		more(len(log))

		again, err := Decode(&snapshot, uint64(n))
		if err != nil {
			t.Fatal(err)
		}
		for i := from; i < len(log); i++ {
			play(again, uint64(i), log[i])
		}
		if a, b := allSlots(live, 100), allSlots(again, 100); !slices.Equal(a, b) || live.Effects() != again.Effects() {
			t.Fatalf("%+v\nbecame\n%+v", a, b)
		}
	})
}

// Keys whose ids begin alike are still different keys: in the table, after decoding, and for those without a slot.
func TestIDsThatBeginAlike(t *testing.T) {
	t.Parallel()
	alike := func(last byte) (id [32]byte) {
		copy(id[:], "sixteen bytes...")
		id[31] = last
		return id
	}
	table := NewTable()
	for i := range byte(4) {
		slot, s := table.slot(alike(i))
		if slot != uint32(i) || s != (State{}) {
			t.Fatalf("id %d got slot %d with %+v", i, slot, s)
		}
		table.Set(slot, State{Seq: uint64(i) + 1, Last: 100})
		for j := range byte(5) {
			id := alike(j)
			slot, ok := table.find(&id)
			if ok != (j <= i) || ok && (slot != uint32(j) || table.at(slot).Seq != uint64(j)+1) {
				t.Fatalf("after %d, id %d is in slot %d, %t", i, j, slot, ok)
			}
		}
	}
	var b bytes.Buffer
	if err := EncodeSlots(&b, allSlots(table, 10)); err != nil {
		t.Fatal(err)
	}
	encoded := bytes.Clone(b.Bytes())
	again, err := Decode(&b, 4)
	if err != nil {
		t.Fatal(err)
	}
	for i := range byte(4) {
		if slot, s := again.slot(alike(i)); slot != uint32(i) || s.Seq != uint64(i)+1 {
			t.Errorf("decoded, id %d is in slot %d with %+v", i, slot, s)
		}
	}
	// A second slot for one of them is found, also for one that is not the first of its kind.
	for i := range 4 {
		twice := append(bytes.Clone(encoded), encoded[i*SlotSize:(i+1)*SlotSize]...)
		if _, err := Decode(bytes.NewReader(twice), 5); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("slots %d and 4 have the same id", i)) {
			t.Errorf("slot %d twice: %v", i, err)
		}
	}
}

// A state is never put where no key is.
func TestSetOfNoSlotPanics(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 3, chunkSlots} {
		table := NewTable()
		fill(table, n)
		for _, slot := range []uint32{uint32(n), uint32(n) + 1, chunkSlots + 1, 1<<32 - 1} {
			func() {
				defer func() {
					if recover() == nil {
						t.Errorf("slot %d of %d was set", slot, n)
					}
				}()
				table.Set(slot, State{Seq: 1, Last: 1})
			}()
		}
		if table.Effects() != n/2 || len(table.TakeDirty()) != n {
			t.Errorf("a refused Set left a trace in a table of %d", n)
		}
	}
}

// The hot path does not allocate for keys that are known.
func TestKnownKeysDoNotAllocate(t *testing.T) {
	table := NewTable()
	name := strings.Repeat("t/key", 128) // 640 bytes, the longest kid
	slot, s := table.Slot(name)
	table.Set(slot, s)
	if n := testing.AllocsPerRun(100, func() {
		slot, s := table.Slot(name)
		s.Seq++
		s.Last += 2
		table.Set(slot, s)
		if _, got, ok := table.Lookup(name); !ok || got != s {
			t.Error("lost")
		}
		if _, _, ok := table.Lookup("unknown"); ok {
			t.Error("found")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
