package capability_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rustyonions/ron-kms/core/capability"
)

// Every bad token is refused with its reason and the class of HTTP 401, and
// the error repeats nothing of the token. R-020, D-7
func TestVerifyRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range refusals() {
		g, err := verifier().Verify(c.token)
		if g != nil || reason(err) != c.reason || !errors.Is(err, capability.ErrInvalid) || errors.Is(err, capability.ErrDenied) {
			t.Errorf("%s: %v, want %s", c.name, err, c.reason)
			continue
		}
		if err.Error() != "capability: "+c.reason {
			t.Errorf("%s: error says more than its reason: %q", c.name, err)
		}
	}
}

// The largest sizes that are accepted lie next to the smallest refused.
func TestVerifyBounds(t *testing.T) {
	t.Parallel()
	longest := sized(3072)
	if len(longest) != capability.MaxTokenBytes {
		t.Fatalf("sample has %d bytes", len(longest))
	}
	for name, text := range map[string]string{
		"4096 bytes":      longest,
		"32 caveats":      forge(append([]string{tenantA, scopeA}, repeat(expA, 30)...)...),
		"label of 255":    forge("tenant="+strings.Repeat("a", 255), scopeA, expA),
		"last second":     forge(tenantA, scopeA, "exp=253402300799"),
		"version 2^32-1":  forge(tenantA, scopeA, expA, "kid-prefix=acme/audit/ed25519/"+uuidA+"#v4294967295"),
		"colons in label": forge("tenant=service_node:alpha", scopeA, expA, "purpose-prefix=key:phase19:alpha"),
	} {
		if _, err := verifier().Verify(text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Each single bit of a token counts.
func TestVerifyRefusesEveryBitFlip(t *testing.T) {
	t.Parallel()
	tok, _ := chain(rootKey, capability.Location, ident, tenantA, scopeA, expA)
	data := tok.bytes()
	v := verifier()
	for i := range len(data) * 8 {
		data[i/8] ^= 1 << (i % 8)
		if _, err := v.Verify(b64(data)); !errors.Is(err, capability.ErrInvalid) {
			t.Errorf("bit %d of byte %d: %v", i%8, i/8, err)
		}
		data[i/8] ^= 1 << (i % 8)
	}
}

// keysFunc is a Keys as a function.
type keysFunc func(id string, use func([]byte)) error

func (f keysFunc) Root(id string, use func([]byte)) error { return f(id, use) }

// Whatever goes wrong with the root key, no grant comes out, and a fault of
// the server is not told as a fault of the token. R-022
func TestVerifyFailsClosedOnKeys(t *testing.T) {
	t.Parallel()
	down := errors.New("sealed")
	good := forge(tenantA, scopeA, expA)
	for _, c := range []struct {
		name    string
		keys    capability.Keys
		want    error
		invalid bool
	}{
		{"none", nil, capability.ErrUnknownRoot, true},
		{"unknown", keyring{}, capability.ErrUnknownRoot, true},
		{"unknown, wrapped", keysFunc(func(string, func([]byte)) error { return fmt.Errorf("keys: %w", capability.ErrUnknownRoot) }), capability.ErrUnknownRoot, true},
		{"down", keysFunc(func(string, func([]byte)) error { return down }), down, false},
		{"error after use", keysFunc(func(_ string, use func([]byte)) error { use(rootKey); return down }), down, false},
		{"use not called", keysFunc(func(string, func([]byte)) error { return nil }), nil, false},
		{"short key", keyring{rootID: rootKey[:31]}, nil, false},
		{"long key", keyring{rootID: append(slices.Clone(rootKey), 0)}, nil, false},
		{"empty key", keyring{rootID: nil}, nil, false},
	} {
		g, err := capability.NewVerifier(c.keys).Verify(good)
		if g != nil || err == nil {
			t.Errorf("%s: accepted", c.name)
		}
		if c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if errors.Is(err, capability.ErrInvalid) != c.invalid || errors.Is(err, capability.ErrDenied) {
			t.Errorf("%s: wrong class: %v", c.name, err)
		}
	}
	var zero capability.Verifier
	if g, err := zero.Verify(good); g != nil || !errors.Is(err, capability.ErrUnknownRoot) {
		t.Errorf("zero Verifier: %v", err)
	}
}

// A key of another length must not make tokens good that were made with it.
func TestVerifyRefusesWeakRootKey(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 16, 31, 33} {
		tok, _ := chain(make([]byte, n), capability.Location, ident, tenantA, scopeA, expA)
		if g, err := capability.NewVerifier(keyring{rootID: make([]byte, n)}).Verify(tok.text()); g != nil || err == nil {
			t.Errorf("key of %d bytes: accepted", n)
		}
	}
}

// The key is asked for by the id in the token, once, and only for tokens of
// the right form.
func TestVerifyAsksForTheKeyNamed(t *testing.T) {
	t.Parallel()
	var asked []string
	v := capability.NewVerifier(keysFunc(func(id string, use func([]byte)) error {
		asked = append(asked, id)
		use(rootKey)
		return nil
	}))
	for _, text := range []string{forge(tenantA, scopeA, expA), forge(tenantA, scopeA, expA) + "=", "x", ""} {
		_, _ = v.Verify(text)
	}
	if !slices.Equal(asked, []string{rootID}) {
		t.Errorf("asked for %q", asked)
	}
}

// No way of printing a grant tells more than its ID and tenant. R-504
func TestGrantPrintsNothingElse(t *testing.T) {
	t.Parallel()
	text := forge(tenantA, scopeA, expA, "kid-prefix=acme/canary", "purpose-prefix=canary")
	g, err := verifier().Verify(text)
	if err != nil {
		t.Fatal(err)
	}
	want := "capability.Grant(" + g.ID() + " acme)"
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x", "%X", "%t", "%08v"} {
		for _, v := range []any{g, *g} {
			if got := fmt.Sprintf(verb, v); got != want {
				t.Errorf("%s of %T: %s", verb, v, got)
			}
		}
		if got := fmt.Sprintf(verb, []any{*g, map[string]any{"k": *g}}); strings.Contains(got, "canary") || strings.Contains(got, "1900000000") {
			t.Errorf("%s inside others: %s", verb, got)
		}
	}
	if out, err := json.Marshal(g); err != nil || string(out) != "{}" {
		t.Errorf("JSON: %s %v", out, err)
	}
}

// Attenuation narrows, needs no key, and leaves the token it started from as
// it was.
func TestAttenuate(t *testing.T) {
	t.Parallel()
	wide := forge(tenantA, scopeA, expA)
	narrow, err := capability.Attenuate(wide, caveat(t, "scope=kms:verify"), caveat(t, "exp=1800000000"))
	if err != nil {
		t.Fatal(err)
	}
	if want := forge(tenantA, scopeA, expA, "scope=kms:verify", "exp=1800000000"); narrow != want {
		t.Error("attenuated token is not the chain of its caveats")
	}
	g, err := verifier().Verify(narrow)
	if err != nil {
		t.Fatal(err)
	}
	if !g.Expiry().Equal(time.Unix(1800000000, 0)) {
		t.Errorf("expiry %v", g.Expiry())
	}
	if before := grant(t, tenantA, scopeA, expA); before.ID() != g.ID() {
		t.Error("attenuation changed the ID")
	}

	newer := forge(tenantA, scopeA, expA, "invented-later=1")
	if text, err := capability.Attenuate(newer, caveat(t, "scope=kms:sign")); err != nil {
		t.Errorf("token with a caveat of a later version: %v", err)
	} else if _, err := verifier().Verify(text); reason(err) != "caveat-unknown" {
		t.Errorf("unknown caveat got lost: %v", err)
	}
	fill := make([]capability.Caveat, capability.MaxCaveats-3)
	for i := range fill {
		fill[i] = caveat(t, expA)
	}
	if _, err := capability.Attenuate(wide, fill...); err != nil {
		t.Errorf("up to 32 caveats: %v", err)
	}
	for name, bad := range map[string]func() (string, error){
		"33 caveats":    func() (string, error) { return capability.Attenuate(wide, append(fill, fill[0])...) },
		"too long":      func() (string, error) { return capability.Attenuate(sized(3072), caveat(t, expA)) },
		"no caveat":     func() (string, error) { return capability.Attenuate(wide) },
		"zero caveat":   func() (string, error) { return capability.Attenuate(wide, capability.Caveat{}) },
		"no token":      func() (string, error) { return capability.Attenuate("", fill[0]) },
		"malformed":     func() (string, error) { return capability.Attenuate(wide+"=", fill[0]) },
		"trailing byte": func() (string, error) { return capability.Attenuate(wide+"AAAA", fill[0]) },
	} {
		if text, err := bad(); err == nil || text != "" {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), wide[:8]) {
			t.Errorf("%s: error repeats the token", name)
		}
	}
}

