package core

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rustyonions/ron-kms/audit"
	"github.com/rustyonions/ron-kms/audit/witness"
	"github.com/rustyonions/ron-kms/backends/tpm"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/config"
	"github.com/rustyonions/ron-kms/core/secret"
)

// auditOptions are what every log of a store has, without anchors and witnesses.
func auditOptions(cfg *config.Config, a *attestation, frames *secret.Bytes, clock func() time.Time) audit.Options {
	return audit.Options{
		Origin: a.origin, Signers: a.signers, Keys: a.keys,
		MACKey: func(use func(key []byte)) {
			// A destroyed key lends nothing: the log sees that and stops.
			_ = frames.Use(use)
		},
		SegmentSize:        cfg.AuditSegmentSize,
		RingSegments:       cfg.AuditRingSegments,
		CheckpointInterval: time.Duration(cfg.AuditCheckpointInterval),
		Clock:              clock,
	}
}

// anchorsOf opens the anchors that the configuration names. One that the store
// has never been written to may be empty; any other may not, or emptying it
// would be a way around it.
func anchorsOf(ctx context.Context, cfg *config.Config, v *vault, o audit.Options) (anchors []audit.AnchorOption, err error) {
	defer func() {
		if err != nil {
			for _, a := range anchors {
				err = errors.Join(err, a.Anchor.Close())
			}
		}
	}()
	known := func(a audit.Anchor) bool { return slices.Contains(v.head.Anchors, a.Name()) }
	if cfg.AuditAnchorDir != "" {
		if err := setAsideAnchor(ctx, cfg, v, o); err != nil {
			return anchors, err
		}
		a, err := audit.NewDirAnchor(cfg.AuditAnchorDir, o.MACKey)
		if err != nil {
			return anchors, err
		}
		anchors = append(anchors, audit.AnchorOption{Anchor: a, Mode: audit.AnchorMode(cfg.AuditAnchorMode), Fresh: !known(a)})
	}
	if cfg.AuditAnchorTPM != "" {
		a, fresh, err := openTPMAnchor(ctx, cfg, v, o)
		if err != nil {
			return anchors, err
		}
		anchors = append(anchors, audit.AnchorOption{Anchor: a, Mode: audit.AnchorCheckpoint, Fresh: fresh})
	}
	return anchors, nil
}

// setAsideAnchor puts away what the anchor directory remembers of a log that
// was given up. An anchor of the present log is never touched: the store knows
// that it has been written to.
func setAsideAnchor(ctx context.Context, cfg *config.Config, v *vault, o audit.Options) error {
	if v.head.LogGeneration == 0 || slices.Contains(v.head.Anchors, "dir:"+cfg.AuditAnchorDir) {
		return nil
	}
	id, err := audit.StoredID(auditDir(cfg.Dir))
	if err != nil {
		return err
	}
	_, err = audit.SetAsideAnchor(ctx, cfg.AuditAnchorDir, id, refusedSuffix(time.Now()), o.MACKey)
	return err
}

// labelTPMAnchor is the purpose of the auth value of the NV indices.
const labelTPMAnchor = "ron-kms/v1/tpm-anchor"

// tpmAnchor is an anchor in a TPM.
type tpmAnchor struct {
	*tpm.Anchor
	log [16]byte
}

// openTPMAnchor opens the store's anchor in a TPM, and makes it the first time.
func openTPMAnchor(ctx context.Context, cfg *config.Config, v *vault, o audit.Options) (audit.Anchor, bool, error) {
	id, err := audit.StoredID(auditDir(cfg.Dir))
	if err != nil {
		return nil, false, err
	}
	auth, err := v.StoreKey(labelTPMAnchor, 32)
	if err != nil {
		return nil, false, err
	}
	defer auth.Destroy()
	c := tpm.Config{Device: cfg.AuditAnchorTPM, LogID: id}
	var a *tpm.Anchor
	fresh := false
	if e := auth.Use(func(key []byte) {
		c.Auth = key
		if a, err = tpm.OpenAnchor(ctx, c); errors.Is(err, tpm.ErrMissing) && !slices.ContainsFunc(v.head.Anchors, isTPM) {
			fresh = true
			a, err = tpm.CreateAnchor(ctx, c)
		}
	}); e != nil {
		return nil, false, e
	}
	if err != nil {
		return nil, false, err
	}
	return &tpmAnchor{a, id}, fresh, nil
}

func isTPM(anchor string) bool { return strings.HasPrefix(anchor, "tpm:") }

func (a *tpmAnchor) Read(ctx context.Context) (audit.AnchorState, error) {
	s, err := a.Anchor.Read(ctx)
	if errors.Is(err, tpm.ErrAbsent) {
		return audit.AnchorState{}, fmt.Errorf("%w: %w", audit.ErrNoAnchor, err)
	}
	return audit.AnchorState{Log: a.log, Size: s.Size, Root: s.Root, Closed: s.Closed}, err
}

func (a *tpmAnchor) Write(ctx context.Context, s audit.AnchorState) error {
	return a.Anchor.Write(ctx, tpm.State{Size: s.Size, Root: s.Root, Closed: s.Closed})
}

// witnessesOf are the clients of the witnesses that the configuration names.
func witnessesOf(cfg *config.Config) (ws []audit.WitnessOption, err error) {
	for _, text := range cfg.AuditWitnesses {
		vkey, url, _ := strings.Cut(text, "@") // Validate has checked it
		c, err := witness.NewClient(vkey, url, witness.ClientOptions{})
		if err != nil {
			return nil, api.WrapError(api.ReasonConfig, "KMS_AUDIT_WITNESSES is not valid", err)
		}
		ws = append(ws, audit.WitnessOption{Witness: cosigner{c}, Required: cfg.AuditWitnessRequired})
	}
	return ws, nil
}

// cosigner is a witness as the audit log sees it.
type cosigner struct{ *witness.Client }

func (c cosigner) Cosign(ctx context.Context, old uint64, prove func(uint64) ([][32]byte, error), checkpoint []byte) ([]byte, error) {
	lines, err := c.Add(ctx, old, prove, checkpoint)
	var ahead *witness.RollbackError
	var fork *witness.ForkError
	switch {
	case errors.As(err, &ahead):
		err = fmt.Errorf("%w: %w", audit.ErrWitnessAhead, err)
	case errors.As(err, &fork):
		err = fmt.Errorf("%w: %w", audit.ErrWitnessForked, err)
	}
	return lines, err
}
