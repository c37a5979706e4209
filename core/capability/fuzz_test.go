package capability_test

import (
	"encoding/base64"
	"slices"
	"testing"
	"time"

	"gopkg.in/macaroon.v2"

	"github.com/rustyonions/ron-kms/core/capability"
)

// FuzzToken feeds any text to all that read tokens. What Verify accepts must
// be, byte for byte, the token that the second implementation makes of the
// same parts, so there is neither a forgery nor a second spelling.
func FuzzToken(f *testing.F) {
	for _, v := range makeVectors().Tokens {
		f.Add(v.Token)
	}
	for _, c := range refusals() {
		f.Add(c.token)
	}
	extra := capability.Caveat{}
	if c, err := capability.ParseCaveat("scope=kms:sign"); err == nil {
		extra = c
	}
	f.Fuzz(func(t *testing.T, text string) {
		g, err := verifier().Verify(text)
		info, inspectErr := capability.Inspect(text)
		narrower, attenuateErr := capability.Attenuate(text, extra)
		if attenuateErr == nil && inspectErr != nil {
			t.Fatal("attenuated what can not be read")
		}
		if attenuateErr == nil && len(narrower) > capability.MaxTokenBytes {
			t.Fatal("attenuated beyond the limit")
		}
		if err != nil {
			if g != nil {
				t.Fatal("a grant with an error")
			}
			return
		}
		if inspectErr != nil || info.Problem != "" || info.ID != g.ID() {
			t.Fatalf("verify accepts, inspect does not: %v %q", inspectErr, info.Problem)
		}
		data, err := base64.RawURLEncoding.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		var m macaroon.Macaroon
		if err := m.UnmarshalBinary(data); err != nil {
			t.Fatal(err)
		}
		again, _ := chain(rootKey, capability.Location, string(m.Id()), info.UnverifiedCaveats...)
		if again.text() != text {
			t.Fatal("accepted a token that the chain does not make")
		}
		if _, err := g.Clear(capability.Request{Scopes: capability.ScopeList(), Tenant: g.Tenant(), Now: g.Expiry()}); err == nil {
			t.Fatal("cleared at its expiry")
		}
		if _, err := g.Clear(capability.Request{Scopes: capability.ScopeList(), Tenant: g.Tenant() + "x", Now: time.Unix(1750000000, 0)}); err == nil {
			t.Fatal("cleared another tenant")
		}
	})
}

// FuzzCaveat feeds any text as a caveat of an authentic token: ParseCaveat
// and Verify agree on what is well-formed, and a good caveat keeps its text.
func FuzzCaveat(f *testing.F) {
	for _, v := range makeVectors().Tokens {
		for _, c := range v.Caveats {
			f.Add(c)
		}
	}
	f.Add("kid-prefix=acme/audit/ed25519/" + uuidA + "#v3")
	f.Add("scope=kms:sign,kms:sign")
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 2048 {
			return
		}
		c, err := capability.ParseCaveat(text)
		_, verifyErr := verifier().Verify(forge(tenantA, scopeA, expA, text))
		if (err == nil) != (verifyErr == nil) || reason(err) != reason(verifyErr) {
			t.Fatalf("parse says %v, verify %v", err, verifyErr)
		}
		if err != nil {
			return
		}
		if c.String() != text {
			t.Fatal("text changed")
		}
		info, err := capability.Inspect(forge(text))
		if err != nil || !slices.Equal(info.UnverifiedCaveats, []string{text}) {
			t.Fatalf("inspect: %v %q", err, info.UnverifiedCaveats)
		}
	})
}
