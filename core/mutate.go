package core

import (
	"context"
	"crypto/hmac"
	"errors"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/audit"
	"github.com/rustyonions/ron-kms/backends"
	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
)

// change is a mutation worked out but not done: what to store, what to answer,
// and which private parts to forget afterwards.
type change struct {
	kid      api.KID // with the version concerned, if one is
	record   *keyRecord
	response func(public api.Key) any
	forget   []backends.Ref
}

// mutate does one mutation, once per op_id. plan works it out from the present
// state; it runs under the lane, so that state does not move meanwhile.
func (k *KMS) mutate(ctx context.Context, d *decided, response any, receipt **api.Receipt, replayed *bool, plan func() (*change, error)) (outcome, error) {
	select {
	case k.lane <- struct{}{}:
		defer func() { <-k.lane }()
	case <-ctx.Done():
		return outcome{}, timeout(ctx.Err())
	}
	// Whoever held the lane before may have found the store out of order.
	if err := k.writable(); err != nil {
		return outcome{}, err
	}
	hash := requestHash(d.req)
	name := opName(d.target.Tenant, d.verb.Name, d.target.OpID)
	if kid, found, err := k.replayed(ctx, name, hash, response); err != nil || found {
		*replayed = found
		return outcome{response: response, kid: kid, receipt: receipt, result: "ok"}, err
	}
	ch, err := plan()
	if err != nil {
		return outcome{}, err
	}

	intent := k.newRecord(d.call, audit.KindIntent, ch.kid, "")
	at, err := k.append(ctx, intent)
	if err != nil {
		return outcome{}, err
	}
	// From here on the caller's patience no longer counts: the effect must be
	// whole.
	ctx = context.WithoutCancel(ctx)
	d.intent = at.LogIndex + 1
	ch.record.Intent = at.LogIndex
	next, err := newKey(ch.kid.Base(), ch.record, k.clock())
	if err != nil {
		d.settled = true
		return outcome{}, err
	}
	answer, err := json.Marshal(ch.response(next.public), json.Deterministic(true))
	if err != nil {
		d.settled = true
		return outcome{}, err
	}
	err = k.vault.commit(ctx, d.intent, 0,
		named{prefixKey + next.kid.String(), ch.record},
		named{name, opRecord{RequestHash: hash[:], Intent: at.LogIndex, Response: answer}})
	if err != nil {
		// The disk may hold either state, so nobody may say which: the next
		// open finds out and writes the result.
		return outcome{}, k.failed(api.ReasonStore, err)
	}
	if err := k.publish(next.kid, ch.record); err != nil {
		return outcome{}, k.failed(api.ReasonStore, err)
	}
	for _, ref := range ch.forget {
		k.vault.Forget(ref)
	}
	if err := json.Unmarshal(answer, response); err != nil {
		return outcome{}, err
	}
	return outcome{response: response, kid: ch.kid, receipt: receipt, class: classOf(next, ch.kid.Version)}, nil
}

func classOf(k *key, n uint32) string {
	if v := k.versions[n]; v != nil && len(v.tracks) > 0 {
		return v.tracks[0].class
	}
	return ""
}

// replayed answers an op_id that was seen before from the store.
func (k *KMS) replayed(ctx context.Context, name string, hash [32]byte, response any) (api.KID, bool, error) {
	var r opRecord
	found, err := k.vault.get(ctx, name, &r)
	if errors.Is(err, backends.ErrTampered) {
		k.tampered(err)
		return api.KID{}, false, k.writable()
	}
	if err != nil {
		return api.KID{}, false, k.failed(api.ReasonStore, err)
	}
	if !found {
		return api.KID{}, false, nil
	}
	if !hmac.Equal(hash[:], r.RequestHash) {
		return api.KID{}, false, api.NewError(api.ReasonOpIDReused, "this op_id was used for a different request")
	}
	if err := json.Unmarshal(r.Response, response); err != nil {
		return api.KID{}, false, err
	}
	var answer struct {
		KID string `json:"kid"`
	}
	if err := json.Unmarshal(r.Response, &answer); err != nil {
		return api.KID{}, false, err
	}
	kid, err := api.ParseKID(answer.KID)
	return kid, true, err
}

