package control

import (
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/capability"
)

// every verb has a route and every route a verb.
func TestRoutesAreTheVerbTable(t *testing.T) {
	t.Parallel()
	verbs := make(map[string]bool)
	for _, v := range core.Verbs() {
		verbs[v.Name] = false
	}
	seen := make(map[string]bool)
	for _, rt := range routes {
		if _, ok := verbs[rt.verb]; !ok {
			t.Errorf("%s %s is for %q, which is no verb", rt.method, rt.pattern, rt.verb)
		}
		verbs[rt.verb] = true
		if id := rt.method + " " + rt.pattern; seen[id] {
			t.Errorf("%s twice", id)
		} else {
			seen[id] = true
		}
	}
	for name, routed := range verbs {
		if !routed {
			t.Errorf("verb %s has no route", name)
		}
	}
	for _, want := range []string{
		"POST /v1/kms/keys", "GET /v1/kms/keys", "GET /v1/kms/keys/{kid}", "POST /v1/kms/keys/{kid}/rotate",
		"POST /v1/kms/keys/{kid}/destroy", "POST /v1/kms/sign", "POST /v1/kms/verify", "POST /v1/kms/keys/{kid}/derive",
		"POST /v1/kms/sign/batch", "POST /v1/kms/verify/batch", "POST /v1/kms/wrap", "POST /v1/kms/unwrap", "POST /v1/kms/rewrap",
	} {
		if !seen[want] {
			t.Errorf("no route %s", want)
		}
	}
}

// docs/spec/rest.md has a line for each route, with its verb and
// scopes, and an example of each POST.
func TestRoutesAreDocumented(t *testing.T) {
	t.Parallel()
	spec, err := os.ReadFile("../../docs/spec/rest.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, rt := range routes {
		if rt.verb == "export" {
			continue // one line for all of them
		}
		verb, _ := core.VerbNamed(rt.verb)
		line := fmt.Sprintf("\n| `%s %s` | %s | `%s` |", rt.method, rt.pattern, rt.verb, strings.Join(verb.Scopes, "`, `"))
		if !strings.Contains(string(spec), line) {
			t.Errorf("docs/spec/rest.md has no line %s", line)
		}
		example := "\npost " + regexp.QuoteMeta(rt.pattern) + " '"
		example = strings.Replace(example, `\{kid\}`, `[^ ]+`, 1)
		if rt.method == "POST" && !regexp.MustCompile(example).Match(spec) {
			t.Errorf("docs/spec/rest.md has no example of %s", rt.pattern)
		}
	}
}

// sample is a request that the route's verb accepts.
func (g *rig) sample(rt route) (target, body string) {
	kid := ""
	switch rt.verb {
	case "create", "list":
	case "wrap", "unwrap", "rewrap":
		kid = g.create("aes-256-gcm")
	case "derive":
		kid = g.create("hkdf-sha256")
	default:
		kid = g.create("ed25519")
	}
	target = strings.Replace(rt.pattern, "{kid}", base0(kid), 1)
	switch rt.verb {
	case "create":
		body = fmt.Sprintf(`{"op_id":%q,"tenant":"acme","purpose":"audit","alg":"ed25519"}`, uuid.NewString())
	case "list":
		target += "?tenant=acme"
	case "rotate", "destroy":
		body = opBody()
	case "sign":
		body = signBody(kid)
	case "verify":
		body = g.signed(kid)
	case "sign_batch":
		body = fmt.Sprintf(`{"kid":%q,"items":[{"payload_b3":%q},{"payload_b3":%q}]}`, kid, digest, strings.Repeat("0", 64))
	case "verify_batch":
		body = `{"items":[` + g.signed(kid) + `]}`
	case "wrap":
		body = fmt.Sprintf(`{"kid":%q,"size":32}`, kid)
	case "unwrap", "rewrap":
		body = g.wrapped(kid, "MDEyMzQ1Njc4OWFiY2RlZg==", "")
	case "derive":
		body = fmt.Sprintf(`{"op_id":%q,"context":"ci","alg":"ed25519"}`, uuid.NewString())
	}
	return strings.Replace(target, "?private", "?include=private", 1), body
}

func base0(kid string) string { b, _, _ := strings.Cut(kid, "#"); return b }

