package core

import (
	"context"

	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
)

func (k *KMS) sign(ctx context.Context, d *decided) (outcome, error) {
	req := d.req.(*api.SignRequest)
	cur, err := k.existing(d.target.Key)
	if err != nil {
		return outcome{}, err
	}
	out, err := k.signWith(ctx, d, req, cur)
	if now := k.keys.get(cur.kid); now != cur {
		// The key changed meanwhile: this signature counts as made before
		// that, but its private part must not stay cached after it.
		for n, v := range now.versions {
			if v.state == api.StateActive {
				continue
			}
			for _, t := range cur.versions[n].tracksOrNone() {
				k.vault.Forget(t.ref)
			}
		}
	}
	return out, err
}

// tracksOrNone is nil for a version that did not exist.
func (v *version) tracksOrNone() []track {
	if v == nil {
		return nil
	}
	return v.tracks
}

func (k *KMS) signWith(ctx context.Context, d *decided, req *api.SignRequest, cur *key) (outcome, error) {
	n := cur.record.Head
	if named := d.target.Key.Version; named != 0 {
		v := cur.versions[named]
		switch {
		case v == nil:
			return outcome{}, api.NewError(api.ReasonNotFound, "there is no such version")
		case v.state == api.StateRetired:
			return outcome{}, api.NewError(api.ReasonStaleVersion, "that version is not the head any more")
		}
		n = named
	}
	v := cur.versions[n]
	if v.state != api.StateActive {
		return outcome{}, api.NewError(api.ReasonDestroyed, "the key's private part is destroyed")
	}
	tracks, err := selectTracks(v, req.Alg)
	if err != nil {
		return outcome{}, err
	}
	rows := make([]*alg.Track, len(tracks))
	for i, t := range tracks {
		rows[i] = t.Track
	}
	if err := demand(d.mode.Tighten(cur.mode), rows); err != nil {
		return outcome{}, err
	}
	kid := cur.kid.At(n)
	preimage, err := statement(cur, kid, req.PayloadB3, req.ContextB64)
	if err != nil {
		return outcome{}, err
	}
	resp := &api.SignResponse{
		KID: kid.String(), Scheme: cur.record.Scheme, AttestationClass: tracks[0].class,
		Sigs: make([]api.Signature, 0, len(tracks)),
	}
	for _, t := range tracks {
		sig, err := k.vault.Backend.Sign(ctx, t.ref, t.sealed, preimage)
		if err != nil {
			return outcome{}, custodyError(err)
		}
		resp.Sigs = append(resp.Sigs, api.Signature{KID: resp.KID, Alg: t.Name(), SignatureB64: api.FormatBase64(sig)})
	}
	return outcome{response: resp, kid: kid, receipt: &resp.Receipt, class: tracks[0].class}, nil
}

// selectTracks gives all tracks of a version, or the one asked for.
func selectTracks(v *version, name string) ([]*track, error) {
	if name == "" {
		all := make([]*track, len(v.tracks))
		for i := range v.tracks {
			all[i] = &v.tracks[i]
		}
		return all, nil
	}
	if t := v.track(name); t != nil {
		return []*track{t}, nil
	}
	return nil, api.NewError(api.ReasonUnsupported, "the key has no such track")
}

// statement is the preimage that every track of a key version signs.
func statement(k *key, kid api.KID, payloadB3, contextB64 string) ([]byte, error) {
	digest, err := api.ParseDigest(payloadB3)
	if err != nil {
		return nil, err
	}
	context, err := api.ParseContext(contextB64)
	if err != nil {
		return nil, err
	}
	s := alg.Statement{Suite: k.alg.Name(), KID: kid.String(), Context: context, Digest: digest}
	return s.AppendPreimage(nil)
}

