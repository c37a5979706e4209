package core_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/config"
	. "github.com/rustyonions/ron-kms/core/coretest"
)

// subject is a key that a truth table is about, with a signature of each of its
// tracks, all made before the table's policy.
type subject struct {
	kind string // "hybrid", "companion", "classical"
	mode string // the key's own
	made []api.Signature
}

// All of {ok, bad, absent} x {ok, bad, absent} under each mode of the server,
// the key and the request, for hybrid keys, for classical keys with and without
// a companion track, without a grace period, within it and after it; each
// strictly and not., D-17.
func TestPhaseTruthTable(t *testing.T) {
	t.Parallel()
	cfg := Config(t)
	Init(t, cfg)
	clock := NewClock(time.Date(2031, 5, 1, 12, 0, 0, 0, time.UTC))
	k := Open(t, cfg, core.Options{Clock: clock.Now})
	s := Session(t, k, "acme")
	var subjects []subject
	for _, mode := range strength[1:] {
		for kind, req := range map[string]api.CreateRequest{
			"hybrid":    {Alg: "hybrid", Policy: &api.KeyPolicy{VerifyMode: mode}},
			"companion": {Alg: "ed25519", Policy: &api.KeyPolicy{VerifyMode: mode, ProduceHybrid: true}},
		} {
			subjects = append(subjects, subject{kind, mode, Sign(t, k, s, CreateWith(t, k, s, req).KID, Digest(9)).Sigs})
		}
	}
	subjects = append(subjects, subject{"classical", "or", Sign(t, k, s, Create(t, k, s, "ed25519").KID, Digest(9)).Sigs})
	for _, x := range subjects {
		if (len(x.made) == 1) != (x.kind == "classical") {
			t.Fatalf("a %s key made %d signatures", x.kind, len(x.made))
		}
	}
	k.Close()
	for _, server := range strength[1:] {
		for _, grace := range []time.Duration{0, time.Hour, -time.Hour} {
			phase := *cfg
			phase.PQVerifyMode = server
			if grace != 0 {
				phase.PQLegacyGraceUntil = config.Time{Time: clock.Now().Add(grace)}
			}
			k := Open(t, &phase, core.Options{Clock: clock.Now})
			s := Session(t, k, "acme")
			for _, x := range subjects {
				for _, request := range strength {
					forgiven := x.kind == "classical" && server != "or" && grace > 0
					mode := strictest(server, x.mode, request)
					if forgiven {
						mode = strictest(x.mode, request)
					}
					for _, strict := range []bool{false, true} {
						phaseTable(t, k, s, x, mode, forgiven, api.VerifyPolicy{Mode: request, Strict: strict})
					}
				}
			}
			k.Close()
		}
	}
}

func phaseTable(t *testing.T, k *core.KMS, s *core.Session, x subject, mode string, forgiven bool, policy api.VerifyPolicy) {
	t.Helper()
	pqs := []string{"ok", "bad", "absent"}
	if len(x.made) == 1 {
		pqs = pqs[2:]
	}
	for _, classical := range []string{"ok", "bad", "absent"} {
		for _, pq := range pqs {
			var sigs []api.Signature
			bad := false
			for i, state := range []string{classical, pq} {
				switch state {
				case "ok":
					sigs = append(sigs, x.made[i])
				case "bad":
					sigs, bad = append(sigs, spoil(x.made[i])), true
				}
			}
			if len(sigs) == 0 {
				continue // an empty bundle is no question
			}
			r := Must[api.VerifyResponse](t, k, s, "verify", &api.VerifyRequest{PayloadB3: Digest(9), Sigs: sigs, Policy: &policy})
			want := satisfied[mode][classical+" "+pq] && !(policy.Strict && bad)
			if r.OK != want || r.Details.Mode != mode || r.Details.Grace != forgiven {
				t.Errorf("%s key of mode %s: %s %s under %s, %+v: ok %t, %+v; want %t", x.kind, x.mode, classical, pq, mode, policy, r.OK, r.Details, want)
			}
			wantReason := ""
			if !want {
				wantReason = "signature"
				if !bad {
					wantReason = "pq_policy"
				}
			}
			if r.Details.Reason != wantReason {
				t.Errorf("%s key: %s %s under %s: reason %q, want %q", x.kind, classical, pq, mode, r.Details.Reason, wantReason)
			}
		}
	}
}

