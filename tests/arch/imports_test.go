package arch

import (
	"slices"
	"testing"
)

// The import table of docs/design.md. A package imports packages of lower
// layers only. Do not change this table to make a build pass: change the code,
// or the design and its document first.
var layers = map[string]int{
	"core/api":         0,
	"core/secret":      0,
	"core/metrics":     0,
	"core/trustedtime": 0,

	"core/capability/internal/foreign": 0,

	"core/config":     1,
	"core/alg":        1,
	"core/capability": 1,
	"core/policy":     1,
	"core/admit":      1,
	"audit/fsys":      0,
	"audit/keymap":    0,
	"audit/tiles":     0,
	"audit/witness":   0,
	"audit/notekey":   1,
	"audit":           1,

	"core/capability/ronauth": 2,

	"backends":          2,
	"backends/software": 2,
	"backends/file":     2,
	"backends/inmem":    2,
	"backends/pkcs11":   2,
	"backends/tpm":      2,
	"backends/cloud":    2,

	"core": 3,

	"core/control": 4,
	"capi":         4,
	"cmd/ron-kms":  4,
}

// sideways are the imports within one layer that the design allows.
var sideways = map[string][]string{
	"audit/tiles":       {"audit/fsys"},
	"audit/witness":     {"audit/fsys"},
	"audit/notekey":     {"core/alg"}, // the algorithms of the keys
	"audit":             {"audit/notekey"},
	"core/config":       {"core/alg"}, // the names it checks KMS_ALLOWED_ALGS against
	"core/policy":       {"core/alg"}, // the modes that it decides about
	"backends/software": {"backends"}, // the contract
	"backends/file":     {"backends", "backends/software"},
	"backends/inmem":    {"backends", "backends/software"},
	"backends/pkcs11":   {"backends", "backends/software"},
	"backends/tpm":      {"backends", "backends/software", "backends/file"},
	"backends/cloud":    {"backends", "backends/software", "backends/file"},
	"capi":              {"core/control"}, // the two programs start the control plane
	"cmd/ron-kms":       {"core/control"},
}

// beside are packages that stand outside of the layers. Each says who may
// import it; tests and the packages under tests always may.
var beside = map[string][]string{
	"core/capability/mint": {"cmd/ron-kms", "core/coretest"}, // nothing that serves can mint
	"core/coretest":        {},
	"backends/backendtest": {},
	"audit/fsys/fsystest":  {},
}

func allowed(from, to string) bool {
	if users, ok := beside[to]; ok {
		return from == to || in(from, "tests") || slices.Contains(users, from)
	}
	if _, ok := beside[from]; ok || in(from, "tests") || in(from, "bindings") {
		return true
	}
	a, known := layers[from]
	b, target := layers[to]
	return known && target && (b < a || slices.Contains(sideways[from], to))
}

//
func TestImportsFollowTheTable(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		if !ours(p.Path) {
			t.Errorf("package %s is outside of the tree of docs/design.md", p.Path)
			continue
		}
		_, layered := layers[p.Path]
		_, aside := beside[p.Path]
		if !layered && !aside && !in(p.Path, "tests") && !in(p.Path, "bindings") {
			t.Errorf("package %s is not in the table", p.Path)
			continue
		}
		for _, i := range p.Imports {
			if ours(i) && !allowed(p.Path, i) {
				t.Errorf("%s imports %s", p.Path, i)
			}
		}
	}
}

// The table must be able to refuse.
func TestTableRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		from, to string
		want     bool
	}{
		{"core", "audit", true},
		{"core", "core/capability", true},
		{"core/control", "core", true},
		{"capi", "core/control", true},
		{"cmd/ron-kms", "core/control", true},
		{"cmd/ron-kms", "core/capability/mint", true},
		{"tests/abi", "core/capability/mint", true},

		{"audit", "core", false},
		{"audit", "core/capability", false},
		{"core/capability", "audit", false},
		{"core/capability", "core", false},
		{"core/api", "core/alg", false},
		{"core/alg", "core/config", false},
		{"backends", "core", false},
		{"backends/inmem", "backends/file", false},
		{"core", "core/control", false},
		{"core", "core/capability/mint", false},
		{"core/control", "core/capability/mint", false},
		{"capi", "core/capability/mint", false},
		{"core/control", "capi", false},
		{"core/control", "core/coretest", false},
		{"core", "backends/backendtest", false},
	} {
		if got := allowed(c.from, c.to); got != c.want {
			t.Errorf("%s imports %s: allowed %t", c.from, c.to, got)
		}
	}
}

// Not even over a detour may what serves reach the code that mints, or code
// that is for tests.
//
func TestServersCannotMint(t *testing.T) {
	t.Parallel()
	all := packages(t)
	for _, from := range []string{"core", "core/control", "capi"} {
		if _, ok := all[from]; !ok {
			t.Errorf("package %s is not there", from)
		}
		for _, p := range reach(all, from) {
			if _, ok := beside[p]; ok {
				t.Errorf("%s reaches %s", from, p)
			}
		}
	}
	for _, p := range reach(all, "cmd/ron-kms") {
		if p == "core/coretest" || p == "backends/backendtest" || in(p, "tests") {
			t.Errorf("cmd/ron-kms reaches %s", p)
		}
	}
}

func reach(all map[string]pkg, from string) []string {
	seen := []string{from}
	for i := 0; i < len(seen); i++ {
		for _, next := range all[seen[i]].Imports {
			if ours(next) && !slices.Contains(seen, next) {
				seen = append(seen, next)
			}
		}
	}
	return seen
}
