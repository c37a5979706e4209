package core

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rustyonions/ron-kms/audit"
	"github.com/rustyonions/ron-kms/core/api"
)

// A PrunePlan says which records of the audit log would go.
type PrunePlan struct {
	From uint64 // the first record that is there
	To   uint64 // the first record that would be kept
	Size uint64 // of the log
}

// Records is how many records would go.
func (p PrunePlan) Records() uint64 { return p.To - p.From }

// PlanPrune says what [KMS.PruneAudit] would do. Records go in whole volumes of
// [audit.VolumeRecords], and never the latest one.
func (k *KMS) PlanPrune(before uint64) (PrunePlan, error) {
	if err := k.enter(); err != nil {
		return PrunePlan{}, err
	}
	defer k.calls.RUnlock()
	return k.planPrune(before)
}

func (k *KMS) planPrune(before uint64) (PrunePlan, error) {
	if err := k.writable(); err != nil {
		return PrunePlan{}, err
	}
	to, err := k.audit.Prunable(before)
	if err != nil {
		return PrunePlan{}, pruneError(err)
	}
	return PrunePlan{From: k.audit.Kept(), To: to, Size: k.audit.Size()}, nil
}

// AuditIndexAt returns the index of the first record of the log that was not
// made before t: all records before it are older.
func (k *KMS) AuditIndexAt(ctx context.Context, t time.Time) (uint64, error) {
	if err := k.enter(); err != nil {
		return 0, err
	}
	defer k.calls.RUnlock()
	if err := k.writable(); err != nil {
		return 0, err
	}
	index, found := k.audit.Kept(), errors.New("found")
	err := k.audit.Read(ctx, index, func(i uint64, r *audit.Record) error {
		if index = i; !r.Time.Before(t) {
			return found
		}
		index++
		return nil
	})
	if err != nil && err != found {
		return 0, api.WrapError(api.ReasonInternal, "the log could not be read", err)
	}
	return index, nil
}

// PruneAudit gives up the records of the audit log before an index, for good.
// The log keeps their hashes, and says which went and by which policy, a text
// of 1 to 1024 bytes. All other records stay provable.
func (k *KMS) PruneAudit(ctx context.Context, before uint64, policy string) (PrunePlan, error) {
	if err := k.enter(); err != nil {
		return PrunePlan{}, err
	}
	defer k.calls.RUnlock()
	plan, err := k.planPrune(before)
	if err != nil {
		return PrunePlan{}, err
	}
	if plan.To, err = k.audit.Prune(ctx, before, policy); err != nil {
		return PrunePlan{}, pruneError(err)
	}
	return plan, nil
}

func pruneError(err error) error {
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return timeout(err)
	case errors.Is(err, audit.ErrFailed), errors.Is(err, audit.ErrClosed):
		return api.WrapError(api.ReasonAuditWrite, "the audit log cannot be written", err)
	}
	return fmt.Errorf("prune: %w", err)
}
