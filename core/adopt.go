package core

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/audit"
	"github.com/rustyonions/ron-kms/core/api"
)

// What only a recovery writes into a log.
const (
	opAccepted = "accepted" // the record of the recovery itself
	opAdopt    = "adopt"    // the new log knows of a key from here on
	opLost     = "lost"     // the given-up log knew of a key that the store does not have

	opErase = "erase" // see EraseTenant

	resultEarlier   = "earlier" // it was done as the given-up log says
	resultLost      = "lost"
	resultDestroyed = "destroyed" // and it was destroyed before
)

// past is what a log says of a key.
type past struct {
	head      uint32 // the latest version
	effective bool   // something took effect
	destroyed bool   // wholly
	versions  []uint32
}

// destroy notes that version n was destroyed, or all if n is 0.
func (p *past) destroy(n uint32) {
	if n == 0 {
		p.destroyed = true
	} else if !slices.Contains(p.versions, n) {
		p.versions = append(p.versions, n)
	}
}

// adopted is the detail of an opAdopt record.
type adopted struct {
	State     api.State `json:"state"`
	Head      uint32    `json:"head"`
	Destroyed []uint32  `json:"destroyed,omitempty"` // versions
	Intent    uint64    `json:"intent"`              // as of which the store had the key, in the log that was given up
	LogHead   uint32    `json:"log_head,omitzero"`   // that log knew later versions, up to this one
	Erased    bool      `json:"erased,omitzero"`     // the recovery erased private parts, because that log says so
	Unproven  bool      `json:"unproven,omitzero"`   // that log does not have the intent
}

// memory is what the records of a log say that must outlive it.
type memory struct {
	keys   map[string]*past         // by kid without version
	erased map[uuid.UUID]string     // operations that destroyed the audit key of a tenant
	asked  map[uint64]*audit.Record // intents to destroy that have no answer, by index
}

func newMemory() *memory {
	return &memory{keys: make(map[string]*past), erased: make(map[uuid.UUID]string), asked: make(map[uint64]*audit.Record)}
}

func (m *memory) key(name string) *past {
	p := m.keys[name]
	if p == nil {
		p = new(past)
		m.keys[name] = p
	}
	return p
}

// end takes the intents without an answer for done: nobody was told that they
// took place, and nobody knows that they did not.
func (m *memory) end() {
	for _, r := range m.asked {
		if r.Op == opErase {
			m.erased[r.OpID] = r.Tenant
		} else {
			m.key(r.Key).destroy(r.KeyVersion)
		}
	}
}

// take learns from a record.
func (m *memory) take(index uint64, r *audit.Record) error {
	switch {
	case r.Kind == audit.KindIntent && (r.Op == opErase || r.Op == "destroy" && r.Key != ""):
		m.asked[index] = r
	case r.Kind == audit.KindOperation && r.Op == opErase:
		delete(m.asked, r.Ref-1) // that of none is no index
		if r.Result == resultOK || r.Result == resultEarlier {
			m.erased[r.OpID] = r.Tenant
		}
	case r.Key == "":
	case r.Kind == audit.KindOperation && r.Op == opLost && r.Result == resultDestroyed:
		m.key(r.Key).destroy(0)
	case r.Kind == audit.KindOperation && r.Ref > 0:
		delete(m.asked, r.Ref-1)
		if r.Result != resultOK {
			return nil
		}
		p := m.key(r.Key)
		p.effective = true
		switch r.Op {
		case "destroy":
			p.destroy(r.KeyVersion)
		case opAdopt:
			var a adopted
			if err := json.Unmarshal(r.Detail, &a); err != nil {
				return fmt.Errorf("record %d: %w", index, err)
			}
			p.head, p.versions = a.Head, append(p.versions, a.Destroyed...)
			p.destroyed = p.destroyed || a.State == api.StateDestroyed
		default:
			p.head = max(p.head, r.KeyVersion)
		}
	}
	return nil
}

