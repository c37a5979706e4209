package secret

import (
	"io"
	"unsafe"
)

// Peek returns the memory of b's slot with no regard to whether b was
// destroyed. Only tests that look at released memory use it, before Close.
func (b *Bytes) Peek() []byte { return b.s.arena.lend(b.s.off, class(b.s.n)) }

// Region returns the whole locked region.
func (a *Arena) Region() []byte { return a.lend(0, a.size) }

// Addr returns the address of the region's first byte.
func (a *Arena) Addr() uintptr { return uintptr(unsafe.Pointer(&a.Region()[0])) }

// Generator gives tests a generator with no arena around it.
type Generator struct{ *generator }

// NewGenerator returns the generator of an arena with this label.
func NewGenerator(source io.Reader, interval uint64, label []byte) (Generator, error) {
	g, err := newGenerator(source, interval, label)
	return Generator{g}, err
}

// Fill is Arena.Fill.
func (g Generator) Fill(p []byte) error { return g.fill(p) }

// Reseed reseeds outside the schedule.
func (g Generator) Reseed() error { return g.reseed() }

// Bare reseeds with seed, if there is one, and then fills each of out, all
// without additional input.
func (g Generator) Bare(seed []byte, out ...[]byte) error {
	if len(seed) > 0 {
		if err := g.state.ReseedWithExternalEntropy(seed, nil); err != nil {
			return err
		}
	}
	for _, p := range out {
		if err := g.state.Generate(nil, p); err != nil {
			return err
		}
	}
	return nil
}

// Interval is how many draws one seed serves.
func (g Generator) Interval() uint64 { return g.interval }
