package capability_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/rustyonions/ron-kms/core/capability"
)

func ratesOf(t testing.TB, caveats ...string) []capability.Rate {
	t.Helper()
	return grant(t, append([]string{tenantA, scopeA, expA}, caveats...)...).Rates()
}

// A rate comes out of the grant and the permit as it was written, and each
// rate caveat has a bucket of its own. R-021
func TestRates(t *testing.T) {
	t.Parallel()
	if list := ratesOf(t); len(list) != 0 {
		t.Errorf("rates without a caveat: %v", list)
	}
	g := grant(t, tenantA, scopeA, expA, "rate=10/20", "nbf=1", "rate=1000000/1", "rate=10/20")
	p, err := g.Clear(capability.Request{Scopes: []string{"kms:sign"}, Tenant: "acme", Now: noon})
	if err != nil {
		t.Fatal(err)
	}
	list := p.Rates()
	if !slices.Equal(list, g.Rates()) || len(list) != 3 {
		t.Fatalf("rates %v", list)
	}
	for i, want := range []capability.Rate{{PerSecond: 10, Burst: 20}, {PerSecond: 1000000, Burst: 1}, {PerSecond: 10, Burst: 20}} {
		if list[i].PerSecond != want.PerSecond || list[i].Burst != want.Burst || list[i].Key == [32]byte{} {
			t.Errorf("rate %d: %v", i, list[i])
		}
	}
	if list[0].Key == list[2].Key {
		t.Error("two caveats share a bucket")
	}
	if _, err := grant(t, tenantA, scopeA, expA, "rate=1/1").Clear(capability.Request{Scopes: []string{"kms:sign"}, Tenant: "globex", Now: noon}); reason(err) != "tenant-mismatch" {
		t.Errorf("a refused request: %v", err)
	}
}

// Making narrower tokens of one that has a rate gains nothing: they are
// counted in the same bucket. Other tokens are counted in others.
func TestRateBucketsAreShared(t *testing.T) {
	t.Parallel()
	parent := ratesOf(t, "rate=10/20")
	for _, child := range [][]string{
		{"rate=10/20", "scope=kms:sign"}, {"rate=10/20", "rate=10/20"}, {"rate=10/20", "rate=1000/1000"}, {"rate=10/20", expA, "nbf=1"},
	} {
		if list := ratesOf(t, child...); list[0] != parent[0] {
			t.Errorf("%q is counted elsewhere than its parent", child)
		}
	}
	for _, other := range [][]string{{"nbf=1", "rate=10/20"}, {"rate=10/21"}, {"rate=11/20"}} {
		if list := ratesOf(t, other...); list[0].Key == parent[0].Key {
			t.Errorf("%q shares a bucket with another token", other)
		}
	}
	second, _ := chain(rootKey, capability.Location, strings.Replace(ident, "a0a1", "a0a2", 1), tenantA, scopeA, expA, "rate=10/20")
	g, err := verifier().Verify(second.text())
	if err != nil {
		t.Fatal(err)
	}
	if g.Rates()[0].Key == parent[0].Key {
		t.Error("two tokens share a bucket")
	}
}

// Until it is bound, a grant for one presenter clears nothing, and binding
// leaves the grant it started from alone. R-020
func TestBind(t *testing.T) {
	t.Parallel()
	uid := uint32(1000)
	who := capability.Presenter{TLSKeyHash: digest(t, digestA), PeerUID: &uid, Audience: "https://kms"}
	r := capability.Request{Scopes: []string{"kms:sign"}, Tenant: "acme", Now: noon}
	for caveat, want := range map[string]string{
		"client-key=" + digestA: "presenter-mismatch", "peer-uid=1000": "presenter-mismatch", "aud=https://kms": "audience-mismatch",
	} {
		g := grant(t, tenantA, scopeA, expA, caveat)
		for range 2 {
			if p, err := g.Clear(r); reason(err) != want || p.Valid() {
				t.Errorf("%s: unbound: %v", caveat, err)
			}
			bound, err := g.Bind(who)
			if err != nil || bound == g {
				t.Fatalf("%s: bind: %v", caveat, err)
			}
			if p, err := bound.Clear(r); err != nil || !p.Valid() || bound.ID() != g.ID() || bound.Expiry() != g.Expiry() {
				t.Errorf("%s: bound: %v", caveat, err)
			}
		}
		if _, err := g.Bind(capability.Presenter{}); reason(err) != want {
			t.Errorf("%s: nobody: %v", caveat, err)
		}
	}
	for caveats, want := range map[string]string{
		"client-key=" + digestA + " client-key=" + digestB: "presenter-mismatch",
		"client-key=" + digestB + " client-key=" + digestA: "presenter-mismatch",
		"peer-uid=1000 peer-uid=0":                         "presenter-mismatch",
		"aud=https://kms aud=https://other":                "audience-mismatch",
		"client-key=" + strings.Repeat("0", 64):            "presenter-mismatch",
		"aud=https://kms aud=https://kms peer-uid=1000":    "",
	} {
		if _, err := grant(t, append([]string{tenantA, scopeA, expA}, strings.Fields(caveats)...)...).Bind(who); reason(err) != want {
			t.Errorf("%s: %v, want %q", caveats, err, want)
		}
	}
	// A key hash of zeros is no key, even for a caveat that asks for zeros.
	if _, err := grant(t, tenantA, scopeA, expA, "client-key="+strings.Repeat("0", 64)).Bind(capability.Presenter{}); reason(err) != "presenter-mismatch" {
		t.Errorf("zeros: %v", err)
	}
	if _, err := grant(t, tenantA, scopeA, expA, "payload-b3="+strings.Repeat("0", 64)).Clear(r); reason(err) != "payload-mismatch" {
		t.Errorf("payload of zeros: %v", err)
	}
	plain := grant(t, tenantA, scopeA, expA)
	if bound, err := plain.Bind(capability.Presenter{}); err != nil || bound != plain {
		t.Errorf("nothing to bind: %v", err)
	}
	var none *capability.Grant
	for name, g := range map[string]*capability.Grant{"nil": none, "zero": {}} {
		if bound, err := g.Bind(who); bound != nil || reason(err) != "token-missing" {
			t.Errorf("%s grant: %v", name, err)
		}
	}
}

// What a face has to compute, it is asked for only if the token looks at it.
func TestNeeds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		caveats       []string
		body, payload bool
	}{
		{nil, false, false}, {[]string{"max-bytes=10"}, true, false}, {[]string{"payload-b3=" + digestA}, false, true},
		{[]string{"max-bytes=10", "payload-b3=" + digestA}, true, true},
	} {
		g := grant(t, append([]string{tenantA, scopeA, expA}, c.caveats...)...)
		if g.NeedsBody() != c.body || g.NeedsPayload() != c.payload {
			t.Errorf("%q: %t %t", c.caveats, g.NeedsBody(), g.NeedsPayload())
		}
	}
	var none *capability.Grant
	if none.NeedsBody() || none.NeedsPayload() {
		t.Error("no grant needs something")
	}
}
