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
	MaxJSONTokens  = 8192    // names, values and delimiters of one request
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
	// ProduceHybrid gives each version of a classical key a post-quantum
	// companion track, whatever the server's phase.
	ProduceHybrid bool `json:"produce_hybrid,omitzero"`
	// Validity bounds when the key may sign, wrap and derive. Outside it,
	// allowing for the server's tolerance, these fail with TimeSkew; what was
	// made within it still verifies and unwraps.
	Validity *Validity `json:"validity,omitzero"`
}

// Receipt says where in the audit log an operation stands. Clients remember
// the highest values seen and refuse to go back.
type Receipt struct {
	Log            string `json:"log"`             // origin of the audit log
	LogIndex       uint64 `json:"log_index"`       // index of the operation's leaf, from 0
	KeySeq         uint64 `json:"key_seq"`         // this key's operation count, from 1; 0 where no key is concerned
	CheckpointSize uint64 `json:"checkpoint_size"` // size of the latest signed checkpoint
}

// CreateRequest asks for a new key. Verb "create".
type CreateRequest struct {
	OpID    string     `json:"op_id"`            // UUID chosen by the client; makes retries safe
	Tenant  string     `json:"tenant"`           // label
	Purpose string     `json:"purpose"`          // label
	Alg     string     `json:"alg"`              // for example "ed25519+ml-dsa-65"
	Scheme  Scheme     `json:"scheme,omitempty"` // of a signing key; default SchemeV1; never changes
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
	Limit   int    `json:"limit,omitzero"`    // 1 to MaxListPage, default 100
}

// ExportRequest names a key whose private part somebody tried to read. Verb
// "export" exists only to refuse: the answer is always ExportForbidden.
type ExportRequest struct {
	KID string `json:"kid"`
}

// SignPolicy is what the caller demands beyond server and key; it may only
// tighten.
type SignPolicy struct {
	Mode       string `json:"mode,omitempty"`       // "or", "and" or "pq_only"
	KClassical int    `json:"k_classical,omitzero"` // least number of keys that sign classically, of a kid_set
	KPQ        int    `json:"k_pq,omitzero"`        // least number of keys that sign post-quantum, of a kid_set
}

// SignRequest asks for signatures over a statement about a payload. Verb
// "sign". Without a version in a kid the head version signs.
type SignRequest struct {
	KID        string      `json:"kid,omitempty"`         // one key, or
	KIDSet     []string    `json:"kid_set,omitempty"`     // up to MaxKIDSet keys of one tenant, which all sign
	PayloadB3  string      `json:"payload_b3,omitempty"`  // 64 lower-case hex digits
	PayloadB64 string      `json:"payload_b64,omitempty"` // instead, for a key of scheme raw; not over TCP
	ContextB64 string      `json:"context_b64,omitempty"` // at most MaxContext bytes, bound into the preimage
	Validity   *Validity   `json:"validity,omitzero"`     // bound into the preimage
	Alg        string      `json:"alg,omitempty"`         // only this track; refused if policy demands more
	Policy     *SignPolicy `json:"policy,omitzero"`
	OpID       string      `json:"op_id,omitempty"` // UUID for correlation in the audit log
}

// Signature is one signature of a bundle.
type Signature struct {
	KID          string    `json:"kid"` // with #vN
	Alg          string    `json:"alg"` // track: "ed25519" or "ml-dsa-65"
	SignatureB64 string    `json:"signature_b64"`
	Validity     *Validity `json:"validity,omitzero"` // as it was signed
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
	Mode       string `json:"mode,omitempty"`       // "or", "and" or "pq_only"
	KClassical int    `json:"k_classical,omitzero"` // least number of different keys with a good classical signature
	KPQ        int    `json:"k_pq,omitzero"`        // least number of different keys with a good post-quantum one
	Strict     bool   `json:"strict,omitzero"`      // any bad signature in the bundle makes it not ok
}

// VerifyRequest asks whether a bundle holds for a payload. Verb "verify".
type VerifyRequest struct {
	PayloadB3  string      `json:"payload_b3,omitempty"`
	PayloadB64 string      `json:"payload_b64,omitempty"` // instead, for a key of scheme raw
	ContextB64 string      `json:"context_b64,omitempty"`
	Sigs       []Signature `json:"sigs"`
	// KIDSet lets the bundle be of several keys: these and no others. All of
	// them must have signed, unless Policy asks for a smaller quorum.
	KIDSet []string      `json:"kid_set,omitempty"`
	Policy *VerifyPolicy `json:"policy,omitzero"`
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
	Mode    string        `json:"mode"`                  // the mode that was applied
	Grace   bool          `json:"legacy_grace,omitzero"` // the server's mode was not applied: the version predates it
	Reason  string        `json:"reason,omitempty"`      // why ok is false: "signature", "pq_policy", "unknown-key"
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
	Suite            string      `json:"suite"` // bound into every preimage of this version
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
	Parent   string       `json:"parent,omitempty"` // of a derived key: the version it came from
	Versions []KeyVersion `json:"versions"`         // ascending
}

