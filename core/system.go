package core

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/rustyonions/ron-kms/audit/notekey"
	"github.com/rustyonions/ron-kms/backends"
	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/secret"
)

// Names of the store's own secrets.
const (
	nameAttestation   = prefixSystem + "attestation-key"
	nameAttestationPQ = prefixSystem + "attestation-key-pq"
	nameAuditFrames   = prefixSystem + "audit-frames"
)

// attestationTrack is one half of the attestation key.
type attestationTrack struct {
	name, track string
	scheme      alg.Scheme
}

// The attestation key is hybrid: both halves sign each checkpoint.
var attestationTracks = []attestationTrack{
	{nameAttestation, "ed25519", alg.SchemeV1},
	{nameAttestationPQ, "ml-dsa-44", alg.SchemeRaw},
}

// attestationRef is where the custodian knows a half of the attestation key. Its
// ID is the store's, which no key that a tenant creates can have.
func attestationRef(storeID string, t attestationTrack, version uint32) backends.Ref {
	return backends.Ref{
		KID:   api.KID{Tenant: "ron-kms", Purpose: "attestation", Alg: t.track, ID: storeID, Version: version},
		Track: t.track,
	}
}

// attestation signs audit checkpoints over the custodian, so that its private
// parts live where every other key's do.
type attestation struct {
	origin  string
	keys    *notekey.Set
	signers []note.Signer
}

// auditOrigin is the name of a store's audit log. Generation counts the logs
// that were begun in place of one that was given up (see Recover): a new origin,
// so that nobody takes a new log for a fork of the old one.
func auditOrigin(storeID string, generation uint32) string {
	origin := "ron-kms/audit/" + storeID
	if generation > 0 {
		origin += fmt.Sprintf("/%d", generation)
	}
	return origin
}

// attestationFor makes the attestation key sign as origin.
func attestationFor(v *vault, origin string, records []systemRecord) (*attestation, error) {
	a := &attestation{origin: origin}
	verifiers := make([]*notekey.Verifier, len(records))
	for i, r := range records {
		t := attestationTracks[i]
		ref := attestationRef(v.head.StoreID, t, max(r.Version, 1))
		sign := func(msg []byte) ([]byte, error) {
			return v.Sign(context.Background(), ref, t.scheme, r.Sealed, msg)
		}
		var s *notekey.Signer
		var err error
		if t.track == "ed25519" {
			s, err = notekey.NewEd25519(origin, r.Public, sign)
		} else {
			s, err = notekey.NewMLDSA44(origin, r.Public, sign, time.Now)
		}
		if err != nil {
			return nil, err
		}
		a.signers = append(a.signers, s)
		verifiers[i] = s.Verifier()
	}
	var err error
	a.keys, err = notekey.NewSet(verifiers...)
	return a, err
}

// system reads a record of the store's own, which must be there.
func (v *vault) system(ctx context.Context, name string) (r systemRecord, err error) {
	found, err := v.get(ctx, name, &r)
	if err == nil && !found {
		err = fmt.Errorf("record %s is missing: %w", name, backends.ErrTampered)
	}
	return r, err
}

// attestationRecords reads both halves of the attestation key.
func (v *vault) attestationRecords(ctx context.Context) ([]systemRecord, error) {
	records := make([]systemRecord, len(attestationTracks))
	for i, t := range attestationTracks {
		var err error
		if records[i], err = v.system(ctx, t.name); err != nil {
			return nil, err
		}
	}
	return records, nil
}

// systemKeys opens the attestation key and the audit frame key for the store's
// log.
func systemKeys(ctx context.Context, v *vault) (*attestation, *secret.Bytes, error) {
	return systemKeysFor(ctx, v, auditOrigin(v.head.StoreID, v.head.LogGeneration))
}

// systemKeysFor opens the same keys for the log called origin.
func systemKeysFor(ctx context.Context, v *vault, origin string) (*attestation, *secret.Bytes, error) {
	records, err := v.attestationRecords(ctx)
	if err != nil {
		return nil, nil, err
	}
	frames, err := v.system(ctx, nameAuditFrames)
	if err != nil {
		return nil, nil, err
	}
	a, err := attestationFor(v, origin, records)
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
	return a, mac, nil
}
