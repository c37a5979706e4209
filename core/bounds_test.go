package core_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/config"
	. "github.com/rustyonions/ron-kms/core/coretest"
)

// amnesiaWith opens an in-memory KMS with changed settings.
func amnesiaWith(t *testing.T, change func(*config.Config)) *core.KMS {
	t.Helper()
	cfg := config.Default()
	cfg.Backend = config.BackendInmem
	cfg.ArenaSize = 1 << 20
	change(cfg)
	return Open(t, cfg, core.Options{})
}

func create(opID, alg string, policy *api.KeyPolicy) *api.CreateRequest {
	return &api.CreateRequest{OpID: opID, Tenant: "acme", Purpose: "test", Alg: alg, Policy: policy}
}

// A request that asks for one track cannot undo what policy produces. R-232,
//
func TestOneTrackIsNotLessThanPolicy(t *testing.T) {
	t.Parallel()
	k := amnesiaWith(t, func(c *config.Config) { c.PQProduceHybrid = true })
	s := Session(t, k, "acme")
	kid := Create(t, k, s, "ed25519").KID
	if got := Sign(t, k, s, kid, Digest(1)); len(got.Sigs) != 2 {
		t.Fatalf("%d signatures, want two", len(got.Sigs))
	}
	for _, track := range []string{"ed25519", "ml-dsa-65"} {
		_, err := Do[api.SignResponse](k, s, "sign", &api.SignRequest{KID: kid, PayloadB3: Digest(1), Alg: track})
		if !api.HasReason(err, api.ReasonPq) {
			t.Errorf("%s alone: %v", track, err)
		}
	}
}

// A retry is answered from the store even if policy has changed since. R-130,
// D-15.
func TestRetryAfterPolicyChange(t *testing.T) {
	t.Parallel()
	cfg := Config(t)
	Init(t, cfg)
	k := Open(t, cfg, core.Options{})
	opID := uuid.NewString()
	first := Must[api.CreateResponse](t, k, Session(t, k, "acme"), "create", create(opID, "ed25519", nil))
	k.Close()
	cfg.PQVerifyMode = "and"
	cfg.AllowedAlgs = []string{"ed25519+ml-dsa-65"}
	k = Open(t, cfg, core.Options{})
	s := Session(t, k, "acme")
	again := Must[api.CreateResponse](t, k, s, "create", create(opID, "ed25519", nil))
	if again.KID != first.KID {
		t.Fatalf("%s, want %s", again.KID, first.KID)
	}
	if _, err := Do[api.CreateResponse](k, s, "create", create(uuid.NewString(), "ed25519", nil)); err == nil {
		t.Fatal("a new key was made against policy")
	}
}

// A rotation that would leave a head that cannot sign is refused, and the old
// head stays. D-2, D-17.
func TestRotateIntoUselessness(t *testing.T) {
	t.Parallel()
	cfg := Config(t)
	Init(t, cfg)
	k := Open(t, cfg, core.Options{})
	kid := Create(t, k, Session(t, k, "acme"), "ed25519").KID
	k.Close()
	cfg.PQVerifyMode = "and"
	k = Open(t, cfg, core.Options{})
	s := Session(t, k, "acme")
	_, err := Do[api.RotateResponse](k, s, "rotate", &api.RotateRequest{OpID: uuid.NewString(), KID: kid})
	if !api.HasReason(err, api.ReasonPq) {
		t.Fatal(err)
	}
	if got := Get(t, k, s, kid); got.Key.Head != 1 || got.Key.Versions[0].State != api.StateActive {
		t.Fatalf("%+v", got.Key)
	}
}

