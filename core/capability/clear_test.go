package capability_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rustyonions/ron-kms/core/capability"
)

// verbs are the operations and the scopes each accepts.
var verbs = map[string][]string{
	"create":      {"kms:create", "kms:rotate"},
	"rotate":      {"kms:rotate"},
	"sign":        {"kms:sign"},
	"verify":      {"kms:verify", "kms:read"},
	"wrap":        {"kms:wrap"},
	"unwrap":      {"kms:unwrap"},
	"destroy":     {"kms:destroy"},
	"derive":      {"kms:derive"},
	"get":         {"kms:read"},
	"attestation": {"kms:attest", "kms:read"},
	"audit":       {"kms:audit"},
}

var noon = time.Unix(1750000000, 0)

// Every verb with every single scope: only those listed clear it. R-020, D-5
func TestScopeMatrix(t *testing.T) {
	t.Parallel()
	for _, scope := range capability.ScopeList() {
		g := grant(t, tenantA, "scope="+scope, expA)
		for verb, accepted := range verbs {
			p, err := g.Clear(capability.Request{Scopes: accepted, Tenant: "acme", Now: noon})
			if want := slices.Contains(accepted, scope); (err == nil) != want || p.Valid() != want {
				t.Errorf("%s with %s: %v", verb, scope, err)
			}
			if err != nil && (reason(err) != "scope-missing" || !errors.Is(err, capability.ErrDenied) || errors.Is(err, capability.ErrInvalid)) {
				t.Errorf("%s with %s: %v", verb, scope, err)
			}
		}
	}
	all := grant(t, tenantA, "scope="+strings.Join(capability.ScopeList(), ","), expA)
	for verb, accepted := range verbs {
		if _, err := all.Clear(capability.Request{Scopes: accepted, Tenant: "acme", Now: noon}); err != nil {
			t.Errorf("%s with all scopes: %v", verb, err)
		}
	}
	for _, none := range [][]string{nil, {}, {""}, {"kms:"}, {"sign"}, {"kms:sign,kms:verify"}, {"kms:SIGN"}} {
		if _, err := all.Clear(capability.Request{Scopes: none, Tenant: "acme", Now: noon}); reason(err) != "scope-missing" {
			t.Errorf("scopes %q: %v", none, err)
		}
	}
}

// Exp is the first second that is too late, nbf the first that is not too
// early, and both come before anything else that is wrong.
func TestClearTime(t *testing.T) {
	t.Parallel()
	g := grant(t, tenantA, scopeA, expA, "exp=1900000005", "nbf=1700000000", "nbf=1600000000")
	for _, c := range []struct {
		now  time.Time
		want string
	}{
		{time.Unix(1699999999, 999999999), "token-not-yet"},
		{time.Unix(1700000000, 0), ""},
		{time.Unix(1899999999, 999999999), ""},
		{time.Unix(1900000000, 0), "token-expired"},
		{time.Unix(1900000000, 1), "token-expired"},
		{time.Unix(1900000000, 0).In(time.FixedZone("", -12*3600)), "token-expired"},
		{time.Time{}, "token-not-yet"},
		{time.Unix(0, 0), "token-not-yet"},
		{time.Unix(-1, 0), "token-not-yet"},
		{time.Unix(1<<40, 0), "token-expired"},
	} {
		for _, tenant := range []string{"acme", "evil"} {
			_, err := g.Clear(capability.Request{Scopes: []string{"kms:sign"}, Tenant: tenant, Now: c.now})
			want := c.want
			if want == "" && tenant == "evil" {
				want = "tenant-mismatch"
			}
			if reason(err) != want {
				t.Errorf("%v as %s: %v, want %q", c.now, tenant, err, want)
			}
			if c.want != "" && !errors.Is(err, capability.ErrInvalid) {
				t.Errorf("%v: not of the class of 401: %v", c.now, err)
			}
		}
	}
	// Without nbf a clock that was never set clears nothing either.
	if _, err := grant(t, tenantA, scopeA, expA).Clear(capability.Request{Scopes: []string{"kms:sign"}, Tenant: "acme"}); reason(err) != "token-not-yet" {
		t.Errorf("no time: %v", err)
	}
}

