package arch

import (
	"go/ast"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// library reports whether a file is of code that others link: it neither
// prints, nor exits, nor reads the environment.
func library(s source) bool {
	return !s.Test && (in(s.Dir, "audit") || in(s.Dir, "backends") || in(s.Dir, "core") || in(s.Dir, "capi")) &&
		!in(s.Dir, "core/coretest") && !in(s.Dir, "backends/backendtest")
}

func imports(s source) map[string]string {
	m := make(map[string]string) // name in the file to path
	for _, i := range s.File.Imports {
		path, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			continue
		}
		name := path[strings.LastIndex(path, "/")+1:]
		if i.Name != nil {
			name = i.Name.Name
		}
		m[name] = path
	}
	return m
}

// restricted are imports that only the named packages may have. None is for
// tests.
var restricted = map[string][]string{
	"unsafe":       {"core/alg", "core/secret", "capi"}, // key structs in the arena; mappings; the caller's memory
	"C":            {"capi"},
	"math/rand":    {}, // all randomness is crypto/rand's
	"math/rand/v2": {},
	"os/signal":    {"cmd/ron-kms"},
	"flag":         {},
	"plugin":       {},
	"net/http":     {"audit/witness", "core/policy", "core/control", "core/metrics", "core/api", "cmd/ron-kms", "capi"}, // core/api: status numbers; capi: ErrServerClosed
}

// cryptography is each primitive that the project uses, and where. What is not
// here is not used: adding a line is a decision of docs/spec/algorithms.md.
//
var cryptography = map[string][]string{
	"crypto":                                 {"core/alg", "core/secret"}, // the interface PublicKey; the name of a hash
	"crypto/aes":                             {"core/alg", "core/secret"},
	"crypto/cipher":                          {"core/alg", "core/secret"},
	"crypto/ecdh":                            {"core/alg"},
	"crypto/hkdf":                            {"core/alg", "core/secret"},
	"crypto/hmac":                            {"audit", "core", "core/capability"},
	"crypto/hpke":                            {"core/alg"},
	"crypto/mlkem":                           {"core/alg"}, // sizes: crypto/hpke does the work
	"crypto/sha256":                          {"audit", "backends/tpm", "core", "core/alg", "core/capability", "core/control", "core/secret", "cmd/ron-kms"},
	"crypto/subtle":                          {"core/secret"},
	"crypto/rand":                            {"audit", "core/alg", "core/secret", "core/capability/mint", "core/capability"},
	"crypto/fips140":                         {"core/secret"}, // whether a mode is on that draws nonces itself
	"crypto/ed25519":                         {"core"},        // the type of a public key
	"crypto/tls":                             {"audit/witness", "core/policy", "core/control", "cmd/ron-kms"},
	"crypto/x509":                            {"core/control", "cmd/ron-kms"},
	"filippo.io/age":                         {"backends/file"},
	"github.com/canonical/go-sp800.90a-drbg": {"core/secret"},
	"github.com/cloudflare/circl/sign/ed25519":       {"core/alg"},
	"github.com/cloudflare/circl/sign/mldsa/mldsa44": {"core/alg"},
	"github.com/cloudflare/circl/sign/mldsa/mldsa65": {"core/alg"},
	"github.com/cloudflare/circl/sign/mldsa/mldsa87": {"core/alg"},
	"golang.org/x/crypto/chacha20poly1305":           {"core/alg"},
	"golang.org/x/mod/sumdb/note":                    {"audit", "core", "cmd/ron-kms"},
	"golang.org/x/mod/sumdb/tlog":                    {"audit", "cmd/ron-kms"},
	"github.com/transparency-dev/formats/log":        {"audit/witness"},
	"github.com/transparency-dev/formats/note":       {"audit/witness"},
	"github.com/transparency-dev/formats/proof":      {"audit", "core/control"}, // the text of a tlog-proof
	"github.com/transparency-dev/merkle/compact":     {"audit"},
	"github.com/transparency-dev/merkle/proof":       {"audit/keymap", "audit/witness"},
	"github.com/transparency-dev/merkle/rfc6962":     {"audit"},
	"gopkg.in/macaroon.v2":                           {"core/capability", "core/capability/mint"},
	"lukechampine.com/blake3":                        {"core/control", "core", "core/policy", "cmd/ron-kms", "core/capability/ronauth"},
}

func cryptographic(path string) bool {
	for _, prefix := range []string{
		"crypto", "golang.org/x/crypto", "github.com/cloudflare/circl", "filippo.io", "golang.org/x/mod/sumdb",
		"github.com/transparency-dev", "gopkg.in/macaroon.v2", "lukechampine.com/blake3", "github.com/canonical",
	} {
		if in(path, prefix) {
			return true
		}
	}
	return false
}

//
func TestImportsAreRestricted(t *testing.T) {
	t.Parallel()
	for _, s := range sources(t) {
		if s.Test || in(s.Dir, "tests") || strings.HasSuffix(s.Dir, "test") {
			continue
		}
		for _, path := range imports(s) {
			if users, ok := restricted[path]; ok && !under(s.Dir, users) {
				t.Errorf("%s imports %s", s.Name, path)
			}
			if cryptographic(path) && !under(s.Dir, cryptography[path]) {
				t.Errorf("%s imports %s, which is not in the list of primitives", s.Name, path)
			}
		}
	}
}

func under(dir string, folders []string) bool {
	// core is the package, not the folder of packages.
	return slices.ContainsFunc(folders, func(f string) bool { return dir == f || f != "core" && in(dir, f) })
}

