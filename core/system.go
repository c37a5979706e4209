package core

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/rustyonions/ron-kms/audit"
	"github.com/rustyonions/ron-kms/backends"
	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/config"
	"github.com/rustyonions/ron-kms/core/secret"
)

// Names of the store's own secrets.
const (
	nameAttestation = prefixSystem + "attestation-key"
	nameAuditFrames = prefixSystem + "audit-frames"
)

// attestationRef is where the custodian knows the attestation key. Its ID is
// the store's, which no key that a tenant creates can have.
func attestationRef(storeID string) backends.Ref {
	return backends.Ref{
		KID:   api.KID{Tenant: "ron-kms", Purpose: "attestation", Alg: "ed25519", ID: storeID, Version: 1},
		Track: "ed25519",
	}
}

// attestationKey signs audit checkpoints. It implements [note.Signer] over the
// custodian, so that its private part lives where every other key's does.
type attestationKey struct {
	vault  *vault
	ref    backends.Ref
	sealed []byte

	name string
	vkey string
	note.Verifier
}

var _ note.Signer = (*attestationKey)(nil)

// Name implements [note.Signer] and [note.Verifier].
func (a *attestationKey) Name() string { return a.name }

// KeyHash implements [note.Signer] and [note.Verifier].
func (a *attestationKey) KeyHash() uint32 { return a.Verifier.KeyHash() }

// Sign implements [note.Signer].
func (a *attestationKey) Sign(msg []byte) ([]byte, error) {
	return a.vault.Backend.Sign(context.Background(), a.ref, alg.SchemeV1, a.sealed, msg)
}

// systemKeys opens the attestation key and the audit frame key.
func systemKeys(ctx context.Context, v *vault) (*attestationKey, *secret.Bytes, error) {
	var attestation, frames systemRecord
	for name, r := range map[string]*systemRecord{nameAttestation: &attestation, nameAuditFrames: &frames} {
		found, err := v.get(ctx, name, r)
		if err != nil {
			return nil, nil, err
		}
		if !found {
			return nil, nil, fmt.Errorf("record %s is missing: %w", name, backends.ErrTampered)
		}
	}
	origin := "ron-kms/audit/" + v.head.StoreID
	vkey, err := note.NewEd25519VerifierKey(origin, ed25519.PublicKey(attestation.Public))
	if err != nil {
		return nil, nil, err
	}
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		return nil, nil, err
	}
	seal, err := v.StoreKey(labelSystem, 32)
	if err != nil {
		return nil, nil, err
	}
	defer seal.Destroy()
	mac, err := seal.Unseal(v.Arena(), frames.Sealed, []byte(nameAuditFrames))
	if errors.Is(err, secret.ErrUnseal) {
		return nil, nil, fmt.Errorf("record %s: %w", nameAuditFrames, backends.ErrTampered)
	}
	if err != nil {
		return nil, nil, err
	}
	return &attestationKey{
		vault: v, ref: attestationRef(v.head.StoreID), sealed: attestation.Sealed,
		name: origin, vkey: vkey, Verifier: verifier,
	}, mac, nil
}

func auditOptions(cfg *config.Config, signer *attestationKey, frames *secret.Bytes, clock func() time.Time) audit.Options {
	return audit.Options{
		Origin: signer.name, Signer: signer, Verifier: signer.Verifier, VerifierKey: signer.vkey,
		MACKey: func(use func(key []byte)) {
			// A destroyed key lends nothing: the log sees that and stops.
			_ = frames.Use(use)
		},
		SegmentSize:        cfg.AuditSegmentSize,
		CheckpointInterval: time.Duration(cfg.AuditCheckpointInterval),
		Clock:              clock,
	}
}
