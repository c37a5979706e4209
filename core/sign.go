package core

import (
	"context"
	"slices"

	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
)

// signItem is one statement that somebody wants signed.
type signItem struct {
	kid      api.KID // a version only if the caller named one
	payload  payload
	validity *api.Validity
	track    string // "" for all that policy wants
	mode     alg.Mode
}

// payload is what a statement is about, in the form the key's scheme takes.
type payload struct{ b3, raw, context string }

func (k *KMS) sign(ctx context.Context, d *decided) (outcome, error) {
	req := d.req.(*api.SignRequest)
	wish := api.SignPolicy{}
	if req.Policy != nil {
		wish = *req.Policy
	}
	mode, err := wishedMode(wish.Mode)
	if err != nil {
		return outcome{}, err
	}
	kids := d.target.Keys
	if len(kids) == 0 {
		kids = []api.KID{d.target.Key}
	}
	// First everything that can refuse, for all keys; then the private
	// operations.
	plans := make([]*plan, len(kids))
	var classical, pq int
	for i, kid := range kids {
		cur, err := k.usable(kid, alg.OpSign)
		if err != nil {
			return outcome{}, err
		}
		defer k.forgetErased(cur)
		plans[i], err = k.planSign(d, signItem{
			kid: kid, payload: payload{req.PayloadB3, req.PayloadB64, req.ContextB64},
			validity: req.Validity, track: req.Alg, mode: mode,
		}, cur)
		if err != nil {
			return outcome{}, err
		}
		c, p := plans[i].classes()
		classical, pq = classical+c, pq+p
	}
	if classical < wish.KClassical || pq < wish.KPQ {
		return outcome{}, api.NewError(api.ReasonPq, "the keys cannot make as many signatures of each kind as the request demands")
	}
	resp := &api.SignResponse{KID: plans[0].kid.String(), Scheme: plans[0].key.record.Scheme, AttestationClass: plans[0].tracks[0].class}
	out := outcome{response: resp}
	for _, p := range plans {
		sigs, err := k.signPlan(ctx, p)
		if err != nil {
			return outcome{}, err
		}
		resp.Sigs = append(resp.Sigs, sigs...)
		out.entries = append(out.entries, entry{kid: p.kid, class: p.tracks[0].class})
	}
	out.receipts = func(r []*api.Receipt) { resp.Receipt = r[len(r)-1] }
	return out, nil
}

// plan is one statement to be signed by one key, with everything decided.
type plan struct {
	key      *key
	kid      api.KID // with the version that signs
	tracks   []*track
	message  []byte
	validity *api.Validity
}

// classes counts the classical and post-quantum signatures, at most one each.
func (p *plan) classes() (classical, pq int) {
	for _, t := range p.tracks {
		if t.Class() == alg.PostQuantum {
			pq = 1
		} else {
			classical = 1
		}
	}
	return classical, pq
}

// forgetErased ends the use of one state of a key. If the key changed
// meanwhile, the use counts as made before that, but what was erased must not
// stay cached after it.
func (k *KMS) forgetErased(used *key) {
	now := k.keys.get(used.kid)
	if now == used {
		return
	}
	for _, v := range now.versions {
		for i := range v.tracks {
			if t := &v.tracks[i]; len(t.sealed) == 0 {
				k.vault.Forget(t.ref)
			}
		}
	}
}

// planSign decides how a key signs a statement, or that it may not.
func (k *KMS) planSign(d *decided, item signItem, cur *key) (*plan, error) {
	kid, v, err := cur.headFor(item.kid)
	if err != nil {
		return nil, err
	}
	if err := k.within(cur.record.Policy.Validity); err != nil {
		return nil, err
	}
	if err := k.within(item.validity); err != nil {
		return nil, err
	}
	rule := d.rule(kid)
	mode := rule.Mode.Tighten(cur.mode)
	if item.mode != 0 {
		mode = mode.Tighten(item.mode)
	}
	tracks, err := cur.producing(v, item.track, rule.ProduceHybrid || cur.record.Policy.ProduceHybrid, mode)
	if err != nil {
		return nil, err
	}
	rows := make([]*alg.Track, len(tracks))
	for i, t := range tracks {
		rows[i] = t.Track
		if err := k.allowsTrack(cur, v, t); err != nil {
			return nil, err
		}
	}
	if err := demand(mode, rows); err != nil {
		return nil, err
	}
	msg, err := cur.message(v, kid, item.payload, item.validity)
	if err != nil {
		return nil, err
	}
	return &plan{key: cur, kid: kid, tracks: tracks, message: msg, validity: item.validity}, nil
}