// adoption is what the new log and the store get to know of the keys.
type adoption struct {
	opID   uuid.UUID
	keys   []adoptee       // in the order of kids
	told   []*audit.Record // what the new log is to know besides
	store  []named         // what the store is to know besides
	intent uint64          // index of the last intent in the new log
	size   uint64          // of the new log
}

type adoptee struct {
	kid    api.KID
	record keyRecord
	detail adopted
}

// adopt works out what becomes of each key that the store has or the log knows,
// and reports it.
func adopt(found *contents, m *memory, log told, report *RecoverReport) *adoption {
	plan := new(adoption)
	for kid, r := range found.keys {
		name := kid.String()
		_, _, effect := log.Key(name)
		a := adoptee{kid, *r, adopted{Intent: r.Intent, Unproven: effect < r.Intent+1}}
		if p := m.keys[name]; p != nil {
			a.record, a.detail.Erased = erased(kid, r, p)
			if p.head > r.Head {
				a.detail.LogHead = p.head
				report.Rotated = append(report.Rotated, name)
			}
		}
		if a.detail.Erased {
			report.Destroyed = append(report.Destroyed, name)
		}
		if a.detail.Unproven {
			report.Unproven = append(report.Unproven, name)
		}
		a.detail.State, a.detail.Head = a.record.State, a.record.Head
		for _, v := range a.record.Versions {
			if v.State == api.StateDestroyed && a.record.State != api.StateDestroyed {
				a.detail.Destroyed = append(a.detail.Destroyed, v.N)
			}
		}
		plan.keys = append(plan.keys, a)
	}
	slices.SortFunc(plan.keys, func(a, b adoptee) int { return strings.Compare(a.kid.String(), b.kid.String()) })
	report.Adopted = len(plan.keys)
	plan.lose(found, m, report)
	for _, list := range [][]string{report.Destroyed, report.Rotated, report.Unproven} {
		slices.Sort(list)
	}
	return plan
}

// lose works out the keys that the log knows and the store does not have.
func (plan *adoption) lose(found *contents, m *memory, report *RecoverReport) {
	for _, name := range slices.Sorted(maps.Keys(m.keys)) {
		p := m.keys[name]
		kid, err := api.ParseKID(name)
		if err != nil || found.keys[kid] != nil || !p.effective && !p.destroyed {
			continue
		}
		report.Lost = append(report.Lost, name)
		r := &audit.Record{
			Kind: audit.KindOperation, Op: opLost, Tenant: kid.Tenant, Key: name, KeyVersion: p.head, Alg: kid.Alg, Purpose: kid.Purpose,
			Result: resultLost,
		}
		if p.destroyed {
			r.Result = resultDestroyed
			if id, err := uuid.Parse(kid.ID); err == nil && id.Version() == childVersion {
				plan.store = append(plan.store, named{prefixGone + name, goneRecord{}})
			}
		}
		plan.told = append(plan.told, r)
	}
}

// erase works out the audit keys of tenants that the log says were destroyed
// and the store still has. The store is to remember these operations, so that
// another recovery does not destroy a later key for them.
func (plan *adoption) erase(ctx context.Context, v *vault, found *contents, m *memory, generation uint32, report *RecoverReport) error {
	missing := make(map[string]uint32)
	for _, id := range slices.SortedFunc(maps.Keys(m.erased), func(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) }) {
		tenant := m.erased[id]
		plan.told = append(plan.told, &audit.Record{Kind: audit.KindOperation, Op: opErase, OpID: id, Tenant: tenant, Result: resultEarlier})
		if _, known := found.ops[opName(tenant, opErase, id)]; !known {
			missing[tenant]++
			plan.store = append(plan.store, named{opName(tenant, opErase, id), opRecord{Log: generation}})
		}
	}
	for _, tenant := range slices.Sorted(maps.Keys(missing)) {
		var r systemRecord
		if _, err := v.get(ctx, prefixTenantAudit+tenant, &r); err != nil {
			return err
		}
		if len(r.Sealed) > 0 {
			report.Erased = append(report.Erased, tenant)
		}
		// Each erasure ended a generation: none of them may have another key.
		plan.store = append(plan.store, named{prefixTenantAudit + tenant, systemRecord{Version: r.Version + missing[tenant]}})
	}
	return nil
}

