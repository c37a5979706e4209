package core

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"

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

// Results that only reconciliation writes.
const (
	resultOK      = audit.ResultOK
	resultAborted = "Aborted" // the intent had no effect
)

// openAudit opens the log, compares it with the store, and settles what a
// crash left open. A verdict against either is noted, not returned.
func (k *KMS) openAudit(ctx context.Context, found *contents) error {
	if err := k.finish(ctx); errors.Is(err, backends.ErrTampered) {
		k.tampered(err)
		return nil
	} else if err != nil {
		return err
	}
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

	log, err := k.openLog(ctx, signer, frames)
	var integrity *audit.IntegrityError
	if errors.As(err, &integrity) {
		k.tampered(err)
		return nil
	}
	if err != nil {
		return err
	}
	k.audit = log
	k.metrics.WatchAudit(k.auditState)
	if newest := log.Newest(); !newest.IsZero() {
		_ = k.time.Floor(newest, k.tolerance) // writable asks
	}
	if k.failure.Load() != nil {
		return nil // the store is damaged already: compare nothing
	}
	if err := shorter(log.Found(), k.vault.head.LogSize, k.cfg.AuditMinIndex); err != nil {
		k.tampered(err)
		return nil
	}
	pending, err := k.compare(found)
	// Not every change is of a key: the store knows the last of all.
	if last := log.LastEffect(); err == nil && last > k.vault.head.Intent {
		err = fmt.Errorf("the log has a change at index %d, and the last that the store knows of is %d: the store is older than its log: %w",
			last-1, k.vault.head.Intent, backends.ErrTampered)
	}
	if err != nil {
		k.tampered(err)
		return nil
	}
	if err := k.settle(ctx, pending); err != nil {
		return err
	}
	lost := k.vault.head.Lost
	if lost > 0 {
		_, err := k.audit.Append(ctx, &audit.Record{Kind: audit.KindGap, Time: k.clock(), Count: lost})
		if err != nil && !errors.Is(err, audit.ErrFull) {
			return fmt.Errorf("audit: gap: %w", err)
		}
		if err == nil {
			lost = 0
		}
	}
	for name := range k.audit.AnchorLag() {
		if !slices.Contains(k.vault.head.Anchors, name) {
			k.vault.head.Anchors = append(k.vault.head.Anchors, name)
		}
	}
	err = k.noteLog(ctx, lost)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		// What the store knows of the log's length is a lower bound: an older one does no harm, and verify needs none.
		k.log.Warn("the disk is full: the store could not note how long its log is", "cause", err.Error())
		return nil
	}
	return err
}

// finish ends what a crash cut off: a recovery, or a change of the keys that
// sign checkpoints.
func (k *KMS) finish(ctx context.Context) error {
	if k.cfg.IsAmnesia() || k.failure.Load() != nil {
		return nil
	}
	aside, err := finishRecovery(k.cfg.Dir, k.vault.head, k.clock())
	if err != nil {
		return err
	}
	if aside != "" {
		k.log.Warn("a recovery was finished; the refused log was kept", "dir", aside)
	}
	return settleHandover(ctx, k.vault, auditDir(k.cfg.Dir))
}

// shorter says why a log of size records is too short.
func shorter(size, known, least uint64) error {
	if size >= known && size >= least {
		return nil
	}
	return fmt.Errorf("the log has %d records; the store knows of %d, and KMS_AUDIT_MIN_INDEX is %d: the log is older than they are: %w",
		size, known, least, backends.ErrTampered)
}

// noteLog lets the store remember how long its log is, so that an older log is
// noticed even if nothing but signatures came after it, and how many records in all
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
	k.vault.head.Lost = lost
	if err := k.vault.commit(ctx, 0, size); err != nil {
		return fmt.Errorf("head record: %w", err)
	}
	return nil
}

// openAuditDir is audit.Open; tests make its disk fail.
var openAuditDir = audit.Open

// openLog opens the log with its anchors and witnesses.
func (k *KMS) openLog(ctx context.Context, a *attestation, frames *secret.Bytes) (log *audit.Log, err error) {
	o := auditOptions(k.cfg, a, frames, k.clock)
	o.OnFailure = func(err error) {
		var integrity *audit.IntegrityError
		if errors.As(err, &integrity) {
			k.tampered(err)
			return
		}
		k.failed(api.ReasonAuditWrite, err)
	}
	if o.Witnesses, err = witnessesOf(k.cfg); err != nil {
		return nil, err
	}
	if k.cfg.IsAmnesia() {
		return audit.NewMemory(o)
	}
	if o.Anchors, err = anchorsOf(ctx, k.cfg, k.vault, o); err != nil {
		return nil, err
	}
	return openAuditDir(ctx, auditDir(k.cfg.Dir), o)
}

// settled is an intent together with what became of it.
type settled struct {
	index  uint64
	record *audit.Record
	result string
}

// told is what a log says of keys and intents.
type told interface {
	Size() uint64
	Pending() map[uint64]*audit.Record
	Key(name string) (seq, last, effect uint64)
	Effects() int
}

func (k *KMS) compare(found *contents) ([]settled, error) { return compare(k.audit, found) }

// compare finds contradictions between log and store, and the fate of each
// intent that has no result yet. The log knows of each key the last intent that
// took effect, and so does the store.
func compare(log told, found *contents) ([]settled, error) {
	var pending []settled
	last := make(map[string]uint64) // key to its last intent with an effect, +1, that the log does not know of
	for index, r := range log.Pending() {
		intent, done := found.ops[opName(r.Tenant, r.Op, r.OpID)]
		result := resultAborted
		if done && intent == index {
			result = resultOK
			if r.Key != "" {
				last[r.Key] = max(last[r.Key], index+1)
			}
		}
		pending = append(pending, settled{index, r, result})
	}
	keys := log.Effects()
	for key := range last {
		if _, _, effect := log.Key(key); effect == 0 {
			keys++
		}
	}
	for kid, r := range found.keys {
		_, _, effect := log.Key(kid.String())
		switch effect = max(effect, last[kid.String()]); {
		case effect > r.Intent+1:
			return nil, fmt.Errorf("a key was last changed at log index %d, and the store has it as of %d: the store is older than its log: %w",
				effect-1, r.Intent, backends.ErrTampered)
		case effect < r.Intent+1:
			return nil, fmt.Errorf("a key was last changed at log index %d, and the log does not say so: the log is older than its store: %w",
				r.Intent, backends.ErrTampered)
		}
	}
	if keys != len(found.keys) {
		return nil, fmt.Errorf("the log knows of %d keys and the store has %d: the store is older than its log: %w", keys, len(found.keys), backends.ErrTampered)
	}
	for _, intent := range found.ops {
		if intent >= log.Size() {
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
		r := k.answerFor(p.record, audit.KindOperation, "settled when the store was opened")
		r.Time, r.Result, r.Ref = k.clock(), p.result, p.index+1
		if _, err := k.audit.Append(ctx, r); err != nil {
			return fmt.Errorf("audit: settle: %w", err)
		}
	}
	return nil
}

// opName is the store's name for a finished mutation.
func opName(tenant, verb string, opID uuid.UUID) string {
	return prefixOp + tenant + "/" + verb + "/" + opID.String()
}