// What a creator asks for and cannot have is refused, not forgotten.
func TestPolicyIsHonouredOrRefused(t *testing.T) {
	t.Parallel()
	k := Amnesia(t)
	s := Session(t, k, "acme")
	for _, c := range []struct {
		alg    string
		scheme api.Scheme
		policy api.KeyPolicy
	}{
		{"ed25519", api.SchemeRaw, api.KeyPolicy{ProduceHybrid: true}},
		{"ed25519", api.SchemeRawB3, api.KeyPolicy{ProduceHybrid: true}},
		{"ml-dsa-65", "", api.KeyPolicy{ProduceHybrid: true}},
		{"aes-256-gcm", "", api.KeyPolicy{ProduceHybrid: true}},
		{"x25519+ml-kem-768", "", api.KeyPolicy{VerifyMode: "and"}},
	} {
		req := create(uuid.NewString(), c.alg, &c.policy)
		req.Scheme = c.scheme
		if _, err := Do[api.CreateResponse](k, s, "create", req); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
	got := Must[api.CreateResponse](t, k, s, "create", create(uuid.NewString(), "ed25519", &api.KeyPolicy{ProduceHybrid: true}))
	if got.Key.Policy.VerifyMode != "and" || got.Key.Versions[0].Suite != "ed25519+ml-dsa-65" {
		t.Errorf("%+v", got.Key)
	}
}

// The request belongs to the caller again after the call: changing it does not
// change the key.
func TestRequestIsNotKept(t *testing.T) {
	t.Parallel()
	k := Amnesia(t)
	s := Session(t, k, "acme")
	policy := &api.KeyPolicy{Validity: &api.Validity{NotAfterMS: 1}}
	kid := Must[api.CreateResponse](t, k, s, "create", create(uuid.NewString(), "ed25519", policy)).KID
	policy.Validity.NotAfterMS = time.Now().Add(time.Hour).UnixMilli()
	if _, err := Do[api.SignResponse](k, s, "sign", &api.SignRequest{KID: kid, PayloadB3: Digest(1)}); !api.HasReason(err, api.ReasonTimeSkew) {
		t.Fatal(err)
	}
}

// The allow-list holds for companions too, and for the configuration that asks
// for them..
func TestCompanionMustBeAllowed(t *testing.T) {
	t.Parallel()
	cfg := config.Default()
	cfg.Backend = config.BackendInmem
	cfg.AllowedAlgs = []string{"ed25519"}
	cfg.PQProduceHybrid = true
	if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "KMS_ALLOWED_ALGS") {
		t.Error(err)
	}
	k := amnesiaWith(t, func(c *config.Config) { c.AllowedAlgs = []string{"ed25519"} })
	_, err := Do[api.CreateResponse](k, Session(t, k, "acme"), "create", create(uuid.NewString(), "ed25519", &api.KeyPolicy{ProduceHybrid: true}))
	if !api.HasReason(err, api.ReasonUnsupported) {
		t.Error(err)
	}
}

// A locked memory full of cached keys is no reason to refuse wrapping.
func TestWrapWithAFullArena(t *testing.T) {
	t.Parallel()
	k := Amnesia(t)
	s := Session(t, k, "acme")
	wrapping := Create(t, k, s, "aes-256-gcm").KID
	for range 20 { // each takes 64 KiB expanded, of 1 MiB
		Sign(t, k, s, Create(t, k, s, "ml-dsa-65").KID, Digest(1))
	}
	for range 5 {
		w := Must[api.WrapResponse](t, k, s, "wrap", &api.WrapRequest{KID: wrapping, Size: 4096})
		Must[api.RewrapResponse](t, k, s, "rewrap", &api.RewrapRequest{KID: wrapping, WrappedB64: w.WrappedB64})
	}
}

// A batch whose records exceed one commit of a small log is refused before
// anything is signed.
func TestBatchBeyondOneCommit(t *testing.T) {
	t.Parallel()
	cfg := Config(t)
	cfg.AuditSegmentSize = 64 << 10
	Init(t, cfg)
	k := Open(t, cfg, core.Options{})
	s := Session(t, k, "acme")
	req := &api.SignBatchRequest{KID: Create(t, k, s, "ed25519").KID}
	for range api.MaxBatch {
		req.Items = append(req.Items, api.SignItem{PayloadB3: Digest(1)})
	}
	if _, err := Do[api.SignBatchResponse](k, s, "sign_batch", req); !api.HasReason(err, api.ReasonTooMany) {
		t.Fatal(err)
	}
	req.Items = req.Items[:20]
	if got := Must[api.SignBatchResponse](t, k, s, "sign_batch", req); len(got.Results) != 20 || got.Results[19].Error != nil {
		t.Fatalf("%+v", got)
	}
}

// A derived key is a new key: a token that could not create it cannot derive
// it, it ends when its parent does, and once destroyed it stays so.
func TestDerivedKeyIsBounded(t *testing.T) {
	t.Parallel()
	k := Amnesia(t)
	s := Session(t, k, "acme")
	end := time.Now().Add(time.Hour).UnixMilli()
	parent := Must[api.CreateResponse](t, k, s, "create",
		create(uuid.NewString(), "hkdf-sha256", &api.KeyPolicy{Validity: &api.Validity{NotAfterMS: end}})).KID
	base, _, _ := strings.Cut(parent, "#")
	narrow, err := k.OpenSession(Token(t, k, "acme", nil, "kid-prefix="+base))
	if err != nil {
		t.Fatal(err)
	}
	derive := func(s *core.Session) (*api.DeriveResponse, error) {
		return Do[api.DeriveResponse](k, s, "derive", &api.DeriveRequest{OpID: uuid.NewString(), KID: parent, Context: "a", Alg: "ed25519"})
	}
	if _, err := derive(narrow); Code(err) != api.CodeNoCapability {
		t.Errorf("a token for the parent alone: %v", err)
	}
	child, err := derive(s)
	if err != nil {
		t.Fatal(err)
	}
	if v := child.Key.Policy.Validity; v == nil || v.NotAfterMS != end {
		t.Errorf("validity %+v", v)
	}
	Destroy(t, k, s, child.KID)
	if _, err := derive(s); !api.HasReason(err, api.ReasonDestroyed) {
		t.Errorf("a destroyed child came back: %v", err)
	}
}

