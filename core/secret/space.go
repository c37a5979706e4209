package secret

import (
	"cmp"
	"slices"
)

const (
	// granule is the alignment of slots and the step of their size classes, in
	// bytes: a cache line, and enough for every vector load.
	granule = 64

	// largeSlot parts small slots, carved from the low end of the arena, from
	// large ones, carved from the high end, so that small ones that live long
	// do not cut up the room of the large ones.
	largeSlot = 4096
)

// space keeps account of which byte ranges of an arena are free. It holds
// offsets only and touches no memory. Its user serialises the calls.
//
// A released range goes to the list of its size class and is handed out again
// as it is. Only when neither that list nor the uncarved extents can serve a
// request are all lists given back to the extents and neighbours joined, so
// that no pattern of use loses room for good.
type space struct {
	used    int           // bytes handed out
	extents []extent      // free, sorted by offset, never adjacent
	ready   map[int][]int // released ranges: class to offsets
}

type extent struct{ off, len int }

func newSpace(size int) *space {
	return &space{extents: []extent{{0, size}}, ready: make(map[int][]int)}
}

// class returns the size of the slot that serves n bytes.
func class(n int) int { return (n + granule - 1) / granule * granule }

// alloc returns the offset of a free range of class(n) bytes.
func (s *space) alloc(n int) (off int, ok bool) {
	c := class(n)
	if list := s.ready[c]; len(list) > 0 {
		off, ok = list[len(list)-1], true
		s.ready[c] = list[:len(list)-1]
	} else if off, ok = s.carve(c); !ok {
		s.reclaim()
		off, ok = s.carve(c)
	}
	if ok {
		s.used += c
	}
	return off, ok
}

// release takes back the range that alloc(n) returned.
func (s *space) release(off, n int) {
	c := class(n)
	s.used -= c
	s.ready[c] = append(s.ready[c], off)
}

func (s *space) carve(c int) (off int, ok bool) {
	if c <= largeSlot {
		for i := range s.extents {
			if e := &s.extents[i]; e.len >= c {
				off = e.off
				e.off += c
				e.len -= c
				s.dropEmpty(i)
				return off, true
			}
		}
		return 0, false
	}
	for i := len(s.extents) - 1; i >= 0; i-- {
		if e := &s.extents[i]; e.len >= c {
			e.len -= c
			off = e.off + e.len
			s.dropEmpty(i)
			return off, true
		}
	}
	return 0, false
}

func (s *space) dropEmpty(i int) {
	if s.extents[i].len == 0 {
		s.extents = slices.Delete(s.extents, i, i+1)
	}
}

// reclaim moves all released ranges to the extents and joins neighbours.
func (s *space) reclaim() {
	for c, list := range s.ready {
		for _, off := range list {
			s.extents = append(s.extents, extent{off, c})
		}
	}
	clear(s.ready)
	slices.SortFunc(s.extents, func(a, b extent) int { return cmp.Compare(a.off, b.off) })
	joined := s.extents[:0]
	for _, e := range s.extents {
		if k := len(joined) - 1; k >= 0 && joined[k].off+joined[k].len == e.off {
			joined[k].len += e.len
		} else {
			joined = append(joined, e)
		}
	}
	s.extents = joined
}
