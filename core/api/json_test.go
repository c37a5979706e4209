package api_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/rustyonions/ron-kms/core/api"
)

// requests are all request DTOs, with bodies that each accepts; together the
// bodies of a DTO have all of its fields.
var requests = []struct {
	empty func() api.Request
	body  string
}{
	{func() api.Request { return new(api.CreateRequest) }, `{"op_id":"` + id + `","tenant":"acme","purpose":"audit","alg":"ed25519","scheme":"raw-b3","policy":{"verify_mode":"and","produce_hybrid":true,"validity":{"not_before_ms":1,"not_after_ms":2}}}`},
	{func() api.Request { return new(api.RotateRequest) }, `{"op_id":"` + id + `","kid":"acme/audit/ed25519/` + id + `"}`},
	{func() api.Request { return new(api.DestroyRequest) }, `{"op_id":"` + id + `","kid":"acme/audit/ed25519/` + id + `"}`},
	{func() api.Request { return new(api.GetRequest) }, `{"kid":"acme/audit/ed25519/` + id + `"}`},
	{func() api.Request { return new(api.ListRequest) }, `{"tenant":"acme","purpose":"audit","after":"acme/audit/ed25519/` + id + `","limit":7}`},
	{func() api.Request { return new(api.ExportRequest) }, `{"kid":"acme/audit/ed25519/` + id + `"}`},
	{func() api.Request { return new(api.SignRequest) }, `{"kid":"acme/audit/ed25519/` + id + `","payload_b3":"` + digest + `","context_b64":"YQ==","validity":{"not_after_ms":7},"alg":"ed25519","op_id":"` + id + `"}`},
	{func() api.Request { return new(api.SignRequest) }, `{"kid_set":["acme/audit/ed25519/` + id + `","acme/audit/ml-dsa-65/` + id + `"],"payload_b64":"cmF3","policy":{"mode":"or","k_classical":1,"k_pq":1}}`},
	{func() api.Request { return new(api.VerifyRequest) }, `{"payload_b3":"` + digest + `","context_b64":"YQ==","sigs":[{"kid":"acme/audit/ed25519/` + id + `#v1","alg":"ed25519","signature_b64":"AA==","validity":{"not_before_ms":7}}],"policy":{"mode":"and","strict":true}}`},
	{func() api.Request { return new(api.VerifyRequest) }, `{"payload_b64":"cmF3","sigs":[{"kid":"acme/audit/ed25519/` + id + `#v1","alg":"ed25519","signature_b64":"AA=="}],"kid_set":["acme/audit/ed25519/` + id + `"],"policy":{"k_classical":1,"k_pq":1}}`},
	{func() api.Request { return new(api.SignBatchRequest) }, `{"kid":"acme/audit/ed25519/` + id + `","alg":"ed25519","op_id":"` + id + `","items":[{"payload_b3":"` + digest + `","context_b64":"YQ==","validity":{"not_before_ms":1}},{"payload_b64":"cmF3"}]}`},
	{func() api.Request { return new(api.VerifyBatchRequest) }, `{"items":[{"payload_b3":"` + digest + `","sigs":[{"kid":"acme/audit/ed25519/` + id + `#v1","alg":"ed25519","signature_b64":"AA=="}]}]}`},
	{func() api.Request { return new(api.WrapRequest) }, `{"kid":"acme/data/x25519/` + id + `","plaintext_key_b64":"AA==","aad_b64":"YQ==","op_id":"` + id + `"}`},
	{func() api.Request { return new(api.WrapRequest) }, `{"kid":"acme/data/x25519/` + id + `","size":32,"omit_plaintext":true}`},
	{func() api.Request { return new(api.UnwrapRequest) }, `{"kid":"acme/data/x25519/` + id + `","wrapped_b64":"AA==","aad_b64":"YQ==","op_id":"` + id + `"}`},
	{func() api.Request { return new(api.RewrapRequest) }, `{"kid":"acme/data/x25519/` + id + `","wrapped_b64":"AA==","aad_b64":"YQ==","op_id":"` + id + `"}`},
	{func() api.Request { return new(api.DeriveRequest) }, `{"op_id":"` + id + `","kid":"acme/data/hkdf-sha256/` + id + `","context":"ci","alg":"ed25519"}`},
}

