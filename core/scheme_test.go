package core_test

import (
	"crypto/ed25519"
	"encoding/binary"
	"testing"

	"github.com/cloudflare/circl/sign/mldsa/mldsa65"
	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/api"
	. "github.com/rustyonions/ron-kms/core/coretest"
)

// foreign verifies a signature with libraries that know nothing of ron-kms: the
// standard library's Ed25519, and ML-DSA with the context string given.
func foreign(t *testing.T, public api.PublicKey, msg, context []byte, sig string) bool {
	t.Helper()
	raw, err := api.ParseBase64(public.PubkeyB64)
	if err != nil {
		t.Fatal(err)
	}
	b, err := api.ParseBase64(sig)
	if err != nil {
		t.Fatal(err)
	}
	if public.Alg == "ed25519" {
		return ed25519.Verify(raw, msg, b)
	}
	key := new(mldsa65.PublicKey)
	if err := key.UnmarshalBinary(raw); err != nil {
		t.Fatal(err)
	}
	return mldsa65.Verify(key, msg, context, b)
}

// preimage is docs/spec/preimage.md written out again.
func preimage(suite, kid string, context []byte, notBefore, notAfter uint64, digest []byte) []byte {
	lp := func(b, x []byte) []byte { return append(binary.BigEndian.AppendUint16(b, uint16(len(x))), x...) }
	b := []byte("ron-kms/sign/v1\x00")
	b = lp(lp(lp(b, []byte(suite)), []byte(kid)), context)
	b = binary.BigEndian.AppendUint64(b, notBefore)
	b = binary.BigEndian.AppendUint64(b, notAfter)
	return append(b, digest...)
}

// statement is one thing to sign, in the form that a scheme takes.
func statement(scheme api.Scheme, msg []byte) (b3, raw string) {
	if scheme == api.SchemeRaw {
		return "", api.FormatBase64(msg)
	}
	return Digest(0x5a), ""
}

// Each scheme signs exactly the bytes that it says, as foreign verifiers find,
// and under the others' bytes and context strings nothing holds. D-1, D-22.
func TestSchemesWithForeignVerifiers(t *testing.T) {
	t.Parallel()
	_, _, k := store(t)
	s := Session(t, k, "acme")
	digest := make([]byte, 32)
	for i := range digest {
		digest[i] = 0x5a
	}
	for _, alg := range algorithms {
		for _, scheme := range []api.Scheme{api.SchemeV1, api.SchemeRawB3, api.SchemeRaw} {
			c := CreateWith(t, k, s, api.CreateRequest{Alg: alg, Scheme: scheme})
			v1 := preimage(alg, c.KID, nil, 0, 0, digest)
			// The raw scheme takes any bytes: here those that would be a
			// statement of this very key, if it were of another scheme.
			msg := map[api.Scheme][]byte{api.SchemeV1: v1, api.SchemeRawB3: digest, api.SchemeRaw: v1}[scheme]
			context := map[api.Scheme]string{api.SchemeV1: "ron-kms/v1"}[scheme]
			b3, raw := statement(scheme, msg)
			r := Must[api.SignResponse](t, k, s, "sign", &api.SignRequest{KID: c.KID, PayloadB3: b3, PayloadB64: raw})
			if r.Scheme != scheme || c.Key.Scheme != scheme || len(r.Sigs) != len(c.Key.Versions[0].Public) {
				t.Fatalf("%s %s: signed under %s by a key of %s", alg, scheme, r.Scheme, c.Key.Scheme)
			}
			if v := Must[api.VerifyResponse](t, k, s, "verify", &api.VerifyRequest{PayloadB3: b3, PayloadB64: raw, Sigs: r.Sigs}); !v.OK {
				t.Errorf("%s %s: %+v", alg, scheme, v)
			}
			for i, public := range c.Key.Versions[0].Public {
				sig := r.Sigs[i].SignatureB64
				if !foreign(t, public, msg, []byte(context), sig) {
					t.Errorf("%s %s: %s does not hold for the bytes that the scheme signs", alg, scheme, public.Alg)
				}
				for _, other := range [][]byte{v1, digest, []byte("something else")} {
					if string(other) != string(msg) && foreign(t, public, other, []byte(context), sig) {
						t.Errorf("%s %s: %s holds for the bytes of another scheme", alg, scheme, public.Alg)
					}
				}
				if public.Alg == "ml-dsa-65" {
					for _, other := range []string{"", "ron-kms/v1", "ron-kms/v2"} {
						if other != context && foreign(t, public, msg, []byte(other), sig) {
							t.Errorf("%s %s: holds under the context %q", alg, scheme, other)
						}
					}
				}
			}
		}
	}
}

