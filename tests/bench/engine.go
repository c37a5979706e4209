package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/config"
)

// A pair is one operation of the engine and the bare primitive that does its
// work. The two take turns, so that both meet the same conditions.
type pair struct {
	op, alg string
	share   int // runs one operation for each so many of the others; 0 is 1
	// primitive prepares the primitive alone.
	primitive func() (func() error, error)
	// engine prepares the same through the engine.
	engine func(e *engine) (func() error, error)
}

func (p *pair) engineName() string    { return "engine." + p.op + "." + p.alg + ".memory" }
func (p *pair) primitiveName() string { return "primitive." + p.op + "." + p.alg }

// pairs is every pair there is.
func pairs() []*pair {
	var all []*pair
	for _, s := range signatures {
		all = append(all,
			&pair{op: "sign", alg: s.name, primitive: s.signer, engine: func(e *engine) (func() error, error) { return e.signer(s.alg) }},
			&pair{op: "verify", alg: s.name, primitive: s.verifier, engine: func(e *engine) (func() error, error) { return e.verifier(s.alg) }},
		)
	}
	for _, w := range wrappings {
		all = append(all,
			&pair{op: "wrap", alg: w.name, primitive: w.wrapper, engine: func(e *engine) (func() error, error) { return e.wrapper(w.alg) }},
			&pair{op: "unwrap", alg: w.name, primitive: w.unwrapper, engine: func(e *engine) (func() error, error) { return e.unwrapper(w.alg) }},
		)
	}
	return append(all, &pair{op: "derive", alg: "hkdf-sha256", share: 4, primitive: derivation, engine: (*engine).deriver})
}

// engine is an engine in memory, with one session.
type engine struct {
	kms     *core.KMS
	session *core.Session
}

func openEngine() (*engine, error) {
	cfg := config.Default()
	cfg.Backend = config.BackendInmem
	k, err := core.Open(context.Background(), cfg, core.Options{})
	if err != nil {
		return nil, err
	}
	e := &engine{kms: k}
	token, err := mintAll(k.TokenKeys())
	if err == nil {
		e.session, err = k.OpenSession(token)
	}
	if err != nil {
		return nil, errors.Join(err, k.Close())
	}
	return e, nil
}

// do performs one request and returns the response.
func do[Resp any](e *engine, verb string, req api.Request) (*Resp, error) {
	v, ok := core.VerbNamed(verb)
	if !ok {
		return nil, fmt.Errorf("there is no verb %s", verb)
	}
	out, err := e.kms.Do(context.Background(), e.session, v, req)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", verb, err)
	}
	return out.(*Resp), nil
}

// repeat returns a function that makes one request, the same each time.
func repeat[Resp any](e *engine, verb string, req api.Request) func() error {
	return func() error {
		_, err := do[Resp](e, verb, req)
		return err
	}
}

func (e *engine) create(alg string) (string, error) {
	key, err := do[api.CreateResponse](e, "create", &api.CreateRequest{
		OpID: uuid.NewString(), Tenant: e.session.Tenant(), Purpose: "bench", Alg: alg,
	})
	if err != nil {
		return "", err
	}
	return key.KID, nil
}

// digest is that of every payload.
var digest = strings.Repeat("0", 64)

func (e *engine) signer(alg string) (func() error, error) {
	kid, err := e.create(alg)
	return repeat[api.SignResponse](e, "sign", &api.SignRequest{KID: kid, PayloadB3: digest}), err
}

func (e *engine) verifier(alg string) (func() error, error) {
	kid, err := e.create(alg)
	if err != nil {
		return nil, err
	}
	signed, err := do[api.SignResponse](e, "sign", &api.SignRequest{KID: kid, PayloadB3: digest})
	if err != nil {
		return nil, err
	}
	req := &api.VerifyRequest{PayloadB3: digest, Sigs: signed.Sigs}
	return func() error {
		answer, err := do[api.VerifyResponse](e, "verify", req)
		if err == nil && !answer.OK {
			err = errors.New("verify: " + answer.Details.Reason)
		}
		return err
	}, nil
}

func (e *engine) wrapper(alg string) (func() error, error) {
	kid, err := e.create(alg)
	return repeat[api.WrapResponse](e, "wrap", &api.WrapRequest{KID: kid, PlaintextKeyB64: api.FormatBase64(dataKey)}), err
}

func (e *engine) unwrapper(alg string) (func() error, error) {
	kid, err := e.create(alg)
	if err != nil {
		return nil, err
	}
	wrapped, err := do[api.WrapResponse](e, "wrap", &api.WrapRequest{KID: kid, PlaintextKeyB64: api.FormatBase64(dataKey)})
	if err != nil {
		return nil, err
	}
	return repeat[api.UnwrapResponse](e, "unwrap", &api.UnwrapRequest{KID: kid, WrappedB64: wrapped.WrappedB64}), nil
}

// deriver derives another child each time: one that is there already would
// only be looked up.
func (e *engine) deriver() (func() error, error) {
	kid, err := e.create("hkdf-sha256")
	n := 0
	return func() error {
		n++
		_, err := do[api.DeriveResponse](e, "derive", &api.DeriveRequest{
			OpID: uuid.NewString(), KID: kid, Context: "bench-" + strconv.Itoa(n), Alg: "ed25519",
		})
		return err
	}, err
}

// measureEngine measures the pairs that are wanted, each engine's operation
// beside its primitive.
func measureEngine(samples map[string][]time.Duration, wanted func(string) bool, n int) error {
	var e *engine
	for _, p := range pairs() {
		if !wanted(p.engineName()) && !wanted(p.primitiveName()) {
			continue
		}
		if e == nil {
			var err error
			if e, err = openEngine(); err != nil {
				return err
			}
			defer e.kms.Close()
		}
		if err := p.measure(samples, e, n/max(p.share, 1)); err != nil {
			return fmt.Errorf("%s: %w", p.engineName(), err)
		}
	}
	return nil
}

func (p *pair) measure(samples map[string][]time.Duration, e *engine, n int) error {
	bare, err := p.primitive()
	if err != nil {
		return err
	}
	whole, err := p.engine(e)
	if err != nil {
		return err
	}
	for i := range n + warmUp {
		start := time.Now()
		if err := bare(); err != nil {
			return err
		}
		middle := time.Now()
		if err := whole(); err != nil {
			return err
		}
		if i < warmUp {
			continue
		}
		samples[p.primitiveName()] = append(samples[p.primitiveName()], middle.Sub(start))
		samples[p.engineName()] = append(samples[p.engineName()], time.Since(middle))
	}
	return nil
}

// warmUp is how many rounds come before those that count: they fill caches.
const warmUp = 10
