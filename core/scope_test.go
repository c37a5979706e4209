package core_test

import (
	"context"
	"encoding/base64"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/capability"
	. "github.com/rustyonions/ron-kms/core/coretest"
)

// request is a well-formed request of a verb about a key.
func request(verb, kid string) api.Request {
	id, err := api.ParseKID(kid)
	if err != nil {
		panic(err)
	}
	switch verb {
	case "create":
		return &api.CreateRequest{OpID: uuid.NewString(), Tenant: id.Tenant, Purpose: id.Purpose, Alg: "ed25519"}
	case "rotate":
		return &api.RotateRequest{OpID: uuid.NewString(), KID: id.Base().String()}
	case "destroy":
		return &api.DestroyRequest{OpID: uuid.NewString(), KID: id.Base().String()}
	case "get":
		return &api.GetRequest{KID: kid}
	case "list":
		return &api.ListRequest{Tenant: id.Tenant}
	case "sign":
		return &api.SignRequest{KID: id.Base().String(), PayloadB3: Digest(1)}
	case "verify":
		return &api.VerifyRequest{PayloadB3: Digest(1), Sigs: []api.Signature{
			{KID: id.At(max(id.Version, 1)).String(), Alg: "ed25519", SignatureB64: api.FormatBase64(make([]byte, 64))},
		}}
	case "sign_batch":
		return &api.SignBatchRequest{KID: id.Base().String(), Items: []api.SignItem{{PayloadB3: Digest(1)}, {PayloadB3: Digest(2)}}}
	case "verify_batch":
		return &api.VerifyBatchRequest{Items: []api.VerifyRequest{*request("verify", kid).(*api.VerifyRequest)}}
	case "wrap":
		return &api.WrapRequest{KID: id.Base().String(), Size: 32}
	case "unwrap":
		return &api.UnwrapRequest{KID: id.Base().String(), WrappedB64: "AAAA"}
	case "rewrap":
		return &api.RewrapRequest{KID: id.Base().String(), WrappedB64: "AAAA"}
	case "derive":
		return &api.DeriveRequest{OpID: uuid.NewString(), KID: id.Base().String(), Context: "ctx", Alg: "ed25519"}
	case "export":
		return &api.ExportRequest{KID: kid}
	}
	panic("no request for the verb " + verb)
}

// D-5, written out again and not taken from the table under test.
var accepted = map[string][]string{
	"create":       {"kms:create", "kms:rotate"},
	"rotate":       {"kms:rotate"},
	"destroy":      {"kms:destroy"},
	"get":          {"kms:read"},
	"list":         {"kms:read"},
	"sign":         {"kms:sign"},
	"sign_batch":   {"kms:sign"},
	"verify":       {"kms:verify", "kms:read"},
	"verify_batch": {"kms:verify", "kms:read"},
	"wrap":         {"kms:wrap"},
	"unwrap":       {"kms:unwrap"},
	"rewrap":       {"kms:unwrap"},
	"derive":       {"kms:derive"},
}

// algOf is an algorithm whose keys serve a verb.
func algOf(verb string) string {
	switch verb {
	case "wrap", "unwrap", "rewrap":
		return "aes-256-gcm"
	case "derive":
		return "hkdf-sha256"
	}
	return "ed25519"
}

// Every verb with every single scope: only those of D-5 pass, and export
// passes with none..
func TestScopeMatrix(t *testing.T) {
	t.Parallel()
	k := Amnesia(t)
	admin := Session(t, k, "acme")
	passes := 0
	for _, scope := range capability.ScopeList() {
		s := Session(t, k, "acme", scope)
		for _, verb := range core.Verbs() {
			kid := Create(t, k, admin, algOf(verb.Name)).KID
			req := request(verb.Name, kid)
			switch r := req.(type) {
			case *api.UnwrapRequest:
				r.WrappedB64 = Wrap(t, k, admin, kid, 32).WrappedB64
			case *api.RewrapRequest:
				r.WrappedB64 = Wrap(t, k, admin, kid, 32).WrappedB64
			}
			_, err := k.Do(context.Background(), s, verb, req)
			switch want, known := accepted[verb.Name]; {
			case verb.Name == "export":
				if e := api.AsError(err); e == nil || e.Code != api.CodeExportForbidden || e.HTTP != 403 {
					t.Errorf("export with %s: %v, want ExportForbidden", scope, err)
				}
			case !known:
				t.Errorf("verb %s is in no row of D-5", verb.Name)
			case slices.Contains(want, scope):
				passes++
				if err != nil {
					t.Errorf("%s with %s: %v", verb.Name, scope, err)
				}
			default:
				if e := api.AsError(err); e == nil || e.Reason != api.ReasonScope || e.HTTP != 403 {
					t.Errorf("%s with %s: %v, want NoCapability 403", verb.Name, scope, err)
				}
			}
		}
	}
	if passes != 16 {
		t.Errorf("%d pairs pass, want 16", passes)
	}
}

