package core_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/config"
	. "github.com/rustyonions/ron-kms/core/coretest"
)

// satisfied is the truth table of R-063, written out and not computed by the
// code under test: mode, then classical, then pq.
var satisfied = map[string]map[string]bool{
	"or":      {"ok ok": true, "ok bad": true, "ok absent": true, "bad ok": true, "absent ok": true},
	"pq_only": {"ok ok": true, "bad ok": true, "absent ok": true},
	"and":     {"ok ok": true},
}

var strength = []string{"", "or", "pq_only", "and"}

// strictest is the mode that holds when all of these are demanded.
func strictest(modes ...string) string {
	best := 0
	for _, m := range modes {
		for i, s := range strength {
			if m == s {
				best = max(best, i)
			}
		}
	}
	return strength[best]
}

// spoil changes one bit of a signature.
func spoil(s api.Signature) api.Signature {
	b, err := api.ParseBase64(s.SignatureB64)
	if err != nil {
		panic(err)
	}
	b[len(b)/2] ^= 1
	s.SignatureB64 = api.FormatBase64(b)
	return s
}

// All of {ok, bad, absent} x {ok, bad, absent} under each mode of the server,
// the key and the request; and the same again for an older version of the key.
//
func TestVerifyTruthTable(t *testing.T) {
	t.Parallel()
	for _, server := range strength[1:] {
		t.Run(server, func(t *testing.T) {
			t.Parallel()
			cfg := config.Default()
			cfg.Backend, cfg.ArenaSize, cfg.PQVerifyMode = config.BackendInmem, 1<<20, server
			k := Open(t, cfg, core.Options{})
			s := Session(t, k, "acme")
			for _, key := range strength[1:] {
				c := Must[api.CreateResponse](t, k, s, "create", &api.CreateRequest{
					OpID: uuid.NewString(), Tenant: "acme", Purpose: "test", Alg: "hybrid", Policy: &api.KeyPolicy{VerifyMode: key},
				})
				made := Sign(t, k, s, c.KID, Digest(9)).Sigs
				for _, rotated := range []bool{false, true} {
					if rotated {
						Rotate(t, k, s, c.KID)
					}
					for _, request := range strength {
						truthTable(t, k, s, made, strictest(server, key, request), request)
					}
				}
			}
		})
	}
}

