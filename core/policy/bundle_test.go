package policy

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/rustyonions/ron-kms/core/alg"
)

func mustBundle(tb testing.TB, text string) *bundle {
	tb.Helper()
	b, err := parseBundle([]byte(text))
	if err != nil {
		tb.Fatalf("%v: %s", err, text)
	}
	return b
}

// rules makes a bundle of rules without reasons, "id: when -> action".
func rules(defaults string, rr ...string) string {
	for i, r := range rr {
		when, action, _ := strings.Cut(r, " -> ")
		action, obligations, ok := strings.Cut(action, " ")
		if ok {
			obligations = `,"obligations":[` + obligations + `]`
		}
		rr[i] = fmt.Sprintf(`{"id":"r%d","when":{%s},"action":"%s"%s}`, i+1, when, action, obligations)
	}
	return `{"version":1,"defaults":{` + defaults + `},"rules":[` + strings.Join(rr, ",") + `]}`
}

// G-8, R-408: first match wins, exact methods before the others, deny by
// default: the semantics of ron-policy's evaluator, case by case.
func TestBundleSemantics(t *testing.T) {
	t.Parallel()
	sign := Input{Tenant: "acme", Purpose: "release", Verb: "sign", Method: "KMS:SIGN", Alg: "ed25519"}
	with := func(f func(*Input)) Input { in := sign; f(&in); return in }
	for name, c := range map[string]struct {
		text   string
		region string
		in     Input
		allow  bool
		reason string
	}{
		"no rule":                      {text: `{"version":1}`, in: sign, reason: "default"},
		"default deny":                 {text: rules(`"default_action":"deny"`), in: sign, reason: "default"},
		"default allow":                {text: rules(`"default_action":"allow"`), in: sign, allow: true, reason: "default"},
		"first wins, allow":            {text: rules(``, `"method":"KMS:SIGN" -> allow`, `"method":"KMS:SIGN" -> deny`), in: sign, allow: true, reason: "rule r1"},
		"first wins, deny":             {text: rules(``, `"method":"KMS:SIGN" -> deny`, `"method":"KMS:SIGN" -> allow`), in: sign, reason: "rule r1"},
		"exact before any, allow":      {text: rules(``, `"method":"*" -> deny`, `"method":"KMS:SIGN" -> allow`), in: sign, allow: true, reason: "rule r2"},
		"exact before any, deny":       {text: rules(``, `"method":"*" -> allow`, `"method":"KMS:SIGN" -> deny`), in: sign, reason: "rule r2"},
		"no method is any":             {text: rules(``, ` -> deny`, `"method":"KMS:SIGN" -> allow`), in: sign, allow: true, reason: "rule r2"},
		"any in the file's order":      {text: rules(``, `"method":"*" -> allow`, ` -> deny`), in: sign, allow: true, reason: "rule r1"},
		"exact misses, any follows":    {text: rules(``, `"method":"*" -> allow`, `"method":"KMS:SIGN","tenant":"beta" -> deny`), in: sign, allow: true, reason: "rule r1"},
		"method in small letters":      {text: rules(``, `"method":"kms:sign" -> allow`), in: sign, allow: true, reason: "rule r1"},
		"another method":               {text: rules(``, `"method":"KMS:VERIFY" -> allow`), in: sign, reason: "default"},
		"method of another service":    {text: rules(``, `"method":"GET","region":"EU","require_tags_all":["hd"] -> allow`), in: sign, reason: "default"},
		"tenant":                       {text: rules(``, `"tenant":"acme" -> allow`), in: sign, allow: true, reason: "rule r1"},
		"tenant, any":                  {text: rules(``, `"tenant":"*" -> allow`), in: sign, allow: true, reason: "rule r1"},
		"tenant, another":              {text: rules(``, `"tenant":"acm" -> allow`), in: sign, reason: "default"},
		"tenant, other case":           {text: rules(``, `"tenant":"Acme" -> allow`), in: sign, reason: "default"},
		"region without one":           {text: rules(``, `"region":"EU" -> allow`), in: sign, reason: "default"},
		"region":                       {text: rules(``, `"region":"EU" -> allow`), region: "EU", in: sign, allow: true, reason: "rule r1"},
		"region, another":              {text: rules(``, `"region":"EU" -> allow`), region: "US", in: sign, reason: "default"},
		"region, any":                  {text: rules(``, `"region":"*" -> allow`), in: sign, allow: true, reason: "rule r1"},
		"body at the default's limit":  {text: rules(`"default_action":"allow","max_body_bytes":10`), in: with(func(i *Input) { i.BodyBytes = 10 }), allow: true, reason: "default"},
		"body over the default's":      {text: rules(`"default_action":"allow","max_body_bytes":10`, ` -> allow`), in: with(func(i *Input) { i.BodyBytes = 11 }), reason: "body too large (defaults)"},
		"body over a rule's: no match": {text: rules(``, `"max_body_bytes":10 -> allow`), in: with(func(i *Input) { i.BodyBytes = 11 }), reason: "default"},
		"body at a rule's":             {text: rules(``, `"max_body_bytes":10 -> allow`), in: with(func(i *Input) { i.BodyBytes = 10 }), allow: true, reason: "rule r1"},
		"no body allowed":              {text: rules(``, `"max_body_bytes":0 -> allow`), in: with(func(i *Input) { i.BodyBytes = 1 }), reason: "default"},
		"alg":                          {text: rules(``, `"require_tags_all":["alg:ed25519"] -> allow`), in: sign, allow: true, reason: "rule r1"},
		"alg, another":                 {text: rules(``, `"require_tags_all":["alg:ml-dsa-65"] -> allow`), in: sign, reason: "default"},
		"alg of a hybrid":              {text: rules(``, `"require_tags_all":["alg:ed25519"] -> allow`), in: with(func(i *Input) { i.Alg = "ed25519+ml-dsa-65" }), reason: "default"},
		"purpose":                      {text: rules(``, `"require_tags_all":["purpose:release"] -> allow`), in: sign, allow: true, reason: "rule r1"},
		"purpose, case does not count": {text: rules(``, `"require_tags_all":["Purpose:RELEASE"] -> deny`, ` -> allow`), in: with(func(i *Input) { i.Purpose = "Release" }), reason: "rule r1"},
		"purpose with a colon":         {text: rules(``, `"require_tags_all":["purpose:node:alpha"] -> allow`), in: with(func(i *Input) { i.Purpose = "node:alpha" }), allow: true, reason: "rule r1"},
		"purpose is no prefix":         {text: rules(``, `"require_tags_all":["purpose:node"] -> allow`), in: with(func(i *Input) { i.Purpose = "node:alpha" }), reason: "default"},
		"no purpose":                   {text: rules(``, `"require_tags_all":["purpose:release"] -> allow`), in: with(func(i *Input) { i.Purpose = "" }), reason: "default"},
		"attested":                     {text: rules(``, `"require_tags_all":["attested"] -> allow`), in: with(func(i *Input) { i.Attested = true }), allow: true, reason: "rule r1"},
		"not attested":                 {text: rules(``, `"require_tags_all":["attested"] -> allow`), in: sign, reason: "default"},
		"all tags, one missing":        {text: rules(``, `"require_tags_all":["alg:ed25519","purpose:release","attested"] -> allow`), in: sign, reason: "default"},
		"reason":                       {text: `{"version":1,"rules":[{"id":"a","when":{},"action":"deny","reason":"closed"}]}`, in: sign, reason: "closed"},
	} {
		b := mustBundle(t, c.text)
		if d := b.decide(&c.in, c.region); d.Allow != c.allow || d.Reason != c.reason || d.Mode != alg.ModeOr || d.AllowSignFallback || d.check() != nil {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

//
func TestBundleObligations(t *testing.T) {
	t.Parallel()
	base := Decision{Allow: true, Mode: alg.ModeOr, LegacyGrace: true, Reason: "rule r1"}
	with := func(f func(*Decision)) Decision { d := base; f(&d); return d }
	for text, want := range map[string]Decision{
		`{"kind":"kms.hybrid","params":{"mode":"and","produce":"true"}}`:                                       with(func(d *Decision) { d.Mode, d.ProduceHybrid, d.Enforced = alg.ModeAnd, true, true }),
		`{"kind":"kms.hybrid","params":{"mode":"pq_only"}}`:                                                    with(func(d *Decision) { d.Mode, d.Enforced = alg.ModePQOnly, true }),
		`{"kind":"kms.hybrid","params":{"produce":"true"}}`:                                                    with(func(d *Decision) { d.ProduceHybrid, d.Enforced = true, true }),
		`{"kind":"kms.hybrid","params":{"mode":"or","produce":"false"}}`:                                       base,
		`{"kind":"kms.limits","params":{"rps":"50","burst":"100","max_bytes":"4096"}}`:                         with(func(d *Decision) { d.Limits = Limits{50, 100, 4096} }),
		`{"kind":"kms.limits","params":{"max_bytes":"1048576"}}`:                                               with(func(d *Decision) { d.Limits = Limits{MaxBytes: 1 << 20} }),
		`{"kind":"kms.attest","params":{"require":"true"}}`:                                                    with(func(d *Decision) { d.AttestRequire = true }),
		`{"kind":"kms.attest","params":{"require":"true","fail_open":"true"}}`:                                 with(func(d *Decision) { d.AttestRequire, d.FailOpen = true, true }),
		`{"kind":"kms.attest","params":{"require":"false","fail_open":"true"}}`:                                base,
		`{"kind":"kms.fallback","params":{"allow":"true"}}`:                                                    with(func(d *Decision) { d.AllowSignFallback = true }),
		`{"kind":"kms.fallback","params":{"allow":"false"}},{"kind":"kms.attest","params":{"require":"true"}}`: with(func(d *Decision) { d.AttestRequire = true }),
	} {
		b := mustBundle(t, rules(``, ` -> allow `+text))
		got := b.decide(&Input{Method: "KMS:SIGN"}, "")
		got.Version = ""
		if got != want {
			t.Errorf("%s: %+v, want %+v", text, got, want)
		}
	}
}

// what is not wholly understood is not loaded, and the error does
// not repeat it.
func TestBundleRefuses(t *testing.T) {
	t.Parallel()
	obliged := func(o string) string { return rules(``, `"method":"KMS:SIGN" -> allow `+o) }
	for name, text := range map[string]string{
		"nothing": ``, "no JSON": `canary`, "null": `null`, "array": `[]`, "two": `{"version":1}{"version":1}`,
		"torn":                   `{"version":1,"rules":[{"id":"canary","when":{},"action":"al`,
		"no version":             `{"rules":[]}`,
		"version 0":              `{"version":0}`,
		"version of no number":   `{"version":"1"}`,
		"version too large":      `{"version":4294967296}`,
		"unknown member":         `{"version":1,"canary":1}`,
		"member in another case": `{"version":1,"Rules":[]}`,
		"member twice":           `{"version":1,"version":1}`,
		"rules null":             `{"version":1,"rules":null}`,
		"no id":                  `{"version":1,"rules":[{"when":{},"action":"allow"}]}`,
		"blank id":               `{"version":1,"rules":[{"id":" ","when":{},"action":"allow"}]}`,
		"id twice":               `{"version":1,"rules":[{"id":"a","when":{},"action":"allow"},{"id":"a","when":{},"action":"deny"}]}`,
		"no when":                `{"version":1,"rules":[{"id":"a","action":"allow"}]}`,
		"no action":              `{"version":1,"rules":[{"id":"a","when":{}}]}`,
		"action in capitals":     `{"version":1,"rules":[{"id":"a","when":{},"action":"Allow"}]}`,
		"default action":         rules(`"default_action":"maybe"`),
		"default body":           rules(`"max_body_bytes":1048577`),
		"rule body":              rules(``, `"max_body_bytes":1048577 -> allow`),
		"rule body negative":     rules(``, `"max_body_bytes":-1 -> allow`),
		"tags null":              rules(``, `"require_tags_all":null -> allow`),
		"tag null":               rules(``, `"require_tags_all":[null] -> allow`),
		"tenant null":            rules(``, `"tenant":null -> allow`),
		"method misspelt":        rules(``, `"method":"KMS:SGIN" -> deny`),
		"method half":            rules(``, `"method":"KMS:*" -> deny`),
		"tag unknown":            rules(``, `"require_tags_all":["canary"] -> deny`),
		"alg unknown":            rules(``, `"require_tags_all":["alg:rot13"] -> deny`),
		"alg alias":              rules(``, `"require_tags_all":["alg:hybrid"] -> deny`),
		"alg empty":              rules(``, `"require_tags_all":["alg:"] -> deny`),
		"two algs":               rules(``, `"require_tags_all":["alg:ed25519","alg:ml-dsa-65"] -> deny`),
		"purpose empty":          rules(``, `"require_tags_all":["purpose:"] -> deny`),
		"two purposes":           rules(``, `"require_tags_all":["purpose:a","purpose:b"] -> deny`),
		"reason of two lines":    `{"version":1,"rules":[{"id":"a","when":{},"action":"deny","reason":"a\nb"}]}`,
		"reason too long":        `{"version":1,"rules":[{"id":"a","when":{},"action":"deny","reason":"` + strings.Repeat("a", 201) + `"}]}`,
		"too deep":               `{"version":1,"meta":` + strings.Repeat(`[`, 9) + strings.Repeat(`]`, 9) + `}`,
		"too many rules":         rules(``, strings.Split(strings.Repeat(` -> deny|`, maxRules)+` -> deny`, "|")...),
		"too large":              `{"version":1}` + strings.Repeat(" ", maxBundle),
		"obligation unknown":     obliged(`{"kind":"canary","params":{"a":"b"}}`),
		"obligation of another":  rules(``, `"method":"GET" -> allow {"kind":"add-header"}`),
		"obligation in capitals": obliged(`{"kind":"KMS.HYBRID","params":{"mode":"and"}}`),
		"obligation twice":       obliged(`{"kind":"kms.hybrid","params":{"mode":"and"}},{"kind":"kms.hybrid","params":{"mode":"or"}}`),
		"no params":              obliged(`{"kind":"kms.hybrid"}`),
		"empty params":           obliged(`{"kind":"kms.attest","params":{}}`),
		"param unknown":          obliged(`{"kind":"kms.hybrid","params":{"mode":"and","prodcue":"true"}}`),
		"param of no text":       obliged(`{"kind":"kms.hybrid","params":{"produce":true}}`),
		"param null":             obliged(`{"kind":"kms.hybrid","params":{"produce":null}}`),
		"mode unknown":           obliged(`{"kind":"kms.hybrid","params":{"mode":"xor"}}`),
		"mode empty":             obliged(`{"kind":"kms.hybrid","params":{"mode":""}}`),
		"flag":                   obliged(`{"kind":"kms.attest","params":{"require":"yes"}}`),
		"flag empty":             obliged(`{"kind":"kms.fallback","params":{"allow":""}}`),
		"rps zero":               obliged(`{"kind":"kms.limits","params":{"rps":"0"}}`),
		"rps negative":           obliged(`{"kind":"kms.limits","params":{"rps":"-1"}}`),
		"rps with a plus":        obliged(`{"kind":"kms.limits","params":{"rps":"+1"}}`),
		"rps with a zero":        obliged(`{"kind":"kms.limits","params":{"rps":"01"}}`),
		"rps of no number":       obliged(`{"kind":"kms.limits","params":{"rps":"1.5"}}`),
		"rps too large":          obliged(`{"kind":"kms.limits","params":{"rps":"1000001"}}`),
		"max_bytes too large":    obliged(`{"kind":"kms.limits","params":{"max_bytes":"1048577"}}`),
		"burst alone":            obliged(`{"kind":"kms.limits","params":{"burst":"1"}}`),
	} {
		b, err := parseBundle([]byte(text))
		if err == nil || b != nil {
			t.Errorf("%s: taken", name)
		} else if strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

//
func TestDecodeDepth(t *testing.T) {
	t.Parallel()
	for depth, want := range map[int]error{maxDepth: nil, maxDepth + 1: errDepth, 100_000: errDepth} {
		var v any
		if err := decode([]byte(strings.Repeat("[", depth)+strings.Repeat("]", depth)), &v); !errors.Is(err, want) || want == nil && err != nil {
			t.Errorf("depth %d: %v", depth, err)
		}
	}
}

// The version names the text, whatever number its writer gave it.
func TestBundleVersion(t *testing.T) {
	t.Parallel()
	a, b := mustBundle(t, `{"version":7}`), mustBundle(t, `{"version":7} `)
	if !strings.HasPrefix(a.version, "7@") || a.version == b.version || !name(a.version) {
		t.Errorf("%s and %s", a.version, b.version)
	}
}

// The bundle shown in the specification is one that loads.
func TestBundleOfTheSpecification(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/spec/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?s)```json bundle\n(.*?)```").FindSubmatch(page)
	if m == nil {
		t.Fatal("docs/spec/policy.md shows no bundle")
	}
	b := mustBundle(t, string(m[1]))
	for _, c := range []struct {
		in    Input
		allow bool
		mode  alg.Mode
	}{
		{Input{Tenant: "acme", Purpose: "release", Method: "KMS:SIGN", Alg: "ed25519+ml-dsa-65", BodyBytes: 300}, true, alg.ModeAnd},
		{Input{Tenant: "acme", Purpose: "release", Method: "KMS:SIGN", Alg: "ed25519"}, false, alg.ModeOr},
		{Input{Tenant: "beta", Purpose: "logs", Method: "KMS:SIGN", Alg: "ed25519"}, true, alg.ModeOr},
		{Input{Tenant: "beta", Purpose: "logs", Method: "KMS:VERIFY", Alg: "ed25519"}, true, alg.ModeOr},
		{Input{Tenant: "beta", Purpose: "logs", Method: "KMS:DESTROY", Alg: "ed25519"}, false, alg.ModeOr},
	} {
		if d := b.decide(&c.in, ""); d.Allow != c.allow || d.Mode != c.mode {
			t.Errorf("%+v: %+v", c.in, d)
		}
	}
}

//
func FuzzParseBundle(f *testing.F) {
	f.Add([]byte(rules(`"default_action":"allow","max_body_bytes":10`, `"method":"KMS:SIGN","tenant":"acme","region":"EU","max_body_bytes":9,"require_tags_all":["alg:ed25519","purpose:p","attested"] -> allow {"kind":"kms.hybrid","params":{"mode":"and","produce":"true"}},{"kind":"kms.limits","params":{"rps":"5","burst":"6","max_bytes":"7"}},{"kind":"kms.attest","params":{"require":"true","fail_open":"true"}},{"kind":"kms.fallback","params":{"allow":"true"}}`)))
	f.Add([]byte(rules(``, ` -> deny`)))
	f.Fuzz(func(t *testing.T, text []byte) {
		b, err := parseBundle(text)
		if err != nil {
			return
		}
		for _, method := range methods {
			for _, a := range []string{"ed25519", ""} {
				in := Input{Tenant: "acme", Purpose: "p", Method: method, Alg: a, Attested: a == "", BodyBytes: 5}
				if d := b.decide(&in, "EU"); d.check() != nil || d.Version == "" {
					t.Fatalf("%+v", d)
				}
			}
		}
	})
}