// CreateResponse describes the new key. Like those of the other mutations it
// shows the version concerned and no other; "get" shows all.
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

// ListResponse is one page of keys, each with its head version only.
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
	Key             KID   // zero for create and list, and where there are several
	Keys            []KID // several keys, all of Tenant; each is authorized
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
	if r.Scheme != "" && r.Scheme != SchemeV1 && r.Scheme != SchemeRawB3 && r.Scheme != SchemeRaw {
		return Target{}, NewError(ReasonMalformed, "scheme must be ron-kms/v1, raw-b3 or raw")
	}
	if r.Policy != nil {
		if err := r.Policy.Validity.check(); err != nil {
			return Target{}, err
		}
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
	if err := checkPayload(r.PayloadB3, r.PayloadB64, r.ContextB64); err != nil {
		return Target{}, err
	}
	if err := r.Validity.check(); err != nil {
		return Target{}, err
	}
	if r.Alg != "" && !validAlgText(r.Alg) {
		return Target{}, NewError(ReasonMalformed, "alg is not an algorithm name")
	}
	if p := r.Policy; p != nil && (p.KClassical < 0 || p.KPQ < 0 || p.KClassical > MaxKIDSet || p.KPQ > MaxKIDSet) {
		return Target{}, NewError(ReasonMalformed, "k_classical and k_pq must be 0 to 8")
	}
	if r.KID != "" && len(r.KIDSet) > 0 {
		return Target{}, NewError(ReasonMalformed, "send either kid or kid_set")
	}
	if len(r.KIDSet) == 0 {
		return keyTarget(r.KID, r.OpID, false)
	}
	kids, err := parseKIDSet(r.KIDSet)
	if err != nil {
		return Target{}, err
	}
	id, err := parseOpID(r.OpID, false)
	if err != nil {
		return Target{}, err
	}
	return Target{Tenant: kids[0].Tenant, Keys: kids, OpID: id}, nil
}

// Target implements [Request]. Without a kid_set every signature must name
// the same key and version; with one, keys of the set. No track of a key may
// stand there twice: else one key could satisfy two demands.
func (r *VerifyRequest) Target() (Target, error) {
	if err := checkPayload(r.PayloadB3, r.PayloadB64, r.ContextB64); err != nil {
		return Target{}, err
	}
	if p := r.Policy; p != nil && (p.KClassical < 0 || p.KPQ < 0 || p.KClassical > MaxKIDSet || p.KPQ > MaxKIDSet) {
		return Target{}, NewError(ReasonMalformed, "k_classical and k_pq must be 0 to 8")
	}
	if len(r.Sigs) == 0 {
		return Target{}, NewError(ReasonMalformed, "sigs is empty")
	}
	if len(r.Sigs) > MaxSignatures {
		return Target{}, NewError(ReasonTooMany, "sigs has more than 16 entries")
	}
	set, err := parseKIDSet(r.KIDSet)
	if err != nil {
		return Target{}, err
	}
	kids := make([]KID, 0, len(r.Sigs))
	for i := range r.Sigs {
		k, err := r.Sigs[i].check()
		if err != nil {
			return Target{}, err
		}
		if err := memberOf(k, set, kids); err != nil {
			return Target{}, err
		}
		for j, earlier := range r.Sigs[:i] {
			if earlier.Alg == r.Sigs[i].Alg && kids[j].Base() == k.Base() {
				return Target{}, NewError(ReasonDuplicateSig, "two signatures of the same kid and alg")
			}
		}
		kids = append(kids, k)
	}
	if len(set) == 0 {
		return Target{Tenant: kids[0].Tenant, Purpose: kids[0].Purpose, Key: kids[0]}, nil
	}
	return Target{Tenant: kids[0].Tenant, Keys: kids}, nil
}

func (s *Signature) check() (KID, error) {
	k, err := ParseKID(s.KID)
	if err != nil {
		return KID{}, err
	}
	if k.Version == 0 {
		return KID{}, NewError(ReasonKID, "kid of a signature needs its version: #vN")
	}
	if !validAlgText(s.Alg) {
		return KID{}, NewError(ReasonMalformed, "alg is not an algorithm name")
	}
	if err := s.Validity.check(); err != nil {
		return KID{}, err
	}
	_, err = ParseBase64(s.SignatureB64)
	return k, err
}

// memberOf checks that a bundle may hold a signature by k beside those by
// earlier.
func memberOf(k KID, set, earlier []KID) error {
	if len(set) == 0 {
		if len(earlier) > 0 && earlier[0] != k {
			return NewError(ReasonMixedKeys, "all signatures of a bundle must be of one key and version, or kid_set must name the keys")
		}
		return nil
	}
	for _, member := range set {
		if member.Base() == k.Base() && (member.Version == 0 || member.Version == k.Version) {
			return nil
		}
	}
	return NewError(ReasonMixedKeys, "a signature is by a key that kid_set does not name")
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
