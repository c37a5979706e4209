package api_test

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/rustyonions/ron-kms/core/api"
)

const id = "0190a8e2-7c3e-4f6b-9d3a-2f1e5c7b8a90"

// forms of the grammar of docs/spec/kid.md.
func TestParseKID(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]api.KID{
		"acme/audit/ed25519/" + id:                     {Tenant: "acme", Purpose: "audit", Alg: "ed25519", ID: id},
		"acme/audit/ed25519/" + id + "#v1":             {Tenant: "acme", Purpose: "audit", Alg: "ed25519", ID: id, Version: 1},
		"acme/audit/ed25519/" + id + "#v4294967295":    {Tenant: "acme", Purpose: "audit", Alg: "ed25519", ID: id, Version: 1<<32 - 1},
		"0/a.b_c:d-e/ed25519+ml-dsa-65/" + id + "#v20": {Tenant: "0", Purpose: "a.b_c:d-e", Alg: "ed25519+ml-dsa-65", ID: id, Version: 20},
		"A/a/x/" + id: {Tenant: "A", Purpose: "a", Alg: "x", ID: id},
		strings.Repeat("t", 255) + "/" + strings.Repeat("p", 255) + "/ed25519/" + id + "#v1": {
			Tenant: strings.Repeat("t", 255), Purpose: strings.Repeat("p", 255), Alg: "ed25519", ID: id, Version: 1},
	} {
		got, err := api.ParseKID(text)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		} else if got.String() != text {
			t.Errorf("%s prints as %s", text, got)
		}
	}
	// The one alias.
	k, err := api.ParseKID("acme/audit/Ed25519/" + id + "#v3")
	if err != nil || k.String() != "acme/audit/ed25519/"+id+"#v3" {
		t.Errorf("Ed25519: %v, %v", k, err)
	}
}

// what is no kid, without the input in the error.
func TestParseKIDRefuses(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"", "/", "///", "acme", "acme/audit/ed25519", "acme/audit/ed25519/" + id + "/x", "/audit/ed25519/" + id, "acme//ed25519/" + id,
		"acme/audit//" + id, "acme/audit/ed25519/", "../audit/ed25519/" + id, "acme/./ed25519/" + id, ".acme/audit/ed25519/" + id,
		"acme:/audit/ed25519/" + id, "ac::me/audit/ed25519/" + id, ":acme/audit/ed25519/" + id, "acme /audit/ed25519/" + id,
		"acmé/audit/ed25519/" + id, "acme\x00/audit/ed25519/" + id, "acme%2F/audit/ed25519/" + id, "acme\n/audit/ed25519/" + id,
		"acme/audit/ed 25519/" + id, "acme/audit/-ed/" + id, "acme/audit/" + strings.Repeat("a", 65) + "/" + id,
		"acme/audit/ed25519/" + strings.ToUpper(id), "acme/audit/ed25519/{" + id + "}", "acme/audit/ed25519/urn:uuid:" + id,
		"acme/audit/ed25519/" + strings.ReplaceAll(id, "-", ""), "acme/audit/ed25519/" + id + " ", " acme/audit/ed25519/" + id,
		"acme/audit/ed25519/" + id + "#", "acme/audit/ed25519/" + id + "#v", "acme/audit/ed25519/" + id + "#v0",
		"acme/audit/ed25519/" + id + "#v01", "acme/audit/ed25519/" + id + "#1", "acme/audit/ed25519/" + id + "#V1",
		"acme/audit/ed25519/" + id + "#v4294967296", "acme/audit/ed25519/" + id + "#v-1", "acme/audit/ed25519/" + id + "#v+1",
		"acme/audit/ed25519/" + id + "#v1#v1", "acme/audit/ed25519/" + id + "@v1", "acme/audit/ed25519/" + id + "#v1 ",
		strings.Repeat("t", 256) + "/audit/ed25519/" + id, strings.Repeat("x", 1<<16),
	} {
		k, err := api.ParseKID(text)
		if !api.HasReason(err, api.ReasonKID) {
			t.Errorf("%.80q: %+v, %v", text, k, err)
			continue
		}
		if !k.IsZero() || len(text) > 5 && strings.Contains(err.Error(), text) {
			t.Errorf("%.80q: kid %v, error %v", text, k, err)
		}
	}
}

// printing and parsing are inverse, and base and version come apart.
func TestKIDRoundTrip(t *testing.T) {
	t.Parallel()
	label := rapid.StringMatching(`[A-Za-z0-9]([A-Za-z0-9._-]|:[A-Za-z0-9._-]){0,40}`)
	rapid.Check(t, func(t *rapid.T) {
		k := api.KID{
			Tenant: label.Draw(t, "tenant"), Purpose: label.Draw(t, "purpose"),
			Alg:     rapid.StringMatching(`[a-z0-9]([a-z0-9+-]){0,20}`).Draw(t, "alg"),
			ID:      rapid.StringMatching(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`).Draw(t, "id"),
			Version: rapid.Uint32().Draw(t, "version"),
		}
		got, err := api.ParseKID(k.String())
		if err != nil || got != k {
			t.Fatalf("%s: %+v, %v", k, got, err)
		}
		if k.Base().Version != 0 || k.Base().At(k.Version) != k || strings.Contains(k.Base().String(), "#") {
			t.Fatalf("%s: base %s", k, k.Base())
		}
	})
}

// whatever is accepted prints as it was read, but for the alias.
func FuzzParseKID(f *testing.F) {
	for _, s := range []string{"acme/audit/ed25519/" + id + "#v1", "acme/audit/Ed25519/" + id, "a/b/c/d", "a/b/c/" + id + "#v0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		k, err := api.ParseKID(s)
		if err != nil {
			if !api.HasReason(err, api.ReasonKID) || !k.IsZero() {
				t.Fatalf("%q: %v, %v", s, k, err)
			}
			return
		}
		parts := strings.Split(s, "/")
		if parts[2] == "Ed25519" {
			parts[2] = "ed25519"
		}
		if got := k.String(); got != strings.Join(parts, "/") {
			t.Fatalf("%q prints as %q", s, got)
		}
		if again, err := api.ParseKID(k.String()); err != nil || again != k {
			t.Fatalf("%q: %v, then %v, %v", s, k, again, err)
		}
		if len(s) > api.MaxKID || !api.ValidLabel(k.Tenant) || !api.ValidLabel(k.Purpose) || strings.Count(s, "/") != 3 {
			t.Fatalf("%q was accepted", s)
		}
	})
}

// A label must keep "ron-kms::<tenant>::<purpose>::<ctx>" readable in one way.
func TestValidLabel(t *testing.T) {
	t.Parallel()
	for label, want := range map[string]bool{
		"a": true, "0": true, "a:b": true, "a.b": true, "a_b": true, "a-b": true, "Zz9": true, strings.Repeat("a", 255): true,
		"": false, strings.Repeat("a", 256): false, ":a": false, "a:": false, "a::b": false, "a:::b": false, ".a": false, "-a": false,
		"_a": false, "a/b": false, "a b": false, "a#b": false, "a@b": false, "a+b": false, "é": false, "a\x00": false, "a%": false,
	} {
		if api.ValidLabel(label) != want {
			t.Errorf("%.20q: %v", label, !want)
		}
	}
}