// verify answers from public material in memory: it needs neither the backend
// nor a healthy log.
func (k *KMS) verify(_ context.Context, d *decided) (outcome, error) {
	req := d.req.(*api.VerifyRequest)
	mode := d.mode
	if req.Policy != nil && req.Policy.Mode != "" {
		wish, err := alg.ParseMode(req.Policy.Mode)
		if err != nil {
			return outcome{}, api.NewError(api.ReasonMalformed, "policy.mode must be or, and, or pq_only")
		}
		mode = mode.Tighten(wish)
	}
	resp := &api.VerifyResponse{Details: api.VerifyDetails{
		Mode: mode.String(), Checked: make([]api.VerifyCheck, len(req.Sigs)), KIDs: []string{d.target.Key.String()}, Algs: []string{},
	}}
	for i, s := range req.Sigs {
		resp.Details.Checked[i] = api.VerifyCheck{KID: d.target.Key.String(), Alg: s.Alg}
	}
	cur := k.keys.get(d.target.Key)
	var v *version
	unknown := "unknown-key"
	if cur != nil {
		v = cur.versions[d.target.Key.Version]
		unknown = "unknown-version"
	}
	if v == nil {
		for i := range resp.Details.Checked {
			resp.Details.Checked[i].Reason = unknown
		}
		resp.Details.Reason = unknown
		return outcome{response: resp, result: "invalid"}, nil
	}
	if _, err := k.lookupAlg(cur.alg.Name()); err != nil {
		return outcome{}, err
	}
	mode = mode.Tighten(cur.mode)
	resp.Details.Mode, resp.Details.Algs = mode.String(), v.algNames()
	preimage, err := statement(cur, d.target.Key, req.PayloadB3, req.ContextB64)
	if err != nil {
		return outcome{}, err
	}
	classical, pq := alg.Absent, alg.Absent
	for i, s := range req.Sigs {
		check := &resp.Details.Checked[i]
		t := v.track(s.Alg)
		if t == nil {
			check.Reason = "alg"
			continue
		}
		sig, err := api.ParseBase64(s.SignatureB64)
		if err != nil {
			return outcome{}, err
		}
		verdict := alg.Bad
		if t.public.Verify(preimage, sig) {
			verdict, check.OK = alg.OK, true
		} else {
			check.Reason = "signature"
		}
		if t.Class() == alg.PostQuantum {
			pq = verdict
		} else {
			classical = verdict
		}
	}
	resp.OK = mode.Satisfied(classical, pq)
	out := outcome{response: resp, kid: d.target.Key, result: "ok"}
	if !resp.OK {
		out.result = "invalid"
		resp.Details.Reason = "signature"
		if classical != alg.Bad && pq != alg.Bad && (classical == alg.OK || pq == alg.OK) {
			// What is there holds, but policy demands more.
			resp.Details.Reason = "pq_policy"
			k.metrics.Reject.WithLabelValues(string(api.ReasonPq)).Inc()
		}
	}
	return out, nil
}

func (k *KMS) get(_ context.Context, d *decided) (outcome, error) {
	cur := k.keys.get(d.target.Key)
	if cur == nil {
		return outcome{}, api.NewError(api.ReasonNotFound, "there is no such key")
	}
	resp := &api.GetResponse{Key: cur.public}
	if n := d.target.Key.Version; n != 0 {
		if cur.versions[n] == nil {
			return outcome{}, api.NewError(api.ReasonNotFound, "there is no such version")
		}
		for _, v := range cur.public.Versions {
			if v.Version == n {
				resp.Key.Versions = []api.KeyVersion{v}
			}
		}
	}
	return outcome{response: resp, kid: d.target.Key}, nil
}

func (k *KMS) list(_ context.Context, d *decided) (outcome, error) {
	req := d.req.(*api.ListRequest)
	limit := req.Limit
	if limit == 0 {
		limit = 100
	}
	after := ""
	if req.After != "" {
		kid, err := api.ParseKID(req.After)
		if err != nil {
			return outcome{}, err
		}
		after = kid.Base().String()
	}
	keys, more := k.keys.page(req.Tenant, req.Purpose, after, limit)
	resp := &api.ListResponse{Keys: make([]api.Key, 0, len(keys))}
	for _, c := range keys {
		resp.Keys = append(resp.Keys, c.public)
	}
	if more {
		resp.Next = keys[len(keys)-1].kid.String()
	}
	return outcome{response: resp}, nil
}