func truthTable(t *testing.T, k *core.KMS, s *core.Session, made []api.Signature, mode, request string) {
	t.Helper()
	for _, classical := range []string{"ok", "bad", "absent"} {
		for _, pq := range []string{"ok", "bad", "absent"} {
			var sigs []api.Signature
			for i, state := range []string{classical, pq} {
				switch state {
				case "ok":
					sigs = append(sigs, made[i])
				case "bad":
					sigs = append(sigs, spoil(made[i]))
				}
			}
			req := &api.VerifyRequest{PayloadB3: Digest(9), Sigs: sigs}
			if request != "" {
				req.Policy = &api.VerifyPolicy{Mode: request}
			}
			r, err := Do[api.VerifyResponse](k, s, "verify", req)
			if len(sigs) == 0 {
				if Code(err) != api.CodeBadRequest {
					t.Errorf("an empty bundle: %v", err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			state := classical + " " + pq
			if want := satisfied[mode][state]; r.OK != want || r.Details.Mode != mode {
				t.Errorf("%s under %s (request %q): ok %t under %s, want %t", state, mode, request, r.OK, r.Details.Mode, want)
			}
			wantReason := ""
			if !r.OK {
				wantReason = "signature"
				if !strings.Contains(state, "bad") {
					wantReason = "pq_policy"
				}
			}
			if r.Details.Reason != wantReason {
				t.Errorf("%s under %s: reason %q, want %q", state, mode, r.Details.Reason, wantReason)
			}
			// Each finding stands in the details, also where the whole holds.
			for i, check := range r.Details.Checked {
				if good := sigs[i] == made[0] || sigs[i] == made[1]; check.OK != good || (check.Reason == "signature") == good {
					t.Errorf("%s under %s: check %d is %+v", state, mode, i, check)
				}
			}
		}
	}
}

// A single-track key satisfies what its track can. D-17.
func TestVerifySingleTracks(t *testing.T) {
	t.Parallel()
	_, _, k := store(t)
	s := Session(t, k, "acme")
	for _, c := range []struct {
		alg  string
		want map[string]bool
	}{
		{"ed25519", map[string]bool{"": true, "or": true, "pq_only": false, "and": false}},
		{"ml-dsa-65", map[string]bool{"": true, "or": true, "pq_only": true, "and": false}},
	} {
		sigs := Sign(t, k, s, Create(t, k, s, c.alg).KID, Digest(1)).Sigs
		for mode, want := range c.want {
			r := Must[api.VerifyResponse](t, k, s, "verify", &api.VerifyRequest{PayloadB3: Digest(1), Sigs: sigs, Policy: &api.VerifyPolicy{Mode: mode}})
			if r.OK != want || !want && r.Details.Reason != "pq_policy" {
				t.Errorf("%s under %q: ok %t, %s", c.alg, mode, r.OK, r.Details.Reason)
			}
		}
	}
}

// A server that demands post-quantum signs and creates nothing that would not
// satisfy it, and old classical keys no longer verify.
func TestServerDemandsPQ(t *testing.T) {
	t.Parallel()
	cfg, _, k := store(t)
	s := Session(t, k, "acme")
	ed := Create(t, k, s, "ed25519").KID
	sigs := Sign(t, k, s, ed, Digest(1)).Sigs
	k.Close()
	strict := *cfg
	strict.PQVerifyMode = "pq_only"
	k = Open(t, &strict, core.Options{})
	s = Session(t, k, "acme")
	if _, err := Do[api.CreateResponse](k, s, "create", request("create", ed)); Code(err) != api.CodePqPolicy {
		t.Errorf("create: %v, want PqPolicy", err)
	}
	if _, err := Do[api.SignResponse](k, s, "sign", request("sign", ed)); Code(err) != api.CodePqPolicy {
		t.Errorf("sign: %v, want PqPolicy", err)
	}
	if r := Verify(t, k, s, Digest(1), sigs); r.OK || r.Details.Reason != "pq_policy" {
		t.Errorf("verify: %+v", r)
	}
	if _, err := Do[api.VerifyResponse](k, s, "verify", &api.VerifyRequest{PayloadB3: Digest(1), Sigs: sigs, Policy: &api.VerifyPolicy{Mode: "or"}}); err != nil {
		t.Errorf("a request may only tighten, and may say less: %v", err)
	}
}

// A signature holds for its payload, context, key, version and track, and for
// nothing else. D-1, D-3.
func TestSignatureBinding(t *testing.T) {
	t.Parallel()
	_, _, k := store(t)
	s := Session(t, k, "acme")
	for _, name := range algorithms {
		c := Create(t, k, s, name)
		other := Create(t, k, s, name)
		context := api.FormatBase64([]byte("invoice"))
		bound := Must[api.SignResponse](t, k, s, "sign", &api.SignRequest{KID: c.KID, PayloadB3: Digest(1), ContextB64: context}).Sigs
		plain := Sign(t, k, s, c.KID, Digest(1)).Sigs
		Rotate(t, k, s, c.KID)
		as := func(kid string, sigs []api.Signature) []api.Signature {
			out := append([]api.Signature(nil), sigs...)
			for i := range out {
				out[i].KID = kid
			}
			return out
		}
		v2 := strings.TrimSuffix(c.KID, "1") + "2"
		for _, x := range []struct {
			what            string
			digest, context string
			sigs            []api.Signature
			want            string // reason of refusal, "" if it holds
		}{
			{"as made", Digest(1), context, bound, ""},
			{"without context, as made", Digest(1), "", plain, ""},
			{"without its context", Digest(1), "", bound, "signature"},
			{"with a context it had not", Digest(1), context, plain, "signature"},
			{"with another context", Digest(1), api.FormatBase64([]byte("invoicf")), bound, "signature"},
			{"another payload", Digest(2), context, bound, "signature"},
			{"as of another key", Digest(1), context, as(other.KID, bound), "signature"},
			{"as of another version", Digest(1), context, as(v2, bound), "signature"},
			{"as of no version", Digest(1), context, as(strings.TrimSuffix(c.KID, "1")+"3", bound), "unknown-version"},
			{"as of no key", Digest(1), context, as("acme/test/"+c.Key.Alg+"/"+uuid.NewString()+"#v1", bound), "unknown-key"},
		} {
			r := Must[api.VerifyResponse](t, k, s, "verify", &api.VerifyRequest{PayloadB3: x.digest, ContextB64: x.context, Sigs: x.sigs})
			if r.OK != (x.want == "") || r.Details.Reason != x.want {
				t.Errorf("%s, %s: %+v", name, x.what, r)
			}
		}
		// A track that the key has not, and two tracks exchanged.
		wrong := as(c.KID, bound)[:1]
		wrong[0].Alg = "ml-dsa-44"
		if r := Verify(t, k, s, Digest(1), wrong); r.OK || r.Details.Checked[0].Reason != "alg" {
			t.Errorf("%s with a track it has not: %+v", name, r)
		}
		if len(plain) == 2 {
			swapped := as(c.KID, plain)
			swapped[0].SignatureB64, swapped[1].SignatureB64 = swapped[1].SignatureB64, swapped[0].SignatureB64
			if r := Verify(t, k, s, Digest(1), swapped); r.OK {
				t.Errorf("%s with its tracks exchanged verifies", name)
			}
		}
	}
}

// Bundles that are not well-formed are errors, not verdicts. D-3.
func TestVerifyRefuses(t *testing.T) {
	t.Parallel()
	k := Amnesia(t)
	s := Session(t, k, "acme")
	c := Create(t, k, s, "hybrid")
	sigs := Sign(t, k, s, c.KID, Digest(1)).Sigs
	other := Sign(t, k, s, Create(t, k, s, "hybrid").KID, Digest(1)).Sigs
	change := func(f func(*api.Signature)) []api.Signature {
		x := sigs[0]
		f(&x)
		return []api.Signature{x}
	}
	many := make([]api.Signature, 17)
	for i := range many {
		many[i] = sigs[0]
		many[i].Alg = fmt.Sprintf("a%d", i)
	}
	for what, x := range map[string]struct {
		req  *api.VerifyRequest
		want api.Reason
	}{
		"one twice":       {&api.VerifyRequest{PayloadB3: Digest(1), Sigs: []api.Signature{sigs[0], sigs[0]}}, api.ReasonDuplicateSig},
		"one twice, bad":  {&api.VerifyRequest{PayloadB3: Digest(1), Sigs: []api.Signature{spoil(sigs[0]), sigs[0]}}, api.ReasonDuplicateSig},
		"two keys":        {&api.VerifyRequest{PayloadB3: Digest(1), Sigs: []api.Signature{sigs[0], other[1]}}, api.ReasonMixedKeys},
		"no version":      {&api.VerifyRequest{PayloadB3: Digest(1), Sigs: change(func(x *api.Signature) { x.KID = strings.TrimSuffix(x.KID, "#v1") })}, api.ReasonKID},
		"loose base64":    {&api.VerifyRequest{PayloadB3: Digest(1), Sigs: change(func(x *api.Signature) { x.SignatureB64 += "\n" })}, api.ReasonBase64},
		"too many":        {&api.VerifyRequest{PayloadB3: Digest(1), Sigs: many}, api.ReasonTooMany},
		"none":            {&api.VerifyRequest{PayloadB3: Digest(1)}, api.ReasonMalformed},
		"no such mode":    {&api.VerifyRequest{PayloadB3: Digest(1), Sigs: sigs, Policy: &api.VerifyPolicy{Mode: "none"}}, api.ReasonMalformed},
		"upper-case hash": {&api.VerifyRequest{PayloadB3: strings.ToUpper(Digest(0xab)), Sigs: sigs}, api.ReasonDigest},
	} {
		if _, err := Do[api.VerifyResponse](k, s, "verify", x.req); !api.HasReason(err, x.want) {
			t.Errorf("%s: %v, want %s", what, err, x.want)
		}
	}
	// A signature of the wrong length is a wrong signature.
	for _, n := range []int{0, 1, 63, 65, 3308, 3310, 5000} {
		r, err := Do[api.VerifyResponse](k, s, "verify", &api.VerifyRequest{
			PayloadB3: Digest(1), Sigs: change(func(x *api.Signature) { x.SignatureB64 = api.FormatBase64(make([]byte, n)) })})
		if err != nil || r.OK {
			t.Errorf("a signature of %d bytes: %v, %v", n, r, err)
		}
	}
}
