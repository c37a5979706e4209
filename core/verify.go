package core

import (
	"context"
	"slices"

	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
)

// Words of a verdict that is not ok.
const (
	resultInvalid  = "invalid"
	whySignature   = "signature"
	whyPolicy      = "pq_policy"
	whyNoKey       = "unknown-key"
	whyNoVersion   = "unknown-version"
	whyNoTrack     = "alg"
	whyNotAKeyThat = "kind"
	whyMember      = "missing-member"
)

// verify answers from public material in memory: it needs neither the backend
// nor a healthy log.
func (k *KMS) verify(_ context.Context, d *decided) (outcome, error) {
	resp, entries, err := k.verdict(d, d.req.(*api.VerifyRequest))
	if err != nil {
		return outcome{}, err
	}
	return outcome{response: resp, entries: entries}, nil
}

func (k *KMS) verifyBatch(ctx context.Context, d *decided) (outcome, error) {
	req := d.req.(*api.VerifyBatchRequest)
	resp := &api.VerifyBatchResponse{OK: true, Results: make([]api.VerifyResult, len(req.Items))}
	out := outcome{response: resp}
	for i := range req.Items {
		// Other tenants get their turn between the items.
		if i > 0 {
			if err := d.ticket.Yield(ctx); err != nil {
				return outcome{}, timeout(err)
			}
		}
		item, result := &req.Items[i], &resp.Results[i]
		_, err := item.Target()
		var answer *api.VerifyResponse
		var entries []entry
		if err == nil {
			answer, entries, err = k.verdict(d, item)
		}
		if err != nil {
			result.Error = api.NewItemError(err)
			k.metrics.Reject.WithLabelValues(string(result.Error.Reason)).Inc()
			entries = []entry{{result: string(result.Error.Code), inputHash: itemHash(item.PayloadB3, item.PayloadB64)}}
		} else {
			result.OK, result.Details = answer.OK, &answer.Details
		}
		resp.OK = resp.OK && result.OK
		out.entries = append(out.entries, entries...)
	}
	return out, nil
}

// tally is what the signatures of one key amount to.
type tally struct {
	kid           api.KID
	mode          alg.Mode
	grace         bool
	known         bool
	classical, pq alg.Verdict
}

// verdict judges one bundle. Every key in it must satisfy the mode that holds
// for that key; k_classical and k_pq then count keys.
func (k *KMS) verdict(d *decided, req *api.VerifyRequest) (*api.VerifyResponse, []entry, error) {
	wish := api.VerifyPolicy{}
	if req.Policy != nil {
		wish = *req.Policy
	}
	asked, err := wishedMode(wish.Mode)
	if err != nil {
		return nil, nil, err
	}
	resp := &api.VerifyResponse{Details: api.VerifyDetails{Checked: make([]api.VerifyCheck, len(req.Sigs)), Algs: []string{}}}
	var kids []api.KID
	var tallies []*tally
	bad := false
	for i, s := range req.Sigs {
		kid, err := api.ParseKID(s.KID)
		if err != nil {
			return nil, nil, err
		}
		if err := k.within(s.Validity); err != nil {
			return nil, nil, err
		}
		kids = append(kids, kid)
		check := &resp.Details.Checked[i]
		*check = api.VerifyCheck{KID: kid.String(), Alg: s.Alg}
		var t *tally
		for _, earlier := range tallies {
			if earlier.kid == kid {
				t = earlier
			}
		}
		cur, v := k.publicOf(kid, check)
		if t == nil {
			t = &tally{kid: kid, mode: d.rule(kid).Mode, classical: alg.Absent, pq: alg.Absent}
			tallies = append(tallies, t)
			if v != nil {
				t.known = true
				t.mode, t.grace = k.modeFor(d, cur, v, asked)
				resp.Details.Algs = append(resp.Details.Algs, v.algNames()...)
			}
		}
		if v == nil {
			bad = true
			continue
		}
		if _, err := k.lookupAlg(cur.alg.Name()); err != nil {
			return nil, nil, err
		}
		if t := v.track(s.Alg); t != nil {
			if err := k.allowsTrack(cur, v, t); err != nil {
				return nil, nil, err
			}
		}
		if err := judge(t, cur, v, kid, req, &s, check); err != nil {
			return nil, nil, err
		}
		bad = bad || !check.OK
	}
	resp.Details.KIDs = names(kids)
	members, err := parseAll(req.KIDSet)
	if err != nil {
		return nil, nil, err
	}
	entries := k.conclude(resp, tallies, members, wish, bad, itemHash(req.PayloadB3, req.PayloadB64))
	return resp, entries, nil
}

