package core_test

import (
	"context"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
	. "github.com/rustyonions/ron-kms/core/coretest"
)

func deriveRequest(kid, context, alg string) *api.DeriveRequest {
	return &api.DeriveRequest{OpID: uuid.NewString(), KID: kid, Context: context, Alg: alg}
}

// One parent version and context is one child: in one store, after reopening,
// and in a copy of the store that derives for itself. Anything else is another
// child., D-13, D-18.
func TestDeriveIsDeterministic(t *testing.T) {
	t.Parallel()
	cfg, _, k := store(t)
	s := Session(t, k, "acme")
	parent, second := Create(t, k, s, "hkdf-sha256").KID, Create(t, k, s, "hkdf-sha256").KID
	k.Close()
	clone := *cfg
	clone.Dir += "-clone"
	Copy(t, cfg.Dir, clone.Dir)
	public := func(d *api.DeriveResponse) string { return d.Key.Versions[0].Public[0].PubkeyB64 }

	k = Open(t, cfg, core.Options{})
	s = Session(t, k, "acme")
	made := make(map[string]*api.DeriveResponse)
	seen := make(map[string]string) // public key to context
	for _, a := range alg.All() {
		context := "ctx." + strings.ReplaceAll(a.Name(), "+", ".")
		if len(a.Tracks()) > 1 {
			if _, err := Do[api.DeriveResponse](k, s, "derive", deriveRequest(parent, context, a.Name())); Code(err) != api.CodeUnsupported {
				t.Errorf("a child of %s: %v, want Unsupported", a.Name(), err)
			}
			continue
		}
		d := Derive(t, k, s, parent, context, a.Name())
		again := Derive(t, k, s, Base(parent), context, a.Name())
		if d.KID != again.KID || d.Parent != parent || d.Key.Parent != parent || d.Key.Alg != a.Name() || d.Key.Head != 1 || d.Receipt == nil {
			t.Errorf("%s: derived %+v, then %s", a.Name(), d, again.KID)
		}
		made[a.Name()] = d
		if a.Tracks()[0].PublicSize() == 0 {
			continue
		}
		if public(d) != public(again) {
			t.Errorf("%s: the same child has another public key", a.Name())
		}
		for what, x := range map[string]*api.DeriveResponse{
			"context": Derive(t, k, s, parent, context+"x", a.Name()), "parent": Derive(t, k, s, second, context, a.Name()),
		} {
			if x.KID == d.KID || public(x) == public(d) {
				t.Errorf("%s: another %s gives the same child", a.Name(), what)
			}
			if seen[public(x)] != "" {
				t.Errorf("%s has the public key of %s", x.KID, seen[public(x)])
			}
			seen[public(x)] = x.KID
		}
	}
	if len(made) != len(alg.All())-3 {
		t.Errorf("derived keys of %d algorithms", len(made))
	}
	sigs := Sign(t, k, s, made["ml-dsa-65"].KID, Digest(1)).Sigs
	envelope := Wrap(t, k, s, made["chacha20-poly1305"].KID, 32)
	k.Close()

	// The clone knows no child. What its own children open and verify shows
	// that they are the same, also where there is no public key.
	k = Open(t, &clone, core.Options{})
	s = Session(t, k, "acme")
	for name, d := range made {
		context := "ctx." + strings.ReplaceAll(name, "+", ".")
		x := Derive(t, k, s, parent, context, name)
		if x.KID != d.KID || len(x.Key.Versions[0].Public) > 0 && public(x) != public(d) {
			t.Errorf("%s: the clone derives another child", name)
		}
	}
	if !Verify(t, k, s, Digest(1), sigs).OK || Unwrap(t, k, s, made["chacha20-poly1305"].KID, envelope.WrappedB64).PlaintextKeyB64 != envelope.PlaintextKeyB64 {
		t.Error("the clone's children are others")
	}
	k = reopen(t, k)
	s = Session(t, k, "acme")
	if x := Derive(t, k, s, parent, "ctx.ed25519", "ed25519"); public(x) != public(made["ed25519"]) {
		t.Error("the child is another one after reopening")
	}
}

