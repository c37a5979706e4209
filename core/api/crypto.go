package api

import (
	"slices"
)

// Limits of the verbs below.
const (
	MaxKIDSet    = 8    // kids of one sign or verify request
	MaxBatch     = 256  // items of one batch request
	MaxDataKey   = 4096 // bytes of a wrapped data key
	MaxRawSize   = 64 << 10
	MaxAADSize   = 1024 // bytes of a caller's additional data
	DataKeySize  = 32   // default size of a generated data key, in bytes
	maxTimestamp = 253402300799999
)

// Schemes besides [SchemeV1].
const (
	// SchemeRawB3 signs the 32 digest bytes themselves.
	SchemeRawB3 Scheme = "raw-b3"
	// SchemeRaw signs arbitrary bytes. Its requests carry the payload, so they
	// are taken only inside the process and over a Unix socket.
	SchemeRaw Scheme = "raw"
)

// Validity is a window of time, in Unix milliseconds, both ends included. 0
// leaves an end open.
type Validity struct {
	NotBeforeMS int64 `json:"not_before_ms,omitzero"`
	NotAfterMS  int64 `json:"not_after_ms,omitzero"`
}

func (v *Validity) check() error {
	if v == nil {
		return nil
	}
	if v.NotBeforeMS < 0 || v.NotAfterMS < 0 || v.NotBeforeMS > maxTimestamp || v.NotAfterMS > maxTimestamp {
		return NewError(ReasonMalformed, "a validity bound is Unix milliseconds up to the year 9999")
	}
	if v.NotAfterMS != 0 && v.NotAfterMS < v.NotBeforeMS {
		return NewError(ReasonMalformed, "validity ends before it begins")
	}
	return nil
}

// Bounds gives both ends, 0 where v is nil or open.
func (v *Validity) Bounds() (notBefore, notAfter int64) {
	if v == nil {
		return 0, 0
	}
	return v.NotBeforeMS, v.NotAfterMS
}

// checkPayload checks that exactly one form of the payload is there, and well
// formed.
func checkPayload(b3, raw, context string) error {
	switch {
	case (b3 == "") == (raw == ""):
		return NewError(ReasonDigest, "send either payload_b3, or payload_b64 for a key of scheme raw")
	case b3 != "":
		if _, err := ParseDigest(b3); err != nil {
			return err
		}
	default:
		b, err := ParseBase64(raw)
		if err != nil {
			return err
		}
		if len(b) > MaxRawSize {
			return NewError(ReasonTooLarge, "a raw payload is at most 65536 bytes")
		}
	}
	_, err := ParseContext(context)
	return err
}

// parseKIDSet parses one to MaxKIDSet different kids of one tenant.
func parseKIDSet(texts []string) ([]KID, error) {
	if len(texts) > MaxKIDSet {
		return nil, NewError(ReasonTooMany, "kid_set has more than 8 kids")
	}
	kids := make([]KID, len(texts))
	for i, text := range texts {
		k, err := ParseKID(text)
		if err != nil {
			return nil, err
		}
		if k.Tenant != kids[0].Tenant && i > 0 {
			return nil, NewError(ReasonMixedKeys, "all kids of a set must be of one tenant")
		}
		same := func(o KID) bool { return o.Base() == k.Base() }
		if slices.ContainsFunc(kids[:i], same) {
			return nil, NewError(ReasonDuplicateSig, "a key stands in kid_set twice")
		}
		kids[i] = k
	}
	return kids, nil
}

// SignItem is one statement of a batch.
type SignItem struct {
	PayloadB3  string    `json:"payload_b3,omitempty"`
	PayloadB64 string    `json:"payload_b64,omitempty"`
	ContextB64 string    `json:"context_b64,omitempty"`
	Validity   *Validity `json:"validity,omitzero"`
}

// SignBatchRequest asks for signatures over several statements with one key.
// Verb "sign_batch". All records go into one audit commit.
type SignBatchRequest struct {
	KID   string     `json:"kid"`
	Alg   string     `json:"alg,omitempty"`
	OpID  string     `json:"op_id,omitempty"`
	Items []SignItem `json:"items"`
}

// ItemError is why one item of a batch has no result. The fields are those of
// the error envelope that matter for an item.
type ItemError struct {
	Code    Code   `json:"code"`
	Reason  Reason `json:"reason"`
	Message string `json:"message"`
}

