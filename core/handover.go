package core

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/rustyonions/ron-kms/audit"
	"github.com/rustyonions/ron-kms/backends"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/config"
)

// New attestation keys come in three steps, each durable before the next
// (docs/spec/audit-keys.md): the store keeps the new private halves beside the
// present ones; the log's file of handovers names the new keys, which decides;
// the store puts the new halves in the place of the old. What was cut off, the
// next opening finishes, or forgets.

// suffixNext ends the name of a half that is to replace the present one.
const suffixNext = "-next"

// A HandoverReport says which keys sign the audit log's checkpoints.
type HandoverReport struct {
	Origin   string
	Old, New string // C2SP vkeys
	Size     uint64 // records for which the old keys signed last
}

// RotateAuditKey replaces the keys that sign the checkpoints of the audit log,
// and forgets the private halves of the old ones. Old and new keys sign the
// handover, so who has the old public keys can follow. The store must be in good
// order and open nowhere else.
func RotateAuditKey(ctx context.Context, cfg *config.Config, o Options) (*HandoverReport, error) {
	if cfg.IsAmnesia() {
		return nil, api.NewError(api.ReasonConfig, "an in-memory store has new keys each time")
	}
	k, err := Open(ctx, cfg, o)
	if err != nil {
		return nil, err
	}
	h := &handover{k: k}
	for _, step := range h.steps() {
		if err = step(ctx); err != nil {
			break
		}
	}
	if err = errors.Join(err, k.Close()); err != nil {
		return nil, openError(err)
	}
	return &h.report, nil
}

// handover is a change of keys under way.
type handover struct {
	k      *KMS
	report HandoverReport
}

func (h *handover) steps() []func(context.Context) error {
	return []func(context.Context) error{h.begin, h.stage, h.decide, h.promote, h.resume}
}

// begin closes the log: its size then stands still.
func (h *handover) begin(context.Context) error {
	if err := h.k.writable(); err != nil {
		return err
	}
	if err := h.k.audit.Close(); err != nil {
		return err
	}
	h.report.Origin, h.report.Old, h.report.Size = h.k.signer.origin, h.k.signer.keys.String(), h.k.audit.Size()
	return nil
}

// stage makes the new halves, and lets the store keep them.
func (h *handover) stage(ctx context.Context) error {
	v := h.k.vault
	present, err := v.attestationRecords(ctx)
	if err != nil {
		return err
	}
	var staged []named
	for i, t := range attestationTracks {
		n := max(present[i].Version, 1) + 1
		m, err := v.Generate(ctx, attestationRef(v.head.StoreID, t, n))
		if err != nil {
			return fmt.Errorf("attestation key: %w", err)
		}
		staged = append(staged, named{t.name + suffixNext, systemRecord{Public: m.Public, Sealed: m.Sealed, Version: n}})
	}
	return v.commit(ctx, 0, h.report.Size, staged...)
}

// decide makes the new keys those of the log.
func (h *handover) decide(ctx context.Context) error {
	v := h.k.vault
	records, err := stagedRecords(ctx, v)
	if err != nil {
		return err
	}
	next, err := attestationFor(v, h.k.signer.origin, records)
	if err != nil {
		return err
	}
	h.report.New = next.keys.String()
	_, frames, err := systemKeys(ctx, v)
	if err != nil {
		return err
	}
	defer frames.Destroy()
	o := auditOptions(h.k.cfg, h.k.signer, frames, h.k.clock)
	return audit.Handover(ctx, auditDir(h.k.cfg.Dir), o, next.keys, slices.Concat(h.k.signer.signers, next.signers)...)
}

// promote puts the new halves in the place of the old.
func (h *handover) promote(ctx context.Context) error {
	return settleHandover(ctx, h.k.vault, auditDir(h.k.cfg.Dir))
}

// resume opens the log again, which records the handover and signs with the
// new keys.
func (h *handover) resume(ctx context.Context) error {
	signer, frames, err := systemKeys(ctx, h.k.vault)
	if err != nil {
		return err
	}
	h.k.secrets = append(h.k.secrets, frames)
	h.k.signer = signer
	log, err := h.k.openLog(ctx, signer, frames)
	if err != nil {
		return err
	}
	h.k.audit = log
	return nil
}

// stagedRecords reads the halves that are to replace the present ones; there are
// none, or all.
func stagedRecords(ctx context.Context, v *vault) ([]systemRecord, error) {
	var records []systemRecord
	for _, t := range attestationTracks {
		var r systemRecord
		found, err := v.get(ctx, t.name+suffixNext, &r)
		if err != nil {
			return nil, err
		}
		if found {
			records = append(records, r)
		}
	}
	if n := len(records); n != 0 && n != len(attestationTracks) {
		return nil, fmt.Errorf("a half of the next attestation key is missing: %w", backends.ErrTampered)
	}
	return records, nil
}

// settleHandover ends a change of keys as the log in dir says: either its new
// keys are those of the log, or they never will be. A log that cannot tell
// decides nothing.
func settleHandover(ctx context.Context, v *vault, dir string) error {
	staged, err := stagedRecords(ctx, v)
	if err != nil || len(staged) == 0 {
		return err
	}
	origin := auditOrigin(v.head.StoreID, v.head.LogGeneration)
	next, err := attestationFor(v, origin, staged)
	if err != nil {
		return err
	}
	present, err := v.attestationRecords(ctx)
	if err != nil {
		return err
	}
	now, err := attestationFor(v, origin, present)
	if err != nil {
		return err
	}
	keys, err := audit.LatestKeys(dir)
	if err != nil {
		return nil // opening the log says what is wrong with it
	}
	var changes []named
	forget := staged
	switch keys.String() {
	case next.keys.String():
		forget = present
		for i, t := range attestationTracks {
			changes = append(changes, named{t.name, staged[i]})
		}
	case now.keys.String():
	default:
		return nil
	}
	for _, t := range attestationTracks {
		changes = append(changes, named{t.name + suffixNext, nil})
	}
	if err := v.commit(ctx, 0, 0, changes...); err != nil {
		return err
	}
	for i, t := range attestationTracks {
		v.Forget(attestationRef(v.head.StoreID, t, max(forget[i].Version, 1)))
	}
	return nil
}