// KMS_VERIFY_SCOPE_ENFORCE takes the alias away. D-5.
func TestVerifyScopeEnforce(t *testing.T) {
	t.Parallel()
	cfg := Config(t)
	Init(t, cfg)
	cfg.VerifyScopeEnforce = true
	k := Open(t, cfg, core.Options{})
	kid := Create(t, k, Session(t, k, "acme"), "ed25519").KID
	for scope, want := range map[string]api.Code{"kms:read": api.CodeNoCapability, "kms:verify": ""} {
		if _, err := Do[api.VerifyResponse](k, Session(t, k, "acme", scope), "verify", request("verify", kid)); Code(err) != want {
			t.Errorf("verify with %s: %v, want %q", scope, err, want)
		}
		if _, err := Do[api.VerifyBatchResponse](k, Session(t, k, "acme", scope), "verify_batch", request("verify_batch", kid)); Code(err) != want {
			t.Errorf("verify_batch with %s: %v, want %q", scope, err, want)
		}
	}
}

// Caveats on kid and purpose hold for every verb that names a key, and for
// create and list too.
func TestNarrowTokens(t *testing.T) {
	t.Parallel()
	k := Amnesia(t)
	admin := Session(t, k, "acme")
	mine, other := Create(t, k, admin, "ed25519").KID, Create(t, k, admin, "ed25519").KID
	open := func(extra string) *core.Session {
		s, err := k.OpenSession(Token(t, k, "acme", nil, extra))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	base := mine[:len(mine)-len("#v1")]
	for _, c := range []struct {
		caveat, verb, kid string
		ok                bool
	}{
		{"kid-prefix=" + base, "sign", mine, true},
		{"kid-prefix=" + base, "sign", other, false},
		{"kid-prefix=" + base, "verify", other, false},
		{"kid-prefix=" + base, "get", other, false},
		{"kid-prefix=" + base, "list", mine, false},
		{"kid-prefix=" + base, "create", mine, false},
		{"kid-prefix=acme/test/ed25519", "create", mine, true},
		{"kid-prefix=acme/test/ml-dsa-65", "create", mine, false},
		{"purpose-prefix=test", "sign", mine, true},
		{"purpose-prefix=tes", "sign", mine, false},
		{"purpose-prefix=other", "sign", mine, false},
		{"purpose-prefix=other", "create", mine, false},
		{"purpose-prefix=test", "list", mine, false}, // all purposes
	} {
		verb, _ := core.VerbNamed(c.verb)
		_, err := k.Do(context.Background(), open(c.caveat), verb, request(c.verb, c.kid))
		if c.ok != (err == nil) || !c.ok && Code(err) != api.CodeNoCapability {
			t.Errorf("%s with %s: %v, want ok %t", c.verb, c.caveat, err, c.ok)
		}
	}
}

// A stranger to a tenant gets one answer, whether the key is there, was there
// or never was, for every verb., D-7.
func TestTenantsAreApart(t *testing.T) {
	t.Parallel()
	cfg, report, k := store(t)
	victim := Session(t, k, "acme")
	stranger := Session(t, k, "acme2")
	live, dead := Create(t, k, victim, "ed25519").KID, Create(t, k, victim, "ed25519").KID
	Destroy(t, k, victim, dead)
	never := "acme/test/ed25519/" + uuid.NewString() + "#v1"
	neverTenant := "nobody/test/ed25519/" + uuid.NewString() + "#v1"
	denials := 0
	for _, verb := range core.Verbs() {
		var first *api.Error
		for _, kid := range []string{live, dead, never, neverTenant} {
			_, err := k.Do(context.Background(), stranger, verb, request(verb.Name, kid))
			e := api.AsError(err)
			if e == nil || e.Reason != api.ReasonTenant || e.HTTP != 403 {
				t.Fatalf("%s of %s by a stranger: %v", verb.Name, kid, err)
			}
			denials++
			if first == nil {
				first = e
			}
			if e.Error() != first.Error() || e.Hint != first.Hint {
				t.Errorf("%s: the answer differs: %v, %v", verb.Name, first, e)
			}
		}
	}
	if r := Must[api.ListResponse](t, k, stranger, "list", &api.ListRequest{Tenant: "acme2"}); len(r.Keys) != 0 {
		t.Errorf("a stranger's list has %d keys", len(r.Keys))
	}
	// A bundle that mixes tenants is refused as a whole.
	sig := Sign(t, k, victim, live, Digest(1)).Sigs[0]
	own := Sign(t, k, stranger, Create(t, k, stranger, "ed25519").KID, Digest(1)).Sigs[0]
	if _, err := Do[api.VerifyResponse](k, stranger, "verify", &api.VerifyRequest{PayloadB3: Digest(1), Sigs: []api.Signature{own, sig}}); !api.HasReason(err, api.ReasonMixedKeys) {
		t.Errorf("a mixed bundle: %v", err)
	}
	// The same op_id in two tenants is two operations.
	id := uuid.NewString()
	a := Must[api.CreateResponse](t, k, victim, "create", &api.CreateRequest{OpID: id, Tenant: "acme", Purpose: "test", Alg: "ed25519"})
	b := Must[api.CreateResponse](t, k, stranger, "create", &api.CreateRequest{OpID: id, Tenant: "acme2", Purpose: "test", Alg: "ed25519"})
	if a.KID == b.KID || b.Replayed {
		t.Error("tenants share their op_ids")
	}
	k.Close()
	// Each attempt is on record, and none moved a counter of the victim.
	found := 0
	for _, r := range Audit(t, cfg, report.VerifierKey) {
		if r.Kind.String() == "denied" {
			found++
			if r.Key != "" || r.KeySeq != 0 || r.Result != "NoCapability" {
				t.Errorf("a stranger's denial is %+v", r)
			}
		}
	}
	if found != denials {
		t.Errorf("%d denials on record, want %d", found, denials)
	}
}

// Without token keys there is no way in, and no store. R-022.
func TestNoTokenKeys(t *testing.T) {
	t.Parallel()
	for name, harm := range map[string]func(dir string) error{
		"no folder": os.RemoveAll,
		"no key":    func(dir string) error { return errAll(os.RemoveAll(dir), os.Mkdir(dir, 0o700)) },
		"key of another store": func(dir string) error {
			names, err := filepath.Glob(filepath.Join(dir, "*.key"))
			if err != nil {
				return err
			}
			return os.WriteFile(names[0], []byte(strings.Repeat("01", 77)+"\n"), 0o600)
		},
		"key that others can read": func(dir string) error {
			names, err := filepath.Glob(filepath.Join(dir, "*.key"))
			if err != nil {
				return err
			}
			return os.Chmod(names[0], 0o644)
		},
		"foreign key beside it": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "29990101t000000z.key"), []byte(strings.Repeat("01", 77)+"\n"), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := Config(t)
			Init(t, cfg)
			if err := harm(filepath.Join(cfg.Dir, "tokens")); err != nil {
				t.Fatal(err)
			}
			k, err := core.Open(context.Background(), cfg, core.Options{Passphrase: func() ([]byte, error) { return []byte(Passphrase), nil }})
			if err == nil {
				k.Close()
				t.Fatal("the store opened")
			}
			if keys, err := core.OpenTokenKeys(cfg.Dir, []byte(Passphrase)); err == nil {
				keys.Close()
				t.Error("the token keys opened")
			}
		})
	}
}

