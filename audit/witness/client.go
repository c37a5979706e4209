package witness

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
	"strings"
	"syscall"
	"time"

	fnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
)

const (
	defaultTimeout = 10 * time.Second
	maxAnswer      = 1 << 16 // bytes
)

// A RollbackError says that a witness has cosigned a larger tree of the log than the one it was shown: the log was put
// back to an earlier state, or somebody else has its key. It is the witness's word, which TLS protects and no signature.
type RollbackError struct {
	Witness string // name of the witness's key
	Seen    uint64 // records of the largest tree that it saw
	Size    uint64 // records of the checkpoint that it was shown
}

func (e *RollbackError) Error() string {
	return fmt.Sprintf("witness %s has seen %d records of this log, and it now has %d: it was rolled back", e.Witness, e.Seen, e.Size)
}

// A ForkError says that a witness has cosigned a tree of the log that the one it was shown does not continue.
type ForkError struct {
	Witness string // name of the witness's key
	Old     uint64 // records of the tree that it saw
	Size    uint64 // records of the checkpoint that it was shown
}

func (e *ForkError) Error() string {
	return fmt.Sprintf("witness %s has seen %d records of this log which the checkpoint over %d does not continue: it was forked", e.Witness, e.Old, e.Size)
}

// ClientOptions are settings of a Client. The zero value is usable.
type ClientOptions struct {
	Timeout time.Duration // of one exchange; 0 means 10 s
	TLS     *tls.Config   // for private authorities and client certificates; TLS 1.3 is asked for in any case
	// AllowPlainHTTP permits http:// to hosts other than this one. Whoever is on the way can then claim a rollback,
	// and so stop a log that heeds it, but cannot make a cosignature.
	AllowPlainHTTP bool
}

// A Client asks one witness. It is safe for concurrent use, but see Add.
type Client struct {
	url      string
	verifier note.Verifier
	http     *http.Client
}

