package control

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/config"
)

// guard ends a test that would hang; nothing is measured with it.
const guard = 30 * time.Second

// started runs a server for the test and shuts it down after it.
func (g *rig) started(lim limits) *Server {
	g.t.Helper()
	s, err := newServer(g.k, Options{Logger: g.h.log}, lim)
	if err != nil {
		g.t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	g.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), guard)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			g.t.Errorf("shutdown: %v", err)
		}
		if err := <-served; err != nil {
			g.t.Errorf("serve: %v", err)
		}
	})
	return s
}

func bind(addr string) func(*config.Config) { return func(c *config.Config) { c.Bind = addr } }

func fetch(t *testing.T, c *http.Client, r *http.Request) result {
	t.Helper()
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return result{resp.StatusCode, resp.Header, string(b)}
}

func get(t *testing.T, c *http.Client, url string) result {
	t.Helper()
	r, err := http.NewRequest("GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return fetch(t, c, r)
}

func client(t *testing.T, tr *http.Transport) *http.Client {
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: guard}
}

// raw sends bytes and reads all that comes until the server closes.
func raw(t *testing.T, c net.Conn, text string) string {
	t.Helper()
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(guard)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		t.Fatal("the server did not close")
	}
	return string(b)
}

func dial(t *testing.T, s *Server) net.Conn {
	t.Helper()
	_, addr, _ := strings.Cut(s.Addr(), "://")
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func parse(t *testing.T, text string) result {
	t.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader(text)), nil)
	if err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return result{resp.StatusCode, resp.Header, string(b)}
}

// also what net/http refuses by itself comes in the envelope.
func TestWireRefusals(t *testing.T) {
	t.Parallel()
	g := newRig(t, bind("127.0.0.1:0"))
	s := g.started(defaultLimits)
	for name, c := range map[string]struct {
		text   string
		status int
		code   api.Code
	}{
		"syntax":       {"GET\r\n\r\n", 400, api.CodeBadRequest},
		"version":      {"GET / HTTP/3.0\r\nHost: x\r\n\r\n", 400, api.CodeBadRequest},
		"no host":      {"GET /healthz HTTP/1.1\r\n\r\n", 400, api.CodeBadRequest},
		"two hosts":    {"GET /healthz HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400, api.CodeBadRequest},
		"bad field":    {"GET /healthz HTTP/1.1\r\nHost: x\r\nA B: c\r\n\r\n", 400, api.CodeBadRequest},
		"coding":       {"POST /v1/kms/sign HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 400, api.CodeBadRequest},
		"smuggling":    {"POST /v1/kms/sign HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, api.CodeBadRequest},
		"expectation":  {"POST /v1/kms/sign HTTP/1.1\r\nHost: x\r\nExpect: " + canary + "\r\nContent-Length: 0\r\n\r\n", 400, api.CodeBadRequest},
		"large header": {"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat(canary, 4<<10) + "\r\n\r\n", 413, api.CodeTooLarge},
		"asterisk":     {"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404, api.CodeNotFound},
		"HTTP/1.0":     {"GET /nothing HTTP/1.0\r\n\r\n", 404, api.CodeNotFound},
		"HTTP/2":       {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 404, api.CodeNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wantRefusal(t, parse(t, raw(t, dial(t, s), c.text)), c.status, c.code)
		})
	}
	t.Cleanup(func() { // after the parallel ones
		if strings.Contains(g.logs.String(), canary) {
			t.Error("a canary is in the log")
		}
	})
}

// a header, a body or a next request that does not come is not waited
// for. Each limit is tested alone, with the others out of reach.
func TestSlowRequestsAreCut(t *testing.T) {
	t.Parallel()
	const short, long = 20 * time.Millisecond, time.Hour
	started := func(t *testing.T, lim limits) (*rig, *Server) {
		g := newRig(t, bind("127.0.0.1:0"))
		return g, g.started(lim)
	}
	for name, text := range map[string]string{
		"nothing": "", "half a line": "GET /heal", "half a header": "GET /healthz HTTP/1.1\r\nHost: x\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, s := started(t, limits{header: short, read: long, idle: long})
			if got := raw(t, dial(t, s), text); got != "" { // half a line is bad syntax to net/http
				wantRefusal(t, parse(t, got), 400, api.CodeBadRequest)
			}
		})
	}
	t.Run("idle", func(t *testing.T) {
		t.Parallel()
		_, s := started(t, limits{header: long, read: long, idle: short})
		if res := parse(t, raw(t, dial(t, s), "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")); res.status != 200 {
			t.Errorf("%d", res.status)
		}
	})
	t.Run("half a body", func(t *testing.T) {
		t.Parallel()
		g, s := started(t, limits{header: long, read: short, idle: long})
		text := "POST /v1/kms/sign HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + g.admin() +
			"\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
		wantRefusal(t, parse(t, raw(t, dial(t, s), text)), 504, api.CodeTimeout)
	})
}

// the Unix socket: mode 0600, a dead one replaced, a live one refused,
// another file left alone, and removed at the end.
func TestUnixSocket(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "kms.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()

	g := newRig(t, bind("unix://"+path))
	t.Run("live", func(t *testing.T) {
		g := &rig{t: t, k: g.k, h: g.h}
		s := g.started(defaultLimits)
		if s.Addr() != "unix://"+path {
			t.Errorf("address %s", s.Addr())
		}
		if st, err := os.Lstat(path); err != nil || st.Mode() != fs.ModeSocket|0o600 {
			t.Errorf("%v, %v", st, err)
		}
		c := client(t, &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}})
		if res := get(t, c, "http://kms/healthz"); res.status != 200 {
			t.Errorf("%d", res.status)
		}
		// The socket's peer has no authority by itself.
		wantRefusal(t, get(t, c, "http://kms/v1/kms/keys?tenant=acme"), 401, api.CodeNoCapability)
		if _, err := New(g.k, Options{}); !errors.Is(err, errSocketLive) {
			t.Errorf("a second server: %v", err)
		}
		if res := get(t, c, "http://kms/healthz"); res.status != 200 {
			t.Errorf("after the second: %d", res.status)
		}
	})
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left over: %v, %v", entries, err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(g.k, Options{}); err == nil {
		t.Error("a file was taken for a socket")
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("%q, %v", b, err)
	}
}

