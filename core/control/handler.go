package control

import (
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"lukechampine.com/blake3"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/api"
)

// retryLater is the advice, in seconds, with a 503 that waiting alone is not
// known to cure.
const retryLater = 60

// endpoint is one method on one path.
type endpoint struct {
	method, pattern string
	serve           func(*handler, *exchange) (*answer, error)
}

// handler answers requests. It is immutable.
type handler struct {
	k         *core.KMS
	log       *slog.Logger
	build     BuildInfo
	endpoints []endpoint
}

func newHandler(k *core.KMS, o Options) *handler {
	h := &handler{k: k, log: o.Logger, build: o.Build, endpoints: slices.Concat(openEndpoints, auditEndpoints)}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	for _, rt := range routes {
		h.endpoints = append(h.endpoints, endpoint{rt.method, rt.pattern, rt.serve})
	}
	return h
}

// narrowed is the handler with those endpoints only that keep picks.
func (h *handler) narrowed(keep func(endpoint) bool) *handler {
	n := *h
	n.endpoints = slices.DeleteFunc(slices.Clone(h.endpoints), func(e endpoint) bool { return !keep(e) })
	return &n
}

// exchange is one request and what is known about it. Nothing in it that is
// logged is the client's text.
type exchange struct {
	w        http.ResponseWriter
	r        *http.Request
	id       string   // request id, made here
	corr     string   // correlation id: a canonical UUID, or empty
	method   string   // a known method, or "other"
	pattern  string   // of the route, or "none"
	segments []string // of {kid} in the path, still escaped
	kid      api.KID  // the key concerned, for the log
}

// answer is a whole answer, ready to be sent.
type answer struct {
	status int
	header http.Header // beside the common fields; may be nil
	body   []byte
}

func jsonAnswer(status int, body []byte) *answer {
	return &answer{status: status, header: http.Header{"Content-Type": {"application/json"}}, body: body}
}

func encoded(status int, v any) (*answer, error) {
	body, err := api.Encode(v)
	if err != nil {
		return nil, api.WrapError(api.ReasonInternal, "the response could not be written", err)
	}
	return jsonAnswer(status, body), nil
}

func newRequestID() string { return "r-" + uuid.NewString() }

// ServeHTTP implements [http.Handler].
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	x := &exchange{w: w, r: r, id: newRequestID(), method: "other", pattern: "none"}
	if knownMethods[r.Method] {
		x.method = r.Method
	}
	if ids := r.Header.Values("X-Corr-Id"); len(ids) == 1 {
		if _, err := api.ParseUUID(ids[0]); err == nil {
			x.corr = ids[0]
		}
	}
	a := h.answer(x)
	a.setHeader(w.Header(), x)
	w.WriteHeader(a.status)
	w.Write(a.body) // the client may have gone; nobody is left to tell
	h.access(x, a, slog.Duration("duration", time.Since(start)))
}

var knownMethods = map[string]bool{
	"GET": true, "HEAD": true, "POST": true, "PUT": true, "PATCH": true, "DELETE": true, "OPTIONS": true,
}

// answer turns whatever happens, a panic too, into an answer.
func (h *handler) answer(x *exchange) (a *answer) {
	defer func() {
		if p := recover(); p != nil {
			// The value may hold a client's text; its type and the stack do not.
			h.log.Error("control: panic", "request_id", x.id, "type", fmt.Sprintf("%T", p), "stack", string(debug.Stack()))
			a = h.refusal(x, h.k.Rejected(api.NewError(api.ReasonInternal, "internal error")))
		}
	}()
	a, err := h.dispatch(x)
	if err != nil {
		return h.refusal(x, api.AsError(err))
	}
	return a
}

// dispatch finds the endpoint and calls it.
func (h *handler) dispatch(x *exchange) (*answer, error) {
	pattern, segments := locate(x.r.URL.EscapedPath())
	if pattern == patternKey && x.r.Method == http.MethodGet && asksForPrivate(x.r.URL) {
		pattern = patternPrivate
	}
	var allow []string
	for _, e := range h.endpoints {
		if e.pattern != pattern {
			continue
		}
		if e.method == x.r.Method {
			x.pattern, x.segments = pattern, segments
			return e.serve(h, x)
		}
		allow = append(allow, e.method)
	}
	if allow == nil {
		return nil, h.k.Rejected(api.NewError(api.ReasonRoute, "there is no such endpoint"))
	}
	x.pattern = pattern
	x.w.Header().Set("Allow", strings.Join(allow, ", "))
	return nil, h.k.Rejected(api.NewError(api.ReasonMethod, "this endpoint has other methods"))
}

// refusal is the answer for an error: the stable envelope.
func (h *handler) refusal(x *exchange, e *api.Error) *answer {
	if e.Code == api.CodeInternal && e.Cause != nil {
		// The cause is a fault of ours: text of the engine or the system.
		h.log.Error("control: internal error", "request_id", x.id, "cause", e.Cause.Error())
	}
	body, err := api.Encode(e.Envelope(x.id, h.k.Now()))
	if err != nil {
		body = nil // only if a message of ours were not UTF-8
	}
	a := jsonAnswer(e.HTTP, body)
	switch e.HTTP {
	case http.StatusUnauthorized:
		a.header.Set("WWW-Authenticate", "Bearer")
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		seconds := int(math.Ceil(e.RetryAfter.Seconds()))
		if seconds < 1 {
			seconds = retryLater
		}
		a.header.Set("Retry-After", strconv.Itoa(seconds))
	}
	return a
}

// setHeader writes the header of an answer into dst.
func (a *answer) setHeader(dst http.Header, x *exchange) {
	for name, values := range a.header {
		dst[name] = values
	}
	dst.Set(headerRequestID, x.id)
	if x.corr != "" {
		dst.Set("X-Corr-Id", x.corr)
	}
	if dst.Get("Cache-Control") == "" {
		dst.Set("Cache-Control", "no-store")
	}
	dst.Set("X-Content-Type-Options", "nosniff")
	if a.status != http.StatusNotModified {
		dst.Set("Content-Length", strconv.Itoa(len(a.body)))
	}
}

// access writes the one line of a request.
func (h *handler) access(x *exchange, a *answer, more ...slog.Attr) {
	if !h.log.Enabled(context.Background(), slog.LevelDebug) {
		return
	}
	attrs := append([]slog.Attr{
		slog.String("method", x.method), slog.String("route", x.pattern), slog.Int("status", a.status),
		slog.String("request_id", x.id),
	}, more...)
	if x.corr != "" {
		attrs = append(attrs, slog.String("corr_id", x.corr))
	}
	if !x.kid.IsZero() {
		attrs = append(attrs, slog.String("kid_hash", kidHash(x.kid)))
	}
	h.log.LogAttrs(context.Background(), slog.LevelDebug, "http", attrs...)
}

// kidHash stands for a key in logs: 16 hex digits of the BLAKE3 hash of its
// kid without a version.
func kidHash(kid api.KID) string {
	sum := blake3.Sum256([]byte(kid.Base().String()))
	return hex.EncodeToString(sum[:8])
}
