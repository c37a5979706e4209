package core

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/rustyonions/ron-kms/audit"
	"github.com/rustyonions/ron-kms/audit/tiles"
	"github.com/rustyonions/ron-kms/core/admit"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/capability"
)

// Reads of the audit log are not verbs. A verb is about keys of a tenant, is
// JSON in and out on every face, and leaves a record; these answer with notes,
// tiles and lines, half of them to anybody, and a read that left a record would
// make the log that it follows grow. They are counted like verbs, under names of
// their own, and refusals of callers who are known are recorded.

// OperatorTenant is the tenant of whoever runs the custodian. Its tokens read
// the records of all tenants, and it has no keys.
const OperatorTenant = "ron-kms"

// Bounds of one read of records.
const (
	maxRecordsScanned = 64 * tiles.Width
	maxRecordsBytes   = 4 << 20
)

// auditQuery is one read of the audit log. Its fields are hashed into the record
// of a refusal.
type auditQuery struct {
	Op    string `json:"op"`
	KID   string `json:"kid,omitempty"`
	Name  string `json:"name,omitempty"`
	From  uint64 `json:"from"`
	To    uint64 `json:"to"`
	Limit int    `json:"limit"`

	operator bool    // for the operator's tenant only
	key      api.KID // the key concerned
}

// readCost is what a read of the log costs, in units of package admit.
const readCost = 10

// readAudit runs a read of the audit log: for anybody if s is nil, else for a
// session that may audit. Read gets the tenant whose records it may show, ""
// for all.
func (k *KMS) readAudit(ctx context.Context, s *Session, public bool, q auditQuery, read func(ctx context.Context, l *audit.Log, tenant string) error) error {
	if !k.calls.TryRLock() {
		return k.Rejected(api.NewError(api.ReasonClosed, "the KMS is shutting down"))
	}
	defer k.calls.RUnlock()
	ctx, cancel := context.WithTimeout(ctx, k.opTimeout)
	defer cancel()
	c := &call{verb: &Verb{Name: q.Op, Scopes: []string{capability.ScopeAudit}}, start: k.clock()}
	if !public {
		c.session = s
	}
	tenant := ""
	err := k.openForRead()
	if !public {
		var denied error
		if tenant, denied = k.authorizeAudit(c, q); denied != nil {
			err = denied // first: who may not ask learns nothing
		}
	}
	if err == nil {
		var ticket *admit.Ticket
		who := OperatorTenant // those whom nobody knows share its limits, and cannot use up a tenant's
		if !public {
			who = s.Tenant()
		}
		ticket, err = k.limits.Admit(ctx, admit.Request{Tenant: who, Cost: readCost, Items: 1, Lane: admit.LaneNone, Rates: rates(c.permit)})
		if err != nil {
			err = limited(err)
		}
		defer ticket.Release()
	}
	if err == nil {
		if err = read(ctx, k.audit, tenant); isDamage(err) {
			// Once more: what is read twice the same is no accident.
			if err = read(ctx, k.audit, tenant); isDamage(err) {
				k.damagedLog(err)
			}
		}
	}
	if err != nil {
		return k.refuse(c, auditError(err))
	}
	k.metrics.Observe(c.verb.Name, c.familyName(), "ok", k.clock().Sub(c.start))
	return nil
}

// openForRead returns nil if there is a log to read. One that cannot be written
// any more can be read.
func (k *KMS) openForRead() error {
	if k.closed.Load() {
		return api.NewError(api.ReasonClosed, "the KMS is shutting down")
	}
	if k.audit != nil {
		return nil
	}
	if e := k.failure.Load(); e != nil {
		return e
	}
	return api.NewError(api.ReasonAudit, "there is no audit log")
}

// authorizeAudit clears the session for a read and returns the tenant whose
// records it may see, "" for the operator's.
func (k *KMS) authorizeAudit(c *call, q auditQuery) (tenant string, err error) {
	s := c.session
	if s == nil || s.grant == nil || s.kms != k {
		return "", api.NewError(api.ReasonTokenMissing, "no session")
	}
	if s.closed.Load() {
		return "", api.NewError(api.ReasonHandle, "the session is closed")
	}
	c.target = api.Target{Tenant: s.Tenant(), Key: q.key}
	if c.hash, err = q.hash(); err != nil {
		return "", err
	}
	r := capability.Request{Scopes: c.verb.Scopes, Tenant: s.Tenant(), Verb: c.verb.Name, Now: c.start}
	// A token that is bound to some keys is good for these alone, and so never for
	// the records of a whole tenant.
	if !q.key.IsZero() && s.Tenant() != OperatorTenant {
		r.Tenant, r.KID, r.Purpose = q.key.Tenant, q.key.String(), q.key.Purpose
	}
	if c.permit, err = s.grant.Clear(r); err != nil {
		return "", refusal(err, c.verb)
	}
	if s.Tenant() == OperatorTenant {
		c.permit = capability.Permit{} // a refusal is not of the key's tenant: it stays outside of the key's sequence
		return "", nil
	}
	if q.operator {
		return "", api.NewError(api.ReasonTenant, "the records of all tenants are the operator's to read")
	}
	return s.Tenant(), nil
}

