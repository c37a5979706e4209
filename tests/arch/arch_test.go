// Package arch tests the shape of the project rather than what it does: who
// imports whom, what libraries may not use, and that every row of
// docs/acceptance.md names a test that exists.
package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const module = "github.com/rustyonions/ron-kms"

// root is the repository, seen from this package's folder.
const root = "../.."

// A pkg is what go list says of one package of the project. Paths of packages
// of the project are relative to the module; "" would be its root.
type pkg struct {
	Path    string
	Imports []string // of the package itself
	Tests   []string // of its tests
}

// load lists all packages once.
var load = sync.OnceValues(func() (map[string]pkg, error) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w: %s", err, stderr.Bytes())
	}
	all := make(map[string]pkg)
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var l struct {
			ImportPath                         string
			Imports, TestImports, XTestImports []string
		}
		if err := d.Decode(&l); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		p := pkg{Path: relative(l.ImportPath), Imports: relatives(l.Imports), Tests: relatives(append(l.TestImports, l.XTestImports...))}
		all[p.Path] = p
	}
	if len(all) < 10 {
		return nil, fmt.Errorf("go list found only %d packages", len(all))
	}
	return all, nil
})

func packages(t *testing.T) map[string]pkg {
	t.Helper()
	all, err := load()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func relative(path string) string {
	if rest, ok := strings.CutPrefix(path, module+"/"); ok {
		return rest
	}
	return path
}

func relatives(paths []string) []string {
	out := make([]string, len(paths))
	for i, p := range paths {
		out[i] = relative(p)
	}
	return out
}

// in reports whether path is folder or lies in it.
func in(path, folder string) bool {
	return path == folder || strings.HasPrefix(path, folder+"/")
}

// ours reports whether path is a package of the project.
func ours(path string) bool {
	for _, top := range []string{"audit", "backends", "capi", "cmd", "core", "tests", "bindings"} {
		if in(path, top) {
			return true
		}
	}
	return false
}

// A source is one parsed Go file.
type source struct {
	Name string // path from the root, with slashes
	Dir  string
	Test bool
	File *ast.File
	Text []byte
}

var fileSet = token.NewFileSet()

// parse reads every Go file of the repository once, whatever its build tags.
var parse = sync.OnceValues(func() ([]source, error) {
	var all []source
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := filepath.ToSlash(strings.TrimPrefix(path, root+string(filepath.Separator)))
		if d.IsDir() {
			if path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "build" || d.Name() == "testdata") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(fileSet, name, text, parser.SkipObjectResolution|parser.ParseComments)
		if err != nil {
			return err
		}
		all = append(all, source{
			Name: name, Dir: filepath.ToSlash(filepath.Dir(name)), Test: strings.HasSuffix(name, "_test.go"), File: f, Text: text,
		})
		return nil
	})
	if err == nil && len(all) < 50 {
		err = fmt.Errorf("found only %d Go files", len(all))
	}
	return all, err
})

func sources(t *testing.T) []source {
	t.Helper()
	all, err := parse()
	if err != nil {
		t.Fatal(err)
	}
	return all
}