// publicOf finds what a signature is verified with; check says why there is
// nothing.
func (k *KMS) publicOf(kid api.KID, check *api.VerifyCheck) (*key, *version) {
	cur := k.keys.get(kid)
	if cur == nil {
		check.Reason = whyNoKey
		return nil, nil
	}
	if cur.alg.Kind() != alg.KindSign {
		check.Reason = whyNotAKeyThat
		return nil, nil
	}
	v := cur.versions[kid.Version]
	if v == nil {
		check.Reason = whyNoVersion
		return nil, nil
	}
	return cur, v
}

// modeFor is the mode that a version's signatures must satisfy. During the
// grace period the server's own demand does not reach back to versions made
// without a post-quantum track; a key's and a caller's demands do.
func (k *KMS) modeFor(d *decided, cur *key, v *version, asked alg.Mode) (mode alg.Mode, grace bool) {
	rule := d.rule(cur.kid)
	mode = rule.Mode
	if rule.LegacyGrace && mode != alg.ModeOr && len(v.tracks) == 1 && v.tracks[0].Class() == alg.Classical {
		mode, grace = alg.ModeOr, true
	}
	mode = mode.Tighten(cur.mode)
	if asked != 0 {
		mode = mode.Tighten(asked)
	}
	return mode, grace
}

// judge verifies one signature.
func judge(t *tally, cur *key, v *version, kid api.KID, req *api.VerifyRequest, s *api.Signature, check *api.VerifyCheck) error {
	msg, err := cur.message(v, kid, payload{req.PayloadB3, req.PayloadB64, req.ContextB64}, s.Validity)
	if err != nil {
		return err
	}
	track := v.track(s.Alg)
	if track == nil {
		check.Reason = whyNoTrack
		return nil
	}
	sig, err := api.ParseBase64(s.SignatureB64)
	if err != nil {
		return err
	}
	verdict := alg.Bad
	if check.OK = track.public.VerifyScheme(cur.scheme, msg, sig); check.OK {
		verdict = alg.OK
	} else {
		check.Reason = whySignature
	}
	if track.Class() == alg.PostQuantum {
		t.pq = verdict
	} else {
		t.classical = verdict
	}
	return nil
}

// parseAll parses kids that were checked before.
func parseAll(texts []string) ([]api.KID, error) {
	kids := make([]api.KID, len(texts))
	for i, text := range texts {
		kid, err := api.ParseKID(text)
		if err != nil {
			return nil, err
		}
		kids[i] = kid
	}
	return kids, nil
}

// satisfied reports whether the signatures of one key are enough.
func (t *tally) satisfied() bool { return t.known && t.mode.Satisfied(t.classical, t.pq) }

// shortfall says why the signatures of one key are not enough.
func (t *tally) shortfall(checked []api.VerifyCheck) string {
	switch {
	case !t.known:
		for _, c := range checked {
			if c.KID == t.kid.String() {
				return c.Reason
			}
		}
		return whyNoKey
	case t.classical != alg.Bad && t.pq != alg.Bad && (t.classical == alg.OK || t.pq == alg.OK):
		return whyPolicy // what is there holds, but policy demands more
	}
	return whySignature
}

// conclude turns the tallies into the answer and its records. Every key of the
// bundle must be satisfied, and every member of a kid_set must be there, unless
// the caller asks for a smaller quorum: then so many satisfied keys suffice.
func (k *KMS) conclude(resp *api.VerifyResponse, tallies []*tally, members []api.KID, wish api.VerifyPolicy, bad bool, hash [32]byte) []entry {
	quorum := len(members) > 0 && (wish.KClassical > 0 || wish.KPQ > 0)
	resp.OK = true
	fail := func(why string) { resp.OK, resp.Details.Reason = false, why }
	var classical, pq int
	entries := make([]entry, len(tallies))
	resp.Details.Mode = tallies[0].mode.String()
	for i, t := range tallies {
		entries[i] = entry{inputHash: hash}
		if t.known {
			entries[i].kid = t.kid
		} else {
			entries[i].detail = t.kid.String()
		}
		if t.mode != tallies[0].mode {
			resp.Details.Mode = "mixed"
		}
		resp.Details.Grace = resp.Details.Grace || t.grace
		if !t.satisfied() {
			entries[i].result = resultInvalid
			if !quorum {
				fail(t.shortfall(resp.Details.Checked))
			}
			continue
		}
		if t.classical == alg.OK {
			classical++
		}
		if t.pq == alg.OK {
			pq++
		}
	}
	if !quorum {
		for _, m := range members {
			if !slices.ContainsFunc(tallies, func(t *tally) bool { return t.kid.Base() == m.Base() }) {
				fail(whyMember)
			}
		}
	}
	if resp.OK && (classical < wish.KClassical || pq < wish.KPQ) {
		fail(whyPolicy)
	}
	if resp.OK && wish.Strict && bad {
		fail(whySignature)
	}
	if !resp.OK {
		if resp.Details.Reason == whyPolicy {
			k.metrics.Reject.WithLabelValues(string(api.ReasonPq)).Inc()
		}
		for i := range entries {
			entries[i].result = resultInvalid
		}
	}
	return entries
}
