// Package api holds what every face of ron-kms shares: the requests and
// responses of each verb, the key identifier grammar, the error table and the
// strict JSON decoder. It has no logic beyond checking syntax, and it imports
// no other package of the project.
//
// The types here are the canonical wire format: REST bodies, the C ABI's
// generic call and the bindings all carry exactly this JSON.
package api

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"time"

	"github.com/google/uuid"
)

// Limits of the wire format. Sizes are in bytes.
const (
	MaxRequestBody = 1 << 20 // largest JSON request; KMS_MAX_PAYLOAD may lower it
	MaxJSONDepth   = 8       // nesting of arrays and objects
	MaxJSONTokens  = 4096    // names, values and delimiters of one request
	MaxSignatures  = 16      // entries of one verify request
	MaxContext     = 255     // decoded bytes of a signing context
	MaxListPage    = 500     // keys in one list response
	MaxToken       = 4096    // encoded capability token
)

// A Scheme says what exactly a key signs. It is an immutable property of the
// key, so that one key never serves two schemes.
type Scheme string

// SchemeV1 is the domain-separated preimage of docs/spec/preimage.md.
const SchemeV1 Scheme = "ron-kms/v1"

// State is the life-cycle state of a key or of one of its versions.
type State string

const (
	StateActive    State = "active"    // head version: signs and verifies
	StateRetired   State = "retired"   // older version: verifies only, its private part is erased
	StateDestroyed State = "destroyed" // private part erased on request; public tombstone verifies
)

// KeyPolicy is what the creator of a key demands beyond the server's policy.
// It may only tighten: the stricter of key, server and request holds.
type KeyPolicy struct {
	// VerifyMode is "or", "and" or "pq_only". Empty means "and" for a hybrid
	// key and "or" for every other.
	VerifyMode string `json:"verify_mode,omitempty"`
}

// Receipt says where in the audit log an operation stands. Clients remember
// the highest values seen and refuse to go back.
type Receipt struct {
	LogIndex       uint64 `json:"log_index"`       // index of the operation's leaf, from 0
	KeySeq         uint64 `json:"key_seq"`         // this key's operation count, from 1; 0 where no key is concerned
	CheckpointSize uint64 `json:"checkpoint_size"` // size of the latest signed checkpoint
}

// CreateRequest asks for a new key. Verb "create".
type CreateRequest struct {
	OpID    string     `json:"op_id"`   // UUID chosen by the client; makes retries safe
	Tenant  string     `json:"tenant"`  // label
	Purpose string     `json:"purpose"` // label
	Alg     string     `json:"alg"`     // for example "ed25519+ml-dsa-65"
	Policy  *KeyPolicy `json:"policy,omitzero"`
}

// RotateRequest asks for the next version of a key. Verb "rotate". A kid with
// a version rotates only if that version is still the head (else StaleVersion).
type RotateRequest struct {
	OpID string `json:"op_id"`
	KID  string `json:"kid"`
}

// DestroyRequest erases the private part of a key, or of the one version that
// the kid names. Verb "destroy". Public material stays so that signatures
// already made can be verified.
type DestroyRequest struct {
	OpID string `json:"op_id"`
	KID  string `json:"kid"`
}

// GetRequest asks for a key's public material. Verb "get".
type GetRequest struct {
	KID string `json:"kid"`
}

// ListRequest asks for the keys of one tenant, in kid order. Verb "list".
type ListRequest struct {
	Tenant  string `json:"tenant"`
	Purpose string `json:"purpose,omitempty"` // only this purpose
	After   string `json:"after,omitempty"`   // kid to continue after
	Limit   int    `json:"limit,omitempty"`   // 1 to MaxListPage, default 100
}

// ExportRequest names a key whose private part somebody tried to read. Verb
// "export" exists only to refuse: the answer is always ExportForbidden.
type ExportRequest struct {
	KID string `json:"kid"`
}