// What one key costs to rotate, store and list does not grow without end.
func TestVersionsAreBounded(t *testing.T) {
	t.Parallel()
	k := Amnesia(t)
	s := Session(t, k, "acme")
	kid := strings.TrimSuffix(Create(t, k, s, "ed25519").KID, "#v1")
	rotate, _ := core.VerbNamed("rotate")
	for n := 2; ; n++ {
		resp, err := k.Do(context.Background(), s, rotate, &api.RotateRequest{OpID: uuid.NewString(), KID: kid})
		if err != nil {
			if n != 1025 || !api.HasReason(err, api.ReasonVersions) {
				t.Fatalf("rotation to v%d: %v", n, err)
			}
			break
		}
		if shown := len(resp.(*api.RotateResponse).Key.Versions); shown != 1 {
			t.Fatalf("a rotation shows %d versions", shown)
		}
	}
	list := Must[api.ListResponse](t, k, s, "list", &api.ListRequest{Tenant: "acme"})
	if len(list.Keys) != 1 || len(list.Keys[0].Versions) != 1 || list.Keys[0].Head != 1024 {
		t.Fatalf("%+v", list)
	}
	if got := Get(t, k, s, kid); len(got.Key.Versions) != 1024 {
		t.Fatalf("get shows %d versions", len(got.Key.Versions))
	}
}

// Under strict, a signature that nobody can check spoils a quorum as a bad one
// does..
func TestStrictQuorum(t *testing.T) {
	t.Parallel()
	k := Amnesia(t)
	s := Session(t, k, "acme")
	known := Create(t, k, s, "ed25519").KID
	sigs := Sign(t, k, s, known, Digest(1)).Sigs
	stranger := "acme/test/ed25519/" + uuid.NewString()
	sigs = append(sigs, api.Signature{KID: stranger + "#v1", Alg: "ed25519", SignatureB64: sigs[0].SignatureB64})
	for _, strict := range []bool{false, true} {
		got := Must[api.VerifyResponse](t, k, s, "verify", &api.VerifyRequest{
			PayloadB3: Digest(1), Sigs: sigs, KIDSet: []string{known, stranger},
			Policy: &api.VerifyPolicy{KClassical: 1, Strict: strict},
		})
		if got.OK == strict {
			t.Errorf("strict %t: ok %t", strict, got.OK)
		}
	}
}

// KMS_SCOPE_STRICT leaves each verb the one scope named after it. D-5, R-237.
func TestScopeStrict(t *testing.T) {
	t.Parallel()
	for _, strict := range []bool{false, true} {
		k := amnesiaWith(t, func(c *config.Config) { c.ScopeStrict = strict })
		rotate := Session(t, k, "acme", "kms:rotate")
		if _, err := Do[api.CreateResponse](k, rotate, "create", create(uuid.NewString(), "ed25519", nil)); (Code(err) == api.CodeNoCapability) != strict {
			t.Errorf("strict %t: create with kms:rotate: %v", strict, err)
		}
		s := Session(t, k, "acme")
		kid := Create(t, k, s, "ed25519").KID
		bundle := api.VerifyRequest{PayloadB3: Digest(1), Sigs: Sign(t, k, s, kid, Digest(1)).Sigs}
		read := Session(t, k, "acme", "kms:read")
		if _, err := Do[api.VerifyResponse](k, read, "verify", &bundle); (Code(err) == api.CodeNoCapability) != strict {
			t.Errorf("strict %t: verify with kms:read: %v", strict, err)
		}
		_, err := Do[api.VerifyBatchResponse](k, read, "verify_batch", &api.VerifyBatchRequest{Items: []api.VerifyRequest{bundle}})
		if (Code(err) == api.CodeNoCapability) != strict {
			t.Errorf("strict %t: verify_batch with kms:read: %v", strict, err)
		}
		if _, err := Do[api.ExportResponse](k, read, "export", &api.ExportRequest{KID: kid}); Code(err) != api.CodeExportForbidden {
			t.Errorf("strict %t: export: %v", strict, err)
		}
	}
}
