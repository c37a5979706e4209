package core_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
	. "github.com/rustyonions/ron-kms/core/coretest"
)

var algorithms = []string{"ed25519", "ml-dsa-65", "ed25519+ml-dsa-65"}

// Versions 1 to 50 of a key of each algorithm: every signature ever made goes
// on verifying, after every rotation, after a restart and after the key is
// destroyed; only the head signs..
func TestFiftyVersions(t *testing.T) {
	t.Parallel()
	const versions = 50
	_, _, k := store(t)
	s := Session(t, k, "acme")
	kids := make(map[string]string)
	made := make(map[string][][]api.Signature)
	for _, name := range algorithms {
		c := Create(t, k, s, name)
		kids[name] = c.Key.KID[:len(c.Key.KID)-len("#v1")]
		if c.KID != kids[name]+"#v1" || c.Key.Head != 1 || c.Key.State != api.StateActive || c.Key.Scheme != api.SchemeV1 {
			t.Fatalf("created %+v", c)
		}
		for n := 1; n <= versions; n++ {
			if n > 1 {
				r := Rotate(t, k, s, kids[name])
				want := fmt.Sprintf("%s#v%d", kids[name], n)
				if r.KID != want || r.Previous != fmt.Sprintf("%s#v%d", kids[name], n-1) || r.Key.Head != uint32(n) {
					t.Fatalf("rotated to %s from %s, want %s", r.KID, r.Previous, want)
				}
			}
			sig := Sign(t, k, s, kids[name], Digest(byte(n)))
			if sig.KID != fmt.Sprintf("%s#v%d", kids[name], n) {
				t.Fatalf("version %d signed as %s", n, sig.KID)
			}
			made[name] = append(made[name], sig.Sigs)
		}
	}
	all := func(when string) {
		t.Helper()
		for name, sigs := range made {
			for i, sig := range sigs {
				if r := Verify(t, k, s, Digest(byte(i+1)), sig); !r.OK {
					t.Fatalf("%s: %s v%d does not verify: %+v", when, name, i+1, r.Details)
				}
				if i%10 == 0 {
					if Verify(t, k, s, Digest(byte(i+2)), sig).OK {
						t.Fatalf("%s: %s v%d verifies for another payload", when, name, i+1)
					}
				}
			}
		}
	}
	all("after rotating")
	k = reopen(t, k)
	s = Session(t, k, "acme")
	all("after reopening")
	for _, name := range algorithms {
		key := Get(t, k, s, kids[name]).Key
		if len(key.Versions) != versions || key.Head != versions {
			t.Fatalf("%s has %d versions, head %d", name, len(key.Versions), key.Head)
		}
		for i, v := range key.Versions {
			want := api.StateRetired
			if i == versions-1 {
				want = api.StateActive
			}
			if v.Version != uint32(i+1) || v.State != want || v.AttestationClass != "software" {
				t.Fatalf("%s version %d is %+v", name, i+1, v)
			}
		}
		if next := Rotate(t, k, s, kids[name]); next.Key.Head != versions+1 {
			t.Fatalf("the head went to %d after reopening", next.Key.Head)
		}
		d := Destroy(t, k, s, kids[name])
		if d.Key.State != api.StateDestroyed || d.KID != kids[name] {
			t.Fatalf("destroyed %+v", d)
		}
	}
	all("after destroying")
	k = reopen(t, k)
	s = Session(t, k, "acme")
	all("after destroying and reopening")
}

