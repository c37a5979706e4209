package policy

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
)

// serve starts a service on loopback and returns a decision point for it.
func serve(tb testing.TB, h http.HandlerFunc, o HTTPOptions) *HTTP {
	tb.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if b, err := io.ReadAll(r.Body); err == nil { // else the server does not see that the client is gone
			r.Body = io.NopCloser(strings.NewReader(string(b)))
			h(w, r)
		}
	}))
	tb.Cleanup(s.Close)
	o.URL = s.URL
	if o.Path == "" {
		o.Path = "ronkms/decision"
	}
	p, err := NewHTTP(o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(p.Close)
	return p
}

func answers(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) }
}

// What is told is this and no more, under the path and fields of the data API.
func TestHTTPQuestion(t *testing.T) {
	t.Parallel()
	var got struct {
		method, uri, body string
		header            http.Header
	}
	p := serve(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got.method, got.uri, got.body, got.header = r.Method, r.RequestURI, string(b), r.Header
		io.WriteString(w, `{"result":{"allow":true}}`)
	}, HTTPOptions{})
	in := sign("acme")
	in.Now = time.UnixMilli(1700000000123)
	if _, err := p.Decide(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	want := `{"input":{"tenant":"acme","purpose":"release","verb":"sign","method":"KMS:SIGN","alg":"ed25519","kid":"k","actor":"cap:1","attested":false,"now_ms":1700000000123}}`
	if got.method != "POST" || got.uri != "/v1/data/ronkms/decision?provenance=true" || got.body != want {
		t.Errorf("%s %s %s", got.method, got.uri, got.body)
	}
	for _, field := range []string{"Authorization", "Cookie", "Idempotency-Key", "Accept-Encoding"} {
		if v, ok := got.header[field]; ok {
			t.Errorf("%s: %q", field, v)
		}
	}
	if got.header.Get("Content-Type") != "application/json" {
		t.Error(got.header)
	}
}