// A token of one tenant opens nothing of another, however the other is
// spelled, and the answer is the same for each. R-081
func TestClearTenant(t *testing.T) {
	t.Parallel()
	g := grant(t, tenantA, scopeA, expA)
	for _, tenant := range []string{"", "globex", "Acme", "ACME", "acme ", " acme", "acme\x00", "acme/", "acme:", "acm", "acme2", "аcme", "ａcme", "acme%00", "*", "..", "acme/../globex"} {
		for _, kid := range []string{"", tenant + "/audit/ed25519/" + uuidA, "acme/audit/ed25519/" + uuidA} {
			_, err := g.Clear(capability.Request{Scopes: []string{"kms:sign"}, Tenant: tenant, KID: kid, Now: noon})
			if reason(err) != "tenant-mismatch" || !errors.Is(err, capability.ErrDenied) {
				t.Errorf("tenant %q kid %q: %v", tenant, kid, err)
			}
		}
	}
	// The tenant is right and the kid goes elsewhere.
	for kid, want := range map[string]string{
		"globex/audit/ed25519/" + uuidA:         "tenant-mismatch",
		"Acme/audit/ed25519/" + uuidA:           "tenant-mismatch",
		"acme2/audit/ed25519/" + uuidA:          "tenant-mismatch",
		"globex":                                "tenant-mismatch",
		"acme/../globex/ed25519":                "kid-mismatch",
		"acme/..%2Fglobex/ed25519/" + uuidA:     "kid-mismatch",
		"acme//ed25519/" + uuidA:                "kid-mismatch",
		"/acme/audit/ed25519/" + uuidA:          "kid-mismatch",
		"acme/audit/ed25519/" + uuidA + "/../x": "kid-mismatch",
		"acme/audit/ed25519/" + uuidA + "@v1":   "kid-mismatch",
		"acme/audit/Ed25519/" + uuidA:           "kid-mismatch",
		"acme/аudit/ed25519/" + uuidA:           "kid-mismatch",
		"acme/":                                 "kid-mismatch",
	} {
		if _, err := g.Clear(capability.Request{Scopes: []string{"kms:sign"}, Tenant: "acme", KID: kid, Now: noon}); reason(err) != want {
			t.Errorf("kid %q: %v, want %s", kid, err, want)
		}
	}
}

// Prefixes cover whole segments.
func TestClearPrefixes(t *testing.T) {
	t.Parallel()
	key := "acme/audit/ed25519/" + uuidA
	for _, c := range []struct {
		caveats      string // separated by spaces
		kid, purpose string
		want         string
	}{
		{"kid-prefix=acme", key, "audit", ""},
		{"kid-prefix=acme/audit", key, "audit", ""},
		{"kid-prefix=acme/audit", "acme/auditor/ed25519/" + uuidA, "", "kid-mismatch"},
		{"kid-prefix=acme/audit", "acme/audit:x/ed25519/" + uuidA, "", "kid-mismatch"},
		{"kid-prefix=acme/audit", "acme/Audit/ed25519/" + uuidA, "", "kid-mismatch"},
		{"kid-prefix=acme/audit/ed25519", "acme/audit/ed25519+ml-dsa-65/" + uuidA, "", "kid-mismatch"},
		{"kid-prefix=acme/audit/ed25519", key + "#v7", "audit", ""},
		{"kid-prefix=" + key, key, "audit", ""},
		{"kid-prefix=" + key, key + "#v12", "audit", ""},
		{"kid-prefix=" + key, key[:len(key)-1] + "4", "audit", "kid-mismatch"},
		{"kid-prefix=" + key + "#v1", key + "#v1", "audit", ""},
		{"kid-prefix=" + key + "#v1", key + "#v12", "audit", "kid-mismatch"},
		{"kid-prefix=" + key + "#v1", key, "audit", "kid-mismatch"},
		{"kid-prefix=acme", "", "", "kid-mismatch"},
		{"kid-prefix=globex", key, "audit", "kid-mismatch"},
		{"kid-prefix=acme/audit/ed25519", "acme/audit/ed25519", "audit", ""}, // create
		{"kid-prefix=" + key, "acme/audit/ed25519", "audit", "kid-mismatch"},
		{"kid-prefix=acme/audit kid-prefix=acme/audit/ed25519", key, "audit", ""},
		{"kid-prefix=acme/audit kid-prefix=acme/other", key, "audit", "kid-mismatch"},
		{"kid-prefix=acme/other kid-prefix=acme/audit", key, "audit", "kid-mismatch"},

		{"purpose-prefix=audit", key, "audit", ""},
		{"purpose-prefix=audit", "", "audit", ""},
		{"purpose-prefix=audit", "acme/audit:eu:1/ed25519", "audit:eu:1", ""},
		{"purpose-prefix=audit", "", "auditor", "purpose-mismatch"},
		{"purpose-prefix=audit", "", "audit.eu", "purpose-mismatch"},
		{"purpose-prefix=audit", "", "Audit", "purpose-mismatch"},
		{"purpose-prefix=audit", key, "", "purpose-mismatch"},
		{"purpose-prefix=audit", "", "", "purpose-mismatch"},
		{"purpose-prefix=audit", "", "audit:", "purpose-mismatch"},
		{"purpose-prefix=audit", "", "audit::x", "purpose-mismatch"},
		{"purpose-prefix=audit purpose-prefix=audit:eu", "", "audit:eu", ""},
		{"purpose-prefix=audit purpose-prefix=audit:eu", "", "audit:us", "purpose-mismatch"},
		{"purpose-prefix=audit", "acme/other/ed25519/" + uuidA, "audit", "purpose-mismatch"},
		{"", "acme/other/ed25519/" + uuidA, "audit", "purpose-mismatch"}, // contradicts itself
	} {
		g := grant(t, append([]string{tenantA, scopeA, expA}, strings.Fields(c.caveats)...)...)
		p, err := g.Clear(capability.Request{Scopes: []string{"kms:sign"}, Tenant: "acme", KID: c.kid, Purpose: c.purpose, Now: noon})
		if reason(err) != c.want || p.Valid() != (c.want == "") {
			t.Errorf("[%s] kid %q purpose %q: %v, want %q", c.caveats, c.kid, c.purpose, err, c.want)
		}
		if err != nil && !errors.Is(err, capability.ErrDenied) {
			t.Errorf("[%s]: not of the class of 403: %v", c.caveats, err)
		}
	}
}