// the matrix of every endpoint and every kind of token.
func TestCapabilityMatrix(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	foreign := mintWith(t, g.k.TokenKeys().Newest(), func(use func([]byte)) error {
		use(make([]byte, capability.RootKeyBytes))
		return nil
	}, 3600, "acme", capability.ScopeList()...)
	tampered := g.admin()
	tampered = tampered[:len(tampered)-8] + "AAAAAAAA"
	for _, rt := range routes {
		verb, _ := core.VerbNamed(rt.verb)
		success := map[string]int{"create": 201, "derive": 201, "export": 403}[rt.verb]
		if success == 0 {
			success = 200
		}
		t.Run(rt.method+rt.pattern, func(t *testing.T) {
			for name, token := range map[string]string{
				"none": "", "garbage": "x", "foreign root": foreign, "tampered": tampered,
				"expired": g.token(-60, "acme", capability.ScopeList()...), "too long": strings.Repeat("A", 5000),
			} {
				target, body := g.sample(rt)
				t.Run(name, func(t *testing.T) {
					wantRefusal(t, g.call(rt.method, target, token, body), 401, api.CodeNoCapability)
				})
			}
			t.Run("wrong tenant", func(t *testing.T) {
				target, body := g.sample(rt)
				wantRefusal(t, g.call(rt.method, target, g.token(3600, "evil", capability.ScopeList()...), body), 403, api.CodeNoCapability)
			})
			for _, scope := range capability.ScopeList() {
				target, body := g.sample(rt)
				res := g.call(rt.method, target, g.token(3600, "acme", scope), body)
				switch {
				case !slices.Contains(verb.Scopes, scope):
					wantRefusal(t, res, 403, api.CodeNoCapability)
					if !strings.Contains(res.body, verb.Scopes[0]) {
						t.Errorf("the hint does not name %s: %s", verb.Scopes[0], res.body)
					}
				case rt.verb == "export":
					wantRefusal(t, res, 403, api.CodeExportForbidden)
				case res.status != success:
					t.Errorf("%s: %d %s", scope, res.status, res.body)
				}
			}
		})
	}
}

// only one Authorization field with a bearer token counts.
func TestAuthorizationField(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	token, target := g.admin(), pathKeys+"?tenant=acme"
	for name, edit := range map[string]func(*http.Request){
		"none":      func(r *http.Request) {},
		"twice":     func(r *http.Request) { r.Header["Authorization"] = []string{"Bearer " + token, "Bearer " + token} },
		"basic":     func(r *http.Request) { r.SetBasicAuth("bearer", token) },
		"bare":      func(r *http.Request) { r.Header.Set("Authorization", token) },
		"two gaps":  func(r *http.Request) { r.Header.Set("Authorization", "Bearer  "+token) },
		"list":      func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token+", Bearer "+token) },
		"query":     func(r *http.Request) { r.URL.RawQuery += "&access_token=" + token },
		"cookie":    func(r *http.Request) { r.AddCookie(&http.Cookie{Name: "token", Value: token}) },
		"proxy":     func(r *http.Request) { r.Header.Set("Proxy-Authorization", "Bearer "+token) },
		"forwarded": func(r *http.Request) { forwardedIdentity(r, token) },
	} {
		r := request("GET", target, "", "")
		edit(r)
		t.Run(name, func(t *testing.T) { wantRefusal(t, g.do(r), 401, api.CodeNoCapability) })
	}
	// Forwarded identity neither helps nor hinders.
	r := request("GET", target, g.token(3600, "evil", capability.ScopeRead), "")
	forwardedIdentity(r, token)
	wantRefusal(t, g.do(r), 403, api.CodeNoCapability)
	r = request("GET", target, token, "")
	forwardedIdentity(r, "nobody")
	if res := g.do(r); res.status != 200 {
		t.Errorf("%d %s", res.status, res.body)
	}
}

func forwardedIdentity(r *http.Request, v string) {
	for _, name := range []string{
		"X-Forwarded-User", "X-Forwarded-Authorization", "X-Remote-User", "Remote-User", "X-Auth-Token", "X-Tenant",
		"X-Original-Authorization", "Forwarded", "X-Forwarded-For", "X-Client-Cert", "X-Ssl-Client-S-Dn",
	} {
		r.Header.Set(name, v)
	}
}

