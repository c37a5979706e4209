package oracles

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/v1/logging"
	"github.com/open-policy-agent/opa/v1/runtime"
	"github.com/open-policy-agent/opa/v1/server"

	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/policy"
)

// startOPA runs Open Policy Agent's own server over files in a folder and
// returns its address and a function that stops it.
func startOPA(t *testing.T, files map[string]string, set func(*runtime.Params)) (address string, stop func()) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := runtime.NewParams()
	p.Paths, p.Addrs, p.AddrSetByUser = []string{dir}, &[]string{"127.0.0.1:0"}, true
	p.Logger = logging.NewNoOpLogger()
	_, p.BundleMode = files[".manifest"]
	p.SkipBundleVerification = p.BundleMode
	if set != nil {
		set(&p)
	}
	rt, err := runtime.NewRuntime(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- rt.Serve(ctx) }()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			<-ended
		}
	}
	t.Cleanup(stop)
	select {
	case <-rt.Manager.ServerInitializedChannel():
	case err := <-ended:
		t.Fatalf("the server ended: %v", err)
	}
	// It says so before its sockets are open.
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for limit := time.After(30 * time.Second); ; {
		if socket, ok := strings.CutPrefix((*p.Addrs)[0], "unix://"); ok {
			if c, err := net.Dial("unix", socket); err == nil {
				c.Close()
				return "", stop
			}
		} else if addrs := rt.Addrs(); len(addrs) > 0 {
			return addrs[0], stop
		}
		select {
		case err := <-ended:
			t.Fatalf("the server ended: %v", err)
		case <-limit:
			t.Fatal("the server opens no socket")
		case <-tick.C:
		}
	}
}

// askOPA is the decision point for a document of a server.
func askOPA(t *testing.T, o policy.HTTPOptions) *policy.HTTP {
	t.Helper()
	if o.Path == "" {
		o.Path = "ronkms/decision"
	}
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	p, err := policy.NewHTTP(o)
	if err != nil {
		t.Fatalf("%s: %v", o.URL, err)
	}
	t.Cleanup(p.Close)
	return p
}

func question(method, tenant, purpose string) policy.Input {
	verb := strings.ToLower(strings.TrimPrefix(method, "KMS:"))
	return policy.Input{Tenant: tenant, Purpose: purpose, Verb: verb, Method: method, Alg: "ed25519+ml-dsa-65", Now: time.Now()}
}

