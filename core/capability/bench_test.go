package capability_test

import (
	"testing"

	"github.com/rustyonions/ron-kms/core/capability"
)

var fiveCaveats = []string{tenantA, scopeA, expA, "kid-prefix=acme/audit", "purpose-prefix=audit"}

var signRequest = capability.Request{
	Scopes: []string{"kms:sign"}, Tenant: "acme", KID: "acme/audit/ed25519/" + uuidA + "#v3", Purpose: "audit", Now: noon,
}

func BenchmarkVerify(b *testing.B) {
	v, text := verifier(), forge(fiveCaveats...)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(text); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkClear(b *testing.B) {
	g := grant(b, fiveCaveats...)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := g.Clear(signRequest); err != nil {
			b.Fatal(err)
		}
	}
}

// Clear allocates nothing, whether it lets through or refuses.
func TestClearDoesNotAllocate(t *testing.T) {
	g := grant(t, fiveCaveats...)
	other := signRequest
	other.Tenant = "globex"
	for name, r := range map[string]capability.Request{"cleared": signRequest, "denied": other} {
		var p capability.Permit
		if n := testing.AllocsPerRun(100, func() { p, _ = g.Clear(r) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
		if p.Valid() != (name == "cleared") {
			t.Errorf("%s: valid %v", name, p.Valid())
		}
	}
}
