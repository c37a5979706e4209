package api_test

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"

	"github.com/rustyonions/ron-kms/core/api"
)

// kids are n different kids of tenant acme.
func kids(n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("acme/audit/ed25519/0190a8e2-7c3e-4f6b-9d3a-2f1e5c7b8a%02x", i)
	}
	return list
}

// targets checks a table of requests: reason "" means that Target accepts.
func targets(t *testing.T, table map[string]target) {
	t.Helper()
	for name, c := range table {
		_, err := c.req.Target()
		if c.reason == "" && err != nil || c.reason != "" && !api.HasReason(err, c.reason) {
			t.Errorf("%s: %v, want %q", name, err, c.reason)
		}
		if err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: the error repeats the input: %v", name, err)
		}
	}
}

type target struct {
	req    api.Request
	reason api.Reason
}

// D-2, D-3: a key set is 1 to 8 different keys of one tenant, of sign as of
// verify; a bundle holds signatures of its keys and no others.
func TestKIDSets(t *testing.T) {
	t.Parallel()
	sign := func(set ...string) api.Request { return &api.SignRequest{KIDSet: set, PayloadB3: digest} }
	sig := func(kid, alg string) api.Signature { return api.Signature{KID: kid, Alg: alg, SignatureB64: "AA=="} }
	verify := func(set []string, sigs ...api.Signature) api.Request {
		return &api.VerifyRequest{PayloadB3: digest, KIDSet: set, Sigs: sigs}
	}
	k := kids(9)
	foreign := "evil" + strings.TrimPrefix(k[1], "acme")
	full := make([]api.Signature, 0, 2*api.MaxKIDSet)
	for _, kid := range k[:8] {
		full = append(full, sig(kid+"#v1", "ed25519"), sig(kid+"#v1", "ml-dsa-65"))
	}
	targets(t, map[string]target{
		"one":                       {sign(k[0]), ""},
		"eight":                     {sign(k[:8]...), ""},
		"nine":                      {sign(k...), api.ReasonTooMany},
		"twice":                     {sign(k[0], k[0]), api.ReasonDuplicateSig},
		"twice, another version":    {sign(k[0]+"#v1", k[1], k[0]+"#v2"), api.ReasonDuplicateSig},
		"twice, by its alias":       {sign(k[0], strings.Replace(k[0], "ed25519", "Ed25519", 1)), api.ReasonDuplicateSig},
		"two tenants":               {sign(k[0], foreign), api.ReasonMixedKeys},
		"not a kid":                 {sign(k[0], "canary"), api.ReasonKID},
		"empty kid":                 {sign(""), api.ReasonKID},
		"kid and set":               {&api.SignRequest{KID: k[0], KIDSet: k[:1], PayloadB3: digest}, api.ReasonMalformed},
		"neither":                   {&api.SignRequest{PayloadB3: digest}, api.ReasonKID},
		"op_id of a set":            {&api.SignRequest{KIDSet: k[:2], PayloadB3: digest, OpID: "canary"}, api.ReasonOpID},
		"k of 8":                    {&api.SignRequest{KIDSet: k[:2], PayloadB3: digest, Policy: &api.SignPolicy{KClassical: 8, KPQ: 8}}, ""},
		"k of 9":                    {&api.SignRequest{KIDSet: k[:2], PayloadB3: digest, Policy: &api.SignPolicy{KPQ: 9}}, api.ReasonMalformed},
		"negative k":                {&api.SignRequest{KIDSet: k[:2], PayloadB3: digest, Policy: &api.SignPolicy{KClassical: -1}}, api.ReasonMalformed},
		"verify one of a set":       {verify(k[:3], sig(k[1]+"#v1", "ed25519")), ""},
		"verify all of a set":       {verify(k[:8], full...), ""},
		"verify two versions":       {verify(k[:1], sig(k[0]+"#v1", "ed25519"), sig(k[0]+"#v2", "ml-dsa-65")), ""},
		"verify no set":             {verify(nil, sig(k[0]+"#v1", "ed25519"), sig(k[1]+"#v1", "ed25519")), api.ReasonMixedKeys},
		"verify one not of the set": {verify(k[:1], sig(k[0]+"#v1", "ed25519"), sig(k[1]+"#v1", "ed25519")), api.ReasonMixedKeys},
		"verify another version":    {verify([]string{k[0] + "#v2"}, sig(k[0]+"#v1", "ed25519")), api.ReasonMixedKeys},
		"verify a track twice":      {verify(k[:1], sig(k[0]+"#v1", "ed25519"), sig(k[0]+"#v2", "ed25519")), api.ReasonDuplicateSig},
		"verify nine":               {verify(k, sig(k[0]+"#v1", "ed25519")), api.ReasonTooMany},
		"verify a key twice":        {verify([]string{k[0], k[0]}, sig(k[0]+"#v1", "ed25519")), api.ReasonDuplicateSig},
		"verify two tenants":        {verify([]string{k[0], foreign}, sig(k[0]+"#v1", "ed25519")), api.ReasonMixedKeys},
		"verify k of 9":             {&api.VerifyRequest{PayloadB3: digest, Sigs: full[:1], Policy: &api.VerifyPolicy{KClassical: 9}}, api.ReasonMalformed},
	})
	got, err := sign(k[0], k[1]+"#v3").Target()
	if err != nil || got.Tenant != "acme" || got.Purpose != "" || !got.Key.IsZero() || len(got.Keys) != 2 || got.Keys[1].Version != 3 {
		t.Errorf("target of a set: %+v, %v", got, err)
	}
}