// allowsTrack checks the allow-list for a companion track too: the key's own
// algorithm says nothing of it.
func (k *KMS) allowsTrack(cur *key, v *version, t *track) error {
	for _, own := range cur.alg.Tracks() {
		if own == t.Track {
			return nil
		}
	}
	_, err := k.lookupAlg(v.suite.Name())
	return err
}

// signPlan makes the signatures.
func (k *KMS) signPlan(ctx context.Context, p *plan) ([]api.Signature, error) {
	text := p.kid.String()
	sigs := make([]api.Signature, 0, len(p.tracks))
	for _, t := range p.tracks {
		sig, err := k.vault.Backend.Sign(ctx, t.ref, p.key.scheme, t.sealed, p.message)
		if err != nil {
			return nil, custodyError(err)
		}
		sigs = append(sigs, api.Signature{KID: text, Alg: t.Name(), SignatureB64: api.FormatBase64(sig), Validity: p.validity})
	}
	return sigs, nil
}

// headFor gives the version that a private operation uses: the head, which a
// caller may name but not differ from.
func (c *key) headFor(asked api.KID) (api.KID, *version, error) {
	if n := asked.Version; n != 0 && n != c.record.Head {
		if c.versions[n] == nil {
			return api.KID{}, nil, api.NewError(api.ReasonNotFound, "there is no such version")
		}
		if c.versions[n].state == api.StateDestroyed {
			return api.KID{}, nil, api.NewError(api.ReasonDestroyed, "the key's private part is destroyed")
		}
		return api.KID{}, nil, api.NewError(api.ReasonStaleVersion, "that version is not the head any more")
	}
	v := c.versions[c.record.Head]
	if v.state != api.StateActive {
		return api.KID{}, nil, api.NewError(api.ReasonDestroyed, "the key's private part is destroyed")
	}
	return c.kid.At(c.record.Head), v, nil
}

// producing gives the tracks that sign: the one asked for, or the key's own,
// together with its companion if policy wants hybrid signatures or demands
// what only the companion can give.
func (c *key) producing(v *version, asked string, hybrid bool, mode alg.Mode) ([]*track, error) {
	if asked != "" {
		t := v.track(asked)
		if t == nil {
			return nil, api.NewError(api.ReasonUnsupported, "the key has no such track")
		}
		if hybrid && len(v.tracks) > 1 {
			return nil, api.NewError(api.ReasonPq, "policy wants hybrid signatures; one track alone would be less")
		}
		return []*track{t}, nil
	}
	n := len(c.alg.Tracks())
	if hybrid || mode != alg.ModeOr {
		n = len(v.tracks)
	}
	tracks := make([]*track, n)
	for i := range tracks {
		tracks[i] = &v.tracks[i]
	}
	return tracks, nil
}

// message is what every track of a key version signs, by the key's scheme.
func (c *key) message(v *version, kid api.KID, p payload, validity *api.Validity) ([]byte, error) {
	if c.scheme != alg.SchemeV1 && (p.context != "" || validity != nil) {
		return nil, api.NewError(api.ReasonMalformed, "this key's scheme binds neither context nor validity; leave them out")
	}
	if c.scheme == alg.SchemeRaw {
		if p.raw == "" {
			return nil, api.NewError(api.ReasonDigest, "this key signs raw bytes: send payload_b64")
		}
		return api.ParseBase64(p.raw)
	}
	if p.b3 == "" {
		return nil, api.NewError(api.ReasonDigest, "this key signs digests: send payload_b3")
	}
	digest, err := api.ParseDigest(p.b3)
	if err != nil {
		return nil, err
	}
	if c.scheme == alg.SchemeRawB3 {
		return digest[:], nil
	}
	context, err := api.ParseContext(p.context)
	if err != nil {
		return nil, err
	}
	s := alg.Statement{Suite: v.suite.Name(), KID: kid.String(), Context: context, Digest: digest}
	s.NotBefore, s.NotAfter = validity.Bounds()
	preimage, err := s.AppendPreimage(nil)
	if err != nil {
		return nil, api.WrapError(api.ReasonMalformed, "the statement cannot be signed", err)
	}
	return preimage, nil
}

