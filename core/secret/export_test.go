package secret

import "unsafe"

// Peek returns the memory of b's slot with no regard to whether b was
// destroyed. Only tests that look at released memory use it, before Close.
func (b *Bytes) Peek() []byte { return b.s.arena.lend(b.s.off, class(b.s.n)) }

// Region returns the whole locked region.
func (a *Arena) Region() []byte { return a.lend(0, a.size) }

// Addr returns the address of the region's first byte.
func (a *Arena) Addr() uintptr { return uintptr(unsafe.Pointer(&a.Region()[0])) }
