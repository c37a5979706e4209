package arch

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/modfile"
)

// Implementations of others are compared with ours in a module of their own:
// the product requires none of them and imports nothing of that module.
//
func TestOraclesStayOutside(t *testing.T) {
	t.Parallel()
	product := requirements(t, ".", true)
	shared := []string{"github.com/cloudflare/circl", "golang.org/x/crypto", "github.com/google/uuid",
		"filippo.io/mldsa", "github.com/transparency-dev/formats", "github.com/transparency-dev/merkle", "golang.org/x/mod"}
	foreign := slices.DeleteFunc(requirements(t, "tests/oracles", false), func(path string) bool { return slices.Contains(shared, path) })
	if len(foreign) < 3 {
		t.Errorf("tests/oracles requires too little: %q", foreign)
	}
	for _, path := range foreign {
		if slices.Contains(product, path) {
			t.Errorf("the product requires %s", path)
		}
	}
	for _, s := range sources(t) {
		if in(s.Dir, "tests/oracles") {
			continue
		}
		for _, i := range s.File.Imports {
			if in(relative(strings.Trim(i.Path.Value, `"`)), "tests/oracles") {
				t.Errorf("%s imports %s", s.Name, i.Path.Value)
			}
		}
	}
}

// requirements are the modules that the go.mod in a folder requires, on
// request with those it needs only indirectly.
func requirements(t *testing.T, folder string, indirect bool) (paths []string) {
	t.Helper()
	name := filepath.Join(root, filepath.FromSlash(folder), "go.mod")
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	f, err := modfile.Parse(name, text, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range f.Require {
		if indirect || !r.Indirect {
			paths = append(paths, r.Mod.Path)
		}
	}
	return paths
}
