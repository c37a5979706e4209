// Package keymap keeps how far the sequence of every key has come, and commits to all of it in one Merkle root.
//
// The audit log numbers the records of each key 1, 2, 3, …, each with a link to the one before. A [Table] holds the
// latest number of every key, in memory, for the log to go on from. A [Map] is the Merkle tree (RFC 6962 §2.1) over
// that table. Its root, recorded in the log, makes a statement that can be proved: "when the log had S records, key K
// had exactly Seq of them". A custodian that hides an operation of K then contradicts itself.
//
// A key gets the next free slot, 0, 1, 2, …, when its first record is numbered, and keeps it for ever. So the table
// follows from the log alone: whoever replays the log computes the same roots, and would see a key with two slots.
//
// # Formats
//
// Integers are 8 bytes, big-endian. The identity of a key, whose name is its kid without the version, is
//
//	id = SHA-256("ron-kms/keymap/id/v1\n" ‖ name)
//
// A slot takes 56 bytes, and a snapshot of a table is its slots in order, with nothing between them:
//
//	id (32) ‖ seq (8) ‖ last (8) ‖ effect (8)
//
// The leaves of the map are the slots, under a name of their own:
//
//	leaf = SHA-256(0x00 ‖ "ron-kms/keymap/v1\n" ‖ slot)
//	node = SHA-256(0x01 ‖ left ‖ right)
//
// The root over no slots is the SHA-256 of nothing.
//
// # Fuzzy snapshots
//
// A snapshot may be copied in pieces while records go on being numbered: slots 0 to n-1, where the table had n slots
// when the log had S records. To catch up, decode it and replay the log from record S on, leaving out a record at
// index i whose key already has Last > i. That gives the table as it is at the end of the replay.
package keymap

import (
	"crypto/sha256"
	"errors"
	"fmt"
)

// A State is how far the sequence of one key has come.
type State struct {
	Seq    uint64 // how many records the key has
	Last   uint64 // log index + 1 of the latest of them
	Effect uint64 // log index + 1 of the latest intent of the key that succeeded, 0 if there is none
}

var errState = errors.New("impossible state")

// check refuses what no log can lead to: records of a key are distinct, and its intents are among them.
func (s State) check() error {
	if s.Seq == 0 || s.Seq > s.Last || s.Effect > s.Last {
		return fmt.Errorf("%w: seq %d, last %d, effect %d", errState, s.Seq, s.Last, s.Effect)
	}
	return nil
}

// A Slot is one key and its state.
type Slot struct {
	ID [32]byte // see [ID]
	State
}

// A Change is the new content of a slot.
type Change struct {
	Slot  uint32
	ID    [32]byte
	State State
}

// maxSlots is how many slots a uint32 can number.
const maxSlots = 1 << 32

const idDomain = "ron-kms/keymap/id/v1\n"

// inlineName is the longest name in bytes that ID hashes without allocating. Kids are shorter.
const inlineName = 704

// ID returns the identity of the key called name, the kid without its version.
func ID(name string) [32]byte {
	var room [len(idDomain) + inlineName]byte
	return sha256.Sum256(append(append(room[:0], idDomain...), name...))
}
