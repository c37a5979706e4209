package control

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/config"
)

// bodied are the verbs whose request has a body.
func bodied() (list []route) {
	for _, rt := range routes {
		if rt.method == "POST" && rt.verb != "export" {
			list = append(list, rt)
		}
	}
	return list
}

// bodies that each DTO must refuse, made from one it accepts.
func TestStrictBodies(t *testing.T) {
	t.Parallel()
	g := newRig(t, func(c *config.Config) { c.MaxPayload = 16 << 10 })
	token := g.admin()
	for _, rt := range bodied() {
		target, good := g.sample(rt)
		t.Run(rt.verb, func(t *testing.T) {
			for name, body := range badBodies(t, rt, good) {
				res := g.call("POST", target, token, body)
				if name == "oversized" || name == "oversized space" {
					wantRefusal(t, res, 413, api.CodeTooLarge)
				} else if res.status != 400 {
					t.Errorf("%s: %d %s", name, res.status, res.body)
				} else {
					wantRefusal(t, res, 400, api.CodeBadRequest)
				}
			}
			// What was refused had no effect, and the good one still works.
			if res := g.call("POST", target, token, good); res.status >= 300 {
				t.Errorf("the good body: %d %s", res.status, res.body)
			}
		})
	}
}

func badBodies(t *testing.T, rt route, good string) map[string]string {
	inner := strings.TrimSuffix(strings.TrimPrefix(good, "{"), "}")
	bad := map[string]string{
		"unknown":         `{"x":1,` + inner + `}`,
		"unknown nested":  `{"policy":{"x":1},` + inner + `}`,
		"trailing object": good + `{}`,
		"trailing brace":  good + `}`,
		"trailing word":   good + ` x`,
		"array":           `[` + good + `]`,
		"string":          `"x"`,
		"null":            `null`,
		"cut":             good[:len(good)-1],
		"comment":         `/**/` + good,
		"BOM":             "\ufeff" + good,
		"not UTF-8":       `{"x":"` + "\xff" + `",` + inner + `}`,
		"deep":            `{"x":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `,` + inner + `}`,
		"many":            `{"sigs":[` + strings.Repeat("{},", 5000) + `{}],` + inner + `}`,
		"oversized":       `{"op_id":"` + strings.Repeat("a", 20<<10) + `"}`,
		"oversized space": good + strings.Repeat(" ", 20<<10),
	}
	verb, _ := core.VerbNamed(rt.verb)
	fields := reflect.TypeOf(verb.Request()).Elem()
	for i := range fields.NumField() {
		name, _, _ := strings.Cut(fields.Field(i).Tag.Get("json"), ",")
		if name == "" {
			t.Fatalf("%s has a field without a JSON name", fields)
		}
		bad["null "+name] = fmt.Sprintf(`{%q:null,`, name) + without(t, good, name) + `}`
		bad["number "+name] = fmt.Sprintf(`{%q:1,`, name) + without(t, good, name) + `}`
		if strings.Contains(good, `"`+name+`":`) {
			bad["twice "+name] = `{` + inner + fmt.Sprintf(`,%q:"x"}`, name)
			bad["case "+name] = strings.Replace(good, `"`+name+`":`, `"`+strings.ToUpper(name[:1])+name[1:]+`":`, 1)
			bad["twice, another case "+name] = `{` + inner + fmt.Sprintf(`,%q:"x"}`, strings.ToUpper(name))
		}
	}
	return bad
}

// without is the members of an object but one, without the braces.
func without(t *testing.T, object, name string) string {
	m := decode[map[string]any](t, object)
	delete(m, name)
	m2, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if len(m) == 0 {
		return `"x":1`
	}
	return strings.TrimSuffix(strings.TrimPrefix(string(m2), "{"), "}")
}

// the media type is JSON in UTF-8, once and uncoded.
func TestMediaType(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	token, body := g.admin(), signBody(g.create("ed25519"))
	post := func(types, codings []string) result {
		r := request("POST", pathSign, token, body)
		r.Header["Content-Type"] = types
		if codings != nil {
			r.Header["Content-Encoding"] = codings
		}
		return g.do(r)
	}
	for _, good := range []string{"application/json", "application/json; charset=utf-8", `application/json;charset="UTF-8"`, "Application/JSON"} {
		if res := post([]string{good}, nil); res.status != 200 {
			t.Errorf("%q: %d %s", good, res.status, res.body)
		}
	}
	for _, bad := range [][]string{
		nil, {""}, {"text/plain"}, {"application/jsonp"}, {"application/json; charset=latin1"}, {"application/json; q=1"},
		{"application/json, text/plain"}, {"application/json", "application/json"}, {"application/json; charset"},
		{"application/x-www-form-urlencoded"}, {"application/problem+json"},
	} {
		wantRefusal(t, post(bad, nil), 415, api.CodeBadRequest)
	}
	for _, coding := range []string{"gzip", "identity", "deflate", "br"} {
		wantRefusal(t, post([]string{"application/json"}, []string{coding}), 415, api.CodeBadRequest)
	}
}

// a body whose length is not announced is bounded too.
func TestStreamedBodyIsBounded(t *testing.T) {
	t.Parallel()
	g := newRig(t, func(c *config.Config) { c.MaxPayload = 1 << 10 })
	r := request("POST", pathSign, g.admin(), "{}")
	endless := &countingReader{}
	r.Body, r.ContentLength = io.NopCloser(endless), -1
	wantRefusal(t, g.do(r), 413, api.CodeTooLarge)
	if endless.n > 64<<10 {
		t.Errorf("%d bytes were read for a limit of 1 KiB", endless.n)
	}
}

// countingReader gives spaces without end.
type countingReader struct{ n int }

func (c *countingReader) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = ' '
	}
	c.n += len(b)
	return len(b), nil
}

// what the router and a fault of ours answer.
func TestRouterRefusals(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	token := g.admin()
	for _, c := range []struct {
		method, target string
		status         int
		code           api.Code
		allow          string
	}{
		{"GET", "/", 404, api.CodeNotFound, ""},
		{"GET", "/v1", 404, api.CodeNotFound, ""},
		{"GET", "/v1/kms/keys/", 404, api.CodeNotFound, ""},
		{"GET", "/v1/kms//keys", 404, api.CodeNotFound, ""},
		{"GET", "/v1/kms/%6Beys", 404, api.CodeNotFound, ""},
		{"GET", "/V1/kms/keys", 404, api.CodeNotFound, ""},
		{"GET", "/x/../v1/kms/keys", 404, api.CodeNotFound, ""},
		{"GET", "/v1/kms/keys/a/b/c", 404, api.CodeNotFound, ""},
		{"GET", "/v1/kms/keys/a/b/c/d/e/f", 404, api.CodeNotFound, ""},
		{"POST", "/v1/kms/keys/a/b/c/d/unknown", 404, api.CodeNotFound, ""},
		{"POST", "/v1/kms/encrypt", 404, api.CodeNotFound, ""},
		{"POST", "/v1/kms/sign/", 404, api.CodeNotFound, ""},
		{"POST", "/v1/kms/sign/batch/", 404, api.CodeNotFound, ""},
		{"POST", "/v1/kms/derive", 404, api.CodeNotFound, ""},
		{"GET", "/v1/kms/wrap", 405, api.CodeBadRequest, "POST"},
		{"GET", "/v1/kms/unwrap", 405, api.CodeBadRequest, "POST"},
		{"GET", "/v1/kms/sign/batch", 405, api.CodeBadRequest, "POST"},
		{"GET", "/v1/kms/keys/a/b/c/d/derive", 405, api.CodeBadRequest, "POST"},
		{"GET", "/debug/pprof/", 404, api.CodeNotFound, ""},
		{"DELETE", "/v1/kms/keys", 405, api.CodeBadRequest, "GET, POST"},
		{"GET", "/v1/kms/sign", 405, api.CodeBadRequest, "POST"},
		{"OPTIONS", "/v1/kms/sign", 405, api.CodeBadRequest, "POST"},
		{"PUT", "/v1/kms/keys/a/b/c/d", 405, api.CodeBadRequest, "GET"},
		{"GET", "/v1/kms/keys/a/b/c/d/rotate", 405, api.CodeBadRequest, "POST"},
		{"POST", "/healthz", 405, api.CodeBadRequest, "GET"},
		{"FOO", "/metrics", 405, api.CodeBadRequest, "GET"},
	} {
		res := g.call(c.method, c.target, token, "")
		t.Run(c.method+" "+c.target, func(t *testing.T) {
			wantRefusal(t, res, c.status, c.code)
			if got := sortedList(res.header.Get("Allow")); got != c.allow {
				t.Errorf("Allow %q, want %q", got, c.allow)
			}
			if res.header.Get("X-Content-Type-Options") != "nosniff" || res.header.Get("Cache-Control") != "no-store" {
				t.Errorf("header %v", res.header)
			}
		})
	}
}

func sortedList(s string) string {
	if s == "POST, GET" {
		return "GET, POST"
	}
	return s
}

// a panic is an envelope, and its value is in no log.
func TestPanicIsAnEnvelope(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.h.endpoints = append(g.h.endpoints, endpoint{"GET", "/boom", func(*handler, *exchange) (*answer, error) { panic(canary) }})
	res := g.call("GET", "/boom", "", "")
	wantRefusal(t, res, 500, api.CodeInternal)
	if strings.Contains(g.logs.String()+res.body, canary) {
		t.Error("the panic's value got out")
	}
	if !strings.Contains(g.logs.String(), res.header.Get(headerRequestID)) {
		t.Error("the panic is not in the log")
	}
}

// R-081, D-4: forms of a kid in a path.
func TestKIDPaths(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	token, kid := g.admin(), g.create("ed25519+ml-dsa-65")
	k, _ := api.ParseKID(kid)
	name := k.Base().String()
	esc := url.PathEscape
	good := []string{
		name, name + "@v1", name + "?version=1", esc(name), esc(kid), esc(name) + "?version=1",
		strings.ToLower(esc(name)), "%61cme/audit/" + esc(k.Alg) + "/" + k.ID, name + "%40v1",
	}
	for _, form := range good {
		res := g.call("GET", pathKeys+"/"+form, token, "")
		if res.status != 200 || decode[api.GetResponse](t, res.body).Key.KID != kid {
			t.Errorf("%s: %d %s", form, res.status, res.body)
		}
	}
	bad := []string{
		"../" + strings.TrimPrefix(name, "acme/"), "%2e%2e/audit/" + k.Alg + "/" + k.ID, "acme/%2e/" + k.Alg + "/" + k.ID,
		"acme/../" + k.Alg + "/" + k.ID, "%252e%252e/audit/" + k.Alg + "/" + k.ID, esc(esc(name)), esc(esc(kid)),
		"acme%2Faudit/" + k.Alg + "/" + k.ID, "acme%2Faudit/" + k.Alg + "/" + k.ID + "/x",
		"acme%2Fx/audit/" + k.Alg + "/" + k.ID, "acme%00/audit/" + k.Alg + "/" + k.ID, "acme\u0301/audit/" + k.Alg + "/" + k.ID,
		"%EF%BD%81cme/audit/" + k.Alg + "/" + k.ID, "acme%5C/audit/" + k.Alg + "/" + k.ID, "acme%20/audit/" + k.Alg + "/" + k.ID,
		"acme/audit/" + k.Alg + "/" + strings.ToUpper(k.ID), "acme/audit/ed25519%20/" + k.ID,
		name + "@v0", name + "@v01", name + "@1", name + "@", name + "@v1@v1", name + "@v4294967296", name + "%23v1",
		name + "@v1?version=1", esc(kid) + "?version=1", name + "?version=", name + "?version=v1", name + "?version=0",
		name + "?version=01", name + "?version=1&version=1", name + "?version=1%23v1", name + "?Version=1", name + "?x=1",
		name + "?version=1;x=1", name + "?%zz", esc(name + "@v1"), esc("/" + name), esc(name + "/"), ".", "..",
		strings.Repeat("a", 300) + "/audit/" + k.Alg + "/" + k.ID,
	}
	for _, form := range bad {
		r := request("GET", pathKeys+"/x", token, "")
		u, err := url.ParseRequestURI(pathKeys + "/" + form)
		if err != nil {
			t.Fatalf("%s: %v", form, err)
		}
		r.URL = u
		if res := g.do(r); res.status != 400 && res.status != 404 || strings.Contains(res.body, `"key"`) {
			t.Errorf("%s: %d %s", form, res.status, res.body)
		} else {
			wantRefusal(t, res, res.status, map[int]api.Code{400: api.CodeBadRequest, 404: api.CodeNotFound}[res.status])
		}
	}
	for _, form := range []string{"Acme/audit", "acme/Audit"} { // labels are case-sensitive
		res := g.call("GET", pathKeys+"/"+form+"/"+k.Alg+"/"+k.ID, token, "")
		if res.status != 403 && res.status != 404 {
			t.Errorf("%s: %d %s", form, res.status, res.body)
		}
	}
}

// D-4: the kid in a body must be the kid in the path.
func TestKIDInBodyAndPath(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	token, kid := g.admin(), g.create("ed25519")
	other := g.create("ed25519")
	post := func(path, inBody string) result {
		return g.call("POST", path, token, fmt.Sprintf(`{"op_id":%q,"kid":%q}`, uuid.NewString(), inBody))
	}
	wantRefusal(t, post(pathOf(kid)+"/rotate", other), 400, api.CodeBadRequest)
	wantRefusal(t, post(pathOf(kid)+"/rotate", base(t, kid)), 400, api.CodeBadRequest)
	wantRefusal(t, post(pathOf(kid)+"/destroy", other), 400, api.CodeBadRequest)
	wantRefusal(t, post(pathOf(kid)+"/destroy", "x"), 400, api.CodeBadRequest)
	if res := post(pathOf(kid)+"/rotate", kid); res.status != 200 {
		t.Errorf("%d %s", res.status, res.body)
	}
}

// Queries and GET bodies are strict.
func TestStrictQueries(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	token, kid := g.admin(), g.create("ed25519")
	for _, q := range []string{
		"", "?tenant=", "?tenant=acme&x=1", "?tenant=acme&tenant=acme", "?tenant=acme&limit=0", "?tenant=acme&limit=501",
		"?tenant=acme&limit=-1", "?tenant=acme&limit=+1", "?tenant=acme&limit=01", "?tenant=acme&limit=1e2", "?tenant=acme&limit=",
		"?tenant=acme&purpose=a/b", "?tenant=acme&after=x", "?tenant=acme&after=" + url.QueryEscape("evil"+strings.TrimPrefix(kid, "acme")),
		"?tenant=acme;purpose=x", "?TENANT=acme",
	} {
		wantRefusal(t, g.call("GET", pathKeys+q, token, ""), 400, api.CodeBadRequest)
	}
	for _, q := range []string{"?tenant=acme&limit=1", "?tenant=acme&purpose=audit&limit=500", "?tenant=acme&after=" + url.QueryEscape(kid)} {
		if res := g.call("GET", pathKeys+q, token, ""); res.status != 200 {
			t.Errorf("%s: %d %s", q, res.status, res.body)
		}
	}
	for _, target := range []string{pathKeys + "?tenant=acme", pathOf(kid)} {
		wantRefusal(t, g.call("GET", target, token, "{}"), 400, api.CodeBadRequest)
	}
	for _, target := range []string{"/healthz?x=1", "/readyz?x=1", "/readyz?for=sign", "/readyz?for=verify&for=verify", "/version?x=1", "/metrics?x=1"} {
		wantRefusal(t, g.call("GET", target, "", ""), 400, api.CodeBadRequest)
	}
	wantRefusal(t, g.call("POST", pathSign+"?x=1", token, signBody(kid)), 400, api.CodeBadRequest)
}

// what a stranger learns is the same whether the key exists or not.
func TestNoExistenceOracle(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	kid := g.create("ed25519")
	k, _ := api.ParseKID(kid)
	stranger := g.token(3600, "evil", "kms:read", "kms:sign", "kms:verify", "kms:rotate", "kms:destroy")
	missing := k
	missing.ID = uuid.NewString()
	for _, suffix := range []string{"", "?version=1", "?version=9", "/rotate", "/destroy", "/derive", "/export"} {
		method, body := "GET", ""
		if strings.HasPrefix(suffix, "/") && suffix != "/export" {
			method, body = "POST", opBody()
		}
		if suffix == "/derive" {
			body = fmt.Sprintf(`{"op_id":%q,"context":"ci","alg":"ed25519"}`, uuid.NewString())
		}
		a := g.call(method, pathKeys+"/"+k.Base().String()+suffix, stranger, body)
		b := g.call(method, pathKeys+"/"+missing.Base().String()+suffix, stranger, body)
		wantRefusal(t, a, 403, api.CodeNoCapability)
		if a.status != b.status || neutral(t, a) != neutral(t, b) || !reflect.DeepEqual(fields(a.header), fields(b.header)) {
			t.Errorf("%s: %d %s %v and %d %s %v", suffix, a.status, a.body, a.header, b.status, b.body, b.header)
		}
	}
	for target, body := range map[string]string{
		pathSign: `{"kid":%q,"payload_b3":"` + digest + `"}`, pathSign + "/batch": `{"kid":%q,"items":[{"payload_b3":"` + digest + `"}]}`,
		pathWrap: `{"kid":%q,"size":32}`, pathUnwrap: `{"kid":%q,"wrapped_b64":"AAAA"}`, pathRewrap: `{"kid":%q,"wrapped_b64":"AAAA"}`,
	} {
		a := g.call("POST", target, stranger, fmt.Sprintf(body, k.Base().String()))
		b := g.call("POST", target, stranger, fmt.Sprintf(body, missing.Base().String()))
		wantRefusal(t, a, 403, api.CodeNoCapability)
		if neutral(t, a) != neutral(t, b) || !reflect.DeepEqual(fields(a.header), fields(b.header)) {
			t.Errorf("%s: %s and %s", target, a.body, b.body)
		}
	}
}

// neutral is a body without its time and id.
func neutral(t *testing.T, res result) string {
	e := decode[api.Envelope](t, res.body)
	e.Error.TS, e.Error.RequestID = "", ""
	return fmt.Sprintf("%+v", e)
}

func fields(h http.Header) http.Header {
	h = h.Clone()
	h.Del(headerRequestID)
	return h
}