// SignRequest asks for signatures over a statement about a BLAKE3 digest.
// Verb "sign". Without a version in the kid the head version signs.
type SignRequest struct {
	KID        string `json:"kid"`
	PayloadB3  string `json:"payload_b3"`            // 64 lower-case hex digits
	ContextB64 string `json:"context_b64,omitempty"` // at most MaxContext bytes, bound into the preimage
	Alg        string `json:"alg,omitempty"`         // only this track; refused if policy demands more
	OpID       string `json:"op_id,omitempty"`       // UUID for correlation in the audit log
}

// Signature is one signature of a bundle.
type Signature struct {
	KID          string `json:"kid"` // with #vN
	Alg          string `json:"alg"` // track: "ed25519" or "ml-dsa-65"
	SignatureB64 string `json:"signature_b64"`
}

// SignResponse carries one signature per track.
type SignResponse struct {
	KID              string      `json:"kid"` // with the version that signed
	Scheme           Scheme      `json:"scheme"`
	Sigs             []Signature `json:"sigs"`
	AttestationClass string      `json:"attestation_class"`
	Receipt          *Receipt    `json:"receipt,omitzero"`
}

// VerifyPolicy is the caller's wish; it may only tighten.
type VerifyPolicy struct {
	Mode string `json:"mode,omitempty"` // "or", "and" or "pq_only"
}

// VerifyRequest asks whether a bundle holds for a digest. Verb "verify".
type VerifyRequest struct {
	PayloadB3  string        `json:"payload_b3"`
	ContextB64 string        `json:"context_b64,omitempty"`
	Sigs       []Signature   `json:"sigs"`
	Policy     *VerifyPolicy `json:"policy,omitzero"`
}

// VerifyCheck is the finding on one signature of the bundle.
type VerifyCheck struct {
	KID    string `json:"kid"`
	Alg    string `json:"alg"`
	OK     bool   `json:"ok"`
	Reason string `json:"reason,omitempty"` // why not: "signature", "unknown-key", "unknown-version", "alg"
}

// VerifyDetails explains a verdict without revealing anything secret.
type VerifyDetails struct {
	Mode    string        `json:"mode"`             // the mode that was applied
	Reason  string        `json:"reason,omitempty"` // why ok is false: "signature", "pq_policy", "unknown-key"
	Checked []VerifyCheck `json:"checked"`
	KIDs    []string      `json:"kids"` // hint: the keys named by the bundle
	Algs    []string      `json:"algs"` // hint: the algorithms the key would sign with
}

// VerifyResponse is the answer to a verify. A wrong signature is an answer
// (ok false), not an error.
type VerifyResponse struct {
	OK         bool          `json:"ok"`
	Details    VerifyDetails `json:"details"`
	CacheAgeMS *int64        `json:"cache_age_ms,omitzero"` // present only when served from cache
}

// PublicKey is the public part of one track of one version.
type PublicKey struct {
	Alg       string `json:"alg"`
	PubkeyB64 string `json:"pubkey_b64"`
}

// KeyVersion is one version of a key.
type KeyVersion struct {
	KID              string      `json:"kid"` // with #vN
	Version          uint32      `json:"version"`
	State            State       `json:"state"`
	CreatedAt        time.Time   `json:"created_at"`
	AttestationClass string      `json:"attestation_class"`
	Public           []PublicKey `json:"public"`
}

// Key is the public description of a key, in one snapshot.
type Key struct {
	KID      string       `json:"kid"` // with the head version
	Alg      string       `json:"alg"`
	Scheme   Scheme       `json:"scheme"`
	State    State        `json:"state"`
	Head     uint32       `json:"head"`
	Policy   KeyPolicy    `json:"policy"`
	Versions []KeyVersion `json:"versions"` // ascending
}

// CreateResponse describes the new key.
type CreateResponse struct {
	Key      Key      `json:"key"`
	KID      string   `json:"kid"`
	Receipt  *Receipt `json:"receipt,omitzero"`
	Replayed bool     `json:"-"` // the op_id was seen before; nothing was done again
}

