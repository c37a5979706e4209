package core

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/audit"
	"github.com/rustyonions/ron-kms/backends"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/secret"
)

// A mutation writes three times: its intent to the log, its effect with the
// intent's index to the store, and its result to the log. So the two bind each
// other. If one of them is put back to an older state, it contradicts the
// other here; and an operation that a crash cut off is finished here.

// mutation is an intent found in the log.
type mutation struct {
	record *audit.Record
	result string // "" while the log has none
}

// Results that only reconciliation writes.
const (
	resultOK      = "ok"
	resultAborted = "Aborted" // the intent had no effect
)

// openAudit verifies the log, compares it with the store, and settles what a
// crash left open. A verdict against either is noted, not returned.
func (k *KMS) openAudit(ctx context.Context, found *contents) error {
	signer, frames, err := systemKeys(ctx, k.vault)
	if errors.Is(err, backends.ErrTampered) {
		k.tampered(err)
		return nil
	}
	if err != nil {
		return err
	}
	k.signer = signer
	k.secrets = append(k.secrets, frames)

	log, mutations, size, err := k.replay(signer, frames)
	var integrity *audit.IntegrityError
	if errors.As(err, &integrity) {
		k.tampered(err)
		return nil
	}
	if err != nil {
		return err
	}
	k.audit = log
	if k.failure.Load() != nil {
		return nil // the store is damaged already: compare nothing
	}
	if size < k.vault.head.LogSize {
		k.tampered(fmt.Errorf("the log has %d records and the store knows of %d: the log is older than its store: %w",
			size, k.vault.head.LogSize, backends.ErrTampered))
		return nil
	}
	pending, err := compare(mutations, found)
	if err != nil {
		k.tampered(err)
		return nil
	}
	if err := k.settle(ctx, pending); err != nil {
		return err
	}
	if lost := k.vault.head.Lost; lost > 0 {
		if _, err := k.audit.Append(ctx, &audit.Record{Kind: audit.KindGap, Time: k.clock(), Count: lost}); err != nil {
			return fmt.Errorf("audit: gap: %w", err)
		}
	}
	return k.noteLog(ctx, 0)
}

// noteLog lets the store remember how long its log is, so that an older log is
// noticed even if nothing but signatures came after it, and how many records
// the log still has to be told it lost. It is done when a store is opened and
// closed; every mutation notes the length too.
func (k *KMS) noteLog(ctx context.Context, lost uint64) error {
	if k.cfg.IsAmnesia() {
		return nil
	}
	size := uint64(0)
	if k.audit != nil {
		size = k.audit.Size()
	}
	if lost > 0 {
		lost += k.vault.head.Lost
	}
	k.vault.head.Lost = lost
	if err := k.vault.commit(ctx, 0, size); err != nil {
		return fmt.Errorf("head record: %w", err)
	}
	return nil
}

// replay opens the log. It returns the mutations found in it, and how many
// records there were before opening added its own.
func (k *KMS) replay(signer *attestationKey, frames *secret.Bytes) (log *audit.Log, mutations map[uint64]*mutation, size uint64, err error) {
	mutations = make(map[uint64]*mutation)
	var last time.Time
	o := auditOptions(k.cfg, signer, frames, k.clock)
	o.OnRecord = func(index uint64, r *audit.Record) error {
		observe(mutations, index, r)
		size = index + 1
		if r.Time.After(last) { // records taken while the clock was behind are older
			last = r.Time
		}
		return nil
	}
	o.OnFailure = func(err error) { k.failed(api.ReasonAuditWrite, err) }
	if k.cfg.IsAmnesia() {
		log, err = audit.NewMemory(o)
	} else {
		log, err = audit.Open(auditDir(k.cfg.Dir), o)
	}
	if err == nil && !last.IsZero() {
		_ = k.time.Floor(last, k.tolerance) // writable asks
	}
	return log, mutations, size, err
}

// observe adds one record of the log, in their order.
func observe(mutations map[uint64]*mutation, index uint64, r *audit.Record) {
	switch r.Kind {
	case audit.KindIntent:
		mutations[index] = &mutation{record: r}
	case audit.KindOperation: // the log's own records use Ref for other things
		if m, ok := mutations[r.Ref-1]; ok && r.Ref > 0 {
			m.result = r.Result
		}
	}
}

// settled is an intent together with what became of it.
type settled struct {
	index  uint64
	record *audit.Record
	result string
}

// compare finds contradictions between log and store, and the fate of each
// intent that has no result yet.
func compare(mutations map[uint64]*mutation, found *contents) ([]settled, error) {
	var pending []settled
	last := make(map[string]uint64) // key to its last intent with an effect
	for index, m := range mutations {
		op := opName(m.record.Tenant, m.record.Op, m.record.OpID)
		intent, done := found.ops[op]
		done = done && intent == index
		switch {
		case m.result == "" && done:
			pending = append(pending, settled{index, m.record, resultOK})
		case m.result == "":
			pending = append(pending, settled{index, m.record, resultAborted})
		case m.result == resultOK && !done:
			return nil, fmt.Errorf("the log has a %s at index %d that the store lacks: the store is older than its log: %w",
				m.record.Op, index, backends.ErrTampered)
		}
		if done {
			last[m.record.Key] = max(last[m.record.Key], index+1)
		}
	}
	for kid, r := range found.keys {
		if last[kid.String()] != r.Intent+1 {
			return nil, fmt.Errorf("a key was last changed at log index %d, and the log says otherwise: %w", r.Intent, backends.ErrTampered)
		}
		delete(last, kid.String())
	}
	if len(last) > 0 {
		return nil, fmt.Errorf("the log has %d keys that the store lacks: the store is older than its log: %w", len(last), backends.ErrTampered)
	}
	for _, intent := range found.ops {
		if m, ok := mutations[intent]; !ok || m.result != "" && m.result != resultOK {
			return nil, fmt.Errorf("the store has an operation at log index %d that the log lacks: the log is older than its store: %w",
				intent, backends.ErrTampered)
		}
	}
	slices.SortFunc(pending, func(a, b settled) int { return cmp.Compare(a.index, b.index) })
	return pending, nil
}

// settle writes the results that a crash left out.
func (k *KMS) settle(ctx context.Context, pending []settled) error {
	for _, p := range pending {
		r := *p.record
		r.Kind, r.Time, r.Result, r.Ref = audit.KindOperation, k.clock(), p.result, p.index+1
		r.Detail = []byte("settled when the store was opened")
		if _, err := k.audit.Append(ctx, &r); err != nil {
			return fmt.Errorf("audit: settle: %w", err)
		}
	}
	return nil
}

// opName is the store's name for a finished mutation.
func opName(tenant, verb string, opID uuid.UUID) string {
	return prefixOp + tenant + "/" + verb + "/" + opID.String()
}