// NewItemError gives err the form of an item's error.
func NewItemError(err error) *ItemError {
	e := AsError(err)
	return &ItemError{e.Code, e.Reason, e.Message}
}

// SignResult is one item's signatures, or why there are none.
type SignResult struct {
	Sigs    []Signature `json:"sigs,omitempty"`
	Receipt *Receipt    `json:"receipt,omitzero"`
	Error   *ItemError  `json:"error,omitzero"`
}

// SignBatchResponse has one result an item, in the items' order.
type SignBatchResponse struct {
	KID     string       `json:"kid"`
	Scheme  Scheme       `json:"scheme"`
	Results []SignResult `json:"results"`
}

// VerifyBatchRequest asks about several bundles, all of one tenant. Verb
// "verify_batch".
type VerifyBatchRequest struct {
	Items []VerifyRequest `json:"items"`
}

// VerifyResult is one item's verdict, or why there is none.
type VerifyResult struct {
	OK      bool           `json:"ok"`
	Details *VerifyDetails `json:"details,omitzero"`
	Error   *ItemError     `json:"error,omitzero"`
}

// VerifyBatchResponse has one result an item. OK is true if all of them are.
type VerifyBatchResponse struct {
	OK      bool           `json:"ok"`
	Results []VerifyResult `json:"results"`
}

// WrapRequest asks to seal a data key to a key of kind KEM or AEAD: the one
// given, or a fresh one of Size bytes. Verb "wrap".
type WrapRequest struct {
	KID             string `json:"kid"` // without a version, or the head's
	PlaintextKeyB64 string `json:"plaintext_key_b64,omitempty"`
	Size            int    `json:"size,omitzero"`           // bytes of a fresh key, 16 to MaxDataKey
	OmitPlaintext   bool   `json:"omit_plaintext,omitzero"` // do not return the fresh key
	AADB64          string `json:"aad_b64,omitempty"`       // bound into the envelope; needed again to unwrap
	OpID            string `json:"op_id,omitempty"`
}

// WrapResponse carries the envelope (docs/spec/envelope.md).
type WrapResponse struct {
	KID             string   `json:"kid"` // with the version that seals
	Alg             string   `json:"alg"`
	WrappedB64      string   `json:"wrapped_b64"`
	PlaintextKeyB64 string   `json:"plaintext_key_b64,omitempty"` // a fresh key, unless omitted
	Receipt         *Receipt `json:"receipt,omitzero"`
}

// UnwrapRequest asks for the data key in an envelope. Verb "unwrap". Every
// envelope that cannot be opened gives one and the same error.
type UnwrapRequest struct {
	KID        string `json:"kid"` // the key; the envelope names the version
	WrappedB64 string `json:"wrapped_b64"`
	AADB64     string `json:"aad_b64,omitempty"`
	OpID       string `json:"op_id,omitempty"`
}

// UnwrapResponse carries the data key.
type UnwrapResponse struct {
	KID             string   `json:"kid"` // with the version that opened it
	Alg             string   `json:"alg"`
	PlaintextKeyB64 string   `json:"plaintext_key_b64"`
	Receipt         *Receipt `json:"receipt,omitzero"`
}

// RewrapRequest asks to seal an envelope's data key again, to the head version
// of the same key, without revealing it. Verb "rewrap".
type RewrapRequest struct {
	KID        string `json:"kid"`
	WrappedB64 string `json:"wrapped_b64"`
	AADB64     string `json:"aad_b64,omitempty"`
	OpID       string `json:"op_id,omitempty"`
}

// RewrapResponse carries the new envelope.
type RewrapResponse struct {
	KID        string   `json:"kid"`
	Previous   string   `json:"previous"` // the version that had sealed it
	Alg        string   `json:"alg"`
	WrappedB64 string   `json:"wrapped_b64"`
	Receipt    *Receipt `json:"receipt,omitzero"`
}

// DeriveRequest asks for a key derived from a key of kind KDF. Verb "derive".
// The same key version and context always give the same child; its bytes are
// never returned.
type DeriveRequest struct {
	OpID    string `json:"op_id"`
	KID     string `json:"kid"`     // the parent; without a version, or the head's
	Context string `json:"context"` // label, mandatory
	Alg     string `json:"alg"`     // of the child: one track
}

// DeriveResponse describes the child.
type DeriveResponse struct {
	Key      Key      `json:"key"`
	KID      string   `json:"kid"`
	Parent   string   `json:"parent"` // with its version
	Receipt  *Receipt `json:"receipt,omitzero"`
	Replayed bool     `json:"-"`
}

