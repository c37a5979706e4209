package oracles

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/c2sp/wycheproof"
	"github.com/rustyonions/ron-kms/core/secret"
)

// A tally is what became of the vectors of one file.
type tally struct {
	name    string
	run     int
	skipped map[string]int // by reason
}

func (c *tally) skip(reason string) {
	if c.skipped == nil {
		c.skipped = make(map[string]int)
	}
	c.skipped[reason]++
}

func (c *tally) skips() (n int) {
	for _, m := range c.skipped {
		n += m
	}
	return n
}

// A file is a file of known answers. The vectors are pinned by go.mod, so how
// many of them can be run is known too: none is left out unnoticed.
type file struct {
	name    string
	run     int
	skipped int
	test    func(t *testing.T, a *secret.Arena, c *tally)
}

// Every known answer, with a table of what was run (go test -v).
//
func TestVectors(t *testing.T) {
	t.Parallel()
	tallies := make([]*tally, len(files))
	t.Run("files", func(t *testing.T) {
		for i, f := range files {
			c := &tally{name: f.name}
			tallies[i] = c
			t.Run(f.name, func(t *testing.T) {
				t.Parallel()
				f.test(t, newArena(t), c)
				if c.run != f.run || c.skips() != f.skipped {
					t.Errorf("%d run and %d skipped, want %d and %d", c.run, c.skips(), f.run, f.skipped)
				}
			})
		}
	})
	var table strings.Builder
	run, skipped := 0, 0
	fmt.Fprintf(&table, "\n%6s %8s  %s\n", "run", "skipped", "file")
	for _, c := range tallies {
		fmt.Fprintf(&table, "%6d %8d  %s\n", c.run, c.skips(), c.name)
		for _, reason := range slices.Sorted(maps.Keys(c.skipped)) {
			fmt.Fprintf(&table, "%15s    %d: %s\n", "", c.skipped[reason], reason)
		}
		run, skipped = run+c.run, skipped+c.skips()
	}
	fmt.Fprintf(&table, "%6d %8d  in %d files", run, skipped, len(tallies))
	t.Log(table.String())
}

// wycheproofVectors reads a file of Project Wycheproof into its groups, which
// must hold as many vectors as the file claims, and at least one.
func wycheproofVectors[G any](t *testing.T, fsys fs.FS, name string, size func(G) int) []G {
	t.Helper()
	groups, err := readWycheproof(fsys, name, size)
	if err != nil {
		t.Fatal(err)
	}
	return groups
}

func readWycheproof[G any](fsys fs.FS, name string, size func(G) int) ([]G, error) {
	data, err := fs.ReadFile(fsys, name)
	if err != nil {
		return nil, err
	}
	var f struct {
		NumberOfTests int
		TestGroups    []G
	}
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	n := 0
	for _, g := range f.TestGroups {
		n += size(g)
	}
	if n == 0 || n != f.NumberOfTests {
		return nil, fmt.Errorf("%s: found %d vectors of %d", name, n, f.NumberOfTests)
	}
	return f.TestGroups, nil
}

// A group is a group of vectors of kind V, which share H.
type group[H, V any] struct {
	shared H
	tests  []V
}

func (g *group[H, V]) UnmarshalJSON(b []byte) error {
	var t struct{ Tests []V }
	if err := json.Unmarshal(b, &t); err != nil {
		return err
	}
	g.tests = t.Tests
	return json.Unmarshal(b, &g.shared)
}

// vector is what all vectors of Wycheproof have.
type vector struct {
	TcID    int
	Comment string
	Flags   []string
	Result  string // "valid", "invalid" or "acceptable"
}

func (v vector) base() vector { return v }

// errSkip is the error of a vector that was not run, and why.
type errSkip string

func (e errSkip) Error() string { return string(e) }

// wycheproofFile is a file whose vectors fn judges one by one: nil if we and
// the vector agree.
func wycheproofFile[H any, V interface{ base() vector }](name string, run, skipped int, fn func(a *secret.Arena, h H, v V) error) file {
	return file{name, run, skipped, func(t *testing.T, a *secret.Arena, c *tally) {
		groups := wycheproofVectors(t, wycheproof.TestVectors, name, func(g group[H, V]) int { return len(g.tests) })
		for _, g := range groups {
			for _, v := range g.tests {
				err := fn(a, g.shared, v)
				if why, ok := err.(errSkip); ok {
					c.skip(string(why))
					continue
				}
				c.run++
				if err != nil {
					b := v.base()
					t.Errorf("tcId %d (%s, %s): %v", b.TcID, b.Result, b.Comment, err)
				}
			}
		}
	}}
}

// verdict compares what we say with the result of a vector.
func (v vector) verdict(ok bool) error {
	if ok != (v.Result == "valid") {
		return fmt.Errorf("accepted: %t", ok)
	}
	return nil
}