// forbidden are uses that no library may have: package path and name. A name
// ending in "*" stands for all that begin so.
var forbidden = []struct{ path, name, why string }{
	{"fmt", "Print*", "libraries do not print"},
	{"os", "Stdout", "libraries do not print"},
	{"os", "Stderr", "libraries do not print"},
	{"os", "Exit", "libraries return"},
	{"os", "Getenv", "libraries do not read the environment"},
	{"os", "LookupEnv", "libraries do not read the environment"},
	{"os", "Environ", "libraries do not read the environment"},
	{"os", "ExpandEnv", "libraries do not read the environment"},
	{"log", "Print*", "the logger is given"},
	{"log", "Fatal*", "libraries return"},
	{"log", "Panic*", "libraries return"},
	{"log", "Default", "the logger is given"},
	{"log/slog", "Default", "the logger is given"},
	{"log/slog", "SetDefault", "the logger is given"},
	{"net/http", "DefaultServeMux", "no globals"},
	{"net/http", "ListenAndServe*", "a server without timeouts (R-507)"},
	{"crypto/ed25519", "Sign", "it ends the process on keys outside the Go heap"},
	{"crypto/ed25519", "NewKeyFromSeed", "private keys are package alg's"},
	{"crypto/ed25519", "GenerateKey", "private keys are package alg's"},
	{"crypto/ed25519", "Verify", "it accepts points of small order; use package alg"},
	{"crypto/tls", "VersionTLS10", "TLS 1.3 only"},
	{"crypto/tls", "VersionTLS11", "TLS 1.3 only"},
	{"crypto/tls", "VersionTLS12", "TLS 1.3 only"},
	{"encoding/json", "Unmarshal*", "it is not strict; use package api"},
	{"encoding/json", "NewDecoder", "it is not strict; use package api"},
}

//
func TestLibrariesKeepToThemselves(t *testing.T) {
	t.Parallel()
	for _, s := range sources(t) {
		if !library(s) {
			continue
		}
		names := imports(s)
		ast.Inspect(s.File, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.SelectorExpr:
				x, ok := n.X.(*ast.Ident)
				if !ok {
					return true
				}
				for _, f := range forbidden {
					prefix, all := strings.CutSuffix(f.name, "*")
					if names[x.Name] == f.path && (n.Sel.Name == f.name || all && strings.HasPrefix(n.Sel.Name, prefix)) {
						t.Errorf("%s: %s.%s: %s", fileSet.Position(n.Pos()), x.Name, n.Sel.Name, f.why)
					}
				}
			case *ast.CallExpr:
				if id, ok := n.Fun.(*ast.Ident); ok && (id.Name == "print" || id.Name == "println") {
					t.Errorf("%s: %s: libraries do not print", fileSet.Position(n.Pos()), id.Name)
				}
			}
			return true
		})
	}
}

// Tags and MACs are compared in constant time. This finds the plain mistake,
// bytes.Equal on something whose name says what it is.
//
func TestTagsAreNotComparedByBytesEqual(t *testing.T) {
	t.Parallel()
	for _, s := range sources(t) {
		if s.Test {
			continue
		}
		names := imports(s)
		ast.Inspect(s.File, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			x, ok := sel.X.(*ast.Ident)
			if !ok || names[x.Name] != "bytes" || sel.Sel.Name != "Equal" && sel.Sel.Name != "Compare" {
				return true
			}
			for _, arg := range call.Args {
				ast.Inspect(arg, func(n ast.Node) bool {
					if id, ok := n.(*ast.Ident); ok && secretName(id.Name) {
						t.Errorf("%s: bytes.%s on %s: use crypto/hmac or crypto/subtle", fileSet.Position(call.Pos()), sel.Sel.Name, id.Name)
					}
					return true
				})
			}
			return true
		})
	}
}

func secretName(name string) bool {
	name = strings.ToLower(name)
	for _, word := range []string{"tag", "mac", "seed", "secret", "passphrase", "rootkey", "token"} {
		if name == word || strings.HasSuffix(name, word) {
			return true
		}
	}
	return false
}

// quietSkips are the files whose tests may skip on their own, and why CI loses
// nothing by it.
var quietSkips = map[string]string{
	"core/alg/residue_test.go":    "the plain build does not erase; make test runs the other build too",
	"core/alg/vectors_test.go":    "make test runs the offline verifier as a step of its own",
	"core/seeds_internal_test.go": "the plain build does not erase; make test runs the other build too",
	"core/secret/arena_test.go":   "systems without /proc, and processes that may not give up privileges",
	"core/secret/do_test.go":      "binaries without build information",
}

// A test that cannot run says so through package skip, so that CI can forbid
// it.
func TestSkipsAreLoud(t *testing.T) {
	t.Parallel()
	for _, s := range sources(t) {
		if in(s.Dir, "tests/skip") || quietSkips[s.Name] != "" || strings.Contains(string(s.Text), "RONKMS_NO_SKIP") {
			continue
		}
		if !s.Test && !strings.HasSuffix(s.Dir, "test") {
			continue
		}
		ast.Inspect(s.File, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			x, ok := sel.X.(*ast.Ident)
			if ok && (x.Name == "t" || x.Name == "tb" || x.Name == "b" || x.Name == "f") &&
				(sel.Sel.Name == "Skip" || sel.Sel.Name == "Skipf" || sel.Sel.Name == "SkipNow") {
				t.Errorf("%s: %s.%s: use skip.Skip of tests/skip", fileSet.Position(n.Pos()), x.Name, sel.Sel.Name)
			}
			return true
		})
	}
}
