package control

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/transparency-dev/formats/proof"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/api"
)

const (
	pathAudit            = "/v1/kms/audit/"
	pathAuditCheckpoint  = pathAudit + "checkpoint"
	pathAuditKeys        = pathAudit + "keys"
	pathAuditConsistency = pathAudit + "consistency"
	pathAuditProof       = pathAudit + "proof"
	pathAuditKey         = pathAudit + "key"
	pathAuditRecords     = pathAudit + "records"
	prefixTile           = pathAudit + "tile/"
	patternTile          = prefixTile + "<L>/<N>[.p/<W>]"
	patternEntries       = prefixTile + "entries/<N>[.p/<W>]"
	headerNext           = "X-Kms-Next-Index"
	contentText          = "text/plain; charset=utf-8"
	tileWidth            = 256 // of a full tile
	forever              = "public, max-age=31536000, immutable"
)

// auditEndpoints are the reads of the audit log. Those without a token tell how
// long the log is, and hashes of records that hold bytes nobody guesses.
var auditEndpoints = []endpoint{
	{"GET", pathAuditCheckpoint, (*handler).auditCheckpoint},
	{"GET", pathAuditKeys, (*handler).auditKeys},
	{"GET", pathAuditConsistency, (*handler).auditConsistency},
	{"GET", patternTile, (*handler).auditTile},
	{"GET", patternEntries, (*handler).auditEntries},
	{"GET", pathAuditProof, (*handler).auditProof},
	{"GET", pathAuditKey, (*handler).auditKey},
	{"GET", pathAuditRecords, (*handler).auditRecords},
}

// auditPattern is the pattern of a tile's or bundle's path, "" for other paths.
// Names are not looked at here: the log knows one spelling of each.
func auditPattern(escaped string) string {
	rest, ok := strings.CutPrefix(escaped, prefixTile)
	switch {
	case !ok:
		return ""
	case strings.HasPrefix(rest, "entries/"):
		return patternEntries
	}
	return patternTile
}

// tileName is the C2SP name in the path of a tile or bundle.
func tileName(x *exchange) string {
	return strings.TrimPrefix(x.r.URL.EscapedPath(), pathAudit)
}

// auditQuery reads the query of a GET.
func auditQuery(x *exchange, known ...string) (map[string]string, error) {
	q, err := parseQuery(x.r.URL, known...)
	if err == nil && x.r.ContentLength != 0 {
		err = malformed("a GET has no body")
	}
	return q, err
}

// number reads a canonical number from a query, def if it is not there.
func number(q map[string]string, name string, def uint64) (uint64, error) {
	text, ok := q[name]
	if !ok {
		return def, nil
	}
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil || strconv.FormatUint(n, 10) != text {
		return 0, malformed(name + " must be a number without leading zeros")
	}
	return n, nil
}

// required is number for one that must be there.
func required(q map[string]string, name string) (uint64, error) {
	if _, ok := q[name]; !ok {
		return 0, malformed(name + " is required")
	}
	return number(q, name, 0)
}

// flag reads name=1 from a query.
func flag(q map[string]string, name string) (bool, error) {
	v, ok := q[name]
	if ok && v != "1" {
		return false, malformed(name + " must be 1, or left out")
	}
	return ok, nil
}

func textAnswer(contentType string, body []byte) *answer {
	return &answer{status: http.StatusOK, header: http.Header{"Content-Type": {contentType}}, body: body}
}

func (h *handler) auditCheckpoint(x *exchange) (*answer, error) {
	q, err := auditQuery(x, "cosigned")
	if err != nil {
		return nil, h.k.Rejected(err)
	}
	cosigned, err := flag(q, "cosigned")
	if err != nil {
		return nil, h.k.Rejected(err)
	}
	note, err := h.k.AuditCheckpoint(x.r.Context(), cosigned)
	if err != nil {
		return nil, err
	}
	return textAnswer(contentText, note), nil
}

// auditKeys answers with the keys that sign now, one a line.
func (h *handler) auditKeys(x *exchange) (*answer, error) {
	if _, err := auditQuery(x); err != nil {
		return nil, h.k.Rejected(err)
	}
	keys := h.k.AuditKeys()
	if len(keys) == 0 {
		return nil, h.k.Rejected(api.NewError(api.ReasonAudit, "the keys of the audit log are not known"))
	}
	return textAnswer(contentText, []byte(strings.Join(keys, "\n")+"\n")), nil
}

func (h *handler) auditConsistency(x *exchange) (*answer, error) {
	q, err := auditQuery(x, "from", "to")
	if err != nil {
		return nil, h.k.Rejected(err)
	}
	from, err := required(q, "from")
	if err != nil {
		return nil, h.k.Rejected(err)
	}
	to, err := number(q, "to", 0)
	if err == nil && (from == 0 || q["to"] != "" && to < from) {
		err = malformed("from must be at least 1 and at most to")
	}
	if err != nil {
		return nil, h.k.Rejected(err)
	}
	resp, err := h.k.AuditConsistency(x.r.Context(), from, to)
	if err != nil {
		return nil, err
	}
	return encoded(http.StatusOK, resp)
}

// auditTile serves a tile of hashes. A full one never changes.
func (h *handler) auditTile(x *exchange) (*answer, error) {
	if _, err := auditQuery(x); err != nil {
		return nil, h.k.Rejected(err)
	}
	tile, err := h.k.AuditTile(x.r.Context(), tileName(x))
	if err != nil {
		return nil, err
	}
	a := textAnswer("application/octet-stream", tile)
	if len(tile) == tileWidth*32 {
		a.header.Set("Cache-Control", forever)
	}
	return a, nil
}