// A stock OPA server with the text of docs/spec/policy.md is a decision point.
// D-16, G-8, R-340, R-408
func TestOPA(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/spec/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?s)```rego\n(.*?)```").FindSubmatch(page)
	if m == nil {
		t.Fatal("docs/spec/policy.md shows no Rego")
	}
	address, stop := startOPA(t, map[string]string{"policy.rego": string(m[1])}, nil)
	remote := askOPA(t, policy.HTTPOptions{URL: "http://" + address})

	const version = "2026-05-1"
	base := policy.Decision{Allow: true, Mode: alg.ModeOr, LegacyGrace: true, Version: version, TTL: 5 * time.Second}
	with := func(f func(*policy.Decision)) policy.Decision { d := base; f(&d); return d }
	deny := policy.Decision{Mode: alg.ModeOr, LegacyGrace: true, Reason: "no rule allows this", Version: version, TTL: 2 * time.Second}
	and := func(d *policy.Decision) { d.Mode, d.Enforced = alg.ModeAnd, true }
	for _, c := range []struct {
		method, tenant, purpose string
		want                    policy.Decision
	}{
		{"KMS:SIGN", "acme", "release", with(func(d *policy.Decision) {
			and(d)
			d.ProduceHybrid, d.Limits = true, policy.Limits{RPS: 50, Burst: 100, MaxBytes: 4096}
		})},
		{"KMS:SIGN", "acme", "logs", deny},
		{"KMS:SIGN", "beta", "release", deny},
		{"KMS:SIGN", "beta", "audit", with(func(d *policy.Decision) { d.AttestRequire = true })},
		{"KMS:VERIFY", "acme", "release", with(and)},
		{"KMS:VERIFY", "acme", "logs", base},
		{"KMS:VERIFY", "beta", "release", base},
		{"KMS:READ", "acme", "", base},
		{"KMS:DESTROY", "acme", "release", deny},
		{"KMS:CREATE", "acme", "release", deny},
	} {
		got, err := remote.Decide(t.Context(), question(c.method, c.tenant, c.purpose))
		if err != nil || got != c.want {
			t.Errorf("%s %s/%s: %+v, %v", c.method, c.tenant, c.purpose, got, err)
		}
	}
	if _, err := askOPA(t, policy.HTTPOptions{URL: "http://" + address, Path: "ronkms/nothing"}).Decide(t.Context(), question("KMS:SIGN", "acme", "release")); !errors.Is(err, policy.ErrUndefined) {
		t.Errorf("a document that is not there: %v", err)
	}

	// In the engine, and then without the server.
	e, err := policy.NewEngine(policy.Options{Static: policy.Static{Mode: alg.ModeOr, RolloutPercent: 100}, Remote: remote, Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	sign, verify := question("KMS:SIGN", "acme", "release"), question("KMS:VERIFY", "acme", "release")
	for kind, in := range map[policy.Kind]policy.Input{policy.Private: sign, policy.Verify: verify} {
		if a, err := e.Decide(t.Context(), in, kind); err != nil || a.Mode != alg.ModeAnd || a.Degraded || a.Version != version {
			t.Errorf("%s: %+v, %v", in.Method, a, err)
		}
	}
	if _, err := e.Decide(t.Context(), question("KMS:SIGN", "acme", "logs"), policy.Private); !api.HasReason(err, api.ReasonPolicy) {
		t.Errorf("what no rule allows: %v", err)
	}
	large := sign
	large.BodyBytes = 4097
	if _, err := e.Decide(t.Context(), large, policy.Private); !api.HasReason(err, api.ReasonPolicy) {
		t.Errorf("a body over the limit: %v", err)
	}
	stop()
	e.Forget()
	if _, err := e.Decide(t.Context(), sign, policy.Private); !api.HasReason(err, api.ReasonPolicyDown) {
		t.Errorf("sign without the server: %v", err)
	}
	if a, err := e.Decide(t.Context(), verify, policy.Verify); err != nil || a.Mode != alg.ModeAnd || !a.Degraded {
		t.Errorf("verify without the server: %+v, %v", a, err)
	}
	if a, err := e.Decide(t.Context(), question("KMS:VERIFY", "beta", "x"), policy.Verify); err != nil || a.Mode != alg.ModeOr || !a.Degraded || a.Version != "static" {
		t.Errorf("verify without the server, nothing known: %+v, %v", a, err)
	}
}

// The bundle's revision is the version, what Rego computes is a number, and what
// is no decision is refused: through the real server.
//
func TestOPAAnswers(t *testing.T) {
	t.Parallel()
	address, _ := startOPA(t, map[string]string{
		".manifest": `{"revision":"r-17","roots":["ronkms"]}`,
		"policy.rego": `package ronkms

plain := {"allow": true}
computed := {"allow": count([1, 2]) == 2, "limits": {"rps": 100 * 0.5, "burst": sum([50, 50])}, "ttl_ms": 5 * 1000}
fraction := {"allow": true, "limits": {"rps": 100 / 3}}
told := {"allow": true, "reason": sprintf("%v", [object.remove(input, ["now_ms"])])}
late := {"allow": input.now_ms > 1700000000000}
unknown := {"allow": true, "denny": true}
bare := true
nothing := null
partial contains "a"
conflict := {"allow": true} if input.tenant == "acme"
conflict := {"allow": false} if input.tenant == "acme"
`}, nil)
	revision := policy.Decision{Allow: true, Mode: alg.ModeOr, LegacyGrace: true, Version: "r-17"}
	with := func(f func(*policy.Decision)) policy.Decision { d := revision; f(&d); return d }
	for path, want := range map[string]policy.Decision{
		"plain":    revision,
		"late":     revision,
		"computed": with(func(d *policy.Decision) { d.Limits, d.TTL = policy.Limits{RPS: 50, Burst: 100}, 5*time.Second }),
		"told": with(func(d *policy.Decision) {
			d.Reason = `{"alg": "ed25519+ml-dsa-65", "attested": false, "method": "KMS:SIGN", "purpose": "release", "tenant": "acme", "verb": "sign"}`
		}),
	} {
		got, err := askOPA(t, policy.HTTPOptions{URL: "http://" + address, Path: "ronkms/" + path}).Decide(t.Context(), question("KMS:SIGN", "acme", "release"))
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", path, got, err)
		}
	}
	for _, path := range []string{"fraction", "unknown", "bare", "nothing", "partial", "conflict"} {
		d, err := askOPA(t, policy.HTTPOptions{URL: "http://" + address, Path: "ronkms/" + path}).Decide(t.Context(), question("KMS:SIGN", "acme", "release"))
		if err == nil || errors.Is(err, policy.ErrUndefined) {
			t.Errorf("%s: %+v, %v", path, d, err)
		}
	}
}