// What a key in each state refuses, and with which code. D-30.
func TestRefusals(t *testing.T) {
	t.Parallel()
	_, _, k := store(t)
	s := Session(t, k, "acme")
	rotated := Create(t, k, s, "ed25519").KID
	Rotate(t, k, s, rotated[:len(rotated)-1]+"1")
	base := rotated[:len(rotated)-len("#v1")]
	dead := Create(t, k, s, "ed25519").KID
	Rotate(t, k, s, dead)
	dead = dead[:len(dead)-len("#v1")]
	Destroy(t, k, s, dead)
	headless := Create(t, k, s, "ed25519").KID
	Destroy(t, k, s, headless)
	headless = headless[:len(headless)-len("#v1")]
	hybrid := Create(t, k, s, "hybrid").KID
	missing := "acme/test/ed25519/" + uuid.NewString()
	digest, id := Digest(7), uuid.NewString

	for _, reopened := range []bool{false, true} {
		if reopened {
			k = reopen(t, k)
			s = Session(t, k, "acme")
		}
		for _, c := range []struct {
			name string
			verb string
			req  api.Request
			code api.Code
		}{
			{"sign with the old version", "sign", &api.SignRequest{KID: base + "#v1", PayloadB3: digest}, api.CodeStaleVersion},
			{"sign with a version to come", "sign", &api.SignRequest{KID: base + "#v3", PayloadB3: digest}, api.CodeNotFound},
			{"sign with the head by name", "sign", &api.SignRequest{KID: base + "#v2", PayloadB3: digest}, ""},
			{"rotate from the old version", "rotate", &api.RotateRequest{OpID: id(), KID: base + "#v1"}, api.CodeStaleVersion},
			{"rotate from a version to come", "rotate", &api.RotateRequest{OpID: id(), KID: base + "#v9"}, api.CodeStaleVersion},
			{"destroy a version to come", "destroy", &api.DestroyRequest{OpID: id(), KID: base + "#v9"}, api.CodeNotFound},
			{"get a version to come", "get", &api.GetRequest{KID: base + "#v9"}, api.CodeNotFound},
			{"get a version", "get", &api.GetRequest{KID: base + "#v1"}, ""},
			{"sign with a destroyed key", "sign", &api.SignRequest{KID: dead, PayloadB3: digest}, api.CodeKeyDestroyed},
			{"sign with a destroyed version", "sign", &api.SignRequest{KID: dead + "#v1", PayloadB3: digest}, api.CodeKeyDestroyed},
			{"rotate a destroyed key", "rotate", &api.RotateRequest{OpID: id(), KID: dead}, api.CodeKeyDestroyed},
			{"destroy a destroyed key", "destroy", &api.DestroyRequest{OpID: id(), KID: dead}, ""},
			{"get a destroyed key", "get", &api.GetRequest{KID: dead}, ""},
			{"sign with a destroyed head", "sign", &api.SignRequest{KID: headless, PayloadB3: digest}, api.CodeKeyDestroyed},
			{"sign with no key", "sign", &api.SignRequest{KID: missing, PayloadB3: digest}, api.CodeNotFound},
			{"rotate no key", "rotate", &api.RotateRequest{OpID: id(), KID: missing}, api.CodeNotFound},
			{"destroy no key", "destroy", &api.DestroyRequest{OpID: id(), KID: missing}, api.CodeNotFound},
			{"get no key", "get", &api.GetRequest{KID: missing}, api.CodeNotFound},
			{"export", "export", &api.ExportRequest{KID: base}, api.CodeExportForbidden},
			{"export no key", "export", &api.ExportRequest{KID: missing}, api.CodeExportForbidden},
			{"create an unknown alg", "create", &api.CreateRequest{OpID: id(), Tenant: "acme", Purpose: "test", Alg: "rsa-2048"}, api.CodeUnsupported},
			{"sign with no such track", "sign", &api.SignRequest{KID: base, PayloadB3: digest, Alg: "ml-dsa-65"}, api.CodeUnsupported},
			{"sign with half of a hybrid", "sign", &api.SignRequest{KID: hybrid, PayloadB3: digest, Alg: "ed25519"}, api.CodePqPolicy},
			{"sign with the other half", "sign", &api.SignRequest{KID: hybrid, PayloadB3: digest, Alg: "ml-dsa-65"}, api.CodePqPolicy},
			{"create ed25519 that demands pq", "create", &api.CreateRequest{
				OpID: id(), Tenant: "acme", Purpose: "test", Alg: "ed25519", Policy: &api.KeyPolicy{VerifyMode: "pq_only"}}, api.CodePqPolicy},
			{"create ml-dsa that demands both", "create", &api.CreateRequest{
				OpID: id(), Tenant: "acme", Purpose: "test", Alg: "ml-dsa-65", Policy: &api.KeyPolicy{VerifyMode: "and"}}, api.CodePqPolicy},
			{"create with no such mode", "create", &api.CreateRequest{
				OpID: id(), Tenant: "acme", Purpose: "test", Alg: "ed25519", Policy: &api.KeyPolicy{VerifyMode: "off"}}, api.CodeBadRequest},
		} {
			verb, _ := core.VerbNamed(c.verb)
			_, err := k.Do(context.Background(), s, verb, c.req)
			if Code(err) != c.code {
				t.Errorf("%s (reopened %t): %v, want %q", c.name, reopened, err, c.code)
			}
		}
	}
	if head := Get(t, k, s, base).Key.Head; head != 2 {
		t.Errorf("refused rotations moved the head to %d", head)
	}
	// A destroyed head is not the end: the next version signs.
	if r := Rotate(t, k, s, headless); r.Key.Head != 2 {
		t.Errorf("rotated to %d", r.Key.Head)
	}
	Sign(t, k, s, headless, digest)
	if v := Get(t, k, s, headless+"#v1").Key.Versions; len(v) != 1 || v[0].State != api.StateDestroyed {
		t.Errorf("the destroyed version became %+v", v)
	}
}

