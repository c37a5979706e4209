package core_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/core/api"
	. "github.com/rustyonions/ron-kms/core/coretest"
)

// A batch of signatures: one result for each item, in order; what is wrong with
// an item is its own error. All records stand together, each with its item's
// hash..
func TestSignBatch(t *testing.T) {
	t.Parallel()
	cfg, report, k := store(t)
	s := Session(t, k, "acme")
	kid := Create(t, k, s, "hybrid").KID
	now := k.Now().UnixMilli()
	items := []struct {
		item api.SignItem
		want api.Code
	}{
		{api.SignItem{PayloadB3: Digest(1)}, ""},
		{api.SignItem{PayloadB3: "xyz"}, api.CodeBadRequest},
		{api.SignItem{PayloadB3: Digest(2), ContextB64: api.FormatBase64([]byte("c"))}, ""},
		{api.SignItem{PayloadB64: api.FormatBase64([]byte("raw"))}, api.CodeBadRequest},
		{api.SignItem{PayloadB3: Digest(3), Validity: &api.Validity{NotAfterMS: now - 3_600_000}}, api.CodeTimeSkew},
		{api.SignItem{}, api.CodeBadRequest},
		{api.SignItem{PayloadB3: Digest(1)}, ""},
		{api.SignItem{PayloadB3: Digest(4), ContextB64: api.FormatBase64(make([]byte, 256))}, api.CodeTooLarge},
	}
	req := &api.SignBatchRequest{KID: Base(kid), OpID: uuid.NewString()}
	for _, x := range items {
		req.Items = append(req.Items, x.item)
	}
	r := Must[api.SignBatchResponse](t, k, s, "sign_batch", req)
	if len(r.Results) != len(items) || r.KID != kid || r.Scheme != api.SchemeV1 {
		t.Fatalf("%d results by %s", len(r.Results), r.KID)
	}
	for i, x := range items {
		got := r.Results[i]
		if got.Receipt == nil || i > 0 && (got.Receipt.LogIndex != r.Results[i-1].Receipt.LogIndex+1 || got.Receipt.KeySeq != r.Results[i-1].Receipt.KeySeq+1) {
			t.Errorf("item %d has the receipt %+v", i, got.Receipt)
		}
		if x.want != "" {
			if got.Error == nil || got.Error.Code != x.want || got.Error.Message == "" || got.Sigs != nil {
				t.Errorf("item %d: %+v, want %s", i, got.Error, x.want)
			}
			continue
		}
		v := Must[api.VerifyResponse](t, k, s, "verify", &api.VerifyRequest{PayloadB3: x.item.PayloadB3, ContextB64: x.item.ContextB64, Sigs: got.Sigs})
		if got.Error != nil || len(got.Sigs) != 2 || !v.OK {
			t.Errorf("item %d: %+v, %+v", i, got, v)
		}
	}
	k.Close()
	at := r.Results[0].Receipt.LogIndex
	for i, e := range Audit(t, cfg, report.VerifierKey)[at : at+uint64(len(items))] {
		result, input := "ok", strings.Repeat("00", 32)
		if items[i].want != "" {
			result = string(items[i].want)
		}
		if items[i].want == "" || i == 4 || i == 7 {
			input = items[i].item.PayloadB3
		}
		got := fmt.Sprintf("%x", e.InputHash)
		if e.Op != "sign_batch" || e.Result != result || e.Key != Base(kid) || e.KeyVersion != 1 || uuid.UUID(e.OpID).String() != req.OpID {
			t.Errorf("record %d: %s", i, lineOf(e.Record))
		}
		if input != strings.Repeat("00", 32) && got != input {
			t.Errorf("record %d has the input hash %s, want %s", i, got, input)
		}
	}
}

// Batches are bounded, and refused as a whole where the key or the right is
// wrong. R-303.
func TestBatchRefuses(t *testing.T) {
	t.Parallel()
	k := Amnesia(t)
	s := Session(t, k, "acme")
	kid := Create(t, k, s, "ed25519").KID
	sigs := Sign(t, k, s, kid, Digest(1)).Sigs
	theirs := Sign(t, k, Session(t, k, "other"), Create(t, k, Session(t, k, "other"), "ed25519").KID, Digest(1)).Sigs
	full := make([]api.SignItem, 257)
	bundles := make([]api.VerifyRequest, 257)
	for i := range full {
		full[i].PayloadB3 = Digest(1)
		bundles[i] = api.VerifyRequest{PayloadB3: Digest(1), Sigs: sigs}
	}
	for what, c := range map[string]struct {
		req  *api.SignBatchRequest
		want api.Code
	}{
		"256 items":   {&api.SignBatchRequest{KID: kid, Items: full[:256]}, ""},
		"257 items":   {&api.SignBatchRequest{KID: kid, Items: full}, api.CodeBadRequest},
		"no items":    {&api.SignBatchRequest{KID: kid}, api.CodeBadRequest},
		"no key":      {&api.SignBatchRequest{KID: "acme/test/ed25519/" + uuid.NewString(), Items: full[:1]}, api.CodeNotFound},
		"other track": {&api.SignBatchRequest{KID: kid, Alg: "nothing at all", Items: full[:1]}, api.CodeBadRequest},
		"no version":  {&api.SignBatchRequest{KID: Base(kid) + "#v2", Items: full[:1]}, api.CodeNotFound},
		"a KEM":       {&api.SignBatchRequest{KID: Create(t, k, s, "x25519").KID, Items: full[:1]}, api.CodeUnsupported},
	} {
		r, err := Do[api.SignBatchResponse](k, s, "sign_batch", c.req)
		if Code(err) != c.want || err == nil && len(r.Results) != len(c.req.Items) {
			t.Errorf("sign_batch with %s: %v, want %q", what, err, c.want)
		}
	}
	for what, c := range map[string]struct {
		items []api.VerifyRequest
		want  api.Code
	}{
		"256 items":   {bundles[:256], ""},
		"257 items":   {bundles, api.CodeBadRequest},
		"no items":    {nil, api.CodeBadRequest},
		"two tenants": {[]api.VerifyRequest{bundles[0], {PayloadB3: Digest(1), Sigs: theirs}}, api.CodeBadRequest},
		"a stranger":  {[]api.VerifyRequest{{PayloadB3: Digest(1), Sigs: theirs}}, api.CodeNoCapability},
	} {
		r, err := Do[api.VerifyBatchResponse](k, s, "verify_batch", &api.VerifyBatchRequest{Items: c.items})
		if Code(err) != c.want || err == nil && (!r.OK || len(r.Results) != len(c.items)) {
			t.Errorf("verify_batch with %s: %v, want %q", what, err, c.want)
		}
	}
}

