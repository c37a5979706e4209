package control

import (
	"bytes"
	"net/http"

	"github.com/rustyonions/ron-kms/core/api"
)

// openEndpoints need no token. They tell nothing about any key; the metrics
// tell how many there are, which is what MetricsBind is for.
var openEndpoints = []endpoint{
	{"GET", "/healthz", (*handler).health},
	{"GET", "/readyz", (*handler).ready},
	{"GET", "/version", (*handler).version},
	{"GET", pathMetrics, (*handler).metrics},
}

func (h *handler) health(x *exchange) (*answer, error) {
	if _, err := parseQuery(x.r.URL); err != nil {
		return nil, h.k.Rejected(err)
	}
	return encoded(http.StatusOK, map[string]string{"status": "ok"})
}

// ready answers 200 if every verb works, or with for=verify if that one does:
// a node that can only verify need not leave every load balancer.
func (h *handler) ready(x *exchange) (*answer, error) {
	q, err := parseQuery(x.r.URL, "for")
	if err != nil {
		return nil, h.k.Rejected(err)
	}
	state := h.k.Ready()
	works := state.Ready
	if purpose, ok := q["for"]; ok {
		if purpose != "verify" {
			return nil, h.k.Rejected(malformed("for must be verify"))
		}
		works = state.Verify
	}
	if works {
		return encoded(http.StatusOK, state)
	}
	a, err := encoded(http.StatusServiceUnavailable, state)
	if err != nil {
		return nil, err
	}
	a.header.Set("Retry-After", "1")
	return a, nil
}

func (h *handler) version(x *exchange) (*answer, error) {
	if _, err := parseQuery(x.r.URL); err != nil {
		return nil, h.k.Rejected(err)
	}
	return encoded(http.StatusOK, struct {
		Version string `json:"version"`
		Commit  string `json:"commit"`
		Go      string `json:"go"`
		ABI     string `json:"abi"`
		Mode    string `json:"mode"`
	}{h.build.Version, h.build.Commit, h.build.GoVersion, abiVersion, h.k.Ready().Mode})
}

func (h *handler) metrics(x *exchange) (*answer, error) {
	if _, err := parseQuery(x.r.URL); err != nil {
		return nil, h.k.Rejected(err)
	}
	c := &capture{header: make(http.Header), status: http.StatusOK}
	h.k.Metrics().Handler().ServeHTTP(c, x.r)
	if c.status != http.StatusOK {
		return nil, h.k.Rejected(api.NewError(api.ReasonInternal, "the metrics could not be gathered"))
	}
	return &answer{status: c.status, header: c.header, body: c.body.Bytes()}, nil
}

// capture keeps an answer of the metrics library, so that it leaves by the
// same door as every other.
type capture struct {
	header http.Header
	status int
	body   bytes.Buffer
}

// Header implements [http.ResponseWriter].
func (c *capture) Header() http.Header { return c.header }

// WriteHeader implements [http.ResponseWriter].
func (c *capture) WriteHeader(status int) { c.status = status }

// Write implements [http.ResponseWriter].
func (c *capture) Write(b []byte) (int, error) { return c.body.Write(b) }