// wishedMode parses the mode of a request; 0 means that it has no wish.
func wishedMode(text string) (alg.Mode, error) {
	if text == "" {
		return 0, nil
	}
	mode, err := alg.ParseMode(text)
	if err != nil {
		return 0, api.NewError(api.ReasonMalformed, "policy.mode must be or, and, or pq_only")
	}
	return mode, nil
}

func (k *KMS) signBatch(ctx context.Context, d *decided) (outcome, error) {
	req := d.req.(*api.SignBatchRequest)
	cur, err := k.usable(d.target.Key, alg.OpSign)
	if err != nil {
		return outcome{}, err
	}
	defer k.forgetErased(cur)
	// The head is fixed once: a rotation meanwhile does not split the batch.
	kid, _, err := cur.headFor(d.target.Key)
	if err != nil {
		return outcome{}, err
	}
	if need := len(req.Items) * (batchRecord + 2*len(kid.String())); need > k.audit.MaxCommit() {
		return outcome{}, api.NewError(api.ReasonTooMany, "the records of so many items exceed one audit commit; send fewer, or use larger audit segments")
	}
	resp := &api.SignBatchResponse{KID: kid.String(), Scheme: cur.record.Scheme, Results: make([]api.SignResult, len(req.Items))}
	out := outcome{response: resp}
	for i := range req.Items {
		// Other tenants get their turn between the items.
		if i > 0 {
			if err := d.ticket.Yield(ctx); err != nil {
				return outcome{}, timeout(err)
			}
		}
		item, result := &req.Items[i], &resp.Results[i]
		e := entry{kid: kid, inputHash: itemHash(item.PayloadB3, item.PayloadB64)}
		sigs, class, err := k.signItem(ctx, d, cur, kid, req.Alg, item)
		if store := api.AsError(err); err != nil && store.HTTP >= 500 {
			return outcome{}, err // not the item's fault
		}
		if err != nil {
			result.Error = api.NewItemError(err)
			e.result = string(result.Error.Code)
			k.metrics.Reject.WithLabelValues(string(result.Error.Reason)).Inc()
		} else {
			result.Sigs, e.class = sigs, class
		}
		out.entries = append(out.entries, e)
	}
	out.receipts = func(r []*api.Receipt) {
		for i := range resp.Results {
			resp.Results[i].Receipt = r[i]
		}
	}
	return out, nil
}

// batchRecord is more than the size of one audit record, kid excluded, in bytes.
const batchRecord = 1200

// signItem signs one item of a batch with the version fixed for it. A key that
// was destroyed meanwhile signs no more of them.
func (k *KMS) signItem(ctx context.Context, d *decided, cur *key, kid api.KID, track string, item *api.SignItem) ([]api.Signature, string, error) {
	if err := item.Check(); err != nil {
		return nil, "", err
	}
	if now := k.keys.get(kid); now.versions[kid.Version].state == api.StateDestroyed {
		return nil, "", api.NewError(api.ReasonDestroyed, "the key's private part is destroyed")
	}
	p, err := k.planSign(d, signItem{
		kid: kid, payload: payload{item.PayloadB3, item.PayloadB64, item.ContextB64}, validity: item.Validity, track: track,
	}, cur)
	if err != nil {
		return nil, "", err
	}
	sigs, err := k.signPlan(ctx, p)
	return sigs, p.tracks[0].class, err
}

// usable finds a key that can serve an operation.
func (k *KMS) usable(kid api.KID, op alg.Op) (*key, error) {
	cur, err := k.existing(kid)
	if err != nil {
		return nil, err
	}
	if !cur.alg.Allows(op) {
		return nil, api.NewError(api.ReasonUnsupported, "keys of this algorithm cannot do that")
	}
	return cur, nil
}

// names lists kids without repeating one.
func names(kids []api.KID) []string {
	var out []string
	for _, kid := range kids {
		if text := kid.String(); !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	return out
}