// What derive refuses, and what becomes of children and parents. D-13, D-18,
// D-30.
func TestDeriveLifeCycle(t *testing.T) {
	t.Parallel()
	_, _, k := store(t)
	s := Session(t, k, "acme")
	parent := Base(Create(t, k, s, "hkdf-sha256").KID)
	signer := Create(t, k, s, "ed25519").KID
	refused := func(what string, req *api.DeriveRequest, want api.Code) {
		t.Helper()
		if r, err := Do[api.DeriveResponse](k, s, "derive", req); Code(err) != want || r != nil {
			t.Errorf("%s: %v, want %s", what, err, want)
		}
	}
	for _, context := range []string{"", "::", "a::b", ":a", "a:", "a/b", "a b", "é", strings.Repeat("a", 256)} {
		refused("context "+context, deriveRequest(parent, context, "ed25519"), api.CodeBadRequest)
	}
	noOp := deriveRequest(parent, "c", "ed25519")
	noOp.OpID = ""
	refused("no op_id", noOp, api.CodeBadRequest)
	refused("no such algorithm", deriveRequest(parent, "c", "rsa"), api.CodeUnsupported)
	refused("a parent that signs", deriveRequest(signer, "c", "ed25519"), api.CodeUnsupported)
	refused("no parent", deriveRequest("acme/test/hkdf-sha256/"+uuid.NewString(), "c", "ed25519"), api.CodeNotFound)

	child := Derive(t, k, s, parent, "c", "ed25519")
	for _, other := range []string{"ml-dsa-65", "x25519", "aes-256-gcm", "hkdf-sha256"} {
		refused("the same context for "+other, deriveRequest(parent, "c", other), api.CodeConflict)
	}
	if _, err := Do[api.RotateResponse](k, s, "rotate", &api.RotateRequest{OpID: uuid.NewString(), KID: child.KID}); Code(err) != api.CodeUnsupported {
		t.Errorf("rotate a child: %v", err)
	}
	old := Sign(t, k, s, child.KID, Digest(1)).Sigs

	// A repeated op_id answers the same, and is no licence for other requests.
	req := deriveRequest(parent, "d", "ed25519")
	first := Must[api.DeriveResponse](t, k, s, "derive", req)
	replay := Must[api.DeriveResponse](t, k, s, "derive", req)
	if !replay.Replayed || first.Replayed || replay.KID != first.KID || replay.Parent != first.Parent {
		t.Errorf("a repeated derive: %+v, then %+v", first, replay)
	}
	reused := *req
	reused.Context = "e"
	refused("a used op_id", &reused, api.CodeConflict)

	// The next version of the parent has other children; the old ones live on.
	Rotate(t, k, s, parent)
	refused("the old version", deriveRequest(parent+"#v1", "c", "ed25519"), api.CodeStaleVersion)
	next := Derive(t, k, s, parent, "c", "ed25519")
	if next.KID == child.KID || next.Parent != parent+"#v2" || next.Key.Versions[0].Public[0] == child.Key.Versions[0].Public[0] {
		t.Errorf("the rotated parent derives %+v", next)
	}
	Sign(t, k, s, child.KID, Digest(2))
	grandchild := Derive(t, k, s, Derive(t, k, s, parent, "tree", "hkdf-sha256").KID, "leaf", "ed25519")
	Sign(t, k, s, grandchild.KID, Digest(1))

	// A destroyed child does not come back, not by deriving, not by reopening.
	Destroy(t, k, s, Base(next.KID))
	for range 2 {
		refused("a destroyed child", deriveRequest(parent, "c", "ed25519"), api.CodeKeyDestroyed)
		refused("a destroyed child, as another algorithm", deriveRequest(parent, "c", "x25519"), api.CodeConflict)
		if !Verify(t, k, s, Digest(1), old).OK {
			t.Error("the old child's signature does not verify")
		}
		k = reopen(t, k)
		s = Session(t, k, "acme")
	}
	// One whose only version was destroyed does not either.
	half := Derive(t, k, s, parent, "half", "ed25519")
	Destroy(t, k, s, half.KID)
	refused("a child whose version is destroyed", deriveRequest(parent, "half", "ed25519"), api.CodeKeyDestroyed)
	if _, err := Do[api.SignResponse](k, s, "sign", &api.SignRequest{KID: half.KID, PayloadB3: Digest(1)}); Code(err) != api.CodeKeyDestroyed {
		t.Errorf("a destroyed version signs: %v", err)
	}
	Destroy(t, k, s, parent)
	refused("a destroyed parent", deriveRequest(parent, "new", "ed25519"), api.CodeKeyDestroyed)
	Sign(t, k, s, grandchild.KID, Digest(3))
}

// No answer of derive has a field that is not public, and two tenants' keys and
// two purposes derive apart., D-18.
func TestDeriveShowsNothing(t *testing.T) {
	t.Parallel()
	k := Amnesia(t)
	s := Session(t, k, "acme")
	parent := Create(t, k, s, "hkdf-sha256").KID
	verb, _ := core.VerbNamed("derive")
	for _, name := range []string{"ed25519", "x25519", "aes-256-gcm", "hkdf-sha256"} {
		r, err := k.Do(context.Background(), s, verb, deriveRequest(parent, "ctx."+name, name))
		if err != nil {
			t.Fatal(err)
		}
		text, err := api.Encode(r)
		if err != nil {
			t.Fatal(err)
		}
		d := r.(*api.DeriveResponse)
		want := 1 // the public key
		if a, _ := alg.Lookup(name); a.Tracks()[0].PublicSize() == 0 {
			want = 0
		}
		if got := strings.Count(string(text), "_b64"); got != want || len(d.Key.Versions[0].Public) != want {
			t.Errorf("%s: the answer is %s", name, text)
		}
		if strings.Contains(string(text), "sealed") || strings.Contains(string(text), "seed") {
			t.Errorf("%s: the answer is %s", name, text)
		}
	}
	// A child inherits the tenant and purpose of its parent, and no more.
	other := CreateWith(t, k, s, api.CreateRequest{Purpose: "other", Alg: "hkdf-sha256"}).KID
	d := Derive(t, k, s, other, "ctx", "ed25519")
	if kid, err := api.ParseKID(d.KID); err != nil || kid.Purpose != "other" || kid.Tenant != "acme" || d.Key.Policy.Validity != nil {
		t.Errorf("derived %+v", d)
	}
}