// A scheme is a property of its key: nothing changes it, no request chooses it,
// and what one scheme signed is nothing to a key of another, whatever bytes
// were given to the raw one. D-1.
func TestSchemesAreApart(t *testing.T) {
	t.Parallel()
	_, _, k := store(t)
	s := Session(t, k, "acme")
	schemes := []api.Scheme{api.SchemeV1, api.SchemeRawB3, api.SchemeRaw}
	kids := make(map[api.Scheme]string)
	for _, scheme := range schemes {
		kids[scheme] = Base(CreateWith(t, k, s, api.CreateRequest{Alg: "hybrid", Scheme: scheme}).KID)
	}
	for range 2 {
		for _, from := range schemes {
			for _, to := range schemes {
				if from == to {
					continue
				}
				victim := kids[to] + "#v1"
				// What the key of scheme to would sign, signed by that of from.
				digest := make([]byte, 32)
				msg := digest
				if to == api.SchemeV1 {
					msg = preimage("ed25519+ml-dsa-65", victim, nil, 0, 0, digest)
				}
				req := &api.SignRequest{KID: kids[from], PayloadB3: Digest(0)}
				if from == api.SchemeRaw {
					req.PayloadB3, req.PayloadB64 = "", api.FormatBase64(msg)
				}
				sigs := Must[api.SignResponse](t, k, s, "sign", req).Sigs
				for i := range sigs {
					sigs[i].KID = victim
				}
				ask := &api.VerifyRequest{PayloadB3: Digest(0), Sigs: sigs}
				if to == api.SchemeRaw {
					ask.PayloadB3, ask.PayloadB64 = "", api.FormatBase64(digest)
				}
				if r := Must[api.VerifyResponse](t, k, s, "verify", ask); r.OK || r.Details.Checked[0].OK || r.Details.Checked[1].OK {
					t.Errorf("what a key of %s signed verifies by one of %s: %+v", from, to, r)
				}
			}
		}
		for _, scheme := range schemes {
			Rotate(t, k, s, kids[scheme])
		}
		k = reopen(t, k)
		s = Session(t, k, "acme")
		for _, scheme := range schemes {
			if got := Get(t, k, s, kids[scheme]).Key.Scheme; got != scheme {
				t.Errorf("after rotating and reopening a key of %s is of %s", scheme, got)
			}
		}
	}
}

