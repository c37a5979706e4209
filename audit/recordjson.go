package audit

import (
	"encoding/hex"
	"encoding/json"
	"time"
)

// MarshalJSON writes r for people and their tools: snake_case names, hexadecimal bytes, RFC 3339 times, absent
// fields left out. It is not the leaf: hashes are over AppendBinary.
func (r *Record) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Kind        string `json:"kind"`
		Time        string `json:"ts"`
		Boot        string `json:"boot_id,omitempty"`
		Op          string `json:"op,omitempty"`
		OpID        string `json:"op_id,omitempty"`
		Tenant      string `json:"tenant,omitempty"`
		Key         string `json:"key_id,omitempty"`
		KeyVersion  uint32 `json:"key_version,omitempty"`
		Alg         string `json:"alg,omitempty"`
		Purpose     string `json:"purpose,omitempty"`
		InputHash   string `json:"input_hash,omitempty"`
		Result      string `json:"result,omitempty"`
		Actor       string `json:"actor,omitempty"`
		Attestation string `json:"attestation,omitempty"`
		KeySeq      uint64 `json:"key_seq,omitempty"`
		KeyPrev     uint64 `json:"key_prev,omitempty"`
		Ref         uint64 `json:"ref,omitempty"`
		Count       uint64 `json:"count,omitempty"`
		Detail      string `json:"detail,omitempty"`
		Sealed      string `json:"sealed,omitempty"`
		Extensions  string `json:"extensions,omitempty"`
	}{
		r.Kind.String(), r.Time.UTC().Format(time.RFC3339Nano), hex.EncodeToString(nonZero(r.Boot[:])), r.Op, uuid(r.OpID),
		r.Tenant, r.Key, r.KeyVersion, r.Alg, r.Purpose, hex.EncodeToString(nonZero(r.InputHash[:])), r.Result, r.Actor,
		r.Attestation, r.KeySeq, r.KeyPrev, r.Ref, r.Count, hex.EncodeToString(r.Detail), hex.EncodeToString(r.Sealed), hex.EncodeToString(r.ext),
	})
}

// uuid writes id in the form of RFC 9562 §4, or "" if it is zero.
func uuid(id [16]byte) string {
	if allZero(id[:]) {
		return ""
	}
	h := hex.EncodeToString(id[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}
