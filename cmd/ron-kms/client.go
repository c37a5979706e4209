package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/capability"
)

// A caller performs verbs, in a server or in a store opened here.
type caller interface {
	call(ctx context.Context, verb string, req api.Request, resp any) error
	close() error
}

// clientFlags say where the keys are and who asks.
type clientFlags struct {
	serverFlags
	endpoint, tokenFile, ca string
}

func (f *clientFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.endpoint, "endpoint", "", "server: http://host:port, https://host:port or unix:///path (KMS_ENDPOINT)")
	cmd.Flags().StringVar(&f.tokenFile, "token-file", "", "file with the capability token (KMS_TOKEN_FILE, or KMS_TOKEN)")
	cmd.Flags().StringVar(&f.ca, "ca", "", "PEM file of the authority that signed the server's certificate (KMS_CA)")
	f.addStore(cmd)
}

// open connects to the server, or opens the store if --dir is given.
func (f *clientFlags) open(ctx context.Context) (caller, error) {
	token, err := clientToken(f.tokenFile)
	if err != nil {
		return nil, err
	}
	if f.dir != "" {
		return f.openStore(ctx, token)
	}
	endpoint := f.endpoint
	if endpoint == "" {
		endpoint = os.Getenv("KMS_ENDPOINT")
	}
	if endpoint == "" {
		return nil, errors.New("no server: give --endpoint or set KMS_ENDPOINT (start one with `ron-kms serve`), or open a store with --dir")
	}
	if f.ca == "" {
		f.ca = os.Getenv("KMS_CA")
	}
	return dial(endpoint, token, f.ca)
}

// local is a store opened by this process.
type local struct {
	kms     *core.KMS
	session *core.Session
}

func (f *clientFlags) openStore(ctx context.Context, token string) (caller, error) {
	cfg, err := f.config()
	if err != nil {
		return nil, err
	}
	k, err := core.Open(ctx, cfg, core.Options{Passphrase: func() ([]byte, error) { return passphrase(cfg, false) }})
	if err != nil {
		return nil, err
	}
	s, err := k.OpenSession(token)
	if err != nil {
		return nil, errors.Join(err, k.Close())
	}
	return &local{k, s}, nil
}

func (l *local) call(ctx context.Context, verb string, req api.Request, resp any) error {
	body, err := api.Encode(req)
	if err != nil {
		return err
	}
	out, err := l.kms.Call(ctx, l.session, verb, body)
	if err != nil {
		return err
	}
	return json.Unmarshal(out, resp)
}

func (l *local) close() error {
	l.session.Close()
	return l.kms.Close()
}

// remote is a server reached over HTTP.
type remote struct {
	base  string
	token string
	http  *http.Client
}

// maxResponse bounds an answer, in bytes: a page of 500 hybrid keys with many
// versions fits.
const maxResponse = 64 << 20

func dial(endpoint, token, ca string) (caller, error) {
	u, err := url.Parse(endpoint)
	if err != nil {
		return nil, errors.New("the endpoint is not http://host:port, https://host:port or unix:///path")
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 4, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13}}
	r := &remote{token: token, http: &http.Client{Transport: transport, Timeout: time.Minute}}
	switch {
	case u.Scheme == "unix" && u.Host == "" && u.Path != "":
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", u.Path)
		}
		r.base = "http://ron-kms"
	case (u.Scheme == "http" || u.Scheme == "https") && u.Host != "":
		r.base = u.Scheme + "://" + u.Host
	default:
		return nil, errors.New("the endpoint is not http://host:port, https://host:port or unix:///path")
	}
	if host := u.Hostname(); u.Scheme == "http" && host != "localhost" {
		if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
			return nil, errors.New("refusing to send a token in the clear to another machine: use https://")
		}
	}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate", ca)
		}
		transport.TLSClientConfig.RootCAs = pool
	}
	return r, nil
}

// route gives method, path and body of a verb's REST form.
func route(req api.Request) (method, path string, body any) {
	const base = "/v1/kms/"
	key := func(kid string) string { return base + "keys/" + url.PathEscape(kid) }
	switch r := req.(type) {
	case *api.CreateRequest:
		return http.MethodPost, base + "keys", r
	case *api.RotateRequest:
		return http.MethodPost, key(r.KID) + "/rotate", r
	case *api.DestroyRequest:
		return http.MethodPost, key(r.KID) + "/destroy", r
	case *api.GetRequest:
		return http.MethodGet, key(r.KID), nil
	case *api.ListRequest:
		q := url.Values{"tenant": {r.Tenant}}
		for name, value := range map[string]string{"purpose": r.Purpose, "after": r.After} {
			if value != "" {
				q.Set(name, value)
			}
		}
		if r.Limit > 0 {
			q.Set("limit", strconv.Itoa(r.Limit))
		}
		return http.MethodGet, base + "keys?" + q.Encode(), nil
	case *api.DeriveRequest:
		return http.MethodPost, key(r.KID) + "/derive", r
	case *api.SignRequest:
		return http.MethodPost, base + "sign", r
	case *api.VerifyRequest:
		return http.MethodPost, base + "verify", r
	case *api.WrapRequest:
		return http.MethodPost, base + "wrap", r
	case *api.UnwrapRequest:
		return http.MethodPost, base + "unwrap", r
	case *api.RewrapRequest:
		return http.MethodPost, base + "rewrap", r
	}
	panic("no route")
}

func (r *remote) call(ctx context.Context, _ string, req api.Request, resp any) error {
	method, path, payload := route(req)
	var body io.Reader
	if payload != nil {
		b, err := api.Encode(payload)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	hr, err := http.NewRequestWithContext(ctx, method, r.base+path, body)
	if err != nil {
		return err
	}
	hr.Header.Set("Authorization", "Bearer "+r.token)
	if body != nil {
		hr.Header.Set("Content-Type", "application/json")
	}
	answer, err := r.http.Do(hr)
	if err != nil {
		return fmt.Errorf("the server cannot be reached: %w", err)
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(io.LimitReader(answer.Body, maxResponse))
	if err != nil {
		return fmt.Errorf("the server's answer was cut off: %w", err)
	}
	if answer.StatusCode/100 != 2 {
		var e api.Envelope
		if err := json.Unmarshal(data, &e); err != nil || e.Error.Code == "" {
			return fmt.Errorf("the server answered %s, not as a ron-kms does", answer.Status)
		}
		return &serverError{e.Error}
	}
	return json.Unmarshal(data, resp)
}

func (r *remote) close() error {
	r.http.CloseIdleConnections()
	return nil
}

// serverError is a refusal by a server, with its hint.
type serverError struct{ api.EnvelopeError }

func (e *serverError) Error() string {
	text := fmt.Sprintf("%s: %s (request %s)", e.Code, e.Message, e.RequestID)
	if e.Hint != "" {
		text += "\nhint: " + e.Hint
	}
	return text
}

// tokenTenant is the tenant of the caller's own token, so that it need not be
// typed. It is only a convenience: the server decides.
func tokenTenant(file string) (string, error) {
	token, err := clientToken(file)
	if err != nil {
		return "", err
	}
	info, err := capability.Inspect(token)
	if err != nil {
		return "", err
	}
	for _, c := range info.UnverifiedCaveats {
		if tenant, ok := strings.CutPrefix(c, "tenant="); ok {
			return tenant, nil
		}
	}
	return "", errors.New("the token names no tenant")
}

// with opens the caller, runs fn and closes it.
func (f *clientFlags) with(ctx context.Context, fn func(caller) error) error {
	c, err := f.open(ctx)
	if err != nil {
		return err
	}
	return errors.Join(fn(c), c.close())
}