// A bundle of several keys holds if every key of the set is there and its own
// signatures are enough; or, where the caller asks for a smaller quorum, if so
// many keys with enough of their own have signed in each way. Every combination
// for an Ed25519, an ML-DSA and a hybrid key. R-062, D-2, D-3.
func TestKIDSetTruthTable(t *testing.T) {
	t.Parallel()
	k := Amnesia(t)
	s := Session(t, k, "acme")
	var set []string
	for _, name := range []string{"ed25519", "ml-dsa-65", "hybrid"} {
		set = append(set, Base(Create(t, k, s, name).KID))
	}
	made := Must[api.SignResponse](t, k, s, "sign", &api.SignRequest{KIDSet: set, PayloadB3: Digest(1), Policy: &api.SignPolicy{KClassical: 2, KPQ: 2}}).Sigs
	if len(made) != 4 {
		t.Fatalf("%d signatures by three keys", len(made))
	}
	// What each key contributes: signatures, whether they hold, and how many
	// keys it counts for.
	type part struct {
		sigs          []api.Signature
		ok            bool // the key has what it demands
		classical, pq int
	}
	e, p, hc, hp := made[0], made[1], made[2], made[3]
	absent := part{}
	var cases int
	for _, ed := range []part{absent, {[]api.Signature{e}, true, 1, 0}, {[]api.Signature{spoil(e)}, false, 0, 0}} {
		for _, pq := range []part{absent, {[]api.Signature{p}, true, 0, 1}, {[]api.Signature{spoil(p)}, false, 0, 0}} {
			for _, hybrid := range []part{
				absent, {[]api.Signature{hc, hp}, true, 1, 1}, {[]api.Signature{hc}, false, 0, 0},
				{[]api.Signature{hc, spoil(hp)}, false, 0, 0}, {[]api.Signature{spoil(hc), hp}, false, 0, 0},
			} {
				sigs := slices.Concat(ed.sigs, pq.sigs, hybrid.sigs)
				if len(sigs) == 0 {
					continue
				}
				for kc := range 4 {
					for kp := range 4 {
						cases++
						want := ed.classical+pq.classical+hybrid.classical >= kc && ed.pq+pq.pq+hybrid.pq >= kp
						if kc+kp == 0 {
							want = ed.ok && pq.ok && hybrid.ok
						}
						req := &api.VerifyRequest{PayloadB3: Digest(1), Sigs: sigs, KIDSet: set, Policy: &api.VerifyPolicy{KClassical: kc, KPQ: kp}}
						if r := Must[api.VerifyResponse](t, k, s, "verify", req); r.OK != want {
							t.Errorf("%v %v %v with k_classical %d and k_pq %d: %+v, want %t", ed.ok, pq.ok, hybrid.ok, kc, kp, r, want)
						}
					}
				}
			}
		}
	}
	if cases != 44*16 {
		t.Errorf("%d cases", cases)
	}
	// A single key counts once in each way, with and without a set.
	for _, c := range []struct {
		kc, kp int
		want   bool
	}{{0, 0, true}, {1, 1, true}, {2, 0, false}, {0, 2, false}} {
		for _, set := range [][]string{nil, set[2:], set} {
			if len(set) == 3 && c.kc+c.kp == 0 {
				continue // two are missing, see above
			}
			req := &api.VerifyRequest{PayloadB3: Digest(1), Sigs: made[2:], KIDSet: set, Policy: &api.VerifyPolicy{KClassical: c.kc, KPQ: c.kp}}
			if r := Must[api.VerifyResponse](t, k, s, "verify", req); r.OK != c.want || !c.want && r.Details.Reason != "pq_policy" {
				t.Errorf("one hybrid with %+v: %+v", c, r)
			}
		}
	}
}

