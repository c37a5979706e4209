package control

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/capability"
	"github.com/rustyonions/ron-kms/core/capability/mint"
	"github.com/rustyonions/ron-kms/core/config"
)

// rig is an amnesia KMS with the HTTP face over it.
type rig struct {
	t    *testing.T
	k    *core.KMS
	h    *handler
	logs *logBuffer
}

// logBuffer takes log lines of several goroutines.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func amnesia() *config.Config {
	cfg := config.Default()
	cfg.Backend, cfg.ArenaSize, cfg.AuditSegmentSize = config.BackendInmem, 1<<20, 1<<20
	return cfg
}

func newRig(t *testing.T, edits ...func(*config.Config)) *rig {
	t.Helper()
	cfg := amnesia()
	for _, edit := range edits {
		edit(cfg)
	}
	logs := new(logBuffer)
	logger := slog.New(slog.NewJSONHandler(logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	k, err := core.Open(context.Background(), cfg, core.Options{Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	o := Options{Logger: logger, Build: BuildInfo{Version: "1.2.3", Commit: "abc", GoVersion: "go1.26"}}
	return &rig{t: t, k: k, h: newHandler(k, o), logs: logs}
}

// token mints one; exp is in seconds from now.
func (g *rig) token(exp int64, tenant string, scopes ...string) string {
	g.t.Helper()
	keys := g.k.TokenKeys()
	return mintWith(g.t, keys.Newest(), func(use func([]byte)) error { return keys.Root(keys.Newest(), use) }, exp, tenant, scopes...)
}

func mintWith(t *testing.T, id string, root func(func([]byte)) error, exp int64, tenant string, scopes ...string) string {
	t.Helper()
	var caveats []capability.Caveat
	for _, text := range []string{"tenant=" + tenant, fmt.Sprintf("exp=%d", time.Now().Unix()+exp)} {
		c, err := capability.ParseCaveat(text)
		if err != nil {
			t.Fatal(err)
		}
		caveats = append(caveats, c)
	}
	c, err := capability.ScopeCaveat(scopes...)
	if err != nil {
		t.Fatal(err)
	}
	token, err := mint.New(id, root, append(caveats, c)...)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// admin may do everything as tenant acme.
func (g *rig) admin() string { return g.token(3600, "acme", capability.ScopeList()...) }

// result is an answer, read.
type result struct {
	status int
	header http.Header
	body   string
}

func (g *rig) do(r *http.Request) result {
	g.t.Helper()
	w := httptest.NewRecorder()
	g.h.ServeHTTP(w, r)
	return result{w.Code, w.Header(), w.Body.String()}
}

// request makes a request as a client would: JSON if there is a body, and a
// token if one is given.
func request(method, target, token, body string) *http.Request {
	var content io.Reader
	if body != "" {
		content = strings.NewReader(body)
	}
	r := httptest.NewRequest(method, target, content)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	return r
}

func (g *rig) call(method, target, token, body string) result {
	g.t.Helper()
	return g.do(request(method, target, token, body))
}

// create makes a key of tenant acme and returns its kid with the version.
func (g *rig) create(alg string) string {
	g.t.Helper()
	res := g.call("POST", pathKeys, g.admin(), fmt.Sprintf(`{"op_id":%q,"tenant":"acme","purpose":"audit","alg":%q}`, uuid.NewString(), alg))
	if res.status != http.StatusCreated {
		g.t.Fatalf("create: %d %s", res.status, res.body)
	}
	return decode[api.CreateResponse](g.t, res.body).KID
}

func decode[T any](t *testing.T, body string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(body), &v); err != nil {
		t.Fatalf("%v in %q", err, body)
	}
	return v
}

// pathOf is the URL path of a kid: four segments, with @vN.
func pathOf(kid string) string {
	return pathKeys + "/" + strings.Replace(kid, "#", "@", 1)
}

func base(t *testing.T, kid string) string {
	t.Helper()
	k, err := api.ParseKID(kid)
	if err != nil {
		t.Fatal(err)
	}
	return k.Base().String()
}

// wantRefusal checks the status and that the body is the stable envelope:
// exactly its six fields, in agreement with the error table.
func wantRefusal(t *testing.T, res result, status int, code api.Code) {
	t.Helper()
	if res.status != status {
		t.Errorf("status %d, want %d: %s", res.status, status, res.body)
		return
	}
	if res.header.Get("Content-Type") != "application/json" {
		t.Errorf("Content-Type %q", res.header.Get("Content-Type"))
	}
	var outer map[string]map[string]any
	if err := json.Unmarshal([]byte(res.body), &outer); err != nil || len(outer) != 1 {
		t.Errorf("not an envelope: %q", res.body)
		return
	}
	e := outer["error"]
	for _, name := range []string{"code", "message", "retryable", "hint", "ts", "request_id"} {
		if _, ok := e[name]; !ok {
			t.Errorf("the envelope has no %s: %s", name, res.body)
		}
	}
	if len(e) != 6 {
		t.Errorf("the envelope has %d fields: %s", len(e), res.body)
	}
	if e["code"] != string(code) {
		t.Errorf("code %v, want %s: %s", e["code"], code, res.body)
	}
	if e["request_id"] != res.header.Get(headerRequestID) || !strings.HasPrefix(fmt.Sprint(e["request_id"]), "r-") {
		t.Errorf("request_id %v, header %q", e["request_id"], res.header.Get(headerRequestID))
	}
	if ts, err := time.Parse(time.RFC3339, fmt.Sprint(e["ts"])); err != nil || ts.Location() != time.UTC {
		t.Errorf("ts %v", e["ts"])
	}
	known := false
	for _, row := range api.Table() {
		if row.Code == code && row.HTTP == status && row.Retryable == e["retryable"] {
			known = true
		}
	}
	if !known {
		t.Errorf("no row of the table says %d %s retryable=%v", status, code, e["retryable"])
	}
	if status == 401 && res.header.Get("WWW-Authenticate") != "Bearer" {
		t.Error("a 401 without WWW-Authenticate")
	}
	if (status == 429 || status == 503) && res.header.Get("Retry-After") < "1" {
		t.Errorf("Retry-After %q", res.header.Get("Retry-After"))
	}
}

const digest = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"

func signBody(kid string) string { return fmt.Sprintf(`{"kid":%q,"payload_b3":%q}`, kid, digest) }

// signed signs and returns the body of the verify request for it.
func (g *rig) signed(kid string) string {
	g.t.Helper()
	res := g.call("POST", pathSign, g.admin(), signBody(kid))
	if res.status != 200 {
		g.t.Fatalf("sign: %d %s", res.status, res.body)
	}
	b, err := json.Marshal(api.VerifyRequest{PayloadB3: digest, Sigs: decode[api.SignResponse](g.t, res.body).Sigs})
	if err != nil {
		g.t.Fatal(err)
	}
	return string(b)
}

func opBody() string { return fmt.Sprintf(`{"op_id":%q}`, uuid.NewString()) }

// wrapped seals a data key, in base64, and returns the body of the unwrap
// request for it.
func (g *rig) wrapped(kid, keyB64, aadB64 string) string {
	g.t.Helper()
	req := api.WrapRequest{KID: kid, PlaintextKeyB64: keyB64, AADB64: aadB64}
	body, err := api.Encode(req)
	if err != nil {
		g.t.Fatal(err)
	}
	res := g.call("POST", pathWrap, g.admin(), string(body))
	if res.status != 200 {
		g.t.Fatalf("wrap: %d %s", res.status, res.body)
	}
	envelope := decode[api.WrapResponse](g.t, res.body).WrappedB64
	body, err = api.Encode(api.UnwrapRequest{KID: base(g.t, kid), WrappedB64: envelope, AADB64: aadB64})
	if err != nil {
		g.t.Fatal(err)
	}
	return string(body)
}