// NewClient returns a client of the witness with the given verifier key, of type 4 (Ed25519) or 6 (ML-DSA-44). The
// address is the submission prefix, as https://host/prefix, or http:// with a loopback host, or unix:///path/of/socket.
func NewClient(vkey, address string, o ClientOptions) (c *Client, err error) {
	defer wrap(&err)
	v, _, err := parseVerifier(vkey, typeCosignature, typeMLDSA44)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(address)
	if err != nil {
		return nil, errors.New("the address is not a URL")
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("the address has more than a scheme, a host and a path")
	}
	dialer := &net.Dialer{}
	// No proxy: a library does not read the environment.
	t := &http.Transport{DialContext: dialer.DialContext, ForceAttemptHTTP2: true, IdleConnTimeout: 90 * time.Second}
	switch {
	case u.Scheme == "unix" && u.Host == "" && filepath.IsAbs(u.Path):
		socket := u.Path
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		}
		u = &url.URL{Scheme: "http", Host: "witness"}
	case u.Scheme == "https" && u.Host != "":
		t.TLSClientConfig = &tls.Config{}
		if o.TLS != nil {
			t.TLSClientConfig = o.TLS.Clone()
		}
		t.TLSClientConfig.MinVersion = tls.VersionTLS13
	case u.Scheme == "http" && u.Host != "" && o.AllowPlainHTTP:
	case u.Scheme == "http" && loopback(u.Hostname()):
		dialer.Control = onlyLoopback // names, too, must lead where they say
	case u.Scheme == "http" && u.Host != "":
		return nil, fmt.Errorf("plain http to %s: use https", u.Hostname())
	default:
		return nil, errors.New("the address is not https://host, http://127.0.0.1 or unix:///path")
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	return &Client{
		url: strings.TrimSuffix(u.String(), "/") + path, verifier: v,
		http: &http.Client{
			Transport: t, Timeout: o.Timeout,
			// Not followed: it could leave TLS.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

func loopback(host string) bool {
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}

func onlyLoopback(_, address string, _ syscall.RawConn) error {
	host, _, err := net.SplitHostPort(address)
	if err == nil && !net.ParseIP(host).IsLoopback() {
		err = fmt.Errorf("%s is not loopback", host)
	}
	return err
}

// Name returns the name of the witness's key.
func (c *Client) Name() string { return c.verifier.Name() }

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Add shows the witness a checkpoint of a log and returns its cosignature, verified: one or more lines to append to the
// checkpoint. The old size is that of the last checkpoint which this witness cosigned, as far as the caller knows, or 0.
// If the witness remembers another, Add asks once more from there. For that it calls prove, which returns the
// consistency proof (RFC 6962 §2.1.2) from the tree of the given size, neither 0 nor the checkpoint's, to the checkpoint's.
//
// The error is a *RollbackError or a *ForkError if the witness has seen another history: then the log must stop. Any other
// error says that there is no cosignature and nothing about the log; asking again later may help.
//
// The checkpoint must be durable before, or a crash looks like a rollback. A log's checkpoints are to be shown to a
// witness one at a time and in order, or the slower of two looks like one.
func (c *Client) Add(ctx context.Context, old uint64, prove func(old uint64) ([][32]byte, error), checkpoint []byte) (lines []byte, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("witness %s: %w", c.Name(), err)
		}
	}()
	text, err := noteText(checkpoint)
	if err != nil {
		return nil, err
	}
	h, err := parseHead(text)
	if err != nil {
		return nil, err
	}
	if old > h.size {
		return nil, &RollbackError{c.Name(), old, h.size}
	}
	for asked := false; ; asked = true {
		req := &request{old: old, checkpoint: checkpoint}
		if old != 0 && old != h.size {
			hashes, err := prove(old)
			if err != nil {
				return nil, fmt.Errorf("consistency proof from %d to %d: %w", old, h.size, err)
			}
			for i := range hashes {
				req.proof = append(req.proof, hashes[i][:])
			}
		}
		a, err := c.post(ctx, req)
		if err != nil {
			return nil, err
		}
		switch a.status {
		case http.StatusOK:
			return c.verify(text, a.body)
		case http.StatusUnprocessableEntity:
			return nil, &ForkError{c.Name(), old, h.size}
		case http.StatusConflict:
		default:
			return nil, fmt.Errorf("it answered %d %s", a.status, http.StatusText(a.status))
		}
		// tlog-witness v1.0.0 also answers 409, with any body, to another tree of the size cosigned; now that is 422.
		seen, err := a.size()
		switch {
		case old == h.size && (err != nil || seen == old):
			return nil, &ForkError{c.Name(), old, h.size}
		case err != nil:
			return nil, err
		case seen > h.size:
			return nil, &RollbackError{c.Name(), seen, h.size}
		case seen == old || asked:
			return nil, fmt.Errorf("it wants a proof from %d records, having been given one from %d", seen, old)
		}
		old = seen
	}
}

// answer is what a witness said.
type answer struct {
	status int
	kind   string // content type
	body   []byte
}

func (c *Client) post(ctx context.Context, r *request) (*answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(r.encode()))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "text/plain; charset=utf-8")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return nil, err
	}
	if len(body) > maxAnswer {
		return nil, errors.New("the answer is too long")
	}
	return &answer{resp.StatusCode, resp.Header.Get("Content-Type"), body}, nil
}

// size reads the body of 409.
func (a *answer) size() (uint64, error) {
	text, ok := strings.CutSuffix(string(a.body), "\n")
	n, err := parseSize(text)
	if !ok || err != nil || a.kind != sizeType {
		return 0, errors.New("it answered 409 without a tree size")
	}
	return n, nil
}

// verify returns the signature lines of the configured key. Lines of other keys are ignored, as tlog-witness wants.
func (c *Client) verify(text string, lines []byte) ([]byte, error) {
	n, err := note.Open(append([]byte(text+"\n"), lines...), note.VerifierList(c.verifier))
	if err != nil {
		return nil, fmt.Errorf("no cosignature that its key verifies: %w", err)
	}
	var out []byte
	for _, s := range n.Sigs {
		if t, err := fnote.CoSigV1Timestamp(s); err != nil || t.Unix() < 0 {
			return nil, errors.New("the time of the cosignature is out of range")
		}
		out = append(out, signatureLine(s)...)
	}
	return out, nil
}