// D-1: exactly one form of the payload, and limits of each.
func TestPayloads(t *testing.T) {
	t.Parallel()
	kid := kids(1)[0]
	raw := func(n int) string { return api.FormatBase64(make([]byte, n)) }
	sigs := []api.Signature{{KID: kid + "#v1", Alg: "ed25519", SignatureB64: "AA=="}}
	targets(t, map[string]target{
		"raw":              {&api.SignRequest{KID: kid, PayloadB64: raw(1)}, ""},
		"largest":          {&api.SignRequest{KID: kid, PayloadB64: raw(api.MaxRawSize)}, ""},
		"too large":        {&api.SignRequest{KID: kid, PayloadB64: raw(api.MaxRawSize + 1)}, api.ReasonTooLarge},
		"both":             {&api.SignRequest{KID: kid, PayloadB3: digest, PayloadB64: raw(1)}, api.ReasonDigest},
		"neither":          {&api.SignRequest{KID: kid}, api.ReasonDigest},
		"not base64":       {&api.SignRequest{KID: kid, PayloadB64: "canary!"}, api.ReasonBase64},
		"line break":       {&api.SignRequest{KID: kid, PayloadB64: "AA==\n"}, api.ReasonBase64},
		"verify raw":       {&api.VerifyRequest{PayloadB64: raw(1), Sigs: sigs}, ""},
		"verify both":      {&api.VerifyRequest{PayloadB3: digest, PayloadB64: raw(1), Sigs: sigs}, api.ReasonDigest},
		"verify too large": {&api.VerifyRequest{PayloadB64: raw(api.MaxRawSize + 1), Sigs: sigs}, api.ReasonTooLarge},
	})
}

// D-20: bounds of a window, wherever one stands.
func TestValidities(t *testing.T) {
	t.Parallel()
	kid := kids(1)[0]
	const year9999 = 253402300799999
	for name, c := range map[string]struct {
		v  *api.Validity
		ok bool
	}{
		"none": {nil, true}, "open": {&api.Validity{}, true}, "from": {&api.Validity{NotBeforeMS: 5}, true}, "until": {&api.Validity{NotAfterMS: 5}, true},
		"an instant": {&api.Validity{NotBeforeMS: 5, NotAfterMS: 5}, true}, "for ever": {&api.Validity{NotBeforeMS: 1, NotAfterMS: year9999}, true},
		"reversed": {&api.Validity{NotBeforeMS: 5, NotAfterMS: 4}, false}, "before 1970": {&api.Validity{NotBeforeMS: -1}, false},
		"until before 1970": {&api.Validity{NotAfterMS: -1}, false}, "year 10000": {&api.Validity{NotAfterMS: year9999 + 1}, false},
		"from year 10000": {&api.Validity{NotBeforeMS: year9999 + 1}, false},
	} {
		_, sign := (&api.SignRequest{KID: kid, PayloadB3: digest, Validity: c.v}).Target()
		_, verify := (&api.VerifyRequest{PayloadB3: digest, Sigs: []api.Signature{{KID: kid + "#v1", Alg: "ed25519", SignatureB64: "AA==", Validity: c.v}}}).Target()
		_, create := (&api.CreateRequest{OpID: id, Tenant: "a", Purpose: "b", Alg: "c", Policy: &api.KeyPolicy{Validity: c.v}}).Target()
		item := (&api.SignItem{PayloadB3: digest, Validity: c.v}).Check()
		for verb, err := range map[string]error{"sign": sign, "verify": verify, "create": create, "item": item} {
			if (err == nil) != c.ok || err != nil && !api.HasReason(err, api.ReasonMalformed) {
				t.Errorf("%s of %s: %v", name, verb, err)
			}
		}
	}
	if from, to := (*api.Validity)(nil).Bounds(); from != 0 || to != 0 {
		t.Errorf("no validity has bounds %d and %d", from, to)
	}
	if from, to := (&api.Validity{NotBeforeMS: 1, NotAfterMS: 2}).Bounds(); from != 1 || to != 2 {
		t.Errorf("bounds %d and %d", from, to)
	}
}

