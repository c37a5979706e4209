package core

import (
	"context"
	"crypto/hmac"
	"errors"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/audit"
	"github.com/rustyonions/ron-kms/backends"
	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
)

// maxVersions bounds the versions of one key, and so what a rotation costs.
const maxVersions = 1024

// change is a mutation worked out but not done: what to store, what to answer,
// and which private parts to forget afterwards.
type change struct {
	kid      api.KID // with the version concerned, if one is
	parent   api.KID // the key version that was used, if it is another
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
		out := mutated(response, kid, "", receipt)
		out.entries[0].detail = "replayed"
		return out, err
	}
	ch, err := plan()
	if err != nil {
		return outcome{}, err
	}
	// All that can still fail on our side comes before the intent: behind one,
	// only the commit does.
	next, err := newKey(ch.kid.Base(), ch.record, k.clock(), k.keys.get(ch.kid))
	if err != nil {
		return outcome{}, err
	}
	// The stored answer must not grow with the key's age.
	shown := ch.kid.Version
	if shown == 0 {
		shown = ch.record.Head
	}
	answer, err := json.Marshal(ch.response(only(next.public, shown)), json.Deterministic(true))
	if err != nil {
		return outcome{}, err
	}

	intent := k.newRecord(d.call, audit.KindIntent, entry{kid: ch.kid})
	receipts, err := k.append(ctx, intent)
	if err != nil {
		return outcome{}, err
	}
	at := receipts[0]
	// From here on the caller's patience no longer counts: the effect must be
	// whole.
	ctx = context.WithoutCancel(ctx)
	d.intent = at.LogIndex + 1
	ch.record.Intent = at.LogIndex
	err = k.vault.commit(ctx, d.intent, 0,
		named{prefixKey + next.kid.String(), ch.record},
		named{name, opRecord{RequestHash: hash[:], Intent: at.LogIndex, Log: k.vault.head.LogGeneration, Response: answer}})
	if err != nil {
		// The disk may hold either state, so nobody may say which: the next
		// open finds out and writes the result.
		return outcome{}, k.failed(api.ReasonStore, err)
	}
	k.publish(next)
	for _, ref := range ch.forget {
		k.vault.Forget(ref)
	}
	if err := json.Unmarshal(answer, response); err != nil {
		return outcome{}, err
	}
	out := mutated(response, ch.kid, classOf(next, ch.kid.Version), receipt)
	if !ch.parent.IsZero() {
		out.entries = append(out.entries, entry{kid: ch.parent, result: resultUsed, class: out.entries[0].class, detail: ch.kid.String()})
	}
	return out, nil
}

// mutated is the outcome of a mutation.
func mutated(response any, kid api.KID, class string, receipt **api.Receipt) outcome {
	return outcome{
		response: response, entries: []entry{{kid: kid, class: class}},
		receipts: func(r []*api.Receipt) { *receipt = r[0] },
	}
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
	return k.mutate(ctx, d, resp, &resp.Receipt, &resp.Replayed, func() (*change, error) {
		a, err := k.lookupAlg(req.Alg)
		if err != nil {
			return nil, err
		}
		scheme := req.Scheme
		if scheme == "" {
			scheme = api.SchemeV1
		}
		if scheme != api.SchemeV1 && a.Kind() != alg.KindSign {
			return nil, api.NewError(api.ReasonMalformed, "a scheme is for signing keys")
		}
		policy, mode, err := creationPolicy(a, scheme, req.Policy)
		if err != nil {
			return nil, err
		}
		rule := d.rule(api.KID{Tenant: req.Tenant, Purpose: req.Purpose, Alg: a.Name()})
		suite, err := k.suiteFor(a, scheme, rule.ProduceHybrid || policy.ProduceHybrid, rule.Mode.Tighten(mode))
		if err != nil {
			return nil, err
		}
		kid := api.KID{Tenant: req.Tenant, Purpose: req.Purpose, Alg: a.Name(), ID: uuid.NewString(), Version: 1}
		v, err := k.generate(ctx, suite, kid)
		if err != nil {
			return nil, err
		}
		return &change{
			kid: kid,
			record: &keyRecord{
				KID: kid.Base().String(), Scheme: scheme, Policy: policy, State: api.StateActive, Head: 1,
				Versions: []versionRecord{v},
			},
			response: func(public api.Key) any { return &api.CreateResponse{Key: public, KID: kid.String()} },
		}, nil
	})
}