// RotateResponse names the new and the previous version.
type RotateResponse struct {
	Key      Key      `json:"key"`
	KID      string   `json:"kid"`
	Previous string   `json:"previous"`
	Receipt  *Receipt `json:"receipt,omitzero"`
	Replayed bool     `json:"-"`
}

// DestroyResponse describes what is left: the public tombstone.
type DestroyResponse struct {
	Key      Key      `json:"key"`
	KID      string   `json:"kid"`
	Receipt  *Receipt `json:"receipt,omitzero"`
	Replayed bool     `json:"-"`
}

// GetResponse describes a key.
type GetResponse struct {
	Key        Key    `json:"key"`
	CacheAgeMS *int64 `json:"cache_age_ms,omitzero"`
}

// ListResponse is one page of keys.
type ListResponse struct {
	Keys []Key  `json:"keys"`
	Next string `json:"next,omitempty"` // pass as "after" to continue
}

// ExportResponse is never sent.
type ExportResponse struct{}

// A Target is what a request is about, known from its text alone: it is
// authorized before anything is looked up.
type Target struct {
	Tenant, Purpose string
	Key             KID // zero for create and list
	OpID            uuid.UUID
}

// A Request is any verb's request.
type Request interface {
	// Target checks the request's syntax and says what it is about. Its error
	// is an *Error with code BadRequest or Unsupported.
	Target() (Target, error)
}

func keyTarget(kid, opID string, opRequired bool) (Target, error) {
	k, err := ParseKID(kid)
	if err != nil {
		return Target{}, err
	}
	id, err := parseOpID(opID, opRequired)
	if err != nil {
		return Target{}, err
	}
	return Target{Tenant: k.Tenant, Purpose: k.Purpose, Key: k, OpID: id}, nil
}

// Target implements [Request].
func (r *CreateRequest) Target() (Target, error) {
	if !ValidLabel(r.Tenant) || !ValidLabel(r.Purpose) {
		return Target{}, NewError(ReasonLabel, "tenant and purpose must be labels")
	}
	if !validAlgText(r.Alg) {
		return Target{}, NewError(ReasonMalformed, "alg is not an algorithm name")
	}
	id, err := parseOpID(r.OpID, true)
	if err != nil {
		return Target{}, err
	}
	return Target{Tenant: r.Tenant, Purpose: r.Purpose, OpID: id}, nil
}

// Target implements [Request].
func (r *RotateRequest) Target() (Target, error) { return keyTarget(r.KID, r.OpID, true) }

// Target implements [Request].
func (r *DestroyRequest) Target() (Target, error) { return keyTarget(r.KID, r.OpID, true) }

// Target implements [Request].
func (r *GetRequest) Target() (Target, error) { return keyTarget(r.KID, "", false) }

// Target implements [Request].
func (r *ExportRequest) Target() (Target, error) { return keyTarget(r.KID, "", false) }

// Target implements [Request].
func (r *ListRequest) Target() (Target, error) {
	if !ValidLabel(r.Tenant) || (r.Purpose != "" && !ValidLabel(r.Purpose)) {
		return Target{}, NewError(ReasonLabel, "tenant and purpose must be labels")
	}
	if r.Limit < 0 || r.Limit > MaxListPage {
		return Target{}, NewError(ReasonMalformed, "limit must be 1 to 500")
	}
	if r.After != "" {
		k, err := ParseKID(r.After)
		if err != nil {
			return Target{}, err
		}
		if k.Tenant != r.Tenant {
			return Target{}, NewError(ReasonMalformed, "after must be a kid of the same tenant")
		}
	}
	return Target{Tenant: r.Tenant, Purpose: r.Purpose}, nil
}

// Target implements [Request].
func (r *SignRequest) Target() (Target, error) {
	if _, err := ParseDigest(r.PayloadB3); err != nil {
		return Target{}, err
	}
	if _, err := ParseContext(r.ContextB64); err != nil {
		return Target{}, err
	}
	if r.Alg != "" && !validAlgText(r.Alg) {
		return Target{}, NewError(ReasonMalformed, "alg is not an algorithm name")
	}
	return keyTarget(r.KID, r.OpID, false)
}

