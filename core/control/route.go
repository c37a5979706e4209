package control

import (
	"encoding/base64"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"lukechampine.com/blake3"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/api"
)

const (
	pathKeys    = "/v1/kms/keys"
	patternKey  = pathKeys + "/{kid}"
	pathSign    = "/v1/kms/sign"
	pathVerify  = "/v1/kms/verify"
	pathWrap    = "/v1/kms/wrap"
	pathUnwrap  = "/v1/kms/unwrap"
	pathRewrap  = "/v1/kms/rewrap"
	pathMetrics = "/metrics"

	// patternPrivate is a GET of a key whose query asks for the private part.
	patternPrivate = patternKey + "?private"
)

// route says on which path a verb is, and where its request comes from.
type route struct {
	method, pattern, verb string
	read                  func(*handler, *exchange, *core.Verb) (api.Request, error)
}

// routes is where every verb of the engine is. An attempt to read a private
// key has routes of its own, so that it gets its one answer and its record.
var routes = []route{
	{"POST", pathKeys, "create", fromBody},
	{"GET", pathKeys, "list", fromQuery},
	{"GET", patternKey, "get", fromPath},
	{"POST", patternKey + "/rotate", "rotate", fromBody},
	{"POST", patternKey + "/destroy", "destroy", fromBody},
	{"POST", patternKey + "/derive", "derive", fromBody},
	{"POST", pathSign, "sign", fromBody},
	{"POST", pathSign + "/batch", "sign_batch", fromBody},
	{"POST", pathVerify, "verify", fromBody},
	{"POST", pathVerify + "/batch", "verify_batch", fromBody},
	{"POST", pathWrap, "wrap", fromBody},
	{"POST", pathUnwrap, "unwrap", fromBody},
	{"POST", pathRewrap, "rewrap", fromBody},
	{"GET", patternPrivate, "export", fromAttempt},
	{"GET", patternKey + "/export", "export", fromAttempt},
	{"POST", patternKey + "/export", "export", fromAttempt},
	{"GET", patternKey + "/private", "export", fromAttempt},
	{"POST", patternKey + "/private", "export", fromAttempt},
}

// serve is every verb's handler. The caller is known before anything of the
// request but its path is read, and only the bearer token says who it is:
// no forwarded identity, no address, no socket peer.
func (rt route) serve(h *handler, x *exchange) (*answer, error) {
	verb, ok := core.VerbNamed(rt.verb)
	if !ok {
		return nil, h.k.Rejected(api.NewError(api.ReasonUnsupported, "there is no such verb"))
	}
	session, err := h.k.OpenSessionFor(bearer(x.r.Header), presenter(x.r))
	if err != nil {
		return nil, err
	}
	defer session.Close()
	req, err := rt.read(h, x, verb)
	if err != nil {
		return nil, h.k.Rejected(err)
	}
	if target, err := req.Target(); err == nil {
		x.kid = target.Key
	}
	resp, err := h.k.Do(x.r.Context(), session, verb, req)
	if err != nil {
		return nil, err
	}
	return reply(x, resp)
}

// bearer is the token of the one Authorization field; empty if there is not
// exactly one, or if it has another scheme (RFC 6750 §2.1).
func bearer(header http.Header) string {
	fields := header.Values("Authorization")
	if len(fields) != 1 {
		return ""
	}
	scheme, token, _ := strings.Cut(fields[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return token
}

// reply makes the answer of a verb that succeeded.
func reply(x *exchange, resp any) (*answer, error) {
	a, err := encoded(http.StatusOK, resp)
	if err != nil {
		return nil, err
	}
	switch resp := resp.(type) {
	case *api.CreateResponse:
		created(x, a, resp.KID, resp.Replayed)
	case *api.DeriveResponse:
		created(x, a, resp.KID, resp.Replayed)
	case *api.GetResponse:
		cacheAge(a, resp.CacheAgeMS)
		tag, err := entityTag(&resp.Key)
		if err != nil {
			return nil, err
		}
		a.header.Set("ETag", tag)
		if noneMatch(x.r.Header, tag) {
			a.status, a.body = http.StatusNotModified, nil
			a.header.Del("Content-Type")
		}
	case *api.VerifyResponse:
		cacheAge(a, resp.CacheAgeMS)
	}
	return a, nil
}

// created says where the new key is; one that was made by an earlier request
// with the same op_id is not new.
func created(x *exchange, a *answer, text string, replayed bool) {
	if kid, err := api.ParseKID(text); err == nil {
		x.kid = kid
		a.header.Set("Location", pathKeys+"/"+kid.Base().String())
	}
	if !replayed {
		a.status = http.StatusCreated
	}
}

// cacheAge repeats cache_age_ms, in milliseconds, for who reads no bodies.
func cacheAge(a *answer, ms *int64) {
	if ms != nil {
		a.header.Set("X-Kms-Cache-Age", strconv.FormatInt(*ms, 10))
	}
}

// entityTag is the strong validator of a key's description: its head version,
// and a hash of all of it but the age of the cache it came from.
func entityTag(key *api.Key) (string, error) {
	body, err := api.Encode(key)
	if err != nil {
		return "", api.WrapError(api.ReasonInternal, "the response could not be written", err)
	}
	sum := blake3.Sum256(body)
	return `"v` + strconv.FormatUint(uint64(key.Head), 10) + "-" + base64.RawURLEncoding.EncodeToString(sum[:16]) + `"`, nil
}

// noneMatch evaluates If-None-Match by weak comparison (RFC 9110 §13.1.2):
// true if the client has this state already.
func noneMatch(header http.Header, tag string) bool {
	tags := strings.Split(strings.Join(header.Values("If-None-Match"), ","), ",")
	return slices.ContainsFunc(tags, func(t string) bool {
		t = strings.TrimSpace(t)
		return t == "*" || strings.TrimPrefix(t, "W/") == tag
	})
}

// pinned applies If-Match to a rotation (RFC 9110 §13.1.1): the tag's head
// version becomes part of the request, so the engine compares it in the same
// step in which it rotates, and a repeated request stays the same request.
func pinned(header http.Header, kid api.KID) (api.KID, error) {
	fields := header.Values("If-Match")
	if len(fields) == 0 || len(fields) == 1 && fields[0] == "*" {
		return kid, nil // that the key exists is checked anyway
	}
	conflict := api.NewError(api.ReasonConflict, "If-Match is not the tag of this key's present state")
	version, ok := strings.CutPrefix(fields[0], `"v`)
	if len(fields) != 1 || !ok {
		return kid, conflict
	}
	version, hash, ok := strings.Cut(version, "-")
	if !ok || len(hash) != 22+1 || hash[22] != '"' {
		return kid, conflict
	}
	at, err := api.ParseKID(kid.Base().String() + "#v" + version)
	if err != nil || kid.Version != 0 && kid.Version != at.Version {
		return kid, conflict
	}
	return at, nil
}
