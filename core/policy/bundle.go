package policy

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"lukechampine.com/blake3"

	"github.com/rustyonions/ron-kms/core/alg"
)

const (
	maxBundle = 1 << 20 // bytes of a bundle
	maxRules  = 4096
)

// A bundle is a PolicyBundle of ron-policy, checked and ready to decide. It is
// not changed any more.
type bundle struct {
	version   string // "<version>@<first 12 digits of BLAKE3 of the text>"
	maxBytes  *uint64
	otherwise Decision           // where no rule matches
	exact     map[string][]*rule // by method; each in the order of the file
	all       []*rule            // for any method
}

// rule is one rule: its conditions, all of which must hold, and what follows.
type rule struct {
	tenant, region string // empty is any
	maxBytes       *uint64
	alg, purpose   string // of the tags; empty is any; purpose in lower case
	attested       bool
	decision       Decision
}

// The text of a bundle, as ron-policy has it.
type (
	bundleText struct {
		Version  uint32            `json:"version"`
		Meta     map[string]string `json:"meta"`
		Defaults defaultsText      `json:"defaults"`
		Rules    []ruleText        `json:"rules"`
	}
	defaultsText struct {
		DefaultAction string  `json:"default_action"`
		MaxBodyBytes  *uint64 `json:"max_body_bytes"`
	}
	ruleText struct {
		ID          string           `json:"id"`
		When        *whenText        `json:"when"`
		Action      string           `json:"action"`
		Obligations []obligationText `json:"obligations"`
		Reason      string           `json:"reason"`
	}
	whenText struct {
		Tenant         string   `json:"tenant"`
		Method         string   `json:"method"`
		Region         string   `json:"region"`
		MaxBodyBytes   *uint64  `json:"max_body_bytes"`
		RequireTagsAll []string `json:"require_tags_all"`
	}
	obligationText struct {
		Kind   string            `json:"kind"`
		Params map[string]string `json:"params"`
	}
)

// parseBundle reads a bundle in JSON, wholly or not at all. Beyond what
// ron-policy refuses, it refuses what could not be honoured here: a deny rule
// that never matches, because of a word misspelt, would be a hole.
// docs/spec/policy.md §3
func parseBundle(text []byte) (*bundle, error) {
	if len(text) > maxBundle {
		return nil, errors.New("policy: bundle: it is larger than 1 MiB")
	}
	var t bundleText
	if err := decode(text, &t); err != nil {
		return nil, fmt.Errorf("policy: bundle: %w", err)
	}
	sum := blake3.Sum256(text)
	b := &bundle{
		version:  fmt.Sprintf("%d@%s", t.Version, hex.EncodeToString(sum[:6])),
		maxBytes: t.Defaults.MaxBodyBytes, exact: make(map[string][]*rule),
	}
	switch {
	case t.Version == 0:
		return nil, errors.New("policy: bundle: version must be 1 or more")
	case len(t.Rules) > maxRules:
		return nil, fmt.Errorf("policy: bundle: more than %d rules", maxRules)
	case tooLarge(b.maxBytes):
		return nil, errors.New("policy: bundle: defaults.max_body_bytes is more than 1 MiB")
	}
	b.otherwise = Decision{Mode: alg.ModeOr, LegacyGrace: true, Reason: "default", Version: b.version}
	if t.Defaults.DefaultAction != "" {
		allow, err := parseAction(t.Defaults.DefaultAction)
		if err != nil {
			return nil, fmt.Errorf("policy: bundle: defaults: %w", err)
		}
		b.otherwise.Allow = allow
	}
	seen := make(map[string]bool, len(t.Rules))
	for i, rt := range t.Rules {
		if id := strings.TrimSpace(rt.ID); id == "" || seen[rt.ID] {
			return nil, fmt.Errorf("policy: bundle: rule %d: the id is missing, or another rule has it", i+1)
		}
		seen[rt.ID] = true
		if err := b.add(&rt); err != nil {
			return nil, fmt.Errorf("policy: bundle: rule %d: %w", i+1, err)
		}
	}
	return b, nil
}

func tooLarge(n *uint64) bool { return n != nil && *n > maxBody }

func parseAction(s string) (allow bool, err error) {
	if s != "allow" && s != "deny" {
		return false, errors.New("an action is allow or deny")
	}
	return s == "allow", nil
}

// add checks one rule and files it under its method.
func (b *bundle) add(t *ruleText) error {
	if t.When == nil {
		return errors.New("when is missing")
	}
	allow, err := parseAction(t.Action)
	if err != nil {
		return err
	}
	if tooLarge(t.When.MaxBodyBytes) {
		return errors.New("max_body_bytes is more than 1 MiB")
	}
	if !plain(t.ID) || !plain(t.Reason) {
		return errors.New("id and reason are one line of at most 200 bytes")
	}
	r := &rule{
		tenant: wild(t.When.Tenant), region: wild(t.When.Region), maxBytes: t.When.MaxBodyBytes,
		decision: Decision{Allow: allow, Mode: alg.ModeOr, LegacyGrace: true, Reason: t.Reason, Version: b.version},
	}
	if r.decision.Reason == "" {
		r.decision.Reason = "rule " + t.ID
		if !plain(r.decision.Reason) {
			r.decision.Reason = "rule"
		}
	}
	kinds := make(map[string]bool)
	for _, o := range t.Obligations {
		if kinds[o.Kind] {
			return errors.New("two obligations of one kind")
		}
		kinds[o.Kind] = true
		if err := r.decision.oblige(o); err != nil {
			return err
		}
	}
	method := upper(t.When.Method)
	if ours := method == "" || method == "*" || strings.HasPrefix(method, "KMS:"); !ours {
		return nil // of another service: it never matches here
	}
	if strings.HasPrefix(method, "KMS:") && !slices.Contains(methods, method) {
		return errors.New("there is no such KMS method")
	}
	for _, tag := range t.When.RequireTagsAll {
		if err := r.tag(lower(tag)); err != nil {
			return err
		}
	}
	if wild(method) == "" {
		b.all = append(b.all, r)
	} else {
		b.exact[method] = append(b.exact[method], r)
	}
	return nil
}

