package core

import (
	"context"
	"crypto/sha256"
	"time"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/backends"
	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
)

// childVersion is the version of the UUIDs that childID makes.
const childVersion = 8

// childID names a derived key by where it comes from, so that deriving again
// finds the same key: a UUID of version 8 (RFC 9562 §5.8) over the parent
// version and the context.
func childID(parent api.KID, context string) string {
	sum := sha256.Sum256([]byte("ron-kms/child/v1\x00" + parent.String() + "\x00" + context))
	id := uuid.UUID(sum[:16])
	id[6] = id[6]&0x0f | childVersion<<4
	id[8] = id[8]&0x3f | 0x80
	return id.String()
}

// derive makes the child of a key version for a context. The derivation binds
// tenant, purpose and context and not the child's algorithm, so a context of a
// version serves one algorithm only.
func (k *KMS) derive(ctx context.Context, d *decided) (outcome, error) {
	req := d.req.(*api.DeriveRequest)
	resp := new(api.DeriveResponse)
	return k.mutate(ctx, d, resp, &resp.Receipt, &resp.Replayed, func() (*change, error) {
		a, err := k.lookupAlg(req.Alg)
		if err != nil {
			return nil, err
		}
		if len(a.Tracks()) != 1 {
			return nil, api.NewError(api.ReasonUnsupported, "a derived key has one track; derive its halves under contexts of their own")
		}
		if err := demandOf(d.rule(d.target.Key).Mode.Tighten(d.rule(api.KID{Tenant: d.target.Tenant, Purpose: d.target.Purpose, Alg: a.Name()}).Mode), a); err != nil {
			return nil, err
		}
		cur, err := k.usable(d.target.Key, alg.OpDerive)
		if err != nil {
			return nil, err
		}
		parent, v, err := cur.headFor(d.target.Key)
		if err != nil {
			return nil, err
		}
		if err := k.within(cur.record.Policy.Validity); err != nil {
			return nil, err
		}
		kid := api.KID{Tenant: parent.Tenant, Purpose: parent.Purpose, Alg: a.Name(), ID: childID(parent, req.Context), Version: 1}
		record, err := k.derivedBefore(kid)
		if err == nil && record == nil {
			record, err = k.deriveRecord(ctx, v, parent, kid, a, req.Context)
			if err == nil {
				record.Policy.Validity = cur.record.Policy.Validity
			}
		}
		if err != nil {
			return nil, err
		}
		return &change{
			kid: kid, parent: parent, record: record,
			response: func(public api.Key) any {
				return &api.DeriveResponse{Key: public, KID: kid.String(), Parent: parent.String()}
			},
		}, nil
	})
}

// derivedBefore finds the child if it exists already. One of another algorithm
// would share its bytes, and a destroyed one must not come back.
func (k *KMS) derivedBefore(kid api.KID) (*keyRecord, error) {
	if k.gone[kid.ID] {
		return nil, api.NewError(api.ReasonDestroyed, "the derived key was destroyed; use another context")
	}
	for _, a := range alg.All() {
		other := kid.Base()
		other.Alg = a.Name()
		cur := k.keys.get(other)
		switch {
		case cur == nil:
		case a.Name() != kid.Alg:
			return nil, api.NewError(api.ReasonConflict, "this context was derived for another algorithm; use another context")
		case cur.record.State == api.StateDestroyed || !cur.signs():
			return nil, api.NewError(api.ReasonDestroyed, "the derived key was destroyed; use another context")
		default:
			record := *cur.record
			return &record, nil
		}
	}
	return nil, nil
}

func (k *KMS) deriveRecord(ctx context.Context, v *version, parent, kid api.KID, a *alg.Alg, context string) (*keyRecord, error) {
	info, err := alg.DeriveInfo(kid.Tenant, kid.Purpose, context)
	if err != nil {
		return nil, api.WrapError(api.ReasonLabel, "context must be a label", err)
	}
	t := &v.tracks[0]
	child := backends.Ref{KID: kid, Track: a.Tracks()[0].Name()}
	m, err := k.vault.Derive(ctx, t.ref, t.sealed, info, child)
	if err != nil {
		return nil, custodyError(err)
	}
	policy, _, err := creationPolicy(a, api.SchemeV1, nil)
	if err != nil {
		return nil, err
	}
	return &keyRecord{
		KID: kid.Base().String(), Scheme: api.SchemeV1, Policy: policy, State: api.StateActive, Head: 1, Parent: parent.String(),
		Versions: []versionRecord{{
			N: 1, State: api.StateActive, CreatedAt: k.clock().UTC().Truncate(time.Second),
			Tracks: []trackRecord{{Alg: child.Track, Class: t.class, Public: m.Public, Sealed: m.Sealed}},
		}},
	}, nil
}