func TestScopeCaveat(t *testing.T) {
	t.Parallel()
	in := []string{"kms:verify", "kms:sign", "kms:verify"}
	c, err := capability.ScopeCaveat(in...)
	if err != nil || c.String() != "scope=kms:sign,kms:verify" {
		t.Errorf("%v %v", c, err)
	}
	if in[0] != "kms:verify" {
		t.Error("the argument was sorted in place")
	}
	for _, bad := range [][]string{nil, {""}, {"sign"}, {"kms:sign,kms:verify"}, {"kms:admin"}} {
		if c, err := capability.ScopeCaveat(bad...); err == nil || c != (capability.Caveat{}) {
			t.Errorf("%q: accepted", bad)
		}
	}
	if list := capability.ScopeList(); !slices.IsSorted(list) || len(list) != 11 {
		t.Errorf("scopes %q", list)
	}
}

// Inspect shows what Verify would say apart from the signature, and nothing
// with which the token could be made again. R-504
func TestInspect(t *testing.T) {
	t.Parallel()
	tok, _ := chain(rootKey, capability.Location, ident, tenantA, scopeA, expA)
	tok.tag[0] ^= 1
	info, err := capability.Inspect(tok.text())
	if err != nil || info.Problem != "" || info.RootKeyID != rootID || info.Issued.Unix() != issued || info.ID != "cap:9487be60e6c87a93" ||
		!slices.Equal(info.UnverifiedCaveats, []string{tenantA, scopeA, expA}) {
		t.Errorf("%+v %v", info, err)
	}
	if printed := fmt.Sprintf("%#v", info); strings.Contains(printed, nonce) {
		t.Errorf("identifier shown: %s", printed)
	}
	info, err = capability.Inspect(forge(tenantA, "x=\x1b[2Jé", expA))
	if err != nil || info.Problem != "caveat-unknown" || info.UnverifiedCaveats[1] != `"x=\x1b[2J\u00e9"` {
		t.Errorf("%+v %v", info, err)
	}
	for _, c := range refusals() {
		info, err := capability.Inspect(c.token)
		switch c.reason {
		case "token-missing", "token-malformed":
			if reason(err) != c.reason {
				t.Errorf("%s: %v, want %s", c.name, err, c.reason)
			}
		case "token-signature":
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		default:
			if err != nil || info.Problem != c.reason {
				t.Errorf("%s: %q %v, want problem %s", c.name, info.Problem, err, c.reason)
			}
		}
	}
}