func errAll(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// Tokens are minted beside an open store, and never written. R-504.
func TestTokensAreNotStored(t *testing.T) {
	t.Parallel()
	cfg, _, k := store(t)
	keys, err := core.OpenTokenKeys(cfg.Dir, []byte(Passphrase))
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Close()
	if keys, err := core.OpenTokenKeys(cfg.Dir, []byte("wrong")); err == nil {
		keys.Close()
		t.Error("a wrong passphrase opened the token keys")
	}
	token := TokenFrom(t, keys, k.Now().Add(3600e9), "acme", nil)
	s, err := k.OpenSession(token)
	if err != nil {
		t.Fatal(err)
	}
	kid := Create(t, k, s, "ed25519").KID
	Sign(t, k, s, kid, Digest(1))
	forged := token[:len(token)-4] + "AAAA"
	if _, err := k.OpenSession(forged); Code(err) != api.CodeNoCapability {
		t.Errorf("a forged token: %v", err)
	}
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		t.Fatal(err)
	}
	tag := string(raw[len(raw)-32:])
	k.Close()
	seen := false
	for name, data := range files(t, cfg.Dir) {
		seen = seen || strings.Contains(data, "acme")
		if strings.Contains(data, token) || strings.Contains(data, forged) || strings.Contains(data, tag) || strings.Contains(data, token[:64]) {
			t.Errorf("%s holds a token", name)
		}
	}
	if !seen {
		t.Error("the scan does not see the audit log")
	}
}
