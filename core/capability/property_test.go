package capability_test

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/rustyonions/ron-kms/core/capability"
)

// Small worlds, so that random tokens and random requests often meet.
var (
	someTenants  = []string{"acme", "acme", "acme", "acme", "globex"}
	somePurposes = []string{"audit", "audit", "audit:eu", "auditor"}
	someScopes   = []string{"kms:read", "kms:sign", "kms:verify"}
	someTimes    = []int64{100, 200, 300, 400}
	someKIDs     = []string{"acme", "acme/audit", "acme/audit/ed25519", "acme/audit/ed25519/" + uuidA,
		"acme/audit/ed25519/" + uuidA + "#v1", "acme/audit/ed25519/" + uuidA + "#v12", "acme/auditor", "globex/audit"}
)

func drawCaveat(t *rapid.T, label string) string {
	name := rapid.SampledFrom([]string{"tenant", "scope", "exp", "nbf", "kid-prefix", "purpose-prefix"}).Draw(t, label)
	return name + "=" + drawValue(t, name)
}

func drawValue(t *rapid.T, name string) string {
	switch name {
	case "tenant":
		return rapid.SampledFrom(someTenants).Draw(t, name)
	case "scope":
		list := rapid.SliceOfNDistinct(rapid.SampledFrom(someScopes), 1, 3, rapid.ID).Draw(t, name)
		slices.Sort(list)
		return strings.Join(list, ",")
	case "exp":
		return strconv.FormatInt(rapid.SampledFrom(someTimes).Draw(t, name)+200, 10)
	case "nbf":
		return strconv.FormatInt(rapid.SampledFrom(someTimes).Draw(t, name), 10)
	case "kid-prefix":
		return rapid.SampledFrom(someKIDs).Draw(t, name)
	}
	return rapid.SampledFrom(somePurposes).Draw(t, name)
}

func drawRequest(t *rapid.T) capability.Request {
	r := capability.Request{
		Scopes: rapid.SliceOfN(rapid.SampledFrom(someScopes), 1, 2).Draw(t, "scopes"),
		Tenant: rapid.SampledFrom(someTenants).Draw(t, "for"),
		Now:    time.Unix(rapid.SampledFrom(someTimes).Draw(t, "now")+rapid.Int64Range(-1, 1).Draw(t, "step"), 0),
	}
	if rapid.Bool().Draw(t, "keyed") {
		r.KID = rapid.SampledFrom(someKIDs).Draw(t, "kid")
		if parts := strings.Split(r.KID, "/"); len(parts) > 1 {
			r.Purpose = parts[1]
		}
	} else {
		r.Purpose = rapid.SampledFrom(somePurposes).Draw(t, "purpose")
	}
	return r
}

// allows is the meaning of caveats told a second time, as plainly as can be.
func allows(caveats []string, r capability.Request) bool {
	ok := true
	scopes := r.Scopes
	for _, c := range caveats {
		name, value, _ := strings.Cut(c, "=")
		n, _ := strconv.ParseInt(value, 10, 64)
		switch name {
		case "tenant":
			ok = ok && r.Tenant == value
		case "scope":
			var left []string
			for _, s := range scopes {
				if slices.Contains(strings.Split(value, ","), s) {
					left = append(left, s)
				}
			}
			scopes = left
		case "exp":
			ok = ok && r.Now.Unix() < n
		case "nbf":
			ok = ok && r.Now.Unix() >= n
		case "kid-prefix":
			ok = ok && (r.KID == value || strings.HasPrefix(r.KID, value+"/") || strings.HasPrefix(r.KID, value+"#"))
		case "purpose-prefix":
			ok = ok && (r.Purpose == value || strings.HasPrefix(r.Purpose, value+":"))
		}
	}
	if r.KID != "" && strings.Split(r.KID, "/")[0] != r.Tenant {
		ok = false
	}
	return ok && len(scopes) > 0
}

// Adding caveats never widens: what the attenuated token clears, the token
// it came from clears too. And each clears what its caveats plainly mean.
//
func TestAttenuationNeverWidens(t *testing.T) {
	t.Parallel()
	v := verifier()
	cleared, lost := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		caveats := []string{"tenant=" + drawValue(t, "tenant"), "scope=" + drawValue(t, "scope"), "exp=" + drawValue(t, "exp")}
		for range rapid.IntRange(0, 2).Draw(t, "more") {
			caveats = append(caveats, drawCaveat(t, "extra"))
		}
		caveats = rapid.Permutation(caveats).Draw(t, "order")
		before := forge(caveats...)
		added := drawCaveat(t, "added")
		c, err := capability.ParseCaveat(added)
		if err != nil {
			t.Fatal(err)
		}
		after, err := capability.Attenuate(before, c)
		if err != nil {
			t.Fatal(err)
		}
		wide, err := v.Verify(before)
		if err != nil {
			t.Fatal(err)
		}
		narrow, err := v.Verify(after)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			r := drawRequest(t)
			_, errBefore := wide.Clear(r)
			_, errAfter := narrow.Clear(r)
			if errAfter == nil && errBefore != nil {
				t.Fatalf("%s widened %q for %+v", added, caveats, r)
			}
			if want := allows(caveats, r); (errBefore == nil) != want {
				t.Fatalf("%q for %+v: %v, want cleared %v", caveats, r, errBefore, want)
			}
			if want := allows(append(slices.Clone(caveats), added), r); (errAfter == nil) != want {
				t.Fatalf("%q and %q for %+v: %v, want cleared %v", caveats, added, r, errAfter, want)
			}
			if errAfter == nil {
				cleared++
			} else if errBefore == nil {
				lost++
			}
		}
	})
	if !t.Failed() && (cleared == 0 || lost == 0) {
		t.Errorf("nothing was tried: %d cleared, %d lost", cleared, lost)
	}
}