// Target implements [Request].
func (r *SignBatchRequest) Target() (Target, error) {
	if len(r.Items) == 0 {
		return Target{}, NewError(ReasonMalformed, "items is empty")
	}
	if len(r.Items) > MaxBatch {
		return Target{}, NewError(ReasonTooMany, "items has more than 256 entries")
	}
	if r.Alg != "" && !validAlgText(r.Alg) {
		return Target{}, NewError(ReasonMalformed, "alg is not an algorithm name")
	}
	return keyTarget(r.KID, r.OpID, false)
}

// Check tells whether the item is well formed.
func (i *SignItem) Check() error {
	if err := checkPayload(i.PayloadB3, i.PayloadB64, i.ContextB64); err != nil {
		return err
	}
	return i.Validity.check()
}

// Target implements [Request].
func (r *VerifyBatchRequest) Target() (Target, error) {
	if len(r.Items) == 0 {
		return Target{}, NewError(ReasonMalformed, "items is empty")
	}
	if len(r.Items) > MaxBatch {
		return Target{}, NewError(ReasonTooMany, "items has more than 256 entries")
	}
	first := Target{}
	for i := range r.Items {
		for _, s := range r.Items[i].Sigs {
			k, err := ParseKID(s.KID)
			if err != nil {
				return Target{}, err
			}
			if first.Tenant == "" {
				first = Target{Tenant: k.Tenant}
			}
			if k.Tenant != first.Tenant {
				return Target{}, NewError(ReasonMixedKeys, "all items must be of one tenant")
			}
			first.Keys = append(first.Keys, k)
		}
	}
	if first.Tenant == "" {
		return Target{}, NewError(ReasonMalformed, "no item has a signature")
	}
	return first, nil
}

// Target implements [Request].
func (r *WrapRequest) Target() (Target, error) {
	if (r.PlaintextKeyB64 == "") == (r.Size == 0) {
		return Target{}, NewError(ReasonMalformed, "send either plaintext_key_b64 or size")
	}
	if r.Size != 0 && (r.Size < 16 || r.Size > MaxDataKey) {
		return Target{}, NewError(ReasonMalformed, "size must be 16 to 4096")
	}
	if r.OmitPlaintext && r.Size == 0 {
		return Target{}, NewError(ReasonMalformed, "omit_plaintext goes with size")
	}
	if r.PlaintextKeyB64 != "" {
		b, err := ParseBase64(r.PlaintextKeyB64)
		if err != nil {
			return Target{}, err
		}
		if len(b) > MaxDataKey {
			return Target{}, NewError(ReasonTooLarge, "a data key is at most 4096 bytes")
		}
	}
	if _, err := ParseAAD(r.AADB64); err != nil {
		return Target{}, err
	}
	return keyTarget(r.KID, r.OpID, false)
}

func envelopeTarget(kid, wrapped, aad, opID string) (Target, error) {
	if _, err := ParseBase64(wrapped); err != nil || wrapped == "" {
		return Target{}, NewError(ReasonBase64, "wrapped_b64 is not standard base64")
	}
	if _, err := ParseAAD(aad); err != nil {
		return Target{}, err
	}
	return keyTarget(kid, opID, false)
}

// Target implements [Request].
func (r *UnwrapRequest) Target() (Target, error) {
	return envelopeTarget(r.KID, r.WrappedB64, r.AADB64, r.OpID)
}

// Target implements [Request].
func (r *RewrapRequest) Target() (Target, error) {
	return envelopeTarget(r.KID, r.WrappedB64, r.AADB64, r.OpID)
}

// Target implements [Request].
func (r *DeriveRequest) Target() (Target, error) {
	if !ValidLabel(r.Context) {
		return Target{}, NewError(ReasonLabel, "context must be a label")
	}
	if !validAlgText(r.Alg) {
		return Target{}, NewError(ReasonMalformed, "alg is not an algorithm name")
	}
	return keyTarget(r.KID, r.OpID, true)
}

// ParseAAD decodes a caller's additional data; empty is none.
func ParseAAD(s string) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	b, err := ParseBase64(s)
	if err != nil {
		return nil, err
	}
	if len(b) > MaxAADSize {
		return nil, NewError(ReasonTooLarge, "aad is longer than 1024 bytes")
	}
	return b, nil
}