// certificate writes a self-signed one for 127.0.0.1.
func certificate(t *testing.T) (certFile, keyFile string, roots *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := errors.Join(
		os.WriteFile(certFile, certPEM, 0o600),
		os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600)); err != nil {
		t.Fatal(err)
	}
	roots = x509.NewCertPool()
	roots.AppendCertsFromPEM(certPEM)
	return certFile, keyFile, roots
}

// TLS 1.3, hybrid key exchange, nothing older, and an envelope
// for who speaks plain HTTP.
func TestTLS(t *testing.T) {
	t.Parallel()
	certFile, keyFile, roots := certificate(t)
	g := newRig(t, bind("127.0.0.1:0"), func(c *config.Config) { c.TLSCert, c.TLSKey = certFile, keyFile })
	s := g.started(defaultLimits)
	if !strings.HasPrefix(s.Addr(), "https://127.0.0.1:") {
		t.Errorf("address %s", s.Addr())
	}
	var state tls.ConnectionState
	conf := &tls.Config{RootCAs: roots, VerifyConnection: func(s tls.ConnectionState) error { state = s; return nil }}
	c := client(t, &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true})
	if res := get(t, c, s.Addr()+"/healthz"); res.status != 200 {
		t.Errorf("%d", res.status)
	}
	if state.Version != tls.VersionTLS13 || state.CurveID != tls.X25519MLKEM768 {
		t.Errorf("version %x, key exchange %v", state.Version, state.CurveID)
	}
	wantRefusal(t, get(t, c, s.Addr()+"/v1/kms/keys?tenant=acme"), 401, api.CodeNoCapability)
	old, err := tls.Dial("tcp", strings.TrimPrefix(s.Addr(), "https://"), &tls.Config{RootCAs: roots, MaxVersion: tls.VersionTLS12})
	if err == nil {
		old.Close()
		t.Error("TLS 1.2 was accepted")
	}
	wantRefusal(t, parse(t, raw(t, dial(t, s), "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")), 400, api.CodeBadRequest)
	secure, err := tls.Dial("tcp", strings.TrimPrefix(s.Addr(), "https://"), &tls.Config{RootCAs: roots})
	if err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, parse(t, raw(t, secure, "GET\r\n\r\n")), 400, api.CodeBadRequest)
}