func TestHTTPAnswer(t *testing.T) {
	t.Parallel()
	base := neutral()
	base.AllowSignFallback, base.Version = false, "http"
	with := func(f func(*Decision)) Decision { d := base; f(&d); return d }
	for text, want := range map[string]Decision{
		`{"result":{"allow":true}}`:  base,
		`{"result":{"allow":false}}`: with(func(d *Decision) { d.Allow = false }),
		`{"result":{"allow":true,"reason":"rule 7","mode":"and","produce_hybrid":true,"limits":{"rps":50,"burst":100,"max_bytes":4096},
		  "attest_require":true,"fail_open":true,"allow_sign_fallback":true,"version":"2026-05","ttl_ms":1500}}`: {
			Allow: true, Reason: "rule 7", Mode: alg.ModeAnd, ProduceHybrid: true, LegacyGrace: true, Enforced: true, Limits: Limits{50, 100, 4096},
			AttestRequire: true, FailOpen: true, AllowSignFallback: true, Version: "2026-05", TTL: 1500 * time.Millisecond,
		},
		`{"result":{"allow":true,"mode":"or","limits":{}}}`:                                                        base,
		`{"result":{"allow":true,"fail_open":true}}`:                                                               base,
		`{"result":{"allow":true},"decision_id":"5c6e","metrics":{"x":1},"warning":{"code":"w"},"new":null}`:       with(func(d *Decision) { d.ID = "5c6e" }),
		`{"result":{"allow":true},"provenance":{"version":"1.2","bundles":{"a":{"revision":"r7"}}}}`:               with(func(d *Decision) { d.Version = "r7" }),
		`{"result":{"allow":true},"provenance":{"bundles":{"b":{"revision":"2"},"a":{"revision":"1"}}}}`:           with(func(d *Decision) { d.Version = "a=1;b=2" }),
		`{"result":{"allow":true,"version":"own"},"provenance":{"bundles":{"a":{"revision":"r7"}}}}`:               with(func(d *Decision) { d.Version = "own" }),
		`{"result":{"allow":true},"provenance":{"bundles":{"a":{"revision":"two words"}}},"decision_id":"a b"}`:    base,
		`{"result":{"allow":true},"provenance":{"bundles":{"a":{"revision":"` + strings.Repeat("a", 65) + `"}}}}`:  base,
		`{"result":{"allow":true},"provenance":{"version":"1.22.2","build_commit":"","future":{"a":[1,null,{}]}}}`: base,
	} {
		got, err := serve(t, answers(text), HTTPOptions{}).Decide(t.Context(), sign("acme"))
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
}

// refusedAnswers are bodies that are no decision.
var refusedAnswers = map[string]string{
	"empty": ``, "no JSON": `canary`, "torn": `{"result":{"allow":true,"reason":"canary"`, "array": `[]`, "two": `{"result":{"allow":true}}{}`,
	"result twice":        `{"result":{"allow":false},"result":{"allow":true}}`,
	"result null":         `{"result":null}`,
	"result true":         `{"result":true}`,
	"result array":        `{"result":[{"allow":true}]}`,
	"no allow":            `{"result":{}}`,
	"allow null":          `{"result":{"allow":null}}`,
	"allow text":          `{"result":{"allow":"true"}}`,
	"allow number":        `{"result":{"allow":1}}`,
	"allow twice":         `{"result":{"allow":false,"allow":true}}`,
	"Allow":               `{"result":{"Allow":true}}`,
	"unknown member":      `{"result":{"allow":true,"canary":false}}`,
	"unknown limit":       `{"result":{"allow":true,"limits":{"rpm":1}}}`,
	"mode unknown":        `{"result":{"allow":true,"mode":"canary"}}`,
	"mode empty":          `{"result":{"allow":true,"mode":""}}`,
	"mode in capitals":    `{"result":{"allow":true,"mode":"AND"}}`,
	"mode null":           `{"result":{"allow":true,"mode":null}}`,
	"hybrid text":         `{"result":{"allow":true,"produce_hybrid":"yes"}}`,
	"limits null":         `{"result":{"allow":true,"limits":null}}`,
	"rps zero":            `{"result":{"allow":true,"limits":{"rps":0}}}`,
	"rps negative":        `{"result":{"allow":true,"limits":{"rps":-1}}}`,
	"rps fraction":        `{"result":{"allow":true,"limits":{"rps":1.5}}}`,
	"rps text":            `{"result":{"allow":true,"limits":{"rps":"1"}}}`,
	"rps huge":            `{"result":{"allow":true,"limits":{"rps":1e30}}}`,
	"burst alone":         `{"result":{"allow":true,"limits":{"burst":1}}}`,
	"max_bytes zero":      `{"result":{"allow":true,"limits":{"max_bytes":0}}}`,
	"max_bytes too large": `{"result":{"allow":true,"limits":{"max_bytes":1048577}}}`,
	"ttl zero":            `{"result":{"allow":true,"ttl_ms":0}}`,
	"ttl negative":        `{"result":{"allow":true,"ttl_ms":-1}}`,
	"ttl too long":        `{"result":{"allow":true,"ttl_ms":86400001}}`,
	"ttl overflows":       `{"result":{"allow":true,"ttl_ms":9223372036854775807}}`,
	"version empty":       `{"result":{"allow":true,"version":""}}`,
	"version of two":      `{"result":{"allow":true,"version":"a,b"}}`,
	"version of a line":   `{"result":{"allow":true,"version":"a\r\nX: y"}}`,
	"version too long":    `{"result":{"allow":true,"version":"` + strings.Repeat("a", 65) + `"}}`,
	"version number":      `{"result":{"allow":true,"version":1}}`,
	"reason of two lines": `{"result":{"allow":false,"reason":"a\nb"}}`,
	"reason too long":     `{"result":{"allow":false,"reason":"` + strings.Repeat("a", 201) + `"}}`,
	"too deep":            `{"result":{"allow":true,"reason":` + strings.Repeat(`[`, 9) + strings.Repeat(`]`, 9) + `}}`,
	"bad UTF-8":           "{\"result\":{\"allow\":true,\"reason\":\"\xff\"}}",
	"error of the API":    `{"code":"internal_error","message":"canary","result":{"allow":true},"result":1}`,
}

// D-16: whatever goes wrong, a private operation is refused,
// verify goes on by the floor and then by the last decision known, and nothing
// of an answer is taken that is not wholly understood.
func TestHTTPFaults(t *testing.T) {
	t.Parallel()
	var elsewhere atomic.Int32
	target := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		elsewhere.Add(1)
		io.WriteString(w, `{"result":{"allow":true}}`)
	}))
	t.Cleanup(target.Close)
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", target.URL)
			w.WriteHeader(code)
			io.WriteString(w, `{"result":{"allow":true}}`)
		}
	}
	hijack := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			c, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				return
			}
			io.WriteString(c, text)
			c.Close()
		}
	}
	faults := map[string]http.HandlerFunc{
		"undefined": answers(`{}`), "undefined, with an id": answers(`{"decision_id":"a","provenance":{}}`),
		"301": status(301), "302": status(302), "307": status(307), "308": status(308), "201": status(201), "204": status(204),
		"400": status(400), "401": status(401), "404": status(404), "429": status(429), "500": status(500), "503": status(503),
		"hangs":            func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"closes":           hijack(""),
		"no HTTP":          hijack("canary\r\n\r\n"),
		"torn body":        hijack("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + `{"result":{"allow":true}}`),
		"torn chunk":       hijack("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n19\r\n" + `{"result":{"allow":true}}`),
		"oversized":        answers(`{"result":{"allow":true}}` + strings.Repeat(" ", maxAnswer)),
		"oversized header": hijack("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", maxHeader) + "\r\nContent-Length: 25\r\n\r\n" + `{"result":{"allow":true}}`),
		"compressed": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			io.WriteString(w, "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03")
		},
		"drips": func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := io.WriteString(w, " "); err != nil {
					return
				}
				w.(http.Flusher).Flush()
				time.Sleep(time.Millisecond)
			}
		},
	}
	for name, text := range refusedAnswers {
		faults[name] = answers(text)
	}
	for fault, h := range faults {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			var broken atomic.Bool
			remote := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if broken.Load() {
					h(w, r)
				} else {
					io.WriteString(w, `{"result":{"allow":true,"mode":"and","version":"good"}}`)
				}
			}, HTTPOptions{Timeout: 10 * time.Second})
			e := newEngine(t, Options{Remote: remote, Timeout: time.Minute})
			if a, err := e.Decide(t.Context(), verify("known"), Verify); err != nil || a.Version != "good" {
				t.Fatal(a, err)
			}
			broken.Store(true)
			e.Forget()
			if fault == "hangs" || fault == "drips" {
				remote.client.Timeout = 50 * time.Millisecond
			}
			want := api.ReasonPolicyDown
			if strings.HasPrefix(fault, "undefined") {
				want = api.ReasonPolicy
			}
			_, err := e.Decide(t.Context(), sign("acme"), Private)
			if !api.HasReason(err, want) {
				t.Errorf("sign: %v", err)
			}
			if err != nil && strings.Contains(err.Error(), "canary") && fault != "no HTTP" {
				t.Errorf("the error repeats the answer: %v", err)
			}
			if a, err := e.Decide(t.Context(), verify("acme"), Verify); err != nil || !a.Degraded || a.Mode != alg.ModeOr || a.Version != "static" {
				t.Errorf("verify, nothing known: %+v, %v", a, err)
			}
			if a, err := e.Decide(t.Context(), verify("known"), Verify); err != nil || !a.Degraded || a.Mode != alg.ModeAnd || a.Version != "good" {
				t.Errorf("verify, a decision known: %+v, %v", a, err)
			}
		})
	}
	t.Cleanup(func() {
		if n := elsewhere.Load(); n != 0 {
			t.Errorf("%d redirects were followed", n)
		}
	})
}