// R-130 over HTTP, D-15: 64 duplicates of one op_id make one key, and of
// another one version; exactly one of each is answered as the first.
func TestConcurrentDuplicates(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	token := g.admin()
	flood := func(target, body string) (kids map[string]bool, created int) {
		var mu sync.Mutex // guards kids and created
		kids = make(map[string]bool)
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				res := g.call("POST", target, token, body)
				mu.Lock()
				defer mu.Unlock()
				if res.status == 201 {
					created++
				} else if res.status != 200 {
					t.Errorf("%d %s", res.status, res.body)
				}
				kids[decode[api.CreateResponse](t, res.body).KID] = true
			})
		}
		wg.Wait()
		return kids, created
	}
	kids, created := flood(pathKeys, fmt.Sprintf(`{"op_id":%q,"tenant":"acme","purpose":"audit","alg":"ed25519"}`, uuid.NewString()))
	if len(kids) != 1 || created != 1 {
		t.Fatalf("%d keys, %d answered 201", len(kids), created)
	}
	var kid string
	for kid = range kids {
	}
	if kids, _ := flood(pathKeys+"/"+base(t, kid)+"/rotate", opBody()); len(kids) != 1 || !kids[base(t, kid)+"#v2"] {
		t.Errorf("rotations: %v", kids)
	}
	list := decode[api.ListResponse](t, g.call("GET", pathKeys+"?tenant=acme", token, "").body)
	if len(list.Keys) != 1 || list.Keys[0].Head != 2 {
		t.Errorf("the store has %+v", list.Keys)
	}
	parent := g.create("hkdf-sha256")
	body := fmt.Sprintf(`{"op_id":%q,"context":"ci","alg":"ed25519"}`, uuid.NewString())
	if kids, created := flood(pathOf(parent)+"/derive", body); len(kids) != 1 || created != 1 {
		t.Errorf("%d derived keys, %d answered 201", len(kids), created)
	}
}

// R-130, D-15: the header Idempotency-Key is the op_id, and both must match.
func TestIdempotencyKey(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	token, id := g.admin(), uuid.NewString()
	post := func(body string, keys ...string) result {
		r := request("POST", pathKeys, token, body)
		r.Header["Idempotency-Key"] = keys
		return g.do(r)
	}
	const rest = `"tenant":"acme","purpose":"audit","alg":"ed25519"}`
	first := post(`{`+rest, id)
	second := post(`{"op_id":"`+id+`",`+rest, id)
	if first.status != 201 || second.status != 200 {
		t.Fatalf("%d, then %d", first.status, second.status)
	}
	if a, b := decode[api.CreateResponse](t, first.body), decode[api.CreateResponse](t, second.body); a.KID != b.KID {
		t.Errorf("%s, then %s", a.KID, b.KID)
	}
	if first.header.Get("Location") == "" || strings.Contains(first.body, "eplay") {
		t.Errorf("Location %q, body %s", first.header.Get("Location"), first.body)
	}
	wantRefusal(t, post(`{"op_id":"`+uuid.NewString()+`",`+rest, id), 400, api.CodeBadRequest)
	wantRefusal(t, post(`{`+rest, id, id), 400, api.CodeBadRequest)
	wantRefusal(t, post(`{`+rest), 400, api.CodeBadRequest)
	wantRefusal(t, post(`{`+rest, "not-a-uuid"), 400, api.CodeBadRequest)
	wantRefusal(t, post(`{"op_id":"`+id+`","tenant":"acme","purpose":"other","alg":"ed25519"}`), 409, api.CodeConflict)
	r := request("POST", pathSign, token, signBody(g.create("ed25519")))
	r.Header.Set("Idempotency-Key", id)
	wantRefusal(t, g.do(r), 400, api.CodeBadRequest) // sign is not done once
	derive := request("POST", pathOf(g.create("hkdf-sha256"))+"/derive", token, `{"context":"ci","alg":"ed25519"}`)
	derive.Header.Set("Idempotency-Key", uuid.NewString())
	if res := g.do(derive); res.status != 201 {
		t.Errorf("derive: %d %s", res.status, res.body)
	}
}