// Without TLS only loopback is bound; a certificate that cannot be
// read, and no address at all, are refused too.
func TestListenRefuses(t *testing.T) {
	t.Parallel()
	for _, addr := range []string{"0.0.0.0:0", "[::]:0", ":0"} {
		if l, err := listen(addr, nil, nil); err == nil {
			l.Close()
			t.Errorf("%s was bound without TLS", addr)
		}
		cfg := amnesia()
		cfg.Bind = addr
		if cfg.Validate() == nil {
			t.Errorf("the configuration allows %s without TLS", addr)
		}
	}
	certFile, keyFile, _ := certificate(t)
	conf, err := loadTLS(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	l, err := listen("0.0.0.0:0", conf, nil)
	if err != nil {
		t.Errorf("with TLS: %v", err)
	} else {
		l.Close()
	}
	if _, err := loadTLS(keyFile, certFile); err == nil {
		t.Error("a key was taken for a certificate")
	}
	if _, err := New(newRig(t).k, Options{}); err == nil {
		t.Error("a server without an address")
	}
}

// D-26: with a bind of their own, the metrics are there and nowhere else.
func TestMetricsBind(t *testing.T) {
	t.Parallel()
	g := newRig(t, bind("127.0.0.1:0"), func(c *config.Config) { c.MetricsBind = "127.0.0.1:0" })
	s := g.started(defaultLimits)
	c := client(t, new(http.Transport))
	wantRefusal(t, get(t, c, s.Addr()+"/metrics"), 404, api.CodeNotFound)
	own := s.faces[1].url()
	if res := get(t, c, own+"/metrics"); res.status != 200 || !strings.Contains(res.body, "kms_audit_integrity_failed_total 0") {
		t.Errorf("%d %s", res.status, res.body)
	}
	wantRefusal(t, get(t, c, own+"/v1/kms/keys?tenant=acme"), 404, api.CodeNotFound)
	wantRefusal(t, get(t, c, own+"/readyz"), 404, api.CodeNotFound)
}

// inFlight starts a server with a request in it that goes on until release is
// closed; its status, or 0 if it is cut, comes out of answered.
func (g *rig) inFlight() (s *Server, release chan struct{}, served chan error, answered chan int) {
	g.t.Helper()
	s, err := New(g.k, Options{})
	if err != nil {
		g.t.Fatal(err)
	}
	inside := make(chan struct{})
	release, served, answered = make(chan struct{}), make(chan error, 1), make(chan int, 1)
	h := s.faces[0].http.Handler.(*handler)
	h.endpoints = append(h.endpoints, endpoint{"GET", "/slow", func(*handler, *exchange) (*answer, error) {
		close(inside)
		<-release
		return jsonAnswer(200, []byte(`{}`)), nil
	}})
	go func() { served <- s.Serve() }()
	c := client(g.t, new(http.Transport))
	go func() {
		resp, err := c.Get(s.Addr() + "/slow")
		if err != nil {
			answered <- 0
			return
		}
		resp.Body.Close()
		answered <- resp.StatusCode
	}()
	<-inside
	return s, release, served, answered
}

// Shutdown lets an accepted request finish, and Serve returns nil.
func TestShutdownDrains(t *testing.T) {
	t.Parallel()
	s, release, served, answered := newRig(t, bind("127.0.0.1:0")).inFlight()
	stopped := make(chan error, 1)
	go func() { stopped <- s.Shutdown(context.Background()) }()
	if err := <-served; err != nil { // no new connection is accepted from here on
		t.Errorf("serve: %v", err)
	}
	if _, err := net.Dial("tcp", strings.TrimPrefix(s.Addr(), "http://")); err == nil {
		t.Error("connections are still accepted")
	}
	select {
	case err := <-stopped:
		t.Errorf("Shutdown did not wait: %v", err)
	default:
	}
	close(release)
	if status := <-answered; status != 200 {
		t.Errorf("the request in flight got %d", status)
	}
	if err := <-stopped; err != nil {
		t.Errorf("shutdown: %v", err)
	}
	if err := s.Shutdown(context.Background()); err != nil {
		t.Errorf("second shutdown: %v", err)
	}
}

// Shutdown cuts what is left when its time is up.
func TestShutdownCuts(t *testing.T) {
	t.Parallel()
	s, release, served, answered := newRig(t, bind("127.0.0.1:0")).inFlight()
	defer close(release)
	over, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Shutdown(over); !errors.Is(err, context.Canceled) {
		t.Errorf("shutdown: %v", err)
	}
	if status := <-answered; status != 0 {
		t.Errorf("the request got %d", status)
	}
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
}

// A server that never served still gives back its address.
func TestShutdownWithoutServe(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "kms.sock")
	g := newRig(t, bind("unix://"+path))
	s, err := New(g.k, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	if err := s.Serve(); err != nil {
		t.Errorf("serve after shutdown: %v", err)
	}
}