// known runs serve for a caller with a good token. Who it is comes before what
// is asked.
func (h *handler) known(x *exchange, serve func(*core.Session) (*answer, error)) (*answer, error) {
	session, err := h.k.OpenSessionFor(bearer(x.r.Header), presenter(x.r))
	if err != nil {
		return nil, err
	}
	defer session.Close()
	return serve(session)
}

func (h *handler) auditEntries(x *exchange) (*answer, error) {
	return h.known(x, func(s *core.Session) (*answer, error) {
		if _, err := auditQuery(x); err != nil {
			return nil, h.k.Rejected(err)
		}
		bundle, err := h.k.AuditEntries(x.r.Context(), s, tileName(x))
		if err != nil {
			return nil, err
		}
		return textAnswer("application/octet-stream", bundle), nil
	})
}

// proofRequest is the query of a proof.
type proofRequest struct {
	index, size uint64
	cosigned    bool
	tlog        bool // as a C2SP tlog-proof
}

func readProofRequest(x *exchange) (r proofRequest, err error) {
	q, err := auditQuery(x, "index", "size", "cosigned", "format")
	if err != nil {
		return r, err
	}
	if r.index, err = required(q, "index"); err != nil {
		return r, err
	}
	if r.size, err = number(q, "size", 0); err != nil {
		return r, err
	}
	if r.cosigned, err = flag(q, "cosigned"); err != nil {
		return r, err
	}
	_, sized := q["size"]
	format, given := q["format"]
	r.tlog = format == "tlog-proof" || !given && x.r.Header.Get("Accept") == "text/plain"
	switch {
	case given && format != "tlog-proof" && format != "json":
		err = malformed("format must be json or tlog-proof")
	case sized && (r.size == 0 || r.cosigned || r.tlog):
		err = malformed("size is at least 1, and of neither cosigned nor tlog-proof, which bear the checkpoint of their size")
	}
	return r, err
}

func (h *handler) auditProof(x *exchange) (*answer, error) {
	return h.known(x, func(s *core.Session) (*answer, error) {
		r, err := readProofRequest(x)
		if err != nil {
			return nil, h.k.Rejected(err)
		}
		resp, err := h.k.AuditProof(x.r.Context(), s, r.index, r.size, r.cosigned)
		if err != nil {
			return nil, err
		}
		if !r.tlog {
			return encoded(http.StatusOK, resp)
		}
		p, err := tlogProof(resp)
		if err != nil {
			return nil, api.WrapError(api.ReasonInternal, "the proof could not be written", err)
		}
		return textAnswer(contentText, p), nil
	})
}

// tlogProof writes a proof as C2SP tlog-proof, with the record as extra data:
// the file is enough to verify it.
func tlogProof(resp *api.AuditProof) ([]byte, error) {
	p := proof.TLogProof{Index: resp.Index, Checkpoint: []byte(resp.Checkpoint)}
	var err error
	if p.ExtraData, err = api.ParseBase64(resp.RecordB64); err != nil {
		return nil, err
	}
	for _, text := range resp.Hashes {
		b, err := api.ParseBase64(text)
		if err != nil || len(b) != 32 {
			return nil, fmt.Errorf("hash of %d bytes (%w)", len(b), err)
		}
		p.Hashes = append(p.Hashes, [32]byte(b))
	}
	return p.Marshal(), nil
}

func (h *handler) auditKey(x *exchange) (*answer, error) {
	return h.known(x, func(s *core.Session) (*answer, error) {
		q, err := auditQuery(x, "kid")
		if err != nil {
			return nil, h.k.Rejected(err)
		}
		kid, err := api.ParseKID(q["kid"])
		if err != nil {
			return nil, h.k.Rejected(err)
		}
		x.kid = kid
		resp, err := h.k.AuditKey(x.r.Context(), s, kid)
		if err != nil {
			return nil, err
		}
		return encoded(http.StatusOK, resp)
	})
}

// auditRecords answers with one JSON object a line, and where to go on.
func (h *handler) auditRecords(x *exchange) (*answer, error) {
	return h.known(x, func(s *core.Session) (*answer, error) {
		q, err := auditQuery(x, "from", "limit")
		if err != nil {
			return nil, h.k.Rejected(err)
		}
		from, err := number(q, "from", 0)
		if err != nil {
			return nil, h.k.Rejected(err)
		}
		limit, err := number(q, "limit", api.DefaultAuditRecords)
		if err == nil && (limit < 1 || limit > api.MaxAuditRecords) {
			err = malformed("limit must be 1 to 1000")
		}
		if err != nil {
			return nil, h.k.Rejected(err)
		}
		records, next, err := h.k.AuditRecords(x.r.Context(), s, from, int(limit))
		if err != nil {
			return nil, err
		}
		var body []byte
		for i := range records {
			line, err := api.Encode(&records[i])
			if err != nil {
				return nil, api.WrapError(api.ReasonInternal, "the response could not be written", err)
			}
			body = append(append(body, line...), '\n')
		}
		a := textAnswer("application/x-ndjson", body)
		a.header.Set(headerNext, strconv.FormatUint(next, 10))
		return a, nil
	})
}