// a batch has 1 to 256 items; items are judged one by one, and only
// what the whole batch needs is checked before.
func TestBatches(t *testing.T) {
	t.Parallel()
	kid := kids(1)[0]
	item := api.SignItem{PayloadB3: digest}
	sig := api.Signature{KID: kid + "#v1", Alg: "ed25519", SignatureB64: "AA=="}
	bundle := api.VerifyRequest{PayloadB3: digest, Sigs: []api.Signature{sig}}
	foreign := api.VerifyRequest{PayloadB3: digest, Sigs: []api.Signature{{KID: "evil" + strings.TrimPrefix(sig.KID, "acme"), Alg: "ed25519", SignatureB64: "AA=="}}}
	targets(t, map[string]target{
		"sign":               {&api.SignBatchRequest{KID: kid, Items: []api.SignItem{item}}, ""},
		"sign 256":           {&api.SignBatchRequest{KID: kid, Items: slices.Repeat([]api.SignItem{item}, api.MaxBatch)}, ""},
		"sign 257":           {&api.SignBatchRequest{KID: kid, Items: slices.Repeat([]api.SignItem{item}, api.MaxBatch+1)}, api.ReasonTooMany},
		"sign none":          {&api.SignBatchRequest{KID: kid}, api.ReasonMalformed},
		"sign a bad item":    {&api.SignBatchRequest{KID: kid, Items: []api.SignItem{{}}}, ""},
		"sign kid":           {&api.SignBatchRequest{KID: "canary", Items: []api.SignItem{item}}, api.ReasonKID},
		"sign alg":           {&api.SignBatchRequest{KID: kid, Alg: "a/b", Items: []api.SignItem{item}}, api.ReasonMalformed},
		"sign op_id":         {&api.SignBatchRequest{KID: kid, OpID: "canary", Items: []api.SignItem{item}}, api.ReasonOpID},
		"verify":             {&api.VerifyBatchRequest{Items: []api.VerifyRequest{bundle}}, ""},
		"verify 256":         {&api.VerifyBatchRequest{Items: slices.Repeat([]api.VerifyRequest{bundle}, api.MaxBatch)}, ""},
		"verify 257":         {&api.VerifyBatchRequest{Items: slices.Repeat([]api.VerifyRequest{bundle}, api.MaxBatch+1)}, api.ReasonTooMany},
		"verify none":        {&api.VerifyBatchRequest{}, api.ReasonMalformed},
		"verify no sigs":     {&api.VerifyBatchRequest{Items: []api.VerifyRequest{{PayloadB3: digest}}}, api.ReasonMalformed},
		"verify some empty":  {&api.VerifyBatchRequest{Items: []api.VerifyRequest{{}, bundle}}, ""},
		"verify two tenants": {&api.VerifyBatchRequest{Items: []api.VerifyRequest{bundle, foreign}}, api.ReasonMixedKeys},
		"verify kid":         {&api.VerifyBatchRequest{Items: []api.VerifyRequest{{Sigs: []api.Signature{{KID: "canary"}}}}}, api.ReasonKID},
	})
	for name, c := range map[string]struct {
		item   api.SignItem
		reason api.Reason
	}{
		"empty": {api.SignItem{}, api.ReasonDigest}, "both": {api.SignItem{PayloadB3: digest, PayloadB64: "AA=="}, api.ReasonDigest},
		"digest": {api.SignItem{PayloadB3: "x"}, api.ReasonDigest}, "raw": {api.SignItem{PayloadB64: "x"}, api.ReasonBase64},
		"context":  {api.SignItem{PayloadB3: digest, ContextB64: strings.Repeat("AAAA", 86)}, api.ReasonTooLarge},
		"validity": {api.SignItem{PayloadB3: digest, Validity: &api.Validity{NotAfterMS: -1}}, api.ReasonMalformed},
	} {
		if err := c.item.Check(); !api.HasReason(err, c.reason) {
			t.Errorf("%s: %v, want %s", name, err, c.reason)
		}
	}
	if e := api.NewItemError(fmt.Errorf("canary")); e.Code != api.CodeInternal || strings.Contains(e.Message, "canary") {
		t.Errorf("an unknown error of an item: %+v", e)
	}
	// The limits go together: a full batch of hybrid bundles is within those of
	// the decoder.
	hybrid := api.VerifyRequest{PayloadB3: digest, Sigs: []api.Signature{sig, {KID: sig.KID, Alg: "ml-dsa-65", SignatureB64: "AA=="}}}
	text, err := api.Encode(api.VerifyBatchRequest{Items: slices.Repeat([]api.VerifyRequest{hybrid}, api.MaxBatch)})
	if err != nil {
		t.Fatal(err)
	}
	if err := api.Decode(text, new(api.VerifyBatchRequest)); err != nil {
		t.Errorf("a full batch: %v", err)
	}
}

