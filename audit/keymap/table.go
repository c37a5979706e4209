package keymap

// chunkSlots is how many slots are allocated together. Slots never move: a table that grows while the log waits for
// it must not copy all it has.
const chunkSlots = 1024

type chunk struct {
	slots [chunkSlots]Slot
	dirty [chunkSlots / 64]uint64 // a bit for each slot that is in Table.dirty
}

// A Table holds the state of every key. It is made by [NewTable] or [Decode], and is not safe for concurrent use.
type Table struct {
	chunks  []*chunk
	n       int
	effects int
	dirty   []uint32 // slots changed since TakeDirty, each once

	// index finds a slot by the first half of its id. A slot whose half was taken by another id stands in clash
	// instead, under its whole id.
	index map[[16]byte]uint32
	clash map[[32]byte]uint32
}

// NewTable returns a table without slots.
func NewTable() *Table {
	return &Table{index: make(map[[16]byte]uint32), clash: make(map[[32]byte]uint32)}
}

// Len returns the number of slots.
func (t *Table) Len() int { return t.n }

// Effects returns the number of slots whose Effect is not 0.
func (t *Table) Effects() int { return t.effects }

// Lookup returns the slot and state of the key called name; ok is false if it has none.
func (t *Table) Lookup(name string) (slot uint32, s State, ok bool) {
	id := ID(name)
	if slot, ok = t.find(&id); !ok {
		return 0, State{}, false
	}
	return slot, t.at(slot).State, true
}

// Slot returns the slot and state of the key called name. A key that has no slot gets the next one, with a zero state;
// the caller then numbers the first record of the key and calls Set. Slot panics at the 2^32-th key.
func (t *Table) Slot(name string) (slot uint32, s State) {
	return t.slot(ID(name))
}

// Set replaces the state of a slot that [Table.Slot] or [Table.Lookup] returned. It panics on any other.
func (t *Table) Set(slot uint32, s State) {
	p := t.at(slot)
	if p.Effect != 0 {
		t.effects--
	}
	if s.Effect != 0 {
		t.effects++
	}
	p.State = s
	t.touch(slot)
}

// TakeDirty returns the slots that are new or were Set since the last call, each once, as they are now. After Decode
// that is all of them. The changes of successive calls, applied in order to a [Map], make it the map of this table.
// The cost is that of what changed.
func (t *Table) TakeDirty() []Change {
	if len(t.dirty) == 0 {
		return nil
	}
	changes := make([]Change, len(t.dirty))
	for i, slot := range t.dirty {
		p := t.at(slot)
		changes[i] = Change{Slot: slot, ID: p.ID, State: p.State}
		t.chunks[slot/chunkSlots].dirty[slot%chunkSlots/64] &^= 1 << (slot % 64)
	}
	t.dirty = t.dirty[:0]
	return changes
}

// CopySlots copies the slots from number from on into dst and returns how many it copied: the smaller of len(dst) and
// what the table has from there on.
func (t *Table) CopySlots(from int, dst []Slot) int {
	done := 0
	for done < len(dst) && from+done < t.n {
		i := from + done
		done += copy(dst[done:], t.chunks[i/chunkSlots].slots[i%chunkSlots:min(chunkSlots, i%chunkSlots+t.n-i)])
	}
	return done
}

func (t *Table) at(slot uint32) *Slot {
	if uint64(slot) >= uint64(t.n) {
		panic("keymap: no such slot")
	}
	return &t.chunks[slot/chunkSlots].slots[slot%chunkSlots]
}

func (t *Table) find(id *[32]byte) (slot uint32, ok bool) {
	slot, ok = t.index[[16]byte(id[:16])]
	if ok && t.at(slot).ID != *id {
		slot, ok = t.clash[*id]
	}
	return slot, ok
}

func (t *Table) slot(id [32]byte) (uint32, State) {
	if slot, ok := t.find(&id); ok {
		return slot, t.at(slot).State
	}
	slot := t.push(Slot{ID: id})
	t.enter(slot)
	return slot, State{}
}

// push appends a slot, which enter makes known.
func (t *Table) push(s Slot) uint32 {
	if uint64(t.n) == maxSlots {
		panic("keymap: too many keys") // rather than begin again at slot 0, which is another key's
	}
	if t.n == len(t.chunks)*chunkSlots {
		t.chunks = append(t.chunks, new(chunk))
	}
	slot := uint32(t.n)
	t.n++
	t.at(slot).ID = s.ID
	t.Set(slot, s.State)
	return slot
}

// enter puts the id of slot into the index. It is not there yet.
func (t *Table) enter(slot uint32) {
	id := t.at(slot).ID
	if _, taken := t.index[[16]byte(id[:16])]; taken {
		t.clash[id] = slot
	} else {
		t.index[[16]byte(id[:16])] = slot
	}
}

// touch puts slot on the list of changed ones unless it is there.
func (t *Table) touch(slot uint32) {
	word, bit := &t.chunks[slot/chunkSlots].dirty[slot%chunkSlots/64], uint64(1)<<(slot%64)
	if *word&bit == 0 {
		*word |= bit
		t.dirty = append(t.dirty, slot)
	}
}