// wild is a condition's text, empty if it is that for anything.
func wild(s string) string {
	if s == "*" {
		return ""
	}
	return s
}

// tag adds a condition about a tag.
func (r *rule) tag(tag string) error {
	kind, value, _ := strings.Cut(tag, ":")
	switch {
	case tag == "attested":
		r.attested = true
	case kind == "alg":
		if a, ok := alg.Lookup(value); !ok || a.Name() != value {
			return errors.New("there is no such algorithm")
		}
		if r.alg != "" && r.alg != value {
			return errors.New("no key has two algorithms")
		}
		r.alg = value
	case kind == "purpose" && value != "":
		if r.purpose != "" && r.purpose != value {
			return errors.New("no key has two purposes")
		}
		r.purpose = value
	default:
		return errors.New("a tag is alg:…, purpose:… or attested")
	}
	return nil
}

// oblige adds an obligation to a rule's decision.
func (d *Decision) oblige(o obligationText) error {
	p := params{o.Params, nil}
	if len(o.Params) == 0 {
		p.err = errors.New("params are missing")
	}
	switch o.Kind {
	case "kms.hybrid":
		if mode, ok := p.text("mode"); ok {
			m, err := alg.ParseMode(mode)
			if err != nil {
				return errors.New("kms.hybrid: mode is or, and, or pq_only")
			}
			d.Mode = m
		}
		d.ProduceHybrid = p.flag("produce")
		d.Enforced = d.Mode != alg.ModeOr || d.ProduceHybrid
	case "kms.limits":
		d.Limits = Limits{RPS: p.number("rps", maxRate), Burst: p.number("burst", maxRate), MaxBytes: int64(p.number("max_bytes", maxBody))}
		if d.Limits.check() != nil {
			return errors.New("kms.limits: burst needs rps")
		}
	case "kms.attest":
		d.AttestRequire = p.flag("require")
		d.FailOpen = p.flag("fail_open") && d.AttestRequire
	case "kms.fallback":
		d.AllowSignFallback = p.flag("allow")
	default:
		return errors.New("there is no such obligation here")
	}
	return p.end(o.Kind)
}

// params are the parameters of an obligation; what is asked for is taken out.
type params struct {
	left map[string]string
	err  error
}

func (p *params) text(key string) (string, bool) {
	v, ok := p.left[key]
	delete(p.left, key)
	return v, ok
}

func (p *params) flag(key string) bool {
	v, ok := p.text(key)
	if ok && v != "true" && v != "false" {
		p.err = fmt.Errorf("%s is true or false", key)
	}
	return v == "true"
}

// number reads 1 to limit, in decimal digits and without leading zeros; 0 if
// there is none.
func (p *params) number(key string, limit int) int {
	v, ok := p.text(key)
	if !ok {
		return 0
	}
	n, err := strconv.Atoi(v)
	if err != nil || strconv.Itoa(n) != v || n < 1 || n > limit {
		p.err = fmt.Errorf("%s is 1 to %d", key, limit)
	}
	return n
}

func (p *params) end(kind string) error {
	if p.err == nil && len(p.left) > 0 {
		p.err = errors.New("there is a parameter that it does not have")
	}
	if p.err != nil {
		return fmt.Errorf("%s: %w", kind, p.err)
	}
	return nil
}

// decide gives the decision of the first rule that matches: those of exactly
// the method before those of any, each in the order of the file.
func (b *bundle) decide(in *Input, region string) Decision {
	if b.maxBytes != nil && uint64(max(in.BodyBytes, 0)) > *b.maxBytes {
		return Decision{Mode: alg.ModeOr, LegacyGrace: true, Reason: "body too large (defaults)", Version: b.version}
	}
	for _, rules := range [...][]*rule{b.exact[in.Method], b.all} {
		for _, r := range rules {
			if r.matches(in, region) {
				return r.decision
			}
		}
	}
	return b.otherwise
}

func (r *rule) matches(in *Input, region string) bool {
	return (r.tenant == "" || r.tenant == in.Tenant) &&
		(r.region == "" || r.region == region) &&
		(r.maxBytes == nil || uint64(max(in.BodyBytes, 0)) <= *r.maxBytes) &&
		(r.alg == "" || r.alg == in.Alg) &&
		(r.purpose == "" || r.purpose == lower(in.Purpose)) &&
		(!r.attested || in.Attested)
}

// lower and upper change the letters of ASCII alone, as ron-policy does.
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, s)
}

func upper(s string) string {
	return strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' {
			r -= 'a' - 'A'
		}
		return r
	}, s)
}