// What each scheme does not take: the other form of a payload, and for the raw
// ones context and validity, which they could not bind. D-1.
func TestSchemesRefuse(t *testing.T) {
	t.Parallel()
	k := Amnesia(t)
	s := Session(t, k, "acme")
	kids := make(map[api.Scheme]string)
	for _, scheme := range []api.Scheme{api.SchemeV1, api.SchemeRawB3, api.SchemeRaw} {
		kids[scheme] = CreateWith(t, k, s, api.CreateRequest{Alg: "ed25519", Scheme: scheme}).KID
	}
	raw, context := api.FormatBase64([]byte("message")), api.FormatBase64([]byte("context"))
	window := &api.Validity{NotAfterMS: k.Now().UnixMilli() + 60_000}
	for _, c := range []struct {
		scheme  api.Scheme
		b3, raw string
		context string
		window  *api.Validity
		want    api.Code
	}{
		{api.SchemeV1, Digest(1), "", context, window, ""},
		{api.SchemeV1, "", raw, "", nil, api.CodeBadRequest},
		{api.SchemeRawB3, Digest(1), "", "", nil, ""},
		{api.SchemeRawB3, "", raw, "", nil, api.CodeBadRequest},
		{api.SchemeRawB3, Digest(1), "", context, nil, api.CodeBadRequest},
		{api.SchemeRawB3, Digest(1), "", "", window, api.CodeBadRequest},
		{api.SchemeRaw, "", raw, "", nil, ""},
		{api.SchemeRaw, Digest(1), "", "", nil, api.CodeBadRequest},
		{api.SchemeRaw, "", raw, context, nil, api.CodeBadRequest},
		{api.SchemeRaw, "", raw, "", window, api.CodeBadRequest},
		{api.SchemeRaw, "", raw, "", &api.Validity{}, api.CodeBadRequest},
		{api.SchemeRaw, Digest(1), raw, "", nil, api.CodeBadRequest},
		{api.SchemeRaw, "", "", "", nil, api.CodeBadRequest},
	} {
		_, err := Do[api.SignResponse](k, s, "sign", &api.SignRequest{KID: kids[c.scheme], PayloadB3: c.b3, PayloadB64: c.raw, ContextB64: c.context, Validity: c.window})
		if Code(err) != c.want {
			t.Errorf("sign %+v: %v, want %q", c, err, c.want)
		}
		_, err = Do[api.VerifyResponse](k, s, "verify", &api.VerifyRequest{PayloadB3: c.b3, PayloadB64: c.raw, ContextB64: c.context, Sigs: []api.Signature{
			{KID: kids[c.scheme], Alg: "ed25519", SignatureB64: api.FormatBase64(make([]byte, 64)), Validity: c.window},
		}})
		if Code(err) != c.want {
			t.Errorf("verify %+v: %v, want %q", c, err, c.want)
		}
	}
	for what, req := range map[string]api.CreateRequest{
		"no such scheme":       {Alg: "ed25519", Scheme: "raw-sha256"},
		"a KEM with a scheme":  {Alg: "x25519", Scheme: api.SchemeRaw},
		"a KDF with a scheme":  {Alg: "hkdf-sha256", Scheme: api.SchemeRawB3},
		"an AEAD with a sheme": {Alg: "aes-256-gcm", Scheme: api.SchemeRaw},
	} {
		req.OpID, req.Tenant, req.Purpose = uuid.NewString(), "acme", "test"
		if _, err := Do[api.CreateResponse](k, s, "create", &req); Code(err) != api.CodeBadRequest {
			t.Errorf("create, %s: %v, want BadRequest", what, err)
		}
	}
}

// Keys of the raw schemes get no companion: a half of it could be stripped
// unseen. Where policy demands post-quantum they sign nothing. D-1, D-2.
func TestRawSchemesHaveNoCompanion(t *testing.T) {
	t.Parallel()
	cfg := Config(t)
	Init(t, cfg)
	k := Open(t, inPhase(cfg, 1), core.Options{})
	s := Session(t, k, "acme")
	for _, scheme := range []api.Scheme{api.SchemeRawB3, api.SchemeRaw} {
		asked := &api.CreateRequest{OpID: uuid.NewString(), Tenant: "acme", Purpose: "test", Alg: "ed25519", Scheme: scheme, Policy: &api.KeyPolicy{ProduceHybrid: true}}
		if _, err := Do[api.CreateResponse](k, s, "create", asked); Code(err) != api.CodeUnsupported {
			t.Errorf("%s: a companion was asked for: %v, want Unsupported", scheme, err)
		}
		c := CreateWith(t, k, s, api.CreateRequest{Alg: "ed25519", Scheme: scheme})
		r := Rotate(t, k, s, c.KID)
		for _, v := range append(c.Key.Versions, r.Key.Versions...) {
			if len(v.Public) != 1 || v.Suite != "ed25519" {
				t.Errorf("%s: version %d has %d tracks of %s", scheme, v.Version, len(v.Public), v.Suite)
			}
		}
	}
	k.Close()
	k = Open(t, inPhase(cfg, 2), core.Options{})
	s = Session(t, k, "acme")
	for _, scheme := range []api.Scheme{api.SchemeRawB3, api.SchemeRaw} {
		_, err := Do[api.CreateResponse](k, s, "create", &api.CreateRequest{OpID: uuid.NewString(), Tenant: "acme", Purpose: "test", Alg: "ed25519", Scheme: scheme})
		if Code(err) != api.CodePqPolicy {
			t.Errorf("create of scheme %s in phase 2: %v, want PqPolicy", scheme, err)
		}
	}
	for _, key := range Must[api.ListResponse](t, k, s, "list", &api.ListRequest{Tenant: "acme"}).Keys {
		b3, raw := statement(key.Scheme, []byte("message"))
		if _, err := Do[api.SignResponse](k, s, "sign", &api.SignRequest{KID: key.KID, PayloadB3: b3, PayloadB64: raw}); Code(err) != api.CodePqPolicy {
			t.Errorf("sign under %s in phase 2: %v, want PqPolicy", key.Scheme, err)
		}
	}
}
