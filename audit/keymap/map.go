package keymap

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
)

const leafDomain = "ron-kms/keymap/v1\n"

// ErrProof is wrapped by the error of VerifyProof when the proof leads to another root.
var ErrProof = errors.New("the proof does not lead to the root")

var ranges = &compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}

// A Map is the Merkle tree over the slots of a table, as of the changes applied to it. It shares no memory with the
// table, so that one goroutine can keep it up to date while the log goes on. The zero Map is that of an empty table.
// A Map is not safe for concurrent use.
type Map struct {
	states []State      // what the leaves say: the table has moved on when somebody asks for a proof
	levels [][][32]byte // levels[k][i] is the root over the leaves i·2^k to (i+1)·2^k - 1, where all of them exist
	todo   []uint32     // room for Apply
}

// Len returns the number of slots.
func (m *Map) Len() int { return len(m.states) }

// State returns the state that the map has for slot, which is the one that [Map.Proof] proves.
func (m *Map) State(slot uint32) (State, error) {
	if uint64(slot) >= uint64(len(m.states)) {
		return State{}, fmt.Errorf("audit: keymap: slot %d of %d", slot, len(m.states))
	}
	return m.states[slot], nil
}

// Apply brings the map up to date with changes. New slots must come in order, without a gap, as [Table.TakeDirty] has
// them; otherwise Apply returns an error and changes nothing. Where a slot comes twice, the later change counts.
func (m *Map) Apply(changes []Change) error {
	n := uint64(len(m.states))
	for i := range changes {
		switch slot := uint64(changes[i].Slot); {
		case slot == n:
			n++
		case slot > n:
			return fmt.Errorf("audit: keymap: a change of slot %d where there are %d", slot, n)
		}
	}
	if len(changes) == 0 {
		return nil
	}
	if len(m.levels) == 0 {
		m.levels = [][][32]byte{nil}
	}
	todo := m.todo[:0]
	for i := range changes {
		c := &changes[i]
		leaf := leafHash(&Slot{c.ID, c.State})
		if int(c.Slot) == len(m.states) {
			m.states = append(m.states, c.State)
			m.levels[0] = append(m.levels[0], leaf)
		} else {
			m.states[c.Slot] = c.State
			m.levels[0][c.Slot] = leaf
		}
		todo = append(todo, c.Slot)
	}
	m.todo = todo
	slices.Sort(todo)
	for k := 0; len(m.levels[k]) > 1; k++ {
		if k+1 == len(m.levels) {
			m.levels = append(m.levels, nil)
		}
		todo = m.rehash(k, todo)
	}
	return nil
}

// rehash computes the nodes of level k+1 above the changed nodes of level k, which are given in ascending order, and
// returns which they are, each once, in the same memory. A new node has a right child that is new, so it is among
// them, and in its turn.
func (m *Map) rehash(k int, changed []uint32) []uint32 {
	below, above := m.levels[k], m.levels[k+1]
	full := uint32(len(below) / 2)
	parents := changed[:0]
	for _, i := range changed {
		p := i / 2
		if p >= full {
			break // the last node, still without a sibling
		}
		if len(parents) > 0 && parents[len(parents)-1] == p {
			continue
		}
		parents = append(parents, p)
		h := nodeHash(&below[2*p], &below[2*p+1])
		if int(p) == len(above) {
			above = append(above, h)
		} else {
			above[p] = h
		}
	}
	m.levels[k+1] = above
	return parents
}

// Root returns the root over all slots (RFC 6962 §2.1); that of no slots is the SHA-256 of nothing.
func (m *Map) Root() [32]byte {
	n := uint64(len(m.states))
	if n == 0 {
		return [32]byte(rfc6962.DefaultHasher.EmptyRoot())
	}
	r, err := ranges.NewRange(0, n, m.nodes(compact.RangeNodes(0, n, nil)))
	if err != nil {
		panic(err) // RangeNodes and NewRange disagree
	}
	root, err := r.GetRootHash(nil)
	if err != nil {
		panic(err) // the range begins at 0
	}
	return [32]byte(root)
}

// Proof returns the inclusion proof (RFC 6962 §2.1.1) of slot, with the state that [Map.State] returns, under the
// root that [Map.Root] returns. It is valid for that root only, so the caller takes all of them between two calls of
// Apply.
func (m *Map) Proof(slot uint32) ([][32]byte, error) {
	need, err := proof.Inclusion(uint64(slot), uint64(len(m.states)))
	if err != nil {
		return nil, fmt.Errorf("audit: keymap: proof: %w", err)
	}
	hashes, err := need.Rehash(m.nodes(need.IDs), rfc6962.DefaultHasher.HashChildren)
	if err != nil {
		return nil, fmt.Errorf("audit: keymap: proof: %w", err)
	}
	path := make([][32]byte, len(hashes))
	for i, h := range hashes {
		path[i] = [32]byte(h)
	}
	return path, nil
}

// nodes returns the hashes of complete subtrees, to be read and not to be written to.
func (m *Map) nodes(ids []compact.NodeID) [][]byte {
	hashes := make([][]byte, len(ids))
	for i, id := range ids {
		hashes[i] = m.levels[id.Level][id.Index][:]
	}
	return hashes
}

// VerifyProof reports whether the map of n slots with this root has in slot the key called name, in state s. The error
// of a proof of the right length that leads elsewhere is an [ErrProof].
//
// Root and n must both come from the same record of the log. That no other slot has the key as well is not in the
// proof: it is found by replaying the log.
func VerifyProof(root [32]byte, n uint64, slot uint32, name string, s State, path [][32]byte) error {
	if n > maxSlots {
		return fmt.Errorf("audit: keymap: verify: %d slots are more than a map can have", n)
	}
	hashes := make([][]byte, len(path))
	for i := range path {
		hashes[i] = path[i][:]
	}
	leaf := leafHash(&Slot{ID(name), s})
	got, err := proof.RootFromInclusionProof(rfc6962.DefaultHasher, uint64(slot), n, leaf[:], hashes)
	if err != nil {
		return fmt.Errorf("audit: keymap: verify: %w", err)
	}
	if [32]byte(got) != root {
		return fmt.Errorf("audit: keymap: verify: slot %d of %d: %w", slot, n, ErrProof)
	}
	return nil
}

// leafHash and nodeHash do as rfc6962.DefaultHasher does, without its allocations: a map hashes millions of them.
func leafHash(s *Slot) [32]byte {
	var room [1 + len(leafDomain) + SlotSize]byte
	b := append(room[:0], rfc6962.RFC6962LeafHashPrefix)
	return sha256.Sum256(appendSlot(append(b, leafDomain...), s))
}

func nodeHash(left, right *[32]byte) [32]byte {
	var b [1 + 32 + 32]byte
	b[0] = rfc6962.RFC6962NodeHashPrefix
	copy(b[1:], left[:])
	copy(b[33:], right[:])
	return sha256.Sum256(b[:])
}