func TestHTTPNobodyThere(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	p, err := NewHTTP(HTTPOptions{URL: "http://" + l.Addr().String(), Path: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Decide(t.Context(), sign("acme")); err == nil {
		t.Error("a decision by nobody")
	}
}

// Plain HTTP does not leave the machine, and nothing below TLS 1.3 is spoken.
func TestHTTPTransport(t *testing.T) {
	t.Parallel()
	for address, ok := range map[string]bool{
		"https://policy.example": true, "https://policy.example/prefix/": true, "http://127.0.0.1:8181": true, "http://[::1]:8181": true,
		"http://localhost:8181": true, "unix:///run/opa.sock": true,
		"": false, "policy.example": false, "http://policy.example": false, "http://127.0.0.1.example": false, "http://10.0.0.1": false,
		"http://0.0.0.0": false, "unix://opa.sock": false, "unix:opa.sock": false, "ftp://127.0.0.1": false, "https://": false,
		"https://user:canary@policy.example": false, "https://policy.example?a=b": false, "https://policy.example#a": false,
		"http://127.0.0.1:8181/\x00": false,
	} {
		_, err := NewHTTP(HTTPOptions{URL: address, Path: "a"})
		if (err == nil) != ok {
			t.Errorf("%q: %v", address, err)
		}
		if err != nil && strings.Contains(err.Error(), "canary") {
			t.Error(err)
		}
	}
	for path, ok := range map[string]bool{
		"a": true, "ronkms/decision": true, "a-b/c_d/E0": true,
		"": false, "/a": false, "a/": false, "a//b": false, "..": false, "a/../b": false, "a?b": false, "a b": false, "a%2f": false, "a.b": false,
	} {
		if _, err := NewHTTP(HTTPOptions{URL: "http://127.0.0.1", Path: path}); (err == nil) != ok {
			t.Errorf("path %q: %v", path, err)
		}
	}
	p, err := NewHTTP(HTTPOptions{URL: "http://localhost", Path: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.client.Transport.(*http.Transport).DialContext(t.Context(), "tcp", "192.0.2.1:80"); err == nil || !strings.Contains(err.Error(), "not loopback") {
		t.Errorf("a name that leads elsewhere: %v", err)
	}

	for version, ok := range map[uint16]bool{tls.VersionTLS13: true, tls.VersionTLS12: false} {
		s := httptest.NewUnstartedServer(answers(`{"result":{"allow":true}}`))
		s.TLS = &tls.Config{MaxVersion: version}
		s.Config.ErrorLog = log.New(io.Discard, "", 0)
		s.StartTLS()
		t.Cleanup(s.Close)
		roots := s.Client().Transport.(*http.Transport).TLSClientConfig
		p, err := NewHTTP(HTTPOptions{URL: s.URL, Path: "a", TLS: roots, Timeout: 5 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		if _, err := p.Decide(t.Context(), sign("acme")); (err == nil) != ok {
			t.Errorf("TLS version %x: %v", version, err)
		}
		if roots.MinVersion == tls.VersionTLS13 {
			t.Error("the caller's settings were changed")
		}
		stranger, err := NewHTTP(HTTPOptions{URL: s.URL, Path: "a"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(stranger.Close)
		if _, err := stranger.Decide(t.Context(), sign("acme")); err == nil {
			t.Error("an unknown authority was believed")
		}
	}
}

func TestHTTPSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: answers(`{"result":{"allow":true,"version":"socket"}}`)}}
	s.Start()
	t.Cleanup(s.Close)
	p, err := NewHTTP(HTTPOptions{URL: "unix://" + path, Path: "a"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	if d, err := p.Decide(t.Context(), sign("acme")); err != nil || d.Version != "socket" {
		t.Errorf("%+v, %v", d, err)
	}
}

// One connection serves many questions, also after answers that were refused.
func TestHTTPKeepsConnections(t *testing.T) {
	t.Parallel()
	var opened atomic.Int32
	s := httptest.NewUnstartedServer(answers(`{"result":{"allow":true,"canary":1}}`))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	p, err := NewHTTP(HTTPOptions{URL: s.URL, Path: "a", Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	for range 20 {
		p.Decide(t.Context(), sign("acme"))
	}
	if n := opened.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

// The token is that of the file as it is now, and a file that others may read
// asks nothing.
func TestHTTPToken(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "token")
	var got atomic.Value
	got.Store("")
	p := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got.Store(r.Header.Get("Authorization"))
		io.WriteString(w, `{"result":{"allow":true}}`)
	}, HTTPOptions{TokenFile: path, Timeout: 5 * time.Second})
	ask := func() error { _, err := p.Decide(t.Context(), sign("acme")); return err }
	if err := ask(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	for _, text := range []string{"first", "second\n"} {
		writeFile(t, path, text)
		if err := ask(); err != nil || got.Load() != "Bearer "+strings.TrimSpace(text) {
			t.Errorf("%q: %v, %v", text, got.Load(), err)
		}
	}
	got.Store("")
	for _, text := range []string{"", "\n", "two words", "two\nlines", "canary\r\nX: y", "käse", strings.Repeat("a", maxToken+1)} {
		writeFile(t, path, text)
		if err := ask(); err == nil || got.Load() != "" || strings.Contains(err.Error(), "canary") {
			t.Errorf("%q: %v, %v", text, got.Load(), err)
		}
	}
	writeFile(t, path, "first")
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := ask(); err == nil || got.Load() != "" {
		t.Errorf("a file that others read: %v", err)
	}
}

func TestHTTPContext(t *testing.T) {
	t.Parallel()
	p := serve(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, HTTPOptions{Timeout: time.Minute})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Decide(ctx, sign("acme")); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// what is taken is in range, and means the same to a reader that knows no
// more than JSON.
func FuzzParseAnswer(f *testing.F) {
	f.Add([]byte(`{"result":{"allow":true,"reason":"rule 7","mode":"and","produce_hybrid":true,"limits":{"rps":50,"burst":100,"max_bytes":4096},"attest_require":true,"fail_open":true,"allow_sign_fallback":true,"version":"2026-05","ttl_ms":1500},"decision_id":"a","provenance":{"bundles":{"a":{"revision":"r"}}}}`))
	f.Add([]byte(`{}`))
	for _, text := range refusedAnswers {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := parseAnswer(text)
		if err != nil {
			if d != (Decision{}) {
				t.Fatalf("%+v with %v", d, err)
			}
			return
		}
		var plain struct {
			Result struct {
				Allow bool   `json:"allow"`
				Mode  string `json:"mode"`
			} `json:"result"`
		}
		if err := json.Unmarshal(text, &plain); err != nil || plain.Result.Allow != d.Allow || plain.Result.Mode != "" && plain.Result.Mode != d.Mode.String() {
			t.Fatalf("%+v, another reader: %+v, %v", d, plain, err)
		}
		if d.check() != nil || len(looser(neutral().Tighten(d), d)) > 0 {
			t.Fatalf("%+v", d)
		}
	})
}
