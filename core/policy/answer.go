package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/rustyonions/ron-kms/core/alg"
)

// The question and the answer of Open Policy Agent's data API.
type (
	question struct {
		Input inputText `json:"input"`
	}
	inputText struct {
		Tenant    string `json:"tenant"`
		Purpose   string `json:"purpose,omitzero"`
		Verb      string `json:"verb"`
		Method    string `json:"method"`
		Alg       string `json:"alg,omitzero"`
		KID       string `json:"kid,omitzero"`
		Actor     string `json:"actor,omitzero"`
		Attested  bool   `json:"attested"`
		BodyBytes int64  `json:"body_bytes,omitzero"`
		NowMS     int64  `json:"now_ms"`
	}

	// envelope is what the data API puts around a result. Of other members,
	// which the API may get any time, nothing is read.
	envelope struct {
		Result     jsontext.Value  `json:"result"`
		DecisionID string          `json:"decision_id"`
		Provenance *provenanceText `json:"provenance"`
	}
	provenanceText struct {
		Bundles map[string]struct {
			Revision string `json:"revision"`
		} `json:"bundles"`
	}

	resultText struct {
		Allow             *bool       `json:"allow"`
		Reason            string      `json:"reason"`
		Mode              *string     `json:"mode"`
		ProduceHybrid     bool        `json:"produce_hybrid"`
		Limits            *limitsText `json:"limits"`
		AttestRequire     bool        `json:"attest_require"`
		FailOpen          bool        `json:"fail_open"`
		AllowSignFallback bool        `json:"allow_sign_fallback"`
		Version           *string     `json:"version"`
		TTLMS             *int64      `json:"ttl_ms"`
	}
	limitsText struct {
		RPS      *int   `json:"rps"`
		Burst    *int   `json:"burst"`
		MaxBytes *int64 `json:"max_bytes"`
	}
)

// encode is the body that asks for a decision.
func (in Input) encode() ([]byte, error) {
	return json.Marshal(question{inputText{
		Tenant: in.Tenant, Purpose: in.Purpose, Verb: in.Verb, Method: in.Method, Alg: in.Alg, KID: in.KID, Actor: in.ActorID,
		Attested: in.Attested, BodyBytes: in.BodyBytes, NowMS: in.Now.UnixMilli(),
	}})
}

// parseAnswer reads the body of an answer. No result is [ErrUndefined]; a
// result with a member that is not known, of a wrong type or out of range is an
// error: it may be the one that forbids something. Errors do not repeat the
// text.
func parseAnswer(body []byte) (Decision, error) {
	var e envelope
	if json.Unmarshal(body, &e) != nil {
		return Decision{}, errors.New("the answer is not that of a data API")
	}
	if len(e.Result) == 0 {
		return Decision{}, ErrUndefined
	}
	var r resultText
	if e.Result.Kind() != '{' {
		return Decision{}, errors.New("the result is not an object")
	}
	if err := decode(e.Result, &r); err != nil {
		return Decision{}, fmt.Errorf("the result: %w", err)
	}
	d, err := r.decision()
	if err != nil {
		return Decision{}, fmt.Errorf("the result: %w", err)
	}
	if d.Version == "" {
		d.Version = e.Provenance.revision()
	}
	if name(e.DecisionID) {
		d.ID = e.DecisionID
	}
	return d, nil
}

func (r *resultText) decision() (Decision, error) {
	if r.Allow == nil {
		return Decision{}, errors.New("allow is missing")
	}
	d := Decision{
		Allow: *r.Allow, Reason: r.Reason, Mode: alg.ModeOr, ProduceHybrid: r.ProduceHybrid, LegacyGrace: true,
		AttestRequire: r.AttestRequire, FailOpen: r.FailOpen && r.AttestRequire, AllowSignFallback: r.AllowSignFallback,
	}
	if r.Mode != nil {
		mode, err := alg.ParseMode(*r.Mode)
		if err != nil {
			return Decision{}, errors.New("mode is or, and, or pq_only")
		}
		d.Mode = mode
	}
	d.Enforced = d.Mode != alg.ModeOr || d.ProduceHybrid
	if r.Limits != nil {
		l := r.Limits
		// 0 would be no limit. Who means that nothing may be done says allow=false.
		if zero(l.RPS) || zero(l.Burst) || zero(l.MaxBytes) {
			return Decision{}, errors.New("a limit is 1 or more")
		}
		d.Limits = Limits{RPS: value(l.RPS), Burst: value(l.Burst), MaxBytes: value(l.MaxBytes)}
	}
	if r.Version != nil {
		if *r.Version == "" {
			return Decision{}, errors.New("version is empty")
		}
		d.Version = *r.Version
	}
	if r.TTLMS != nil {
		if *r.TTLMS < 1 || *r.TTLMS > int64(longestTTL/time.Millisecond) {
			return Decision{}, fmt.Errorf("ttl_ms is 1 to %d", longestTTL/time.Millisecond)
		}
		d.TTL = time.Duration(*r.TTLMS) * time.Millisecond
	}
	return d, d.check()
}

// longestTTL is the largest ttl_ms. The engine uses no decision for as long.
const longestTTL = 24 * time.Hour

func zero[T int | int64](p *T) bool { return p != nil && *p == 0 }

func value[T int | int64](p *T) T {
	if p == nil {
		return 0
	}
	return *p
}

// revision names the bundles that a decision was made by, "" if they have no
// revision that could be a version.
func (p *provenanceText) revision() string {
	if p == nil {
		return ""
	}
	var all []string
	for bundle, b := range p.Bundles {
		if b.Revision == "" {
			continue
		}
		if len(p.Bundles) == 1 {
			all = append(all, b.Revision)
		} else {
			all = append(all, bundle+"="+b.Revision)
		}
	}
	slices.Sort(all)
	if text := strings.Join(all, ";"); name(text) {
		return text
	}
	return ""
}