// erased is the record of a key without what the log says was destroyed, and
// whether that was still there.
func erased(kid api.KID, r *keyRecord, p *past) (keyRecord, bool) {
	k := &key{kid: kid, record: r}
	var any bool
	if p.destroyed && r.State != api.StateDestroyed {
		k.record, _ = k.withoutPrivate(0, api.StateDestroyed)
		k.record.State, any = api.StateDestroyed, true
	}
	for _, n := range p.versions {
		for _, v := range k.record.Versions {
			if v.N == n && v.State != api.StateDestroyed {
				k.record, _ = k.withoutPrivate(n, api.StateDestroyed)
				any = true
			}
		}
	}
	return *k.record, any
}

// write appends all that the new log is to know.
func (plan *adoption) write(ctx context.Context, l *audit.Log) error {
	for rest := plan.told; len(rest) > 0; {
		for _, r := range rest {
			if r.Op == opLost {
				r.OpID = plan.opID
			}
		}
		n, err := fits(l, rest)
		if err != nil {
			return err
		}
		if _, err := l.Append(ctx, rest[:n]...); err != nil {
			return err
		}
		rest = rest[n:]
	}
	operations := make([]*audit.Record, len(plan.keys))
	for i := range plan.keys {
		a := &plan.keys[i]
		detail, err := json.Marshal(a.detail, json.Deterministic(true))
		if err != nil {
			return err
		}
		operations[i] = &audit.Record{
			Kind: audit.KindOperation, Op: opAdopt, OpID: plan.opID, Tenant: a.kid.Tenant, Key: a.kid.String(), KeyVersion: a.record.Head,
			Alg: a.kid.Alg, Purpose: a.kid.Purpose, Result: resultOK, Detail: detail,
		}
	}
	for done := 0; done < len(operations); {
		n, err := fits(l, operations[done:])
		if err != nil {
			return err
		}
		if err := plan.pair(ctx, l, plan.keys[done:done+n], operations[done:done+n]); err != nil {
			return err
		}
		done += n
	}
	return nil
}

// pair appends the intents of some keys and then the operations.
func (plan *adoption) pair(ctx context.Context, l *audit.Log, keys []adoptee, operations []*audit.Record) error {
	intents := make([]*audit.Record, len(operations))
	for i, o := range operations {
		r := *o
		r.Kind, r.Result, r.Detail = audit.KindIntent, "", nil
		intents[i] = &r
	}
	at, err := l.Append(ctx, intents...)
	if err != nil {
		return err
	}
	for i := range operations {
		keys[i].record.Intent, operations[i].Ref = at[i].Index, at[i].Index+1
		plan.intent = at[i].Index
	}
	_, err = l.Append(ctx, operations...)
	return err
}

// fits is how many of the records fit one commit; at least one does.
func fits(l *audit.Log, records []*audit.Record) (int, error) {
	var b []byte
	for i, r := range records {
		var err error
		sized := *r
		sized.Time = l.Newest() // for its length
		if b, err = sized.AppendBinary(b); err != nil {
			return 0, err
		}
		// Places, references and lengths come to less.
		if len(b)+64*(i+1) > l.MaxCommit() && i > 0 {
			return i, nil
		}
	}
	return len(records), nil
}

// records are what the store keeps of it.
func (plan *adoption) records() []named {
	rs := slices.Clone(plan.store)
	for i := range plan.keys {
		rs = append(rs, named{prefixKey + plan.keys[i].kid.String(), &plan.keys[i].record})
	}
	return rs
}