// No key is counted twice, however it is named, and no key outside of the set
// is counted at all. R-062, D-3.
func TestKIDSetRefuses(t *testing.T) {
	t.Parallel()
	_, _, k := store(t)
	s := Session(t, k, "acme")
	a, b := Base(Create(t, k, s, "ed25519").KID), Base(Create(t, k, s, "hybrid").KID)
	first := Sign(t, k, s, a, Digest(1)).Sigs
	Rotate(t, k, s, a)
	second := Sign(t, k, s, a, Digest(1)).Sigs
	hybrid := Sign(t, k, s, b, Digest(1)).Sigs
	outside := Sign(t, k, s, Create(t, k, s, "ed25519").KID, Digest(1)).Sigs
	other := Create(t, k, Session(t, k, "other"), "ed25519").KID
	var nine []string
	for range 9 {
		nine = append(nine, "acme/test/ed25519/"+uuid.NewString())
	}
	for what, c := range map[string]struct {
		set  []string
		sigs []api.Signature
		want api.Reason
	}{
		"two versions of a key":              {[]string{a}, slices.Concat(first, second), api.ReasonDuplicateSig},
		"one signature twice":                {[]string{a, b}, slices.Concat(second, hybrid, second), api.ReasonDuplicateSig},
		"one twice, once bad":                {[]string{a}, []api.Signature{second[0], spoil(second[0])}, api.ReasonDuplicateSig},
		"a key named twice":                  {[]string{a, b, a}, second, api.ReasonDuplicateSig},
		"a key named twice, by its versions": {[]string{a + "#v1", a + "#v2"}, second, api.ReasonDuplicateSig},
		"a key that is not in the set":       {[]string{a, b}, slices.Concat(second, outside), api.ReasonMixedKeys},
		"a version that is not in the set":   {[]string{a + "#v2", b}, first, api.ReasonMixedKeys},
		"no set":                             {nil, slices.Concat(second, hybrid), api.ReasonMixedKeys},
		"a set of two tenants":               {[]string{a, other}, second, api.ReasonMixedKeys},
		"nine keys":                          {nine, second, api.ReasonTooMany},
	} {
		if _, err := Do[api.VerifyResponse](k, s, "verify", &api.VerifyRequest{PayloadB3: Digest(1), Sigs: c.sigs, KIDSet: c.set}); !api.HasReason(err, c.want) {
			t.Errorf("verify, %s: %v, want %s", what, err, c.want)
		}
	}
	for what, c := range map[string]struct {
		req  api.SignRequest
		want api.Reason
	}{
		"a key named twice":    {api.SignRequest{KIDSet: []string{a, b, a + "#v2"}}, api.ReasonDuplicateSig},
		"two tenants":          {api.SignRequest{KIDSet: []string{a, other}}, api.ReasonMixedKeys},
		"nine keys":            {api.SignRequest{KIDSet: nine}, api.ReasonTooMany},
		"a key and a set":      {api.SignRequest{KID: a, KIDSet: []string{b}}, api.ReasonMalformed},
		"neither":              {api.SignRequest{}, api.ReasonKID},
		"one key is not there": {api.SignRequest{KIDSet: []string{a, nine[0]}}, api.ReasonNotFound},
		"one version is stale": {api.SignRequest{KIDSet: []string{b, a + "#v1"}}, api.ReasonStaleVersion},
		"too few classical":    {api.SignRequest{KIDSet: []string{a, b}, Policy: &api.SignPolicy{KClassical: 3}}, api.ReasonPq},
		"too few post-quantum": {api.SignRequest{KIDSet: []string{a, b}, Policy: &api.SignPolicy{KPQ: 2}}, api.ReasonPq},
		"one cannot":           {api.SignRequest{KIDSet: []string{b, a}, Policy: &api.SignPolicy{Mode: "and"}}, api.ReasonPq},
	} {
		c.req.PayloadB3 = Digest(1)
		if r, err := Do[api.SignResponse](k, s, "sign", &c.req); !api.HasReason(err, c.want) || r != nil {
			t.Errorf("sign, %s: %v, want %s", what, err, c.want)
		}
	}
}

// Signing with a set leaves one record for each key, with the digest, and a
// capability for some of the keys does not do..
func TestKIDSetRecordsAndRights(t *testing.T) {
	t.Parallel()
	cfg, report, k := store(t)
	s := Session(t, k, "acme")
	a, b := Base(Create(t, k, s, "ed25519").KID), Base(Create(t, k, s, "hybrid").KID)
	r := Must[api.SignResponse](t, k, s, "sign", &api.SignRequest{KIDSet: []string{a, b}, PayloadB3: Digest(0x42)})
	narrow, err := k.OpenSession(Token(t, k, "acme", nil, "kid-prefix="+a))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Do[api.SignResponse](k, narrow, "sign", &api.SignRequest{KIDSet: []string{a, b}, PayloadB3: Digest(0x43)}); Code(err) != api.CodeNoCapability {
		t.Errorf("sign with a right to one key of two: %v", err)
	}
	if _, err := Do[api.VerifyResponse](k, narrow, "verify", &api.VerifyRequest{KIDSet: []string{a, b}, PayloadB3: Digest(0x42), Sigs: r.Sigs}); Code(err) != api.CodeNoCapability {
		t.Errorf("verify with a right to one key of two: %v", err)
	}
	k.Close()
	var got []string
	var last uint64
	for _, e := range Audit(t, cfg, report.VerifierKey) {
		if e.Op == "sign" && e.Result == "ok" {
			got = append(got, fmt.Sprintf("%s#v%d %x", e.Key, e.KeyVersion, e.InputHash))
			last = e.Index
		}
	}
	if want := []string{a + "#v1 " + Digest(0x42), b + "#v1 " + Digest(0x42)}; !slices.Equal(got, want) || r.Receipt.LogIndex != last {
		t.Errorf("records %v, receipt %+v, want %v", got, r.Receipt, want)
	}
}
