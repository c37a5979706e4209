package control

import (
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/api"
)

func malformed(message string) error { return api.NewError(api.ReasonMalformed, message) }

// locate reads an escaped path: the pattern it belongs to, which need not be
// one that exists, and the segments of {kid}, still escaped. Nothing is
// cleaned or redirected. A kid is one segment or four, so that what follows it
// cannot be taken for a part of it.
func locate(escaped string) (pattern string, kid []string) {
	if pattern := auditPattern(escaped); pattern != "" {
		return pattern, nil
	}
	rest, ok := strings.CutPrefix(escaped, pathKeys+"/")
	if !ok {
		return escaped, nil
	}
	segments := strings.Split(rest, "/")
	if slices.Contains(segments, "") {
		return "", nil
	}
	last := len(segments) - 1
	switch len(segments) {
	case 1, 4:
		return patternKey, segments
	case 2, 5:
		return patternKey + "/" + segments[last], segments[:last]
	}
	return "", nil
}

// pathKID parses the kid of a path: four segments with @vN at the end, or one
// percent-encoded segment with #vN; either may have its version in the query
// instead, and none may have two.
func pathKID(segments []string, version string, versioned bool) (api.KID, error) {
	plain := make([]string, len(segments))
	for i, s := range segments {
		p, err := url.PathUnescape(s)
		if err != nil {
			return api.KID{}, api.NewError(api.ReasonKID, "kid in the path is not percent-encoded properly")
		}
		if len(segments) > 1 && strings.ContainsAny(p, "/#") {
			return api.KID{}, api.NewError(api.ReasonKID, "kid in the path is encoded in part; encode it whole or not at all")
		}
		plain[i] = p
	}
	text := strings.Join(plain, "/")
	if at := strings.LastIndexByte(text, '@'); at >= 0 && len(segments) > 1 {
		text = text[:at] + "#" + text[at+1:]
	}
	if versioned {
		text += "#v" + version // a second '#' is no kid
	}
	return api.ParseKID(text)
}

// parseQuery reads a query strictly: known names only, each once.
func parseQuery(u *url.URL, known ...string) (map[string]string, error) {
	values, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, malformed("the query is not well-formed")
	}
	q := make(map[string]string, len(values))
	for name, v := range values {
		if !slices.Contains(known, name) {
			return nil, malformed("the query has a parameter that this endpoint does not know")
		}
		if len(v) != 1 {
			return nil, malformed("the query has a parameter twice")
		}
		q[name] = v[0]
	}
	return q, nil
}

// asksForPrivate recognizes a query that wants the private part of a key.
func asksForPrivate(u *url.URL) bool {
	q := u.Query()
	return anyFold(q["include"], "private") || anyFold(q["format"], "pem", "der")
}

func anyFold(values []string, words ...string) bool {
	return slices.ContainsFunc(values, func(v string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.EqualFold(v, w) })
	})
}

// preconditions refuses header fields that would promise what the verb does
// not do.
func preconditions(header http.Header, verb *core.Verb) error {
	if !verb.Mutates && len(header.Values("Idempotency-Key")) > 0 {
		return malformed("Idempotency-Key is for create, rotate, destroy and derive")
	}
	if verb.Name != "rotate" && len(header.Values("If-Match")) > 0 {
		return malformed("If-Match is for rotate")
	}
	return nil
}

// fromBody reads a verb's request from a JSON body, and the key from the path
// where that names one.
func fromBody(h *handler, x *exchange, verb *core.Verb) (api.Request, error) {
	if err := preconditions(x.r.Header, verb); err != nil {
		return nil, err
	}
	var kid api.KID
	q, err := parseQuery(x.r.URL, queryOf(x.segments)...)
	if err != nil {
		return nil, err
	}
	if x.segments != nil {
		version, versioned := q["version"]
		if kid, err = pathKID(x.segments, version, versioned); err != nil {
			return nil, err
		}
	}
	body, err := h.body(x)
	if err != nil {
		return nil, err
	}
	req := verb.Request()
	if err := api.Decode(body, req); err != nil {
		return nil, err
	}
	if hasRawPayload(req) && !x.onSocket() {
		e := api.NewError(api.ReasonUnsupported, "payload_b64 is not taken over TCP")
		e.Hint = "send raw payloads over the Unix socket, or use the library; over TCP use a key that signs digests"
		return nil, e
	}
	return req, complete(req, x.r.Header, kid)
}

// hasRawPayload recognizes requests that carry a payload itself and not only
// its digest.
func hasRawPayload(req api.Request) bool {
	switch r := req.(type) {
	case *api.SignRequest:
		return r.PayloadB64 != ""
	case *api.VerifyRequest:
		return r.PayloadB64 != ""
	case *api.SignBatchRequest:
		return slices.ContainsFunc(r.Items, func(i api.SignItem) bool { return i.PayloadB64 != "" })
	case *api.VerifyBatchRequest:
		return slices.ContainsFunc(r.Items, func(i api.VerifyRequest) bool { return i.PayloadB64 != "" })
	}
	return false
}