// OPA's own authentication takes the token of the file, and refuses others.
func TestOPAToken(t *testing.T) {
	t.Parallel()
	address, _ := startOPA(t, map[string]string{"policy.rego": `package system.authz

default allow := false

allow if {
	input.identity == "the-token-of-ron-kms"
	input.method == "POST"
	input.path == ["v1", "data", "ronkms", "decision"]
}
`, "ronkms.rego": `package ronkms

decision := {"allow": true}
`}, func(p *runtime.Params) {
		p.Authentication, p.Authorization = server.AuthenticationToken, server.AuthorizationBasic
	})
	file := filepath.Join(t.TempDir(), "token")
	for token, ok := range map[string]bool{"the-token-of-ron-kms\n": true, "another": false} {
		if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := askOPA(t, policy.HTTPOptions{URL: "http://" + address, TokenFile: file}).Decide(t.Context(), question("KMS:SIGN", "acme", "release"))
		if (err == nil) != ok || d.Allow != ok {
			t.Errorf("%q: %+v, %v", token, d, err)
		}
	}
	if _, err := askOPA(t, policy.HTTPOptions{URL: "http://" + address}).Decide(t.Context(), question("KMS:SIGN", "acme", "release")); err == nil {
		t.Error("no token, and a decision")
	}
}

func TestOPATransports(t *testing.T) {
	t.Parallel()
	files := map[string]string{"policy.rego": "package ronkms\n\ndecision := {\"allow\": true, \"version\": \"t\"}\n"}
	socket := filepath.Join(t.TempDir(), "opa.sock")
	startOPA(t, files, func(p *runtime.Params) { p.Addrs = &[]string{"unix://" + socket} })

	// The certificate is that of the standard library's test servers.
	s := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(s.Close)
	roots := s.Client().Transport.(*http.Transport).TLSClientConfig
	pair := s.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, block := range map[string]pem.Block{"cert": {Type: "CERTIFICATE", Bytes: pair.Certificate[0]}, "key": {Type: "PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	address, _ := startOPA(t, files, func(p *runtime.Params) {
		p.Certificate, p.CertificateFile, p.CertificateKeyFile = &pair, filepath.Join(dir, "cert"), filepath.Join(dir, "key")
		p.MinTLSVersion, p.Addrs = tls.VersionTLS13, &[]string{"https://127.0.0.1:0"}
	})
	for _, o := range []policy.HTTPOptions{{URL: "unix://" + socket}, {URL: "https://" + address, TLS: roots}} {
		if d, err := askOPA(t, o).Decide(t.Context(), question("KMS:SIGN", "acme", "release")); err != nil || d.Version != "t" {
			t.Errorf("%s: %+v, %v", o.URL, d, err)
		}
	}
}
