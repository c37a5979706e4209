package policy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// HTTPOptions are settings of an [HTTP] decision point.
type HTTPOptions struct {
	// URL is where the service is: https://host:port, http:// with a loopback
	// host, or unix:///path/of/socket. The data API is below it, at /v1/data.
	URL string
	// Path names the document with the decision, as "ronkms/decision" for the
	// rule decision in package ronkms.
	Path string
	// TokenFile holds the bearer token to present, mode 0600 or stricter; one
	// newline at the end is ignored. It is read for each question, so it may be
	// replaced at any time. Empty: no token.
	TokenFile string
	// TLS is for private authorities and client certificates. TLS 1.3 is asked
	// for in any case.
	TLS *tls.Config
	// Timeout bounds one exchange; 0 means 500 ms.
	Timeout time.Duration
}

const (
	defaultTimeout = 500 * time.Millisecond
	maxAnswer      = 64 << 10 // bytes
	maxHeader      = 16 << 10 // bytes
	maxToken       = 4 << 10  // bytes
)

var dataPath = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}(/[A-Za-z0-9_-]{1,64}){0,15}$`)

// HTTP is the decision point of a service that speaks Open Policy Agent's data
// API. It keeps connections, follows no redirect and uses no proxy.
// docs/spec/policy.md §4
type HTTP struct {
	url, tokenFile string
	client         *http.Client
}

// NewHTTP checks the settings. It asks nothing: a service that is not there yet
// may come later.
func NewHTTP(o HTTPOptions) (*HTTP, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("policy: http: the address is not a scheme, a host and a path")
	}
	if !dataPath.MatchString(o.Path) {
		return nil, errors.New("policy: http: the path is names joined by /, as ronkms/decision")
	}
	dialer := &net.Dialer{}
	t := &http.Transport{
		DialContext: dialer.DialContext, ForceAttemptHTTP2: true, DisableCompression: true, MaxResponseHeaderBytes: maxHeader,
		MaxIdleConns: 16, MaxIdleConnsPerHost: 16, IdleConnTimeout: 90 * time.Second,
	}
	switch {
	case u.Scheme == "unix" && u.Host == "" && filepath.IsAbs(u.Path):
		socket := u.Path
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		}
		u = &url.URL{Scheme: "http", Host: "policy"}
	case u.Scheme == "https" && u.Host != "":
		t.TLSClientConfig = &tls.Config{}
		if o.TLS != nil {
			t.TLSClientConfig = o.TLS.Clone()
		}
		t.TLSClientConfig.MinVersion = tls.VersionTLS13
	case u.Scheme == "http" && (u.Hostname() == "localhost" || net.ParseIP(u.Hostname()).IsLoopback()):
		dialer.Control = onlyLoopback // the name, too, must lead where it says
	default:
		return nil, errors.New("policy: http: the address is not https://host, http://127.0.0.1 or unix:///path")
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	// With provenance, the answer names the revisions of the bundles.
	return &HTTP{
		url:       strings.TrimSuffix(u.String(), "/") + "/v1/data/" + o.Path + "?provenance=true",
		tokenFile: o.TokenFile,
		client: &http.Client{
			Transport: t, Timeout: o.Timeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

func onlyLoopback(_, address string, _ syscall.RawConn) error {
	host, _, err := net.SplitHostPort(address)
	if err == nil && !net.ParseIP(host).IsLoopback() {
		err = errors.New("the address is not loopback")
	}
	return err
}

// Close closes idle connections.
func (h *HTTP) Close() { h.client.CloseIdleConnections() }

// Decide asks the service. Whatever is not a decision in every part is an error.
func (h *HTTP) Decide(ctx context.Context, in Input) (Decision, error) {
	d, err := h.ask(ctx, in)
	if err != nil {
		return Decision{}, fmt.Errorf("policy: http: %w", err)
	}
	if d.Version == "" {
		d.Version = "http"
	}
	return d, nil
}

func (h *HTTP) ask(ctx context.Context, in Input) (Decision, error) {
	body, err := in.encode()
	if err != nil {
		return Decision{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.url, bytes.NewReader(body))
	if err != nil {
		return Decision{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "ron-kms")
	// A question may be put again over a new connection when the kept one turns
	// out to be closed. The field itself is not sent.
	req.Header["Idempotency-Key"] = nil
	if h.tokenFile != "" {
		bearer, err := readToken(h.tokenFile)
		if err != nil {
			return Decision{}, fmt.Errorf("token file: %w", err)
		}
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	resp, err := h.client.Do(req)
	if err != nil {
		return Decision{}, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return Decision{}, err
	case resp.StatusCode != http.StatusOK:
		return Decision{}, fmt.Errorf("it answered %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	case len(answer) > maxAnswer:
		return Decision{}, fmt.Errorf("the answer has more than %d bytes", maxAnswer)
	}
	return parseAnswer(answer)
}

// readToken reads a file with a token that nobody else may read.
func readToken(path string) (string, error) {
	content, st, err := read(path, maxToken)
	if err != nil {
		return "", err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return "", errors.New("others may read it: chmod 600")
	}
	content = bytes.TrimSuffix(content, []byte("\n"))
	if len(content) == 0 {
		return "", errors.New("it is empty")
	}
	for _, c := range content {
		if c <= ' ' || c > '~' {
			return "", errors.New("it has more than visible characters")
		}
	}
	return string(content), nil
}