// what can be wrapped, and the form of an envelope's request.
func TestWrapTargets(t *testing.T) {
	t.Parallel()
	const kid = "acme/data/x25519/" + id
	b64 := func(n int) string { return api.FormatBase64(make([]byte, n)) }
	targets(t, map[string]target{
		"given":             {&api.WrapRequest{KID: kid, PlaintextKeyB64: b64(1)}, ""},
		"largest":           {&api.WrapRequest{KID: kid, PlaintextKeyB64: b64(api.MaxDataKey)}, ""},
		"too large":         {&api.WrapRequest{KID: kid, PlaintextKeyB64: b64(api.MaxDataKey + 1)}, api.ReasonTooLarge},
		"not base64":        {&api.WrapRequest{KID: kid, PlaintextKeyB64: "canary!"}, api.ReasonBase64},
		"no padding":        {&api.WrapRequest{KID: kid, PlaintextKeyB64: "AA"}, api.ReasonBase64},
		"line break":        {&api.WrapRequest{KID: kid, PlaintextKeyB64: "AA==\n"}, api.ReasonBase64},
		"neither":           {&api.WrapRequest{KID: kid}, api.ReasonMalformed},
		"both":              {&api.WrapRequest{KID: kid, PlaintextKeyB64: b64(32), Size: 32}, api.ReasonMalformed},
		"size 15":           {&api.WrapRequest{KID: kid, Size: 15}, api.ReasonMalformed},
		"size 16":           {&api.WrapRequest{KID: kid, Size: 16}, ""},
		"size 4096":         {&api.WrapRequest{KID: kid, Size: 4096}, ""},
		"size 4097":         {&api.WrapRequest{KID: kid, Size: 4097}, api.ReasonMalformed},
		"size -1":           {&api.WrapRequest{KID: kid, Size: -1}, api.ReasonMalformed},
		"omit":              {&api.WrapRequest{KID: kid, Size: 32, OmitPlaintext: true}, ""},
		"omit what is had":  {&api.WrapRequest{KID: kid, PlaintextKeyB64: b64(32), OmitPlaintext: true}, api.ReasonMalformed},
		"aad":               {&api.WrapRequest{KID: kid, Size: 32, AADB64: b64(api.MaxAADSize)}, ""},
		"aad too large":     {&api.WrapRequest{KID: kid, Size: 32, AADB64: b64(api.MaxAADSize + 1)}, api.ReasonTooLarge},
		"aad not base64":    {&api.WrapRequest{KID: kid, Size: 32, AADB64: "canary!"}, api.ReasonBase64},
		"kid":               {&api.WrapRequest{KID: "canary", Size: 32}, api.ReasonKID},
		"op_id":             {&api.WrapRequest{KID: kid, Size: 32, OpID: "canary"}, api.ReasonOpID},
		"unwrap":            {&api.UnwrapRequest{KID: kid, WrappedB64: "AA=="}, ""},
		"unwrap nothing":    {&api.UnwrapRequest{KID: kid}, api.ReasonBase64},
		"unwrap not base64": {&api.UnwrapRequest{KID: kid, WrappedB64: "canary!"}, api.ReasonBase64},
		"unwrap aad":        {&api.UnwrapRequest{KID: kid, WrappedB64: "AA==", AADB64: b64(api.MaxAADSize + 1)}, api.ReasonTooLarge},
		"unwrap kid":        {&api.UnwrapRequest{WrappedB64: "AA=="}, api.ReasonKID},
		"unwrap op_id":      {&api.UnwrapRequest{KID: kid, WrappedB64: "AA==", OpID: "canary"}, api.ReasonOpID},
		"rewrap":            {&api.RewrapRequest{KID: kid, WrappedB64: "AA=="}, ""},
		"rewrap nothing":    {&api.RewrapRequest{KID: kid}, api.ReasonBase64},
		"rewrap kid":        {&api.RewrapRequest{KID: "canary", WrappedB64: "AA=="}, api.ReasonKID},
	})
}

