package keymap

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
)

const million = 1 << 20

func names(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("tenant-%d/sign/0198f3c2-7b1e-7000-8000-%012x", i%100, i)
	}
	return names
}

func tableOf(names []string) *Table {
	t := NewTable()
	for i, name := range names {
		slot, _ := t.Slot(name)
		t.Set(slot, State{Seq: 1, Last: uint64(i + 1)})
	}
	return t
}

// One numbering of a record, among a million keys.
func BenchmarkSlotSet(b *testing.B) {
	names := names(million)
	t := tableOf(names)
	t.TakeDirty()
	b.ReportAllocs()
	i := uint32(1)
	for b.Loop() {
		i = i*1664525 + 1013904223
		slot, s := t.Slot(names[i%million])
		s.Seq++
		s.Last++
		t.Set(slot, s)
	}
}

// What a map root costs in the background, over a million keys.
func BenchmarkApply(b *testing.B) {
	t := tableOf(names(million))
	m := mapOf(b, t)
	for _, dirty := range []int{100, 1000, 10_000, 100_000} {
		b.Run(fmt.Sprint(dirty), func(b *testing.B) {
			changes := make([]Change, dirty)
			for i, slot := range rand.Perm(million)[:dirty] {
				changes[i] = Change{Slot: uint32(slot)}
			}
			b.ReportAllocs()
			for b.Loop() {
				for i := range changes {
					changes[i].State.Seq++
				}
				if err := m.Apply(changes); err != nil {
					b.Fatal(err)
				}
				m.Root()
			}
		})
	}
	b.Run("all", func(b *testing.B) {
		changes := make([]Change, million)
		for i := range changes {
			changes[i].Slot = uint32(i)
		}
		for b.Loop() {
			if err := new(Map).Apply(changes); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// How long the log waits for what changed since the last map root.
func BenchmarkTakeDirty(b *testing.B) {
	t := tableOf(names(million))
	t.TakeDirty()
	for _, dirty := range []int{100, 10_000, 100_000, million} {
		b.Run(fmt.Sprint(dirty), func(b *testing.B) {
			perm := rand.Perm(million)[:dirty]
			for b.Loop() {
				b.StopTimer()
				for _, slot := range perm {
					t.touch(uint32(slot))
				}
				b.StartTimer()
				t.TakeDirty()
			}
		})
	}
}

// Writing and reading a snapshot of a million keys.
func BenchmarkSnapshot(b *testing.B) {
	t := tableOf(names(million))
	var file bytes.Buffer
	b.Run("encode", func(b *testing.B) {
		buf := make([]Slot, 8192)
		b.ReportAllocs()
		for b.Loop() {
			file.Reset()
			for from := 0; from < t.Len(); {
				k := t.CopySlots(from, buf)
				if err := EncodeSlots(&file, buf[:k]); err != nil {
					b.Fatal(err)
				}
				from += k
			}
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Decode(bytes.NewReader(file.Bytes()), million); err != nil {
				b.Fatal(err)
			}
		}
	})
}
