package keymap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// SlotSize is the length in bytes of an encoded slot.
const SlotSize = 32 + 3*8

// EncodeSlots writes slots to w, SlotSize bytes each. It refuses, before it writes anything, states that Decode would
// refuse, so that a snapshot that was written can be read.
func EncodeSlots(w io.Writer, slots []Slot) error {
	for i := range slots {
		if err := slots[i].check(); err != nil {
			return fmt.Errorf("audit: keymap: encode: slot %d of %d: %w", i, len(slots), err)
		}
	}
	buf := make([]byte, 0, min(len(slots), chunkSlots)*SlotSize)
	for len(slots) > 0 {
		k := min(len(slots), chunkSlots)
		buf = buf[:0]
		for i := range slots[:k] {
			buf = appendSlot(buf, &slots[i])
		}
		if _, err := w.Write(buf); err != nil {
			return fmt.Errorf("audit: keymap: encode: %w", err)
		}
		slots = slots[k:]
	}
	return nil
}

// Decode reads the n slots of a snapshot: exactly SlotSize*n bytes, and no further. It refuses an id that has two
// slots and states that no log leads to. The error of a snapshot that ends early is an [io.ErrUnexpectedEOF]. Memory
// grows with what was read, not with n.
//
// Decode finds nonsense, not forgeries: the caller authenticates the whole snapshot, n included.
func Decode(r io.Reader, n uint64) (*Table, error) {
	if n > maxSlots {
		return nil, fmt.Errorf("audit: keymap: decode: %d slots are more than a table can have", n)
	}
	t := NewTable()
	buf := make([]byte, min(n, chunkSlots)*SlotSize)
	for done := uint64(0); done < n; {
		k := min(n-done, chunkSlots)
		b := buf[:k*SlotSize]
		if _, err := io.ReadFull(r, b); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, fmt.Errorf("audit: keymap: decode: slots from %d of %d: %w", done, n, err)
		}
		for ; len(b) > 0; b = b[SlotSize:] {
			s := parseSlot([SlotSize]byte(b))
			if err := s.check(); err != nil {
				return nil, fmt.Errorf("audit: keymap: decode: slot %d: %w", done, err)
			}
			t.push(s)
			done++
		}
	}
	// The index is made when its size is certain: growing it step by step would take most of the time.
	t.index = make(map[[16]byte]uint32, t.n)
	for i := range t.n {
		slot := uint32(i)
		if other, ok := t.find(&t.at(slot).ID); ok {
			return nil, fmt.Errorf("audit: keymap: decode: slots %d and %d have the same id", other, slot)
		}
		t.enter(slot)
	}
	return t, nil
}

func appendSlot(dst []byte, s *Slot) []byte {
	dst = append(dst, s.ID[:]...)
	dst = binary.BigEndian.AppendUint64(dst, s.Seq)
	dst = binary.BigEndian.AppendUint64(dst, s.Last)
	return binary.BigEndian.AppendUint64(dst, s.Effect)
}

func parseSlot(b [SlotSize]byte) Slot {
	return Slot{ID: [32]byte(b[:32]), State: State{
		Seq:    binary.BigEndian.Uint64(b[32:]),
		Last:   binary.BigEndian.Uint64(b[40:]),
		Effect: binary.BigEndian.Uint64(b[48:]),
	}}
}