const digest = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"

// Each DTO reads its own fields and prints them as it read them.
func TestDecode(t *testing.T) {
	t.Parallel()
	for _, r := range requests {
		req := r.empty()
		if err := api.Decode([]byte(" \r\n\t"+r.body+"\n"), req); err != nil {
			t.Errorf("%T: %v", req, err)
			continue
		}
		if _, err := req.Target(); err != nil {
			t.Errorf("%T: target: %v", req, err)
		}
		if b, err := api.Encode(req); err != nil || string(b) != r.body {
			t.Errorf("%T prints as %s, %v", req, b, err)
		}
	}
}

// for each DTO, bodies that it must refuse; the error does not
// repeat them.
func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	missing := make(map[string]bool) // fields that no body has had so far
	for _, r := range requests {
		fields := reflect.TypeOf(r.empty()).Elem()
		for i := range fields.NumField() {
			name, _, _ := strings.Cut(fields.Field(i).Tag.Get("json"), ",")
			missing[fields.Name()+"."+name] = true
		}
	}
	for _, r := range requests {
		inner := strings.TrimSuffix(strings.TrimPrefix(r.body, "{"), "}")
		bad := map[string]string{
			"empty": "", "space": " ", "null": "null", "array": "[" + r.body + "]", "string": `"canary"`, "number": "1", "word": "canary",
			"unknown": `{"canary":1,` + inner + `}`, "trailing": r.body + r.body, "trailing brace": r.body + "}", "trailing word": r.body + " canary",
			"trailing NUL": r.body + "\x00", "cut": r.body[:len(r.body)-1], "comma": "{" + inner + ",}", "BOM": "\ufeff" + r.body,
			"single quotes": strings.ReplaceAll(r.body, `"`, "'"), "not UTF-8": "{\"a\xff\":1," + inner + "}", "lone surrogate": `{"\ud800":1,` + inner + `}`,
			"deep object": strings.Repeat(`{"a":`, 1000) + "1" + strings.Repeat("}", 1000), "deep array": `{"a":` + strings.Repeat("[", 1000) + strings.Repeat("]", 1000) + `}`,
			"many": `{"a":[` + strings.Repeat("1,", api.MaxJSONTokens) + `1]}`, "NaN": `{"a":NaN,` + inner + `}`,
		}
		fields := reflect.TypeOf(r.empty()).Elem()
		for i := range fields.NumField() {
			name, _, _ := strings.Cut(fields.Field(i).Tag.Get("json"), ",")
			quoted := fmt.Sprintf("%q:", name)
			if !strings.Contains(r.body, quoted) {
				continue
			}
			delete(missing, fields.Name()+"."+name)
			upper := fmt.Sprintf("%q:", strings.ToUpper(name))
			bad["null "+name] = strings.Replace("{"+inner+"}", quoted, quoted+"null,"+upper, 1)
			bad["only null "+name] = "{" + quoted + "null}"
			bad["case "+name] = strings.Replace(r.body, quoted, upper, 1)
			bad["twice "+name] = "{" + inner + "," + quoted + `"canary"}`
			bad["escaped twice "+name] = "{" + inner + fmt.Sprintf(`,"\u%04x%s":"canary"}`, name[0], name[1:])
			bad["type "+name] = "{" + quoted + "true}"
			if fields.Field(i).Type.Kind() == reflect.Bool {
				bad["type "+name] = "{" + quoted + "1}"
			}
			bad["bytes "+name] = "{" + quoted + "[1]}"
		}
		for name, body := range bad {
			err := api.Decode([]byte(body), r.empty())
			if !api.HasReason(err, api.ReasonJSON) && !api.HasReason(err, api.ReasonTooMany) {
				t.Errorf("%s: %s: %v", fields, name, err)
			} else if strings.Contains(err.Error(), "canary") {
				t.Errorf("%s: %s: the error repeats the input: %v", fields, name, err)
			}
		}
	}
	for name := range missing {
		t.Errorf("no body has %s", name)
	}
	// Nested objects and numbers are strict too.
	for body, req := range map[string]api.Request{
		`{"policy":{"x":1}}`: new(api.CreateRequest), `{"policy":{"Verify_Mode":"and"}}`: new(api.CreateRequest),
		`{"sigs":[{"x":1}]}`: new(api.VerifyRequest), `{"sigs":{}}`: new(api.VerifyRequest), `{"policy":{"mode":null}}`: new(api.VerifyRequest),
		`{"policy":{"validity":{"x":1}}}`: new(api.CreateRequest), `{"validity":{"not_before_ms":"1"}}`: new(api.SignRequest),
		`{"validity":{"not_before_ms":1.5}}`: new(api.SignRequest), `{"validity":{"not_after_ms":9223372036854775808}}`: new(api.SignRequest),
		`{"kid_set":"x"}`: new(api.SignRequest), `{"kid_set":[null]}`: new(api.VerifyRequest), `{"items":[{"x":1}]}`: new(api.SignBatchRequest),
		`{"items":[[]]}`: new(api.SignBatchRequest), `{"items":[{"kid":"x"}]}`: new(api.VerifyBatchRequest), `{"items":{}}`: new(api.VerifyBatchRequest),
		`{"items":[{"sigs":[{"Kid":"x"}]}]}`: new(api.VerifyBatchRequest), `{"omit_plaintext":"true"}`: new(api.WrapRequest),
		`{"size":-0.5}`: new(api.WrapRequest), `{"nonce_b64":"AA=="}`: new(api.WrapRequest), `{"salt":"AA=="}`: new(api.DeriveRequest),
		`{"limit":1.5}`: new(api.ListRequest), `{"limit":"1"}`: new(api.ListRequest), `{"limit":99999999999999999999}`: new(api.ListRequest),
	} {
		if err := api.Decode([]byte(body), req); !api.HasReason(err, api.ReasonJSON) {
			t.Errorf("%s: %v", body, err)
		}
	}
}