// One Verifier and one Grant serve many goroutines; meant for -race.
func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	v := verifier()
	text := forge(tenantA, scopeA, expA)
	shared, err := v.Verify(text)
	if err != nil {
		t.Fatal(err)
	}
	r := capability.Request{Scopes: []string{"kms:sign"}, Tenant: "acme", Now: time.Unix(1750000000, 0)}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				g, err := v.Verify(text)
				if err != nil || g.ID() != shared.ID() {
					t.Errorf("verify: %v", err)
				}
				if p, err := shared.Clear(r); err != nil || !p.Valid() {
					t.Errorf("clear: %v", err)
				}
				_ = shared.Expiry().String() + shared.Tenant()
				if _, err := capability.Attenuate(text, caveat(t, expA)); err != nil {
					t.Errorf("attenuate: %v", err)
				}
			}
		})
	}
	wg.Wait()
}

// The package imports the standard library and the macaroon library alone,
// and has no code that mints. R-030
func TestImports(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		t.Fatal("no files", err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, src, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, spec := range f.Imports {
			path := strings.Trim(spec.Path.Value, `"`)
			if host, _, _ := strings.Cut(path, "/"); strings.Contains(host, ".") && path != "gopkg.in/macaroon.v2" && !strings.HasSuffix(path, "/core/capability/internal/foreign") {
				t.Errorf("%s imports %s", name, path)
			}
		}
		for _, word := range []string{"macaroon.New(", "crypto/rand"} {
			if name == "cache.go" && word == "crypto/rand" {
				continue // the key that hides tokens in the cache
			}
			if strings.Contains(string(src), word) {
				t.Errorf("%s has %s", name, word)
			}
		}
	}
}