// creationPolicy fills in what the creator left open: a hybrid key, and one
// that is to have a companion, demands both of its tracks, any other key what it
// has. What could not be honoured is refused.
func creationPolicy(a *alg.Alg, scheme api.Scheme, given *api.KeyPolicy) (api.KeyPolicy, alg.Mode, error) {
	policy := api.KeyPolicy{}
	if given != nil {
		policy = *given
		if given.Validity != nil {
			validity := *given.Validity // the caller may use its request again
			policy.Validity = &validity
		}
	}
	if a.Kind() != alg.KindSign && (policy.VerifyMode != "" || policy.ProduceHybrid) {
		return policy, 0, api.NewError(api.ReasonMalformed, "verify_mode and produce_hybrid are for signing keys")
	}
	hybrid := len(a.Tracks()) > 1
	if policy.ProduceHybrid && !hybrid {
		if scheme != api.SchemeV1 || a.WithCompanion() == a {
			return policy, 0, api.NewError(api.ReasonUnsupported, "a key of this algorithm and scheme cannot have a companion track")
		}
		hybrid = true
	}
	mode := alg.ModeOr
	if hybrid {
		mode = alg.ModeAnd
	}
	if policy.VerifyMode != "" {
		var err error
		if mode, err = alg.ParseMode(policy.VerifyMode); err != nil {
			return api.KeyPolicy{}, 0, api.NewError(api.ReasonMalformed, "verify_mode must be or, and, or pq_only")
		}
	}
	policy.VerifyMode = mode.String()
	return policy, mode, nil
}

// suiteFor is the algorithm whose tracks a new version gets: with a companion
// if policy produces hybrid signatures. The raw schemes cannot bind the suite,
// so a half could be stripped: their keys stay as they are.
//
// It refuses a suite that is not allowed, and one that could not sign under
// the mode: a version must not be made that nobody can use.
func (k *KMS) suiteFor(a *alg.Alg, scheme api.Scheme, hybrid bool, mode alg.Mode) (*alg.Alg, error) {
	if hybrid && scheme == api.SchemeV1 {
		a = a.WithCompanion()
	}
	if _, err := k.lookupAlg(a.Name()); err != nil {
		return nil, err
	}
	return a, demandOf(mode, a)
}

// demandOf checks that signatures of an algorithm would satisfy a mode; what
// does not sign always does.
func demandOf(mode alg.Mode, a *alg.Alg) error {
	if a.Kind() != alg.KindSign {
		return nil
	}
	return demand(mode, a.Tracks())
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

// existing finds the key that a private operation is about, as it is now. What
// is not on the allow-list is unsupported, be there such a key or not.
func (k *KMS) existing(kid api.KID) (*key, error) {
	if _, err := k.lookupAlg(kid.Alg); err != nil {
		return nil, err
	}
	cur := k.keys.get(kid)
	if cur == nil {
		return nil, api.NewError(api.ReasonNotFound, "there is no such key")
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
		if len(cur.record.Versions) >= maxVersions {
			return nil, api.NewError(api.ReasonVersions, "the key has as many versions as a key can have")
		}
		if cur.record.Parent != "" {
			return nil, api.NewError(api.ReasonUnsupported, "a derived key has one version; rotate its parent and derive again")
		}
		kid := cur.kid.At(cur.record.Head + 1)
		rule := d.rule(kid)
		suite, err := k.suiteFor(cur.alg, cur.record.Scheme, rule.ProduceHybrid || cur.record.Policy.ProduceHybrid, rule.Mode.Tighten(cur.mode))
		if err != nil {
			return nil, err
		}
		v, err := k.generate(ctx, suite, kid)
		if err != nil {
			return nil, err
		}
		record, forget := cur.retired()
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
		// Destroying is allowed for every key there is, on the list or not.
		cur := k.keys.get(d.target.Key)
		if cur == nil {
			return nil, api.NewError(api.ReasonNotFound, "there is no such key")
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

// retired copies the key's record with all versions retired. Signing and
// deriving keys lose their private part; what unwraps keeps it, to open what
// was wrapped before.
func (c *key) retired() (*keyRecord, []backends.Ref) {
	if !c.alg.Allows(alg.OpUnwrap) {
		return c.withoutPrivate(0, api.StateRetired)
	}
	r := *c.record
	r.Versions = slices.Clone(c.record.Versions)
	for i := range r.Versions {
		if r.Versions[i].State == api.StateActive {
			r.Versions[i].State = api.StateRetired
		}
	}
	return &r, nil
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