// What a key signs with: all tracks, or the one asked for where policy is
// content with it.
func TestTrackSelection(t *testing.T) {
	t.Parallel()
	k := Amnesia(t)
	s := Session(t, k, "acme")
	either := Must[api.CreateResponse](t, k, s, "create", &api.CreateRequest{
		OpID: uuid.NewString(), Tenant: "acme", Purpose: "test", Alg: "hybrid", Policy: &api.KeyPolicy{VerifyMode: "or"},
	})
	pq := Must[api.CreateResponse](t, k, s, "create", &api.CreateRequest{
		OpID: uuid.NewString(), Tenant: "acme", Purpose: "test", Alg: "hybrid", Policy: &api.KeyPolicy{VerifyMode: "pq_only"},
	})
	both := Create(t, k, s, "hybrid")
	if both.Key.Alg != "ed25519+ml-dsa-65" || both.Key.Policy.VerifyMode != "and" {
		t.Fatalf("a hybrid by its alias became %+v", both.Key)
	}
	for _, c := range []struct {
		kid, alg string
		want     []string // nil: refused
	}{
		{either.KID, "", []string{"ed25519", "ml-dsa-65"}},
		{either.KID, "ed25519", []string{"ed25519"}},
		{either.KID, "ml-dsa-65", []string{"ml-dsa-65"}},
		{pq.KID, "", []string{"ed25519", "ml-dsa-65"}},
		{pq.KID, "ml-dsa-65", []string{"ml-dsa-65"}},
		{pq.KID, "ed25519", nil},
		{both.KID, "", []string{"ed25519", "ml-dsa-65"}},
		{both.KID, "ed25519", nil},
	} {
		resp, err := Do[api.SignResponse](k, s, "sign", &api.SignRequest{KID: c.kid, PayloadB3: Digest(1), Alg: c.alg})
		if c.want == nil {
			if Code(err) != api.CodePqPolicy {
				t.Errorf("%s with %q: %v, want PqPolicy", c.kid, c.alg, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s with %q: %v", c.kid, c.alg, err)
			continue
		}
		var got []string
		for _, sig := range resp.Sigs {
			got = append(got, sig.Alg)
		}
		if !slices.Equal(got, c.want) || !Verify(t, k, s, Digest(1), resp.Sigs).OK {
			t.Errorf("%s with %q: %v, want %v", c.kid, c.alg, got, c.want)
		}
	}
}

// get and list show public material and nothing else, in pages..
func TestGetAndList(t *testing.T) {
	t.Parallel()
	_, _, k := store(t)
	s := Session(t, k, "acme")
	other := Session(t, k, "other")
	var want []string
	for i := range 7 {
		c := Must[api.CreateResponse](t, k, s, "create", &api.CreateRequest{
			OpID: uuid.NewString(), Tenant: "acme", Purpose: fmt.Sprintf("p%d", i%2), Alg: "ed25519",
		})
		want = append(want, c.KID)
	}
	Create(t, k, other, "ed25519")
	slices.Sort(want)
	for range 2 {
		for _, limit := range []int{0, 1, 2, 3, 7, 500} {
			var got []string
			after := ""
			for pages := 0; ; pages++ {
				r := Must[api.ListResponse](t, k, s, "list", &api.ListRequest{Tenant: "acme", After: after, Limit: limit})
				for _, key := range r.Keys {
					got = append(got, key.KID)
				}
				if after = r.Next; after == "" {
					break
				}
				if pages > 10 {
					t.Fatal("the pages do not end")
				}
			}
			if !slices.Equal(got, want) {
				t.Fatalf("with limit %d: %v, want %v", limit, got, want)
			}
		}
		if r := Must[api.ListResponse](t, k, s, "list", &api.ListRequest{Tenant: "acme", Purpose: "p1"}); len(r.Keys) != 3 {
			t.Fatalf("%d keys of one purpose", len(r.Keys))
		}
		if r := Must[api.ListResponse](t, k, s, "list", &api.ListRequest{Tenant: "acme", Purpose: "p"}); len(r.Keys) != 0 {
			t.Fatalf("a purpose is not a prefix: %d keys", len(r.Keys))
		}
		one := Get(t, k, s, want[0])
		if pub, err := base64.StdEncoding.DecodeString(one.Key.Versions[0].Public[0].PubkeyB64); err != nil || len(pub) != 32 {
			t.Fatalf("public key %v, %v", pub, err)
		}
		k = reopen(t, k)
		s = Session(t, k, "acme")
	}
}

// kms_keys_total counts the keys that can sign, also after a restart. R-293.
func TestKeysGauge(t *testing.T) {
	t.Parallel()
	_, _, k := store(t)
	s := Session(t, k, "acme")
	gauge := func() float64 {
		return metric(t, k, "kms_keys_total", "tenant=acme", "purpose=test", "alg=ed25519")
	}
	check := func(when string, want float64) {
		t.Helper()
		if got := gauge(); got != want {
			t.Errorf("%s: %v keys, want %v", when, got, want)
		}
	}
	a, b, c := Create(t, k, s, "ed25519").KID, Create(t, k, s, "ed25519").KID, Create(t, k, s, "ed25519").KID
	check("created", 3)
	Rotate(t, k, s, a)
	check("rotated", 3)
	Destroy(t, k, s, b[:len(b)-3])
	check("destroyed", 2)
	Destroy(t, k, s, b[:len(b)-3])
	check("destroyed again", 2)
	Destroy(t, k, s, a) // version 1, retired
	check("an old version destroyed", 2)
	Destroy(t, k, s, c) // the head: nothing signs
	check("the head destroyed", 1)
	k = reopen(t, k)
	s = Session(t, k, "acme")
	check("reopened", 1)
	Rotate(t, k, s, c[:len(c)-3])
	check("rotated past the destroyed head", 2)
}

// KMS_ALLOWED_ALGS narrows what a store can do, also for keys that are there
// already: an algorithm that was taken off the list makes, opens and verifies
// nothing, and its keys can still be seen and destroyed..
func TestAllowedAlgs(t *testing.T) {
	t.Parallel()
	cfg, _, k := store(t)
	s := Session(t, k, "acme")
	kids := make(map[string]string)
	sigs := make(map[string][]api.Signature)
	envelopes := make(map[string]string)
	for _, a := range alg.All() {
		kid := Create(t, k, s, a.Name()).KID
		kids[a.Name()] = kid
		switch {
		case a.Allows(alg.OpSign):
			sigs[a.Name()] = Sign(t, k, s, kid, Digest(1)).Sigs
		case a.Allows(alg.OpWrap):
			envelopes[a.Name()] = Wrap(t, k, s, kid, 32).WrappedB64
		}
	}
	child := Derive(t, k, s, kids["hkdf-sha256"], "ctx", "ed25519").KID
	k.Close()
	for _, a := range alg.All() { // each taken off in turn
		narrow := *cfg
		for _, b := range alg.All() {
			if b == a {
				continue
			}
			name := b.Name()
			if name == "ed25519+ml-dsa-65" {
				name = "hybrid" // aliases are names too
			}
			narrow.AllowedAlgs = append(narrow.AllowedAlgs, name)
		}
		k = Open(t, &narrow, core.Options{})
		s = Session(t, k, "acme")
		for name, kid := range kids {
			want := api.Code("")
			if name == a.Name() {
				want = api.CodeUnsupported
			}
			requests := map[string]api.Request{
				"create": &api.CreateRequest{OpID: uuid.NewString(), Tenant: "acme", Purpose: "test", Alg: name},
				"get":    &api.GetRequest{KID: kid},
			}
			if want != "" { // only refused: it would move the others' heads
				requests["rotate"] = &api.RotateRequest{OpID: uuid.NewString(), KID: kid}
			}
			switch b, _ := alg.Lookup(name); b.Kind() {
			case alg.KindSign:
				requests["sign"] = &api.SignRequest{KID: kid, PayloadB3: Digest(1)}
				requests["sign_batch"] = &api.SignBatchRequest{KID: kid, Items: []api.SignItem{{PayloadB3: Digest(1)}}}
				requests["verify"] = &api.VerifyRequest{PayloadB3: Digest(1), Sigs: sigs[name]}
			case alg.KindKDF:
				requests["derive"] = &api.DeriveRequest{OpID: uuid.NewString(), KID: kid, Context: "other", Alg: "aes-256-gcm"}
				if a.Name() == "aes-256-gcm" {
					requests["derive"] = &api.DeriveRequest{OpID: uuid.NewString(), KID: kid, Context: "third", Alg: "x25519"}
				}
			default:
				requests["wrap"] = &api.WrapRequest{KID: kid, Size: 32}
				requests["unwrap"] = &api.UnwrapRequest{KID: kid, WrappedB64: envelopes[name]}
				requests["rewrap"] = &api.RewrapRequest{KID: kid, WrappedB64: envelopes[name]}
			}
			for verb, req := range requests {
				want := want
				if verb == "get" {
					want = ""
				}
				v, _ := core.VerbNamed(verb)
				if r, err := k.Do(context.Background(), s, v, req); Code(err) != want || want != "" && r != nil {
					t.Errorf("without %s: %s of %s: %v, want %q", a.Name(), verb, name, err, want)
				}
			}
		}
		if _, err := Do[api.DeriveResponse](k, s, "derive", &api.DeriveRequest{OpID: uuid.NewString(), KID: kids["hkdf-sha256"], Context: "new", Alg: a.Name()}); Code(err) != api.CodeUnsupported {
			t.Errorf("derive a child of %s: %v, want Unsupported", a.Name(), err)
		}
		if a.Name() == "ed25519" {
			if _, err := Do[api.SignResponse](k, s, "sign", &api.SignRequest{KID: child, PayloadB3: Digest(1)}); Code(err) != api.CodeUnsupported {
				t.Errorf("sign with a child of an algorithm that is not allowed: %v", err)
			}
			Destroy(t, k, s, Base(child))
		}
		k.Close()
	}
}

// The generic call is strict and bounded. R-303.
func TestCall(t *testing.T) {
	t.Parallel()
	cfg, _, k := store(t)
	s := Session(t, k, "acme")
	ctx := context.Background()
	create := `{"op_id":"` + uuid.NewString() + `","tenant":"acme","purpose":"test","alg":"ed25519"}`
	if _, err := k.Call(ctx, s, "create", []byte(create)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		verb, body string
		code       api.Code
	}{
		"no verb":       {"steal", "{}", api.CodeUnsupported},
		"empty":         {"create", "", api.CodeBadRequest},
		"unknown field": {"create", create[:len(create)-1] + `,"extra":1}`, api.CodeBadRequest},
		"twice":         {"create", create[:len(create)-1] + `,"alg":"ed25519"}`, api.CodeBadRequest},
		"too large":     {"create", create + string(make([]byte, cfg.MaxPayload)), api.CodeTooLarge},
		"no op_id":      {"create", `{"tenant":"acme","purpose":"test","alg":"ed25519"}`, api.CodeBadRequest},
		"path":          {"get", `{"kid":"acme/../ed25519/` + uuid.NewString() + `"}`, api.CodeBadRequest},
	} {
		if _, err := k.Call(ctx, s, c.verb, []byte(c.body)); Code(err) != c.code {
			t.Errorf("%s: %v, want %s", name, err, c.code)
		}
	}
}

// Sessions are bounded in time, and a deadline that has passed does nothing.
func TestTimes(t *testing.T) {
	t.Parallel()
	cfg := Config(t)
	Init(t, cfg)
	now := time.Now()
	k := Open(t, cfg, core.Options{Clock: func() time.Time { return now }})
	s := Session(t, k, "acme")
	kid := Create(t, k, s, "ed25519").KID

	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	verb, _ := core.VerbNamed("rotate")
	if _, err := k.Do(ctx, s, verb, &api.RotateRequest{OpID: uuid.NewString(), KID: kid}); Code(err) != api.CodeTimeout {
		t.Errorf("a cancelled rotate: %v, want Timeout", err)
	}
	if head := Get(t, k, s, kid).Key.Head; head != 1 {
		t.Errorf("a cancelled rotate moved the head to %d", head)
	}

	token := Token(t, k, "acme", nil)
	now = now.Add(2 * time.Hour)
	for _, verb := range core.Verbs() {
		_, err := k.Do(context.Background(), s, verb, request(verb.Name, kid))
		if e := api.AsError(err); err == nil || e.Code != api.CodeNoCapability || e.HTTP != 401 {
			t.Errorf("%s with an expired session: %v, want NoCapability 401", verb.Name, err)
		}
	}
	if _, err := k.OpenSession(token); !api.HasReason(err, api.ReasonTokenExpired) {
		t.Errorf("an expired token: %v", err)
	}
	fresh := Session(t, k, "acme")
	fresh.Close()
	fresh.Close()
	if _, err := Do[api.GetResponse](k, fresh, "get", &api.GetRequest{KID: kid}); !api.HasReason(err, api.ReasonHandle) {
		t.Errorf("a closed session: %v", err)
	}
	if _, err := Do[api.GetResponse](k, nil, "get", &api.GetRequest{KID: kid}); Code(err) != api.CodeNoCapability {
		t.Errorf("no session: %v", err)
	}
	other := Amnesia(t)
	if _, err := Do[api.GetResponse](other, Session(t, k, "acme"), "get", &api.GetRequest{KID: kid}); Code(err) != api.CodeNoCapability {
		t.Errorf("a session of another KMS: %v", err)
	}
	if _, err := other.OpenSession(Token(t, k, "acme", nil)); Code(err) != api.CodeNoCapability {
		t.Errorf("a token of another KMS: %v", err)
	}
}

// Two opens of one store, and stores that are not there..
func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	cfg, _, k := store(t)
	pass := func() ([]byte, error) { return []byte(Passphrase), nil }
	try := func(o core.Options) error {
		k, err := core.Open(context.Background(), cfg, o)
		if err == nil {
			k.Close()
		}
		return err
	}
	if err := try(core.Options{Passphrase: pass}); !api.HasReason(err, api.ReasonStoreBusy) {
		t.Errorf("an open store: %v", err)
	}
	k.Close()
	if err := try(core.Options{Passphrase: func() ([]byte, error) { return []byte("wrong"), nil }}); !api.HasReason(err, api.ReasonPassphrase) {
		t.Errorf("a wrong passphrase: %v", err)
	}
	if err := try(core.Options{}); !api.HasReason(err, api.ReasonPassphrase) {
		t.Errorf("no passphrase: %v", err)
	}
	if err := try(core.Options{Passphrase: func() ([]byte, error) { return nil, errors.New("no terminal") }}); !api.HasReason(err, api.ReasonPassphrase) {
		t.Errorf("no passphrase to be had: %v", err)
	}
	if _, err := core.Init(context.Background(), cfg, []byte(Passphrase), core.InitOptions{WorkFactor: WorkFactor}); !api.HasReason(err, api.ReasonStoreExists) {
		t.Errorf("init over a store: %v", err)
	}
	if err := try(core.Options{Passphrase: pass}); err != nil {
		t.Errorf("the refusals harmed the store: %v", err)
	}
}