// hash stands for the query in the record of a refusal.
func (q auditQuery) hash() ([32]byte, error) {
	b, err := api.Encode(q)
	if err != nil {
		return [32]byte{}, err
	}
	return sha256.Sum256(b), nil
}

// reserved refuses to make or change keys of the operator's tenant: its tokens
// read everybody's records, so it is nobody's to be.
func reserved(verb *Verb, tenant string) error {
	if verb.Mutates && tenant == OperatorTenant {
		return api.NewError(api.ReasonPolicy, "the tenant "+OperatorTenant+" is the operator's and has no keys")
	}
	return nil
}

func isDamage(err error) bool {
	var d *tiles.DamageError
	return errors.As(err, &d) || errors.Is(err, tiles.ErrRoot)
}

// damagedLog notes that packed records are not what was signed.
func (k *KMS) damagedLog(err error) {
	if k.failure.Load() == nil { // once: anybody can ask again
		k.tampered(&audit.IntegrityError{Verdict: audit.VerdictTampered, Reason: "packed records: " + err.Error()})
	}
}

// auditError turns what a read can fail with into the table's terms.
func auditError(err error) error {
	var known *api.Error
	switch {
	case errors.As(err, &known), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case isDamage(err):
		return api.WrapError(api.ReasonAudit, "the audit log is damaged at this place", err)
	case errors.Is(err, audit.ErrBeyond), errors.Is(err, audit.ErrNotKept), errors.Is(err, audit.ErrNoKey):
		return notInLog(err)
	case errors.Is(err, audit.ErrClosed):
		return api.WrapError(api.ReasonClosed, "the KMS is shutting down", err)
	case errors.Is(err, audit.ErrFull):
		return api.WrapError(api.ReasonAuditFull, "the disk of the audit log is full", err)
	case errors.Is(err, audit.ErrFailed):
		return api.WrapError(api.ReasonAuditWrite, "the audit log cannot be written", err)
	}
	return api.WrapError(api.ReasonStore, "the audit log cannot be read", err)
}

// notInLog is the one answer about records that are not there yet, that are not
// kept any more, and that are another tenant's.
func notInLog(cause error) error {
	e := api.WrapError(api.ReasonNotFound, "the audit log has no such thing to show", cause)
	e.Hint = "the latest checkpoint says how far the log is signed; records are shown to their own tenant"
	return e
}

// AuditCheckpoint is the latest checkpoint, with the lines of the witnesses that
// have seen it; if cosigned, the latest that any witness has.
func (k *KMS) AuditCheckpoint(ctx context.Context, cosigned bool) (note []byte, err error) {
	err = k.readAudit(ctx, nil, true, auditQuery{Op: "audit_checkpoint"}, func(_ context.Context, l *audit.Log, _ string) error {
		note = withWitnesses(l, l.Checkpoint())
		if cosigned {
			if note = l.Cosigned(); len(note) == 0 {
				return notInLog(errors.New("no witness has signed yet"))
			}
		}
		return nil
	})
	return note, err
}

// withWitnesses adds to a checkpoint the lines of the witnesses that have signed
// that very one.
func withWitnesses(l *audit.Log, checkpoint []byte) []byte {
	if c := l.Cosigned(); bytes.HasPrefix(c, checkpoint) {
		return c
	}
	return checkpoint
}

// AuditTile is a tile of hashes by its C2SP name: tile/<L>/<N>[.p/<W>].
func (k *KMS) AuditTile(ctx context.Context, name string) (tile []byte, err error) {
	err = k.readAudit(ctx, nil, true, auditQuery{Op: "audit_tile"}, func(_ context.Context, l *audit.Log, _ string) error {
		if strings.HasPrefix(name, "tile/entries/") {
			return notInLog(errors.New("not a tile of hashes"))
		}
		tile, err = l.Tile(name)
		return err
	})
	return tile, err
}

// AuditEntries is a bundle of records by its C2SP name:
// tile/entries/<N>[.p/<W>]. It has records of all tenants.
func (k *KMS) AuditEntries(ctx context.Context, s *Session, name string) (bundle []byte, err error) {
	q := auditQuery{Op: "audit_entries", Name: name, operator: true}
	err = k.readAudit(ctx, s, false, q, func(_ context.Context, l *audit.Log, _ string) error {
		if !strings.HasPrefix(name, "tile/entries/") {
			return notInLog(errors.New("not a bundle"))
		}
		bundle, err = l.Tile(name)
		return err
	})
	return bundle, err
}

// AuditConsistency proves that the log of to records begins with that of from; 0
// is the size of the latest checkpoint.
func (k *KMS) AuditConsistency(ctx context.Context, from, to uint64) (resp *api.AuditConsistency, err error) {
	err = k.readAudit(ctx, nil, true, auditQuery{Op: "audit_consistency"}, func(_ context.Context, l *audit.Log, _ string) error {
		p, note, err := l.ProveConsistencyAt(from, to)
		if err != nil {
			return err
		}
		resp = &api.AuditConsistency{From: from, To: to, Hashes: base64s(p), Checkpoint: string(note)}
		if to == 0 {
			resp.To, err = signedSize(note)
		}
		return err
	})
	return resp, err
}