// onSocket reports whether the request came over a Unix socket. What is not
// known to have, has not.
func (x *exchange) onSocket() bool {
	addr, ok := x.r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	return ok && addr.Network() == "unix"
}

func queryOf(segments []string) []string {
	if segments == nil {
		return nil
	}
	return []string{"version"}
}

// complete fills in what of a mutation's request stands outside its body.
func complete(req api.Request, header http.Header, kid api.KID) (err error) {
	var opID, key *string
	switch r := req.(type) {
	case *api.CreateRequest:
		opID = &r.OpID
	case *api.RotateRequest:
		opID, key = &r.OpID, &r.KID
	case *api.DestroyRequest:
		opID, key = &r.OpID, &r.KID
	case *api.DeriveRequest:
		opID, key = &r.OpID, &r.KID
	default:
		return nil
	}
	if *opID, err = mergeOpID(*opID, header.Values("Idempotency-Key")); err != nil || key == nil {
		return err
	}
	if *key != "" {
		if same, err := api.ParseKID(*key); err != nil || same != kid {
			return api.NewError(api.ReasonKID, "kid in the body is not the kid in the path")
		}
	}
	if kid, err = pinned(header, kid); err != nil {
		return err
	}
	*key = kid.String()
	return nil
}

// mergeOpID takes the op_id from the body or from Idempotency-Key; if both are
// there they must be equal.
func mergeOpID(body string, fields []string) (string, error) {
	switch {
	case len(fields) == 0:
		return body, nil
	case len(fields) > 1:
		return "", api.NewError(api.ReasonOpID, "Idempotency-Key is given more than once")
	case body != "" && body != fields[0]:
		return "", api.NewError(api.ReasonOpID, "op_id and Idempotency-Key differ")
	}
	return fields[0], nil
}

// body reads a request's JSON, at most KMS_MAX_PAYLOAD bytes of it.
func (h *handler) body(x *exchange) ([]byte, error) {
	if err := mediaType(x.r.Header); err != nil {
		return nil, err
	}
	limit := int64(h.k.Config().MaxPayload)
	tooLarge := api.NewError(api.ReasonTooLarge, "the request is larger than KMS_MAX_PAYLOAD")
	if x.r.ContentLength > limit {
		return nil, tooLarge
	}
	b, err := io.ReadAll(http.MaxBytesReader(x.w, x.r.Body, limit))
	var over *http.MaxBytesError
	var network net.Error
	switch {
	case err == nil:
		return b, nil
	case errors.As(err, &over):
		return nil, tooLarge
	case errors.As(err, &network) && network.Timeout():
		return nil, api.NewError(api.ReasonTimeout, "the request body did not arrive in time")
	}
	return nil, malformed("the request body could not be read")
}

// mediaType demands JSON as it is: one Content-Type, UTF-8, no coding.
func mediaType(header http.Header) error {
	bad := api.NewError(api.ReasonMediaType, "the body must be application/json in UTF-8 without Content-Encoding")
	types := header.Values("Content-Type")
	if len(types) != 1 || len(header.Values("Content-Encoding")) > 0 {
		return bad
	}
	name, params, err := mime.ParseMediaType(types[0])
	if err != nil || name != "application/json" {
		return bad
	}
	for k, v := range params {
		if k != "charset" || !strings.EqualFold(v, "utf-8") {
			return bad
		}
	}
	return nil
}

// fromPath reads a request that is nothing but a kid in the path.
func fromPath(_ *handler, x *exchange, verb *core.Verb) (api.Request, error) {
	if err := preconditions(x.r.Header, verb); err != nil {
		return nil, err
	}
	q, err := parseQuery(x.r.URL, "version")
	if err != nil {
		return nil, err
	}
	if x.r.ContentLength != 0 {
		return nil, malformed("a GET has no body")
	}
	version, versioned := q["version"]
	kid, err := pathKID(x.segments, version, versioned)
	if err != nil {
		return nil, err
	}
	return &api.GetRequest{KID: kid.String()}, nil
}

// fromAttempt reads who is asked about in an attempt to get a private key.
// Query and body are not looked at: they change nothing about the answer, and
// must not keep the attempt out of the audit log.
func fromAttempt(_ *handler, x *exchange, _ *core.Verb) (api.Request, error) {
	kid, err := pathKID(x.segments, "", false)
	if err != nil {
		return nil, err
	}
	return &api.ExportRequest{KID: kid.String()}, nil
}

// fromQuery reads a list request.
func fromQuery(_ *handler, x *exchange, verb *core.Verb) (api.Request, error) {
	if err := preconditions(x.r.Header, verb); err != nil {
		return nil, err
	}
	q, err := parseQuery(x.r.URL, "tenant", "purpose", "after", "limit")
	if err != nil {
		return nil, err
	}
	if x.r.ContentLength != 0 {
		return nil, malformed("a GET has no body")
	}
	req := &api.ListRequest{Tenant: q["tenant"], Purpose: q["purpose"], After: q["after"]}
	if text, ok := q["limit"]; ok {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > api.MaxListPage || strconv.Itoa(n) != text {
			return nil, malformed("limit must be 1 to 500")
		}
		req.Limit = n
	}
	return req, nil
}
