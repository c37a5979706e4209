package core

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/rustyonions/ron-kms/backends"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/secret"
)

// Names of records in the store (docs/spec/store.md).
const (
	prefixKey    = "key/"    // + kid without version: a keyRecord
	prefixOp     = "op/"     // + tenant/verb/op_id: an opRecord
	prefixGone   = "gone/"   // + kid without version: a goneRecord
	prefixSystem = "system/" // + name: a systemRecord
	nameHead     = "head"    // the headRecord
)

// keyRecord is everything about one key that must survive. It holds no plain
// secret: Sealed opens only inside its custodian.
type keyRecord struct {
	KID      string          `json:"kid"`
	Scheme   api.Scheme      `json:"scheme"`
	Policy   api.KeyPolicy   `json:"policy"`
	State    api.State       `json:"state"`
	Head     uint32          `json:"head"`
	Parent   string          `json:"parent,omitempty"` // of a derived key
	Intent   uint64          `json:"intent"`           // audit index of the intent that this state answers
	Versions []versionRecord `json:"versions"`
}

type versionRecord struct {
	N         uint32        `json:"n"`
	State     api.State     `json:"state"`
	CreatedAt time.Time     `json:"created_at"`
	Tracks    []trackRecord `json:"tracks"`
}

type trackRecord struct {
	Alg    string `json:"alg"`
	Class  string `json:"class"`
	Public []byte `json:"public"`
	Sealed []byte `json:"sealed,omitempty"` // gone once the version no longer signs
}

// opRecord remembers what a mutation answered, so that a retry with the same
// op_id gets the same answer and has no second effect.
type opRecord struct {
	RequestHash []byte `json:"request_hash"`
	Intent      uint64 `json:"intent"`
	Log         uint32 `json:"log,omitzero"` // the generation of the log that has the intent
	Response    []byte `json:"response"`     // JSON
}

// goneRecord keeps a key from coming back that was destroyed and is not in the
// store any more: a derived key could be derived once more (see Recover).
type goneRecord struct{}

// systemRecord holds a secret of the store itself, sealed; nothing if it was
// erased.
type systemRecord struct {
	Public  []byte `json:"public,omitempty"`
	Sealed  []byte `json:"sealed"`
	Version uint32 `json:"version,omitzero"` // of an attestation key, from 1, 0 is 1; generation of a tenant's audit key
}

// headRecord changes with every commit. It ties the store's revision to the
// audit log.
type headRecord struct {
	StoreID  string `json:"store_id"`
	Revision uint64 `json:"revision"`
	Intent   uint64 `json:"intent"`   // of the last mutation, +1; 0 if none yet
	LogSize  uint64 `json:"log_size"` // records that the audit log had at least
	// LogGeneration counts the audit logs that were given up. Anchors are the
	// anchors that the log has been written to: none of them may be empty.
	LogGeneration uint32   `json:"log_generation,omitzero"`
	Anchors       []string `json:"anchors,omitempty"`
	Ops           uint64   `json:"ops,omitzero"`  // op records that there are
	Lost          uint64   `json:"lost,omitzero"` // records that the log could not take, and does not tell yet
}

// Labels of the keys that the store derives from its root key.
const (
	labelRecords = "ron-kms/v1/records"
	labelSystem  = "ron-kms/v1/system"
	labelTokens  = "ron-kms/v1/tokens"
)

const recordVersion = 1

// A vault reads and writes authentic records: each is JSON behind an
// HMAC-SHA256 that binds it to its name and to the revision that wrote it.
//
//	0x01 | revision u64 BE | tag[32] | JSON
//	tag = HMAC(key, "ron-kms/record/v1\x00" | LP(name) | revision | JSON)
type vault struct {
	backends.Backend
	mac      *secret.Bytes
	revision uint64 // owned by whoever holds KMS.lane
	head     headRecord
}

func newVault(b backends.Backend) (*vault, error) {
	mac, err := b.StoreKey(labelRecords, 32)
	if err != nil {
		return nil, err
	}
	return &vault{Backend: b, mac: mac}, nil
}

func (v *vault) tag(name string, revision uint64, body []byte) ([]byte, error) {
	head := append([]byte(nil), "ron-kms/record/v1\x00"...)
	head = binary.BigEndian.AppendUint16(head, uint16(len(name)))
	head = append(head, name...)
	head = binary.BigEndian.AppendUint64(head, revision)
	var tag []byte
	err := v.mac.Use(func(key []byte) {
		h := hmac.New(sha256.New, key)
		h.Write(head)
		h.Write(body)
		tag = h.Sum(nil)
	})
	return tag, err
}

func (v *vault) encode(name string, revision uint64, record any) ([]byte, error) {
	body, err := json.Marshal(record, json.Deterministic(true))
	if err != nil {
		return nil, err
	}
	tag, err := v.tag(name, revision, body)
	if err != nil {
		return nil, err
	}
	b := binary.BigEndian.AppendUint64([]byte{recordVersion}, revision)
	return append(append(b, tag...), body...), nil
}