// AuditProof proves that the record at index is in the log of size records; 0 is
// the latest checkpoint, and if cosigned the latest that a witness has signed,
// which the proof then bears.
func (k *KMS) AuditProof(ctx context.Context, s *Session, index, size uint64, cosigned bool) (resp *api.AuditProof, err error) {
	q := auditQuery{Op: "audit_proof", From: index, To: size}
	err = k.readAudit(ctx, s, false, q, func(_ context.Context, l *audit.Log, tenant string) error {
		var note []byte
		if cosigned {
			if note = l.Cosigned(); len(note) == 0 {
				return notInLog(errors.New("no witness has signed yet"))
			}
			if size, err = signedSize(note); err != nil {
				return err
			}
		}
		p, err := l.ProveAt(index, size)
		if err != nil {
			return err
		}
		if note != nil {
			p.Checkpoint = note
		}
		resp, err = proofOf(l, p, size, tenant)
		return err
	})
	return resp, err
}

// proofOf shows a proof to a tenant: records of others are not there. Size is 0
// for that of the checkpoint.
func proofOf(l *audit.Log, p *audit.Proof, size uint64, tenant string) (*api.AuditProof, error) {
	r, err := audit.ParseRecord(p.Record)
	if err != nil {
		return nil, err
	}
	if tenant != "" && r.Tenant != tenant {
		return nil, notInLog(errors.New("a record of another tenant"))
	}
	if size == 0 {
		if size, err = signedSize(p.Checkpoint); err != nil {
			return nil, err
		}
	}
	decoded, err := r.MarshalJSON()
	if err != nil {
		return nil, err
	}
	leaf := p.LeafHash()
	return &api.AuditProof{
		Index: p.Index, Size: size, Record: jsontext.Value(decoded), RecordB64: api.FormatBase64(p.Record),
		LeafHash: api.FormatBase64(leaf[:]), Hashes: base64s(p.Hashes), Checkpoint: string(withWitnesses(l, p.Checkpoint)),
	}, nil
}

// AuditKey proves how many records a key had. The version of kid is not looked
// at.
func (k *KMS) AuditKey(ctx context.Context, s *Session, kid api.KID) (resp *api.AuditKeyProof, err error) {
	kid = kid.Base()
	q := auditQuery{Op: "audit_key", KID: kid.String(), key: kid}
	err = k.readAudit(ctx, s, false, q, func(ctx context.Context, l *audit.Log, _ string) error {
		p, err := l.ProveKey(ctx, kid.String())
		if err != nil {
			return err
		}
		named, err := proofOf(l, p.Map, 0, "")
		if err != nil {
			return err
		}
		resp = &api.AuditKeyProof{
			KID: p.Name, Seq: p.State.Seq, LastIndex: p.State.Last - 1, Effect: p.State.Effect, Slot: p.Slot, Keys: p.Keys,
			MapSize: p.Size, MapRoot: api.FormatBase64(p.Root[:]), Hashes: base64s(p.Path), Map: *named,
		}
		return nil
	})
	return resp, err
}

// AuditRecords is up to limit of the caller's records from index from on, and
// where to go on: at the end of the log if that is not more than from. It reads a
// bounded piece of the log, so that there may be none and yet more to come.
func (k *KMS) AuditRecords(ctx context.Context, s *Session, from uint64, limit int) (records []api.AuditRecord, next uint64, err error) {
	q := auditQuery{Op: "audit_records", From: from, Limit: limit}
	err = k.readAudit(ctx, s, false, q, func(ctx context.Context, l *audit.Log, tenant string) error {
		records, next = nil, from
		size := 0
		err := l.Read(ctx, from, func(index uint64, r *audit.Record) error {
			if len(records) == limit || size > maxRecordsBytes || index-from == maxRecordsScanned {
				return errEnough
			}
			next = index + 1
			if tenant != "" && r.Tenant != tenant {
				return nil
			}
			b, err := r.MarshalJSON()
			if err != nil {
				return err
			}
			size += len(b)
			records = append(records, api.AuditRecord{Index: index, Record: b})
			return nil
		})
		if errors.Is(err, errEnough) {
			return nil
		}
		return err
	})
	return records, next, err
}

var errEnough = errors.New("enough records")

// AuditKeys are the public keys that sign checkpoints now, as C2SP vkeys. They
// are known even when the log is refused.
func (k *KMS) AuditKeys() []string { return strings.Fields(k.VerifierKey()) }

// signedSize is the size that a checkpoint of ours is of.
func signedSize(note []byte) (size uint64, err error) {
	lines := strings.SplitN(string(note), "\n", 3)
	if len(lines) < 3 {
		return 0, errors.New("audit: malformed checkpoint")
	}
	return strconv.ParseUint(lines[1], 10, 64)
}

func base64s[H ~[32]byte](hashes []H) []string {
	out := make([]string, len(hashes))
	for i := range hashes {
		h := [32]byte(hashes[i])
		out[i] = api.FormatBase64(h[:])
	}
	return out
}