// Bundles judged in a batch get the answers that they get one by one, errors
// too, and one record each. D-12.
func TestVerifyBatchIsVerify(t *testing.T) {
	t.Parallel()
	cfg, report, k := store(t)
	s := Session(t, k, "acme")
	a, b := Create(t, k, s, "hybrid"), Create(t, k, s, "ed25519")
	both, one := Sign(t, k, s, a.KID, Digest(1)).Sigs, Sign(t, k, s, b.KID, Digest(1)).Sigs
	raw := CreateWith(t, k, s, api.CreateRequest{Alg: "ed25519", Scheme: api.SchemeRaw})
	rawSigs := Must[api.SignResponse](t, k, s, "sign", &api.SignRequest{KID: raw.KID, PayloadB64: "AAAA"}).Sigs
	late := append([]api.Signature(nil), one...)
	late[0].Validity = &api.Validity{NotAfterMS: 1}
	items := []api.VerifyRequest{
		{PayloadB3: Digest(1), Sigs: both},
		{PayloadB3: Digest(2), Sigs: both},
		{PayloadB3: Digest(1), Sigs: both[:1]},
		{PayloadB3: Digest(1), Sigs: both[1:]},
		{PayloadB3: Digest(1), Sigs: []api.Signature{both[0], spoil(both[1])}},
		{PayloadB3: Digest(1), Sigs: one},
		{PayloadB3: Digest(1), Sigs: one, Policy: &api.VerifyPolicy{Mode: "and"}},
		{PayloadB3: Digest(1), Sigs: append(append([]api.Signature{}, both...), one...), KIDSet: []string{a.KID, b.KID}},
		{PayloadB3: Digest(1), Sigs: append(append([]api.Signature{}, both...), one...)}, // no set
		{PayloadB3: Digest(1), Sigs: append(append([]api.Signature{}, one...), one...)},  // twice
		{PayloadB64: "AAAA", Sigs: rawSigs},
		{PayloadB3: Digest(1), Sigs: rawSigs},
		{PayloadB3: "short", Sigs: one},
		{PayloadB3: Digest(1), Sigs: late},
		{PayloadB3: Digest(1)},
		{PayloadB3: Digest(1), Sigs: one, Policy: &api.VerifyPolicy{Mode: "maybe"}},
		{PayloadB3: Digest(1), Sigs: []api.Signature{{KID: "acme/test/ed25519/" + uuid.NewString() + "#v1", Alg: "ed25519", SignatureB64: one[0].SignatureB64}}},
		{PayloadB3: Digest(1), Sigs: []api.Signature{{KID: Create(t, k, s, "x25519").KID, Alg: "x25519", SignatureB64: one[0].SignatureB64}}},
	}
	r := Must[api.VerifyBatchResponse](t, k, s, "verify_batch", &api.VerifyBatchRequest{Items: items})
	good := 0
	for i := range items {
		single, err := Do[api.VerifyResponse](k, s, "verify", &items[i])
		got := r.Results[i]
		if err != nil {
			if want := api.NewItemError(err); got.Error == nil || *got.Error != *want || got.OK {
				t.Errorf("item %d: %+v, alone %+v", i, got.Error, want)
			}
			continue
		}
		want, _ := api.Encode(&single.Details)
		have, err := api.Encode(got.Details)
		if err != nil || got.Error != nil || got.OK != single.OK || string(have) != string(want) {
			t.Errorf("item %d: %+v, alone %+v", i, got, single)
		}
		if got.OK {
			good++
		}
	}
	if r.OK || good != 4 {
		t.Errorf("ok %t, %d good items", r.OK, good)
	}
	if all := Must[api.VerifyBatchResponse](t, k, s, "verify_batch", &api.VerifyBatchRequest{Items: items[:1]}); !all.OK {
		t.Error("a batch of one good bundle is not ok")
	}
	k.Close()
	records := 0
	for _, e := range Audit(t, cfg, report.VerifierKey) {
		if e.Op == "verify_batch" {
			records++
		}
	}
	if want := len(items) + 1 + 1; records != want { // the set has two keys; and the batch of one
		t.Errorf("%d records of the batches, want %d", records, want)
	}
}
