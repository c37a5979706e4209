package control

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/core/api"
)

// createWith makes a key with further members of the request, such as a scheme.
func (g *rig) createWith(alg, more string) string {
	g.t.Helper()
	body := fmt.Sprintf(`{"op_id":%q,"tenant":"acme","purpose":"audit","alg":%q,%s}`, uuid.NewString(), alg, more)
	res := g.call("POST", pathKeys, g.admin(), body)
	if res.status != http.StatusCreated {
		g.t.Fatalf("create: %d %s", res.status, res.body)
	}
	return decode[api.CreateResponse](g.t, res.body).KID
}

// a data key goes in and comes out again, with a KEM and with an
// AEAD, over a rotation and a rewrap; what is wrong with an envelope is not
// told.
func TestWrapUnwrap(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	token := g.admin()
	for _, alg := range []string{"x25519+ml-kem-768", "aes-256-gcm"} {
		kid := g.create(alg)
		res := g.call("POST", pathWrap, token, fmt.Sprintf(`{"kid":%q,"size":32,"aad_b64":"YQ=="}`, base(t, kid)))
		w := decode[api.WrapResponse](t, res.body)
		if res.status != 200 || w.KID != kid || w.Alg != alg || w.Receipt == nil {
			t.Fatalf("%s: wrap: %d %s", alg, res.status, res.body)
		}
		unwrap := func(envelope, aad string) result {
			return g.call("POST", pathUnwrap, token, fmt.Sprintf(`{"kid":%q,"wrapped_b64":%q,"aad_b64":%q}`, base(t, kid), envelope, aad))
		}
		if res := unwrap(w.WrappedB64, "YQ=="); res.status != 200 || decode[api.UnwrapResponse](t, res.body).PlaintextKeyB64 != w.PlaintextKeyB64 {
			t.Errorf("%s: unwrap: %d %s", alg, res.status, res.body)
		}
		raw, err := api.ParseBase64(w.WrappedB64)
		if err != nil {
			t.Fatal(err)
		}
		changed := append([]byte(nil), raw...)
		changed[len(changed)-1] ^= 1
		foreign := decode[api.UnwrapRequest](t, g.wrapped(g.create(alg), "AAAAAAAAAAAAAAAAAAAAAA==", "YQ==")).WrappedB64
		first := ""
		for name, res := range map[string]result{
			"changed": unwrap(api.FormatBase64(changed), "YQ=="), "cut": unwrap(api.FormatBase64(raw[:len(raw)-1]), "YQ=="),
			"another aad": unwrap(w.WrappedB64, "Yg=="), "another key": unwrap(foreign, "YQ=="), "no envelope": unwrap("AAAA", "YQ=="),
		} {
			wantRefusal(t, res, 400, api.CodeBadRequest)
			if first == "" {
				first = neutral(t, res)
			}
			if neutral(t, res) != first {
				t.Errorf("%s: %s is answered otherwise than the rest: %s", alg, name, res.body)
			}
		}
		if res := g.call("POST", pathOf(base(t, kid))+"/rotate", token, opBody()); res.status != 200 {
			t.Fatalf("rotate: %d %s", res.status, res.body)
		}
		if res := unwrap(w.WrappedB64, "YQ=="); res.status != 200 {
			t.Errorf("%s: unwrap after the rotation: %d %s", alg, res.status, res.body)
		}
		res = g.call("POST", pathRewrap, token, fmt.Sprintf(`{"kid":%q,"wrapped_b64":%q,"aad_b64":"YQ=="}`, base(t, kid), w.WrappedB64))
		again := decode[api.RewrapResponse](t, res.body)
		if res.status != 200 || again.Previous != kid || again.KID != base(t, kid)+"#v2" || strings.Contains(res.body, w.PlaintextKeyB64) {
			t.Errorf("%s: rewrap: %d %s", alg, res.status, res.body)
		}
		if res := unwrap(again.WrappedB64, "YQ=="); decode[api.UnwrapResponse](t, res.body).PlaintextKeyB64 != w.PlaintextKeyB64 {
			t.Errorf("%s: unwrap of the new envelope: %d %s", alg, res.status, res.body)
		}
	}
	metrics := g.call("GET", pathMetrics, "", "").body
	for _, line := range []string{
		`kms_ops_total{alg="hybrid",op="wrap",result="ok"} 2`, `kms_ops_total{alg="aead",op="rewrap",result="ok"} 1`,
		`kms_reject_total{reason="unwrap"} 10`,
	} {
		if !strings.Contains(metrics, "\n"+line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
	omitted := g.call("POST", pathWrap, token, fmt.Sprintf(`{"kid":%q,"size":32,"omit_plaintext":true}`, g.create("aes-256-gcm")))
	if omitted.status != 200 || strings.Contains(omitted.body, "plaintext") {
		t.Errorf("omit_plaintext: %d %s", omitted.status, omitted.body)
	}
	wantRefusal(t, g.call("POST", pathWrap, token, fmt.Sprintf(`{"kid":%q,"size":32}`, g.create("ed25519"))), 400, api.CodeUnsupported)
}

// a data key, given or opened, and a raw payload are in no log, no
// metric and no error, whatever else is wrong with the request.
func TestDataKeysStayOut(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	token := g.admin()
	const dataKey = "Y2FuYXJ5LWRhdGEta2V5LTAxMjM0NTY3ODlhYmNkZWY=" // canary-data-key-0123456789abcdef
	var refusals strings.Builder
	for _, alg := range []string{"ml-kem-768", "chacha20-poly1305"} {
		kid := g.create(alg)
		unwrap := g.wrapped(kid, dataKey, "")
		if res := g.call("POST", pathUnwrap, token, unwrap); res.status != 200 || !strings.Contains(res.body, dataKey) {
			t.Fatalf("unwrap: %d %s", res.status, res.body)
		}
		if res := g.call("POST", pathRewrap, token, unwrap); res.status != 200 || strings.Contains(res.body, dataKey) {
			t.Fatalf("rewrap: %d %s", res.status, res.body)
		}
		wrap := fmt.Sprintf(`{"kid":%q,"plaintext_key_b64":%q`, kid, dataKey)
		for _, bad := range []string{
			wrap, wrap + `,"size":32}`, wrap + `,"aad_b64":"x"}`, wrap + `,"x":1}`, wrap + `,"plaintext_key_b64":"` + dataKey + `"}`,
			strings.Replace(wrap, dataKey, dataKey+"!", 1) + `}`, strings.Replace(wrap, "audit", "absent", 1) + `}`,
			strings.Replace(wrap, "acme", "evil", 1) + `}`, strings.Replace(wrap, alg, "ed25519", 1) + `}`,
		} {
			res := g.call("POST", pathWrap, token, bad)
			if res.status < 400 {
				t.Errorf("%s: %d", bad, res.status)
			}
			refusals.WriteString(res.body)
		}
	}
	signer := g.createWith("ed25519", `"scheme":"raw"`)
	refusals.WriteString(g.call("POST", pathSign, token, fmt.Sprintf(`{"kid":%q,"payload_b64":%q}`, signer, dataKey)).body)
	for sink, text := range map[string]string{
		"logs": g.logs.String(), "metrics": g.call("GET", pathMetrics, "", "").body, "refusals": refusals.String(),
	} {
		for _, form := range []string{dataKey, dataKey[4:20], "canary", "63616e617279"} {
			if strings.Contains(text, form) {
				t.Errorf("the data key is in the %s", sink)
			}
		}
	}
}

// R-210, D-13: deriving answers with a child kid, 201 once, and never bytes.
func TestDerive(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	token, parent := g.admin(), g.create("hkdf-sha256")
	post := func(opID, context, alg string) result {
		return g.call("POST", pathOf(base(t, parent))+"/derive", token, fmt.Sprintf(`{"op_id":%q,"context":%q,"alg":%q}`, opID, context, alg))
	}
	opID := uuid.NewString()
	first, second := post(opID, "ci", "ed25519"), post(opID, "ci", "ed25519")
	if first.status != 201 || second.status != 200 {
		t.Fatalf("%d %s, then %d %s", first.status, first.body, second.status, second.body)
	}
	d := decode[api.DeriveResponse](t, first.body)
	if d.Parent != parent || d.Key.Parent != parent || d.KID == parent || first.header.Get("Location") != pathKeys+"/"+base(t, d.KID) {
		t.Errorf("%+v, Location %q", d, first.header.Get("Location"))
	}
	if again := decode[api.DeriveResponse](t, second.body); again.KID != d.KID {
		t.Errorf("%s, then %s", d.KID, again.KID)
	}
	if res := g.call("GET", first.header.Get("Location"), token, ""); res.status != 200 {
		t.Errorf("the child at its Location: %d %s", res.status, res.body)
	}
	if res := g.call("POST", pathVerify, token, g.signed(d.KID)); !decode[api.VerifyResponse](t, res.body).OK {
		t.Errorf("the child does not sign: %s", res.body)
	}
	wantRefusal(t, post(opID, "other", "ed25519"), 409, api.CodeConflict)
	wantRefusal(t, post(uuid.NewString(), "a::b", "ed25519"), 400, api.CodeBadRequest)
	wantRefusal(t, post(uuid.NewString(), "", "ed25519"), 400, api.CodeBadRequest)
	wantRefusal(t, post("", "ci", "ed25519"), 400, api.CodeBadRequest)
	wantRefusal(t, g.call("POST", pathOf(g.create("ed25519"))+"/derive", token, fmt.Sprintf(`{"op_id":%q,"context":"ci","alg":"ed25519"}`, uuid.NewString())),
		400, api.CodeUnsupported)
	r := request("POST", pathOf(parent)+"/derive", token, fmt.Sprintf(`{"op_id":%q,"context":"ci2","alg":"ed25519"}`, uuid.NewString()))
	r.Header.Set("If-Match", `"v1-AAAAAAAAAAAAAAAAAAAAAA"`)
	wantRefusal(t, g.do(r), 400, api.CodeBadRequest)
}

// items of a batch succeed and fail each for itself, in order.
func TestBatches(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	token, kid := g.admin(), g.create("ed25519+ml-dsa-65")
	other := strings.Repeat("1", 64)
	res := g.call("POST", pathSign+"/batch", token, fmt.Sprintf(`{"kid":%q,"items":[{"payload_b3":%q},{"payload_b3":"x"},{"payload_b3":%q}]}`, kid, digest, other))
	signed := decode[api.SignBatchResponse](t, res.body)
	if res.status != 200 || signed.KID != kid || len(signed.Results) != 3 {
		t.Fatalf("%d %s", res.status, res.body)
	}
	for i, r := range signed.Results {
		if good := i != 1; good != (r.Error == nil) || good != (len(r.Sigs) == 2) || r.Receipt == nil {
			t.Errorf("item %d: %+v", i, r)
		}
	}
	body, err := api.Encode(api.VerifyBatchRequest{Items: []api.VerifyRequest{
		{PayloadB3: digest, Sigs: signed.Results[0].Sigs}, {PayloadB3: digest, Sigs: signed.Results[2].Sigs},
		{PayloadB3: other, Sigs: signed.Results[2].Sigs}, {PayloadB3: "x", Sigs: signed.Results[0].Sigs},
	}})
	if err != nil {
		t.Fatal(err)
	}
	res = g.call("POST", pathVerify+"/batch", token, string(body))
	verified := decode[api.VerifyBatchResponse](t, res.body)
	if res.status != 200 || verified.OK || len(verified.Results) != 4 {
		t.Fatalf("%d %s", res.status, res.body)
	}
	for i, want := range []bool{true, false, true, false} {
		if r := verified.Results[i]; r.OK != want || (r.Error != nil) != (i == 3) {
			t.Errorf("item %d: %+v", i, r)
		}
	}
}

// D-2, D-3, R-062: a statement signed by several keys.
func TestKeySet(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	token, a, b := g.admin(), g.create("ed25519"), g.create("ml-dsa-65")
	set := fmt.Sprintf(`"kid_set":[%q,%q]`, base(t, a), base(t, b))
	res := g.call("POST", pathSign, token, fmt.Sprintf(`{%s,"payload_b3":%q,"policy":{"k_classical":1,"k_pq":1}}`, set, digest))
	signed := decode[api.SignResponse](t, res.body)
	if res.status != 200 || len(signed.Sigs) != 2 || signed.Sigs[0].KID != a || signed.Sigs[1].KID != b {
		t.Fatalf("%d %s", res.status, res.body)
	}
	sigs, err := api.Encode(signed.Sigs)
	if err != nil {
		t.Fatal(err)
	}
	verify := fmt.Sprintf(`{"payload_b3":%q,"sigs":%s,"policy":{"k_classical":1,"k_pq":1}`, digest, sigs)
	if res := g.call("POST", pathVerify, token, verify+","+set+"}"); !decode[api.VerifyResponse](t, res.body).OK {
		t.Errorf("%d %s", res.status, res.body)
	}
	wantRefusal(t, g.call("POST", pathVerify, token, verify+"}"), 400, api.CodeBadRequest)
	wantRefusal(t, g.call("POST", pathSign, token, fmt.Sprintf(`{%s,"payload_b3":%q,"policy":{"k_pq":2}}`, set, digest)), 403, api.CodePqPolicy)
}

// D-20: outside its window nothing is signed and nothing holds.
func TestValidity(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	token, kid := g.admin(), g.create("ed25519")
	now := g.k.Now().UnixMilli()
	sign := func(from, to int64) result {
		return g.call("POST", pathSign, token, fmt.Sprintf(`{"kid":%q,"payload_b3":%q,"validity":{"not_before_ms":%d,"not_after_ms":%d}}`, kid, digest, from, to))
	}
	const hour = 3600_000
	res := sign(now-hour, now+hour)
	sigs := decode[api.SignResponse](t, res.body).Sigs
	if res.status != 200 || len(sigs) != 1 || sigs[0].Validity == nil || sigs[0].Validity.NotAfterMS != now+hour {
		t.Fatalf("%d %s", res.status, res.body)
	}
	verify := func(edit func(*api.Signature)) result {
		s := sigs[0]
		v := *s.Validity
		s.Validity = &v
		edit(&s)
		body, err := api.Encode(api.VerifyRequest{PayloadB3: digest, Sigs: []api.Signature{s}})
		if err != nil {
			t.Fatal(err)
		}
		return g.call("POST", pathVerify, token, string(body))
	}
	if res := verify(func(*api.Signature) {}); !decode[api.VerifyResponse](t, res.body).OK {
		t.Errorf("%d %s", res.status, res.body)
	}
	for name, edit := range map[string]func(*api.Signature){
		"left out":  func(s *api.Signature) { s.Validity = nil },
		"stretched": func(s *api.Signature) { s.Validity.NotAfterMS += hour },
	} {
		if res := verify(edit); res.status != 200 || decode[api.VerifyResponse](t, res.body).OK {
			t.Errorf("%s: %d %s", name, res.status, res.body)
		}
	}
	wantRefusal(t, verify(func(s *api.Signature) { s.Validity = &api.Validity{NotAfterMS: now - hour} }), 400, api.CodeTimeSkew)
	wantRefusal(t, sign(now+hour, now+2*hour), 400, api.CodeTimeSkew)
	wantRefusal(t, sign(now-2*hour, now-hour), 400, api.CodeTimeSkew)
	wantRefusal(t, sign(2, 1), 400, api.CodeBadRequest)
}

// D-1: raw payloads are taken over a Unix socket and nowhere else, and refused
// over TCP in all four verbs before anything is signed.
func TestRawPayloads(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "kms.sock")
	g := newRig(t, bind("unix://"+path))
	token, kid := g.admin(), g.createWith("ed25519", `"scheme":"raw"`)
	over := func(c *http.Client, base, target, body string) result {
		r, err := http.NewRequest("POST", base+target, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", "Bearer "+token)
		return fetch(t, c, r)
	}
	g.started(defaultLimits)
	socket := client(t, &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}})
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: g.h}
	done := make(chan error, 1)
	go func() { done <- server.Serve(tcp) }()
	t.Cleanup(func() {
		server.Close()
		<-done
	})
	plain := client(t, new(http.Transport))

	sign := fmt.Sprintf(`{"kid":%q,"payload_b64":"cGF5bG9hZA=="}`, kid)
	res := over(socket, "http://kms", pathSign, sign)
	if res.status != 200 {
		t.Fatalf("sign: %d %s", res.status, res.body)
	}
	sigs, err := api.Encode(decode[api.SignResponse](t, res.body).Sigs)
	if err != nil {
		t.Fatal(err)
	}
	verify := fmt.Sprintf(`{"payload_b64":"cGF5bG9hZA==","sigs":%s}`, sigs)
	signBatch := fmt.Sprintf(`{"kid":%q,"items":[{"payload_b3":%q},{"payload_b64":"cGF5bG9hZA=="}]}`, kid, digest)
	for target, body := range map[string]string{
		pathSign: sign, pathVerify: verify, pathSign + "/batch": signBatch, pathVerify + "/batch": `{"items":[` + verify + `]}`,
	} {
		for name, res := range map[string]result{
			"TCP": over(plain, "http://"+tcp.Addr().String(), target, body), "no connection": g.call("POST", target, token, body),
		} {
			wantRefusal(t, res, 400, api.CodeUnsupported)
			if e := decode[api.Envelope](t, res.body); !strings.Contains(e.Error.Hint, "Unix socket") {
				t.Errorf("%s over %s: hint %q", target, name, e.Error.Hint)
			}
		}
		if res := over(socket, "http://kms", target, body); res.status != 200 || strings.Contains(res.body, `"ok":false`) {
			t.Errorf("%s over the socket: %d %s", target, res.status, res.body)
		}
	}
	if res := over(socket, "http://kms", pathVerify, strings.Replace(verify, "cGF5bG9hZA==", "cGF5bG9hZB==", 1)); res.status != 400 {
		t.Errorf("stray bits: %d %s", res.status, res.body)
	}
	if res := over(socket, "http://kms", pathVerify, strings.Replace(verify, "cGF5bG9hZA==", "cGF5bG9hYQ==", 1)); decode[api.VerifyResponse](t, res.body).OK {
		t.Errorf("another payload holds: %s", res.body)
	}
}