// Caveats of one kind must all hold, in whatever order they stand.
func TestClearSeveralOfOneKind(t *testing.T) {
	t.Parallel()
	sign := []string{"kms:sign"}
	for _, c := range []struct {
		caveats []string
		scopes  []string
		tenant  string
		want    string
	}{
		{[]string{tenantA, "tenant=globex", scopeA, expA}, sign, "acme", "tenant-mismatch"},
		{[]string{tenantA, "tenant=globex", scopeA, expA}, sign, "globex", "tenant-mismatch"},
		{[]string{tenantA, tenantA, scopeA, expA}, sign, "acme", ""},
		{[]string{tenantA, "scope=kms:read", "scope=kms:verify", expA}, []string{"kms:verify", "kms:read"}, "acme", "scope-missing"},
		{[]string{tenantA, "scope=kms:read,kms:sign", "scope=kms:sign,kms:verify", expA}, sign, "acme", ""},
		{[]string{"exp=1900000000", "scope=kms:sign", "exp=1000", tenantA}, sign, "acme", "token-expired"},
		{[]string{"exp=1000", "scope=kms:sign", "exp=1900000000", tenantA}, sign, "acme", "token-expired"},
		{[]string{"nbf=1800000000", "nbf=1", scopeA, expA, tenantA}, sign, "acme", "token-not-yet"},
	} {
		_, err := grant(t, c.caveats...).Clear(capability.Request{Scopes: c.scopes, Tenant: c.tenant, Now: noon})
		if reason(err) != c.want {
			t.Errorf("%q: %v, want %q", c.caveats, err, c.want)
		}
	}
	if g := grant(t, tenantA, "tenant=globex", scopeA, expA); g.Tenant() != "acme" {
		t.Errorf("tenant %s", g.Tenant())
	}
}

// A grant or permit that did not come from Verify or Clear is worth nothing.
//
func TestZeroValues(t *testing.T) {
	t.Parallel()
	r := capability.Request{Scopes: capability.ScopeList(), Tenant: "", Now: noon}
	var none *capability.Grant
	for name, g := range map[string]*capability.Grant{"nil": none, "zero": {}} {
		if p, err := g.Clear(r); reason(err) != "token-missing" || p.Valid() {
			t.Errorf("%s grant: %v", name, err)
		}
	}
	if (capability.Permit{}).Valid() {
		t.Error("the zero Permit is valid")
	}
	kid := "acme/audit/ed25519/" + uuidA + "#v2"
	g := grant(t, tenantA, scopeA, expA)
	p, err := g.Clear(capability.Request{Scopes: []string{"kms:sign"}, Tenant: "acme", KID: kid, Purpose: "audit", Now: noon})
	if err != nil || p.Actor() != g.ID() || p.Tenant() != "acme" || p.KID() != kid || p.Purpose() != "audit" {
		t.Errorf("%v %v", p, err)
	}
}
