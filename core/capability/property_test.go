package capability_test

import (
	"encoding/hex"
	"fmt"
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
	// The first of each is what is not known.
	someAudiences = []string{"", "https://a", "https://b"}
	someDigests   = []string{"", digestA, digestB}
)

// drawPresenter makes somebody who mostly is who caveats ask for.
func drawPresenter(t *rapid.T) capability.Presenter {
	p := capability.Presenter{Audience: rapid.SampledFrom(someAudiences).Draw(t, "audience")}
	if text := rapid.SampledFrom(someDigests).Draw(t, "client key"); text != "" {
		if _, err := hex.Decode(p.TLSKeyHash[:], []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if rapid.Bool().Draw(t, "on a socket") {
		uid := rapid.SampledFrom([]uint32{0, 1000}).Draw(t, "uid")
		p.PeerUID = &uid
	}
	return p
}

func drawCaveat(t *rapid.T, label string) string {
	name := rapid.SampledFrom([]string{"tenant", "scope", "exp", "nbf", "kid-prefix", "purpose-prefix",
		"aud", "client-key", "peer-uid", "verb", "alg", "max-bytes", "payload-b3", "rate"}).Draw(t, label)
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
	case "aud":
		return rapid.SampledFrom(someAudiences[1:]).Draw(t, name)
	case "client-key", "payload-b3":
		return rapid.SampledFrom(someDigests[1:]).Draw(t, name)
	case "peer-uid":
		return rapid.SampledFrom([]string{"0", "1000"}).Draw(t, name)
	case "verb":
		return rapid.SampledFrom([]string{"sign", "sign,verify", "sign_batch", "verify"}).Draw(t, name)
	case "alg":
		return rapid.SampledFrom([]string{"ed25519", "ed25519,ml-dsa-65", "ml-dsa-65"}).Draw(t, name)
	case "max-bytes":
		return strconv.Itoa(rapid.IntRange(1, 3).Draw(t, name))
	case "rate":
		return fmt.Sprintf("%d/%d", rapid.IntRange(1, 3).Draw(t, name), rapid.IntRange(1, 3).Draw(t, "burst"))
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
	r.Verb = rapid.SampledFrom([]string{"", "sign", "sign_batch", "verify"}).Draw(t, "verb")
	r.BodyBytes = rapid.Int64Range(0, 4).Draw(t, "bytes")
	if text := rapid.SampledFrom(someDigests).Draw(t, "payload"); text != "" {
		if _, err := hex.Decode(r.Payload[:], []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// allows is the meaning of caveats told a second time, as plainly as can be.
func allows(caveats []string, p capability.Presenter, r capability.Request) bool {
	ok := true
	segments := strings.Split(r.KID, "/")
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
		case "aud":
			ok = ok && p.Audience == value
		case "client-key":
			ok = ok && hex.EncodeToString(p.TLSKeyHash[:]) == value
		case "peer-uid":
			ok = ok && p.PeerUID != nil && strconv.Itoa(int(*p.PeerUID)) == value
		case "verb":
			ok = ok && slices.Contains(strings.Split(value, ","), r.Verb)
		case "alg":
			ok = ok && len(segments) > 2 && slices.Contains(strings.Split(value, ","), segments[2])
		case "max-bytes":
			ok = ok && r.BodyBytes != 0 && r.BodyBytes <= n
		case "payload-b3":
			ok = ok && hex.EncodeToString(r.Payload[:]) == value
		}
	}
	if r.KID != "" && strings.Split(r.KID, "/")[0] != r.Tenant {
		ok = false
	}
	return ok && len(scopes) > 0
}

// permit does what the engine does: bind, then clear.
func permit(g *capability.Grant, p capability.Presenter, r capability.Request) (capability.Permit, error) {
	bound, err := g.Bind(p)
	if err != nil {
		return capability.Permit{}, err
	}
	return bound.Clear(r)
}

// Adding caveats never widens: what the attenuated token clears, the token
// it came from clears too, whatever is asked and whoever presents it; and what
// it is counted in, the other is counted in too. And each clears what its
// caveats plainly mean. A grant that was not bound clears no more.
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
			r, p := drawRequest(t), drawPresenter(t)
			wideTo, errBefore := permit(wide, p, r)
			narrowTo, errAfter := permit(narrow, p, r)
			if errAfter == nil && errBefore != nil {
				t.Fatalf("%s widened %q for %+v by %+v", added, caveats, r, p)
			}
			if want := allows(caveats, p, r); (errBefore == nil) != want {
				t.Fatalf("%q for %+v by %+v: %v, want cleared %v", caveats, r, p, errBefore, want)
			}
			if want := allows(append(slices.Clone(caveats), added), p, r); (errAfter == nil) != want {
				t.Fatalf("%q and %q for %+v by %+v: %v, want cleared %v", caveats, added, r, p, errAfter, want)
			}
			if _, err := narrow.Clear(r); err == nil && errBefore != nil {
				t.Fatalf("%q and %q for %+v: cleared unbound", caveats, added, r)
			}
			if errAfter == nil {
				cleared++
				for _, rate := range wideTo.Rates() {
					if !slices.Contains(narrowTo.Rates(), rate) {
						t.Fatalf("%q and %q: a rate was lost", caveats, added)
					}
				}
			} else if errBefore == nil {
				lost++
			}
		}
	})
	if !t.Failed() && (cleared == 0 || lost == 0) {
		t.Errorf("nothing was tried: %d cleared, %d lost", cleared, lost)
	}
}