func (k *KMS) create(ctx context.Context, d *decided) (outcome, error) {
	req := d.req.(*api.CreateRequest)
	resp := new(api.CreateResponse)
	a, err := k.lookupAlg(req.Alg)
	if err != nil {
		return outcome{}, err
	}
	policy, mode, err := creationPolicy(a, req.Policy)
	if err != nil {
		return outcome{}, err
	}
	if err := demand(d.mode.Tighten(mode), a.Tracks()); err != nil {
		return outcome{}, err
	}
	return k.mutate(ctx, d, resp, &resp.Receipt, &resp.Replayed, func() (*change, error) {
		kid := api.KID{Tenant: req.Tenant, Purpose: req.Purpose, Alg: a.Name(), ID: uuid.NewString(), Version: 1}
		v, err := k.generate(ctx, a, kid)
		if err != nil {
			return nil, err
		}
		return &change{
			kid: kid,
			record: &keyRecord{
				KID: kid.Base().String(), Scheme: api.SchemeV1, Policy: policy, State: api.StateActive, Head: 1,
				Versions: []versionRecord{v},
			},
			response: func(public api.Key) any { return &api.CreateResponse{Key: public, KID: kid.String()} },
		}, nil
	})
}

// creationPolicy fills in what the creator left open: a hybrid key demands
// both of its tracks, any other key what it has.
func creationPolicy(a *alg.Alg, given *api.KeyPolicy) (api.KeyPolicy, alg.Mode, error) {
	mode := alg.ModeOr
	if len(a.Tracks()) > 1 {
		mode = alg.ModeAnd
	}
	if given != nil && given.VerifyMode != "" {
		var err error
		if mode, err = alg.ParseMode(given.VerifyMode); err != nil {
			return api.KeyPolicy{}, 0, api.NewError(api.ReasonMalformed, "verify_mode must be or, and, or pq_only")
		}
	}
	return api.KeyPolicy{VerifyMode: mode.String()}, mode, nil
}

// demand checks that signatures by these tracks would satisfy a mode.
func demand(mode alg.Mode, tracks []*alg.Track) error {
	classical, pq := alg.Absent, alg.Absent
	for _, t := range tracks {
		if t.Class() == alg.PostQuantum {
			pq = alg.OK
		} else {
			classical = alg.OK
		}
	}
	if !mode.Satisfied(classical, pq) {
		return api.NewError(api.ReasonPq, "policy demands "+mode.String()+", which these tracks cannot satisfy")
	}
	return nil
}

// lookupAlg finds an algorithm that the allow-list and the configuration let
// be used.
func (k *KMS) lookupAlg(name string) (*alg.Alg, error) {
	a, ok := alg.Lookup(name)
	if !ok || k.allowed != nil && !k.allowed[a.Name()] {
		return nil, api.NewError(api.ReasonUnsupported, "this algorithm is not on the allow-list")
	}
	return a, nil
}

// generate makes the private keys of one version.
func (k *KMS) generate(ctx context.Context, a *alg.Alg, kid api.KID) (versionRecord, error) {
	v := versionRecord{N: kid.Version, State: api.StateActive, CreatedAt: k.clock().UTC().Truncate(time.Second)}
	for _, t := range a.Tracks() {
		class, ok := k.class(t.Name(), backends.OpGenerate)
		if !ok {
			return v, api.NewError(api.ReasonUnsupported, "this backend cannot keep keys of this algorithm")
		}
		m, err := k.vault.Generate(ctx, backends.Ref{KID: kid, Track: t.Name()})
		if err != nil {
			return v, custodyError(err)
		}
		v.Tracks = append(v.Tracks, trackRecord{Alg: t.Name(), Class: class, Public: m.Public, Sealed: m.Sealed})
	}
	return v, nil
}

// class is the attestation class of what the backend does with a track.
func (k *KMS) class(track string, op backends.Operation) (string, bool) {
	for _, c := range k.vault.Caps() {
		if c.Track == track && c.Operation == op {
			return c.Class, true
		}
	}
	return "", false
}