// R-256, D-18: a context is a label and there is always one.
func TestDeriveTargets(t *testing.T) {
	t.Parallel()
	derive := func(context string) api.Request {
		return &api.DeriveRequest{OpID: id, KID: "acme/data/hkdf-sha256/" + id, Context: context, Alg: "ed25519"}
	}
	table := map[string]target{
		"label": {derive("ci:eu.1"), ""}, "longest": {derive(strings.Repeat("a", api.MaxLabel)), ""},
		"no op_id": {&api.DeriveRequest{KID: "acme/data/hkdf-sha256/" + id, Context: "ci", Alg: "ed25519"}, api.ReasonOpID},
		"no alg":   {&api.DeriveRequest{OpID: id, KID: "acme/data/hkdf-sha256/" + id, Context: "ci"}, api.ReasonMalformed},
		"kid":      {&api.DeriveRequest{OpID: id, KID: "canary", Context: "ci", Alg: "ed25519"}, api.ReasonKID},
	}
	for _, bad := range []string{"", "a::b", "a:", ":a", "a b", "canary/", "é", strings.Repeat("a", api.MaxLabel+1)} {
		table["context "+bad] = target{derive(bad), api.ReasonLabel}
	}
	targets(t, table)
}

// Every response prints and reads as the same JSON, and what is not there
// leaves no trace.
func TestResponses(t *testing.T) {
	t.Parallel()
	receipt := &api.Receipt{LogIndex: 1, KeySeq: 2, CheckpointSize: 3}
	key := api.Key{KID: "k#v1", Alg: "ed25519", Scheme: api.SchemeV1, State: api.StateActive, Head: 1, Parent: "p#v1", Versions: []api.KeyVersion{}}
	for _, resp := range []any{
		&api.SignBatchResponse{KID: "k#v1", Scheme: api.SchemeRaw, Results: []api.SignResult{
			{Sigs: []api.Signature{{KID: "k#v1", Alg: "ed25519", SignatureB64: "AA==", Validity: &api.Validity{NotAfterMS: 1}}}, Receipt: receipt},
			{Receipt: receipt, Error: api.NewItemError(api.NewError(api.ReasonDigest, "m"))},
		}},
		&api.VerifyBatchResponse{Results: []api.VerifyResult{{OK: true, Details: &api.VerifyDetails{Mode: "or", Checked: []api.VerifyCheck{}, KIDs: []string{}, Algs: []string{}}},
			{Error: api.NewItemError(api.NewError(api.ReasonTooMany, "m"))}}},
		&api.WrapResponse{KID: "k#v1", Alg: "x25519", WrappedB64: "AA==", PlaintextKeyB64: "AA==", Receipt: receipt},
		&api.WrapResponse{KID: "k#v1", Alg: "x25519", WrappedB64: "AA=="},
		&api.UnwrapResponse{KID: "k#v1", Alg: "x25519", PlaintextKeyB64: "AA==", Receipt: receipt},
		&api.RewrapResponse{KID: "k#v2", Previous: "k#v1", Alg: "x25519", WrappedB64: "AA==", Receipt: receipt},
		&api.DeriveResponse{Key: key, KID: "k#v1", Parent: "p#v1", Receipt: receipt, Replayed: true},
	} {
		text, err := api.Encode(resp)
		if err != nil {
			t.Fatal(err)
		}
		again := reflect.New(reflect.TypeOf(resp).Elem()).Interface()
		if err := json.Unmarshal(text, again, json.RejectUnknownMembers(true)); err != nil {
			t.Errorf("%T: %v in %s", resp, err, text)
			continue
		}
		if second, err := api.Encode(again); err != nil || !bytes.Equal(second, text) {
			t.Errorf("%T prints as %s, then %s, %v", resp, text, second, err)
		}
		if strings.Contains(string(text), "null") || strings.Contains(string(text), "eplay") {
			t.Errorf("%T prints as %s", resp, text)
		}
	}
	if text, err := api.Encode(api.WrapResponse{}); err != nil || strings.Contains(string(text), "plaintext") {
		t.Errorf("an omitted key prints as %s, %v", text, err)
	}
}
