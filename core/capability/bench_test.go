package capability_test

import (
	"testing"

	"github.com/rustyonions/ron-kms/core/capability"
)

var fiveCaveats = []string{tenantA, scopeA, expA, "kid-prefix=acme/audit", "purpose-prefix=audit"}

// everyCaveat has one of each kind that Clear looks at.
var everyCaveat = append([]string{"nbf=1700000000", "verb=sign,verify", "alg=ed25519,ml-dsa-65", "max-bytes=1024", "payload-b3=" + digestB, "rate=10/20"}, fiveCaveats...)

var signRequest = capability.Request{
	Scopes: []string{"kms:sign"}, Verb: "sign", Tenant: "acme", KID: "acme/audit/ed25519/" + uuidA + "#v3", Purpose: "audit",
	BodyBytes: 300, Payload: [32]byte{0xaf, 0x13, 0x49, 0xb9, 0xf5, 0xf9, 0xa1, 0xa6, 0xa0, 0x40, 0x4d, 0xea, 0x36, 0xdc, 0xc9, 0x49,
		0x9b, 0xcb, 0x25, 0xc9, 0xad, 0xc1, 0x12, 0xb7, 0xcc, 0x9a, 0x93, 0xca, 0xe4, 0x1f, 0x32, 0x62}, Now: noon,
}

// revocable are the test's root keys with a list of revocations.
type revocable struct {
	keyring
	*capability.RevocationList
}

func revocableVerifier(tb testing.TB, read func() ([]byte, error)) (*capability.Verifier, *capability.RevocationList) {
	tb.Helper()
	list, err := capability.NewRevocationList(read)
	if err != nil {
		tb.Fatal(err)
	}
	return capability.NewVerifier(revocable{keyring{rootID: rootKey}, list}), list
}

func nothingRevoked() ([]byte, error) { return []byte("ron-kms revocations 1\n"), nil }

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
	for name, caveats := range map[string][]string{"five": fiveCaveats, "all": everyCaveat} {
		b.Run(name, func(b *testing.B) {
			v, _ := revocableVerifier(b, nothingRevoked)
			g, err := v.Verify(forge(caveats...))
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := g.Clear(signRequest); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkVerifyCached(b *testing.B) {
	c, text := capability.NewCache(verifier(), capability.CacheOptions{}), forge(fiveCaveats...)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Verify(text); err != nil {
			b.Fatal(err)
		}
	}
}

// Clear allocates nothing, whether it lets through or refuses, whatever the
// token says and whether or not it can be revoked.
func TestClearDoesNotAllocate(t *testing.T) {
	v, _ := revocableVerifier(t, nothingRevoked)
	other, large, foreign := signRequest, signRequest, signRequest
	other.Tenant, large.BodyBytes, foreign.Payload[0] = "globex", 2000, 1
	for caveats, list := range map[string][]string{"five": fiveCaveats, "all": everyCaveat} {
		g, err := v.Verify(forge(list...))
		if err != nil {
			t.Fatal(err)
		}
		for name, r := range map[string]capability.Request{"cleared": signRequest, "other tenant": other, "large": large, "other payload": foreign} {
			var p capability.Permit
			if n := testing.AllocsPerRun(100, func() { p, _ = g.Clear(r) }); n != 0 {
				t.Errorf("%s, %s: %v allocations", caveats, name, n)
			}
			if want := name == "cleared" || caveats == "five" && name != "other tenant"; p.Valid() != want {
				t.Errorf("%s, %s: valid %v", caveats, name, p.Valid())
			}
		}
	}
}