// R-247, D-3: syntax that only Target sees.
func TestTargetRefuses(t *testing.T) {
	t.Parallel()
	kid := "acme/audit/ed25519/" + id
	sig := func(kid, alg, b64 string) api.Signature { return api.Signature{KID: kid, Alg: alg, SignatureB64: b64} }
	verify := func(sigs ...api.Signature) api.Request { return &api.VerifyRequest{PayloadB3: digest, Sigs: sigs} }
	one := sig(kid+"#v1", "ed25519", "AA==")
	many := make([]api.Signature, api.MaxSignatures+1)
	for i := range many {
		many[i] = sig(kid+"#v1", fmt.Sprintf("alg%d", i), "AA==")
	}
	for name, c := range map[string]struct {
		req    api.Request
		reason api.Reason
	}{
		"create: no op_id":        {&api.CreateRequest{Tenant: "a", Purpose: "b", Alg: "c"}, api.ReasonOpID},
		"create: nil op_id":       {&api.CreateRequest{Tenant: "a", Purpose: "b", Alg: "c", OpID: "00000000-0000-0000-0000-000000000000"}, api.ReasonOpID},
		"create: upper op_id":     {&api.CreateRequest{Tenant: "a", Purpose: "b", Alg: "c", OpID: strings.ToUpper(id)}, api.ReasonOpID},
		"create: tenant":          {&api.CreateRequest{Tenant: "a/b", Purpose: "b", Alg: "c", OpID: id}, api.ReasonLabel},
		"create: purpose":         {&api.CreateRequest{Tenant: "a", Alg: "c", OpID: id}, api.ReasonLabel},
		"create: alg":             {&api.CreateRequest{Tenant: "a", Purpose: "b", Alg: "a/c", OpID: id}, api.ReasonMalformed},
		"rotate: no op_id":        {&api.RotateRequest{KID: kid}, api.ReasonOpID},
		"rotate: kid":             {&api.RotateRequest{KID: "x", OpID: id}, api.ReasonKID},
		"destroy: no op_id":       {&api.DestroyRequest{KID: kid}, api.ReasonOpID},
		"get: kid":                {&api.GetRequest{}, api.ReasonKID},
		"export: kid":             {&api.ExportRequest{}, api.ReasonKID},
		"list: tenant":            {&api.ListRequest{}, api.ReasonLabel},
		"list: limit":             {&api.ListRequest{Tenant: "a", Limit: 501}, api.ReasonMalformed},
		"list: negative limit":    {&api.ListRequest{Tenant: "a", Limit: -1}, api.ReasonMalformed},
		"list: after of another":  {&api.ListRequest{Tenant: "a", After: kid}, api.ReasonMalformed},
		"sign: no digest":         {&api.SignRequest{KID: kid}, api.ReasonDigest},
		"sign: upper digest":      {&api.SignRequest{KID: kid, PayloadB3: strings.ToUpper(digest)}, api.ReasonDigest},
		"sign: short digest":      {&api.SignRequest{KID: kid, PayloadB3: digest[1:]}, api.ReasonDigest},
		"sign: prefixed digest":   {&api.SignRequest{KID: kid, PayloadB3: "b3:" + digest[3:]}, api.ReasonDigest},
		"sign: context":           {&api.SignRequest{KID: kid, PayloadB3: digest, ContextB64: "YQ"}, api.ReasonBase64},
		"sign: context too long":  {&api.SignRequest{KID: kid, PayloadB3: digest, ContextB64: strings.Repeat("AAAA", 86)}, api.ReasonTooLarge},
		"sign: alg":               {&api.SignRequest{KID: kid, PayloadB3: digest, Alg: "x y"}, api.ReasonMalformed},
		"sign: op_id":             {&api.SignRequest{KID: kid, PayloadB3: digest, OpID: "x"}, api.ReasonOpID},
		"verify: none":            {verify(), api.ReasonMalformed},
		"verify: too many":        {verify(many...), api.ReasonTooMany},
		"verify: twice":           {verify(one, one), api.ReasonDuplicateSig},
		"verify: two versions":    {verify(one, sig(kid+"#v2", "ml-dsa-65", "AA==")), api.ReasonMixedKeys},
		"verify: no version":      {verify(sig(kid, "ed25519", "AA==")), api.ReasonKID},
		"verify: alg":             {verify(sig(kid+"#v1", "", "AA==")), api.ReasonMalformed},
		"verify: stray bits":      {verify(sig(kid+"#v1", "ed25519", "AB==")), api.ReasonBase64},
		"verify: line break":      {verify(sig(kid+"#v1", "ed25519", "AA==\n")), api.ReasonBase64},
		"verify: url alphabet":    {verify(sig(kid+"#v1", "ed25519", "-_==")), api.ReasonBase64},
		"verify: missing padding": {verify(sig(kid+"#v1", "ed25519", "AA")), api.ReasonBase64},
		"create: scheme":          {&api.CreateRequest{Tenant: "a", Purpose: "b", Alg: "c", OpID: id, Scheme: "raw-msg"}, api.ReasonMalformed},
		"create: validity": {&api.CreateRequest{Tenant: "a", Purpose: "b", Alg: "c", OpID: id,
			Policy: &api.KeyPolicy{Validity: &api.Validity{NotBeforeMS: 2, NotAfterMS: 1}}}, api.ReasonMalformed},
	} {
		if _, err := c.req.Target(); !api.HasReason(err, c.reason) {
			t.Errorf("%s: %v, want %s", name, err, c.reason)
		}
	}
}

// the decoder never panics, and what it accepts is a fixed point:
// printed and read again it is the same.
func FuzzDecode(f *testing.F) {
	for _, r := range requests {
		f.Add([]byte(r.body))
		f.Add([]byte(r.body[:len(r.body)-1]))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, r := range requests {
			req := r.empty()
			if err := api.Decode(data, req); err != nil {
				if !api.HasReason(err, api.ReasonJSON) && !api.HasReason(err, api.ReasonTooMany) {
					t.Fatalf("%T: %v", req, err)
				}
				continue
			}
			req.Target()
			text, err := api.Encode(req)
			if err != nil {
				t.Fatalf("%T: %v", req, err)
			}
			again := r.empty()
			if err := api.Decode(text, again); err != nil {
				t.Fatalf("%T: %s: %v", req, text, err)
			}
			if second, err := api.Encode(again); err != nil || string(second) != string(text) {
				t.Fatalf("%T: %s, then %s, %v", req, text, second, err)
			}
		}
	})
}