// D-31: the tag of a key, 304, and If-Match on rotate.
func TestEntityTags(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	token, kid := g.admin(), g.create("ed25519")
	path := pathKeys + "/" + base(t, kid)
	with := func(method, target, field, value, body string) result {
		r := request(method, target, token, body)
		r.Header.Set(field, value)
		return g.do(r)
	}
	got := g.call("GET", path, token, "")
	tag := got.header.Get("ETag")
	if got.status != 200 || !strings.HasPrefix(tag, `"v1-`) || got.header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%d, tag %s, %v", got.status, tag, got.header)
	}
	for _, field := range []string{tag, "W/" + tag, `"x", ` + tag, "*"} {
		if res := with("GET", path, "If-None-Match", field, ""); res.status != 304 || res.body != "" || res.header.Get("ETag") != tag {
			t.Errorf("If-None-Match %s: %d %q", field, res.status, res.body)
		}
	}
	if res := with("GET", path, "If-None-Match", `"v1-AAAAAAAAAAAAAAAAAAAAAA"`, ""); res.status != 200 {
		t.Errorf("another tag: %d", res.status)
	}
	rotation := opBody()
	for _, field := range []string{"W/" + tag, `"x"`, tag + ", " + tag, `"v01` + tag[3:]} {
		wantRefusal(t, with("POST", path+"/rotate", "If-Match", field, rotation), 409, api.CodeConflict)
	}
	for i := range 2 { // the second is a repetition: the tag is stale, the answer is the same
		res := with("POST", path+"/rotate", "If-Match", tag, rotation)
		if res.status != 200 || decode[api.RotateResponse](t, res.body).KID != base(t, kid)+"#v2" {
			t.Fatalf("rotate %d: %d %s", i, res.status, res.body)
		}
	}
	wantRefusal(t, with("POST", path+"/rotate", "If-Match", tag, opBody()), 409, api.CodeStaleVersion)
	wantRefusal(t, with("POST", path+"/destroy", "If-Match", tag, opBody()), 400, api.CodeBadRequest)
	if res := with("GET", path, "If-None-Match", tag, ""); res.status != 200 {
		t.Errorf("after the rotation: %d", res.status)
	}
	wantRefusal(t, g.call("POST", path+"@v1/rotate", token, opBody()), 409, api.CodeStaleVersion)
	if res := g.call("POST", path+"@v2/rotate", token, opBody()); res.status != 200 {
		t.Errorf("rotate the head by name: %d %s", res.status, res.body)
	}
}

// sign and verify over HTTP; a wrong signature is an answer.
func TestSignVerify(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	token := g.admin()
	body := g.signed(g.create("ed25519+ml-dsa-65"))
	res := g.call("POST", pathVerify, token, body)
	if v := decode[api.VerifyResponse](t, res.body); res.status != 200 || !v.OK || len(v.Details.Checked) != 2 {
		t.Errorf("%d %s", res.status, res.body)
	}
	res = g.call("POST", pathVerify, token, strings.Replace(body, digest, strings.Repeat("0", 64), 1))
	if v := decode[api.VerifyResponse](t, res.body); res.status != 200 || v.OK {
		t.Errorf("%d %s", res.status, res.body)
	}
}

// every way to ask for a private key, well-formed or not in its
// query and body, is refused and on record.
func TestExportAttempts(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	token, kid := g.admin(), g.create("ed25519")
	path := pathKeys + "/" + base(t, kid)
	attempts := [][2]string{
		{"GET", path + "/export"}, {"POST", path + "/export"}, {"GET", path + "/private"}, {"POST", path + "/private"},
		{"GET", path + "?include=private"}, {"GET", path + "?format=pem"}, {"GET", path + "?format=DER"},
		{"GET", path + "?x=1&include=private"}, {"GET", path + "?include=public&include=private"},
		{"GET", pathOf(kid) + "/export?format=pem"}, {"POST", pathKeys + "/" + strings.NewReplacer("/", "%2F", "#", "%23").Replace(kid) + "/private"},
	}
	before := g.sizeOfLog()
	for _, a := range attempts {
		wantRefusal(t, g.call(a[0], a[1], token, ""), 403, api.CodeExportForbidden)
	}
	r := request("POST", path+"/export", token, "not json")
	r.Header.Set("Content-Type", "text/plain")
	wantRefusal(t, g.do(r), 403, api.CodeExportForbidden)
	// Each attempt left a leaf of its own. They were handed over without
	// waiting, so ask again until they are there.
	want, grown := uint64(len(attempts)+1), uint64(0)
	for asked := uint64(1); asked < 500 && grown < want; asked++ {
		grown = g.sizeOfLog() - before - leavesOfAsking*asked
	}
	if grown < want { // a checkpoint may have left one more
		t.Errorf("the log grew by %d leaves, want %d", grown, want)
	}
	for _, target := range []string{path + "?include=public", path + "?format=jwk", path + "?format="} {
		wantRefusal(t, g.call("GET", target, token, ""), 400, api.CodeBadRequest)
	}
}

// leavesOfAsking is what sizeOfLog itself adds: intent and result of a create,
// and a sign.
const leavesOfAsking = 3

// sizeOfLog is the log index of a fresh signature.
func (g *rig) sizeOfLog() uint64 {
	g.t.Helper()
	res := g.call("POST", pathSign, g.admin(), signBody(g.create("ed25519")))
	return decode[api.SignResponse](g.t, res.body).Receipt.LogIndex
}
