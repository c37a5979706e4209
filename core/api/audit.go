package api

import "github.com/go-json-experiment/json/jsontext"

// Limits of the reads of the audit log.
const (
	MaxAuditRecords     = 1000 // records in one answer
	DefaultAuditRecords = 100
)

// AuditProof shows that a record is in the tree of the audit log (RFC 6962
// §2.1.1). Hashes are in base64, as in checkpoints.
type AuditProof struct {
	Index      uint64         `json:"index"`
	Size       uint64         `json:"size"`       // records of the tree that the proof is for
	Record     jsontext.Value `json:"record"`     // decoded, for people; hashes are over record_b64
	RecordB64  string         `json:"record_b64"` // the leaf (audit-record.md)
	LeafHash   string         `json:"leaf_hash"`
	Hashes     []string       `json:"hashes"`
	Checkpoint string         `json:"checkpoint"` // signed note; of another size if one was asked for
}

// AuditConsistency shows that the log of To records begins with that of From
// records (RFC 6962 §2.1.2).
type AuditConsistency struct {
	From       uint64   `json:"from"`
	To         uint64   `json:"to"`
	Hashes     []string `json:"hashes"`
	Checkpoint string   `json:"checkpoint"` // signed note; of another size if one was asked for
}

// AuditKeyProof shows that a key had exactly Seq records when the log had
// MapSize of them (audit-log.md): none was hidden.
type AuditKeyProof struct {
	KID       string     `json:"kid"` // without the version
	Seq       uint64     `json:"seq"`
	LastIndex uint64     `json:"last_index"` // of the key's latest record
	Effect    uint64     `json:"effect"`     // log index + 1 of the key's latest change, 0 if there was none
	Slot      uint32     `json:"slot"`       // of the key in the map
	Keys      uint64     `json:"keys"`       // slots of the map
	MapSize   uint64     `json:"map_size"`   // records that the map is of
	MapRoot   string     `json:"map_root"`
	Hashes    []string   `json:"hashes"` // inclusion proof of the slot under map_root
	Map       AuditProof `json:"map"`    // of the record that names map_root, keys and map_size
}

// AuditRecord is one record of the audit log with its place.
type AuditRecord struct {
	Index  uint64         `json:"index"`
	Record jsontext.Value `json:"record"`
}