// Target implements [Request]. Every signature must name the same key and
// version, and no track twice: else one key could satisfy two demands.
func (r *VerifyRequest) Target() (Target, error) {
	if _, err := ParseDigest(r.PayloadB3); err != nil {
		return Target{}, err
	}
	if _, err := ParseContext(r.ContextB64); err != nil {
		return Target{}, err
	}
	if len(r.Sigs) == 0 {
		return Target{}, NewError(ReasonMalformed, "sigs is empty")
	}
	if len(r.Sigs) > MaxSignatures {
		return Target{}, NewError(ReasonTooMany, "sigs has more than 16 entries")
	}
	first, err := ParseKID(r.Sigs[0].KID)
	if err != nil {
		return Target{}, err
	}
	for i, s := range r.Sigs {
		k, err := ParseKID(s.KID)
		if err != nil {
			return Target{}, err
		}
		if k.Version == 0 {
			return Target{}, NewError(ReasonKID, "kid of a signature needs its version: #vN")
		}
		if k != first {
			return Target{}, NewError(ReasonMixedKeys, "all signatures of a bundle must be of one key and version")
		}
		if !validAlgText(s.Alg) {
			return Target{}, NewError(ReasonMalformed, "alg is not an algorithm name")
		}
		for _, earlier := range r.Sigs[:i] {
			if earlier.Alg == s.Alg {
				return Target{}, NewError(ReasonDuplicateSig, "two signatures of the same kid and alg")
			}
		}
		if _, err := ParseBase64(s.SignatureB64); err != nil {
			return Target{}, err
		}
	}
	return Target{Tenant: first.Tenant, Purpose: first.Purpose, Key: first}, nil
}

// ParseDigest decodes payload_b3: exactly 64 lower-case hex digits. Raw
// payloads never travel.
func ParseDigest(s string) (d [32]byte, err error) {
	if len(s) != 64 || !isLowerHex(s) {
		return d, NewError(ReasonDigest, "payload_b3 must be 64 lower-case hex digits: the BLAKE3 digest of the payload")
	}
	_, err = hex.Decode(d[:], []byte(s))
	return d, err
}

// ParseContext decodes context_b64; the empty string is the empty context.
func ParseContext(s string) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	b, err := ParseBase64(s)
	if err != nil {
		return nil, err
	}
	if len(b) > MaxContext {
		return nil, NewError(ReasonTooLarge, "context is longer than 255 bytes")
	}
	return b, nil
}

var strictBase64 = base64.StdEncoding.Strict()

// ParseBase64 decodes standard padded base64 strictly: no line breaks, no
// stray bits, so that one value has one text.
func ParseBase64(s string) ([]byte, error) {
	for i := range len(s) {
		if s[i] == '\r' || s[i] == '\n' {
			return nil, NewError(ReasonBase64, "base64 must have no line breaks")
		}
	}
	b, err := strictBase64.DecodeString(s)
	if err != nil {
		return nil, NewError(ReasonBase64, "not strict standard base64 with padding")
	}
	return b, nil
}

// FormatBase64 is the inverse of [ParseBase64].
func FormatBase64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// ParseUUID accepts the canonical form only: 36 characters, lower case.
func ParseUUID(s string) (uuid.UUID, error) {
	if len(s) != 36 {
		return uuid.UUID{}, errors.New("not a canonical UUID")
	}
	id, err := uuid.Parse(s)
	if err != nil || id.String() != s {
		return uuid.UUID{}, errors.New("not a canonical UUID")
	}
	return id, nil
}

func parseOpID(s string, required bool) (uuid.UUID, error) {
	if s == "" {
		if required {
			return uuid.UUID{}, NewError(ReasonOpID, "op_id is required: a UUID that names this operation, the same on each retry")
		}
		return uuid.UUID{}, nil
	}
	id, err := ParseUUID(s)
	if err != nil || id == (uuid.UUID{}) {
		return uuid.UUID{}, NewError(ReasonOpID, "op_id must be a lower-case UUID")
	}
	return id, nil
}

func isLowerHex(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