func (v *vault) decode(name string, value []byte, record any) error {
	const overhead = 1 + 8 + sha256.Size
	if len(value) < overhead || value[0] != recordVersion {
		return fmt.Errorf("record %s: %w", kindOf(name), backends.ErrTampered)
	}
	revision := binary.BigEndian.Uint64(value[1:9])
	tag, err := v.tag(name, revision, value[overhead:])
	if err != nil {
		return err
	}
	if !hmac.Equal(tag, value[9:overhead]) {
		return fmt.Errorf("record %s: %w", kindOf(name), backends.ErrTampered)
	}
	if err := json.Unmarshal(value[overhead:], record, json.RejectUnknownMembers(true)); err != nil {
		// Authentic, and yet not ours: another version wrote it.
		return fmt.Errorf("record %s: %w: %w", kindOf(name), errNewer, err)
	}
	return nil
}

// errNewer is a store with records that this version cannot read.
var errNewer = errors.New("the store was written by a newer version of ron-kms")

// kindOf keeps names, which hold tenants, out of error texts.
func kindOf(name string) string {
	kind, _, _ := strings.Cut(name, "/")
	return kind
}

// named is a record on its way into a commit; nil removes it.
type named struct {
	name   string
	record any
}

// commit writes records and the new head in one durable step; intent and
// logSize are what the head says of the audit log, 0 for nothing new. The caller
// holds the lane. After an error other than ErrConflict and ErrClosed the
// disk may hold either state; only reopening tells.
func (v *vault) commit(ctx context.Context, intent, logSize uint64, records ...named) error {
	next := v.revision + 1
	head := v.head
	head.Revision = next
	if intent > 0 {
		head.Intent = intent
	}
	head.LogSize = max(head.LogSize, logSize, intent)
	puts := make([]backends.Put, 0, len(records)+1)
	for _, r := range records {
		if strings.HasPrefix(r.name, prefixOp) { // never written twice
			head.Ops++
		}
	}
	for _, r := range append(records, named{nameHead, head}) {
		if r.record == nil {
			puts = append(puts, backends.Put{Key: r.name})
			continue
		}
		value, err := v.encode(r.name, next, r.record)
		if err != nil {
			return err
		}
		puts = append(puts, backends.Put{Key: r.name, Value: value})
	}
	got, err := v.Commit(ctx, v.revision, puts...)
	if err != nil {
		return err
	}
	v.revision, v.head = got, head
	return nil
}

// get reads one record; found is false if there is none.
func (v *vault) get(ctx context.Context, name string, record any) (found bool, err error) {
	value, err := v.Get(ctx, name)
	if err != nil || value == nil {
		return false, err
	}
	return true, v.decode(name, value, record)
}

// contents is what load found.
type contents struct {
	keys    map[api.KID]*keyRecord
	ops     map[string]uint64 // op record name to its intent; 0 if that is in an earlier log
	gone    map[string]bool   // ids of keys that must not come back
	damaged []error           // records that are not authentic
}

// load reads every record. Records that are not authentic are left out and
// reported, so that verify can go on with the rest.
func (v *vault) load(ctx context.Context) (*contents, error) {
	c := &contents{keys: make(map[api.KID]*keyRecord), ops: make(map[string]uint64), gone: make(map[string]bool)}
	headSeen := false
	revision, err := v.Load(ctx, func(name string, value []byte) error {
		if err := c.add(v, name, value, &headSeen); err != nil {
			if !errors.Is(err, backends.ErrTampered) {
				return err
			}
			c.damaged = append(c.damaged, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if !headSeen {
		c.damaged = append(c.damaged, fmt.Errorf("head record is missing: %w", backends.ErrTampered))
	} else if v.head.Revision != revision {
		c.damaged = append(c.damaged, fmt.Errorf("head record is of another revision: %w", backends.ErrTampered))
	}
	if headSeen && len(c.damaged) == 0 && uint64(len(c.ops)) != v.head.Ops {
		c.damaged = append(c.damaged, fmt.Errorf("%d operations are on record, and there were %d: %w", len(c.ops), v.head.Ops, backends.ErrTampered))
	}
	v.revision = revision
	return c, nil
}

func (c *contents) add(v *vault, name string, value []byte, headSeen *bool) error {
	switch {
	case name == nameHead:
		*headSeen = true
		return v.decode(name, value, &v.head)
	case strings.HasPrefix(name, prefixKey):
		var r keyRecord
		if err := v.decode(name, value, &r); err != nil {
			return err
		}
		kid, err := api.ParseKID(r.KID)
		if err != nil || prefixKey+r.KID != name {
			return fmt.Errorf("record key: %w", backends.ErrTampered)
		}
		c.keys[kid] = &r
	case strings.HasPrefix(name, prefixOp):
		var r opRecord
		if err := v.decode(name, value, &r); err != nil {
			return err
		}
		// The head record comes before: names are in order.
		if c.ops[name] = r.Intent; r.Log != v.head.LogGeneration {
			c.ops[name] = 0
		}
	case strings.HasPrefix(name, prefixGone):
		var r goneRecord
		if err := v.decode(name, value, &r); err != nil {
			return err
		}
		kid, err := api.ParseKID(strings.TrimPrefix(name, prefixGone))
		if err != nil {
			return fmt.Errorf("record gone: %w", backends.ErrTampered)
		}
		c.gone[kid.ID] = true
	case strings.HasPrefix(name, prefixSystem):
		var r systemRecord
		return v.decode(name, value, &r)
	default:
		return fmt.Errorf("record of an unknown kind: %w", backends.ErrTampered)
	}
	return nil
}