// custodyError turns a custodian's error into the table's terms.
func custodyError(err error) error {
	switch {
	case errors.Is(err, backends.ErrUnsupported):
		return api.WrapError(api.ReasonUnsupported, "this backend cannot do that", err)
	case errors.Is(err, backends.ErrTampered):
		return api.WrapError(api.ReasonStoreTampered, "the key's sealed part was changed from outside or damaged", err)
	case errors.Is(err, backends.ErrArenaFull):
		return api.WrapError(api.ReasonArenaFull, "the locked memory for secrets is full", err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return timeout(err)
	}
	return api.WrapError(api.ReasonStore, "the backend is out of order", err)
}

// existing finds the key that a mutation is about, as it is now.
func (k *KMS) existing(kid api.KID) (*key, error) {
	cur := k.keys.get(kid)
	if cur == nil {
		return nil, api.NewError(api.ReasonNotFound, "there is no such key")
	}
	if _, err := k.lookupAlg(cur.alg.Name()); err != nil {
		return nil, err
	}
	return cur, nil
}

func (k *KMS) rotate(ctx context.Context, d *decided) (outcome, error) {
	resp := new(api.RotateResponse)
	return k.mutate(ctx, d, resp, &resp.Receipt, &resp.Replayed, func() (*change, error) {
		cur, err := k.existing(d.target.Key)
		if err != nil {
			return nil, err
		}
		if cur.record.State == api.StateDestroyed {
			return nil, api.NewError(api.ReasonDestroyed, "the key is destroyed")
		}
		if v := d.target.Key.Version; v != 0 && v != cur.record.Head {
			return nil, api.NewError(api.ReasonStaleVersion, "that version is not the head any more")
		}
		if cur.record.Head == 1<<32-1 {
			return nil, api.NewError(api.ReasonConflict, "the key has no more versions")
		}
		kid := cur.kid.At(cur.record.Head + 1)
		v, err := k.generate(ctx, cur.alg, kid)
		if err != nil {
			return nil, err
		}
		record, forget := cur.withoutPrivate(0, api.StateRetired)
		record.Head = v.N
		record.Versions = append(record.Versions, v)
		previous := cur.kid.At(cur.record.Head).String()
		return &change{
			kid: kid, record: record, forget: forget,
			response: func(public api.Key) any {
				return &api.RotateResponse{Key: public, KID: kid.String(), Previous: previous}
			},
		}, nil
	})
}

func (k *KMS) destroy(ctx context.Context, d *decided) (outcome, error) {
	resp := new(api.DestroyResponse)
	return k.mutate(ctx, d, resp, &resp.Receipt, &resp.Replayed, func() (*change, error) {
		cur, err := k.existing(d.target.Key)
		if err != nil {
			return nil, err
		}
		n := d.target.Key.Version
		if n != 0 && cur.versions[n] == nil {
			return nil, api.NewError(api.ReasonNotFound, "there is no such version")
		}
		record, forget := cur.withoutPrivate(n, api.StateDestroyed)
		if n == 0 {
			record.State = api.StateDestroyed
		}
		kid := cur.kid.At(n)
		return &change{
			kid: kid, record: record, forget: forget,
			response: func(public api.Key) any { return &api.DestroyResponse{Key: public, KID: kid.String()} },
		}, nil
	})
}

// withoutPrivate copies the key's record with the private part of version n
// erased, or of all versions if n is 0, and their state changed. A destroyed
// version stays destroyed.
func (c *key) withoutPrivate(n uint32, state api.State) (*keyRecord, []backends.Ref) {
	r := *c.record
	r.Versions = make([]versionRecord, 0, len(c.record.Versions)+1)
	var forget []backends.Ref
	for _, v := range c.record.Versions {
		if (n == 0 || v.N == n) && v.State != api.StateDestroyed {
			tracks := make([]trackRecord, len(v.Tracks))
			for i, t := range v.Tracks {
				t.Sealed = nil
				tracks[i] = t
				forget = append(forget, backends.Ref{KID: c.kid.At(v.N), Track: t.Alg})
			}
			v.State, v.Tracks = state, tracks
		}
		r.Versions = append(r.Versions, v)
	}
	return &r, forget
}
