package core

import (
	"context"
	"crypto/sha256"
	"errors"
	"strings"
	"time"

	"lukechampine.com/blake3"

	"github.com/rustyonions/ron-kms/audit"
	"github.com/rustyonions/ron-kms/core/admit"
	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/capability"
	"github.com/rustyonions/ron-kms/core/policy"
)

// Do performs one request for a session and returns the verb's response. It is
// the only way to a key. Its steps cannot be skipped or reordered: each takes
// what only the one before it returns.
//
// When Do returns a result, the operation's audit record is durable (for
// verify, get and list: accepted for writing). Every error is an *api.Error.
// A request is not changed and may be used again.
func (k *KMS) Do(ctx context.Context, s *Session, verb *Verb, req api.Request) (any, error) {
	// Close waits for running calls; once it waits, no call begins.
	if !k.calls.TryRLock() {
		return nil, api.NewError(api.ReasonClosed, "the KMS is shutting down")
	}
	defer k.calls.RUnlock()
	ctx, cancel := context.WithTimeout(ctx, k.opTimeout)
	defer cancel()
	c := &call{verb: verb, session: s, req: req, start: k.clock()}
	defer func() { c.ticket.Release() }()
	resp, err := k.do(ctx, c)
	if err != nil {
		return nil, k.refuse(c, err)
	}
	return resp, nil
}

func (k *KMS) do(ctx context.Context, c *call) (any, error) {
	cleared, err := k.authorize(c)
	if err != nil {
		return nil, err
	}
	admitted, err := k.admit(ctx, cleared)
	if err != nil {
		return nil, err
	}
	decided, err := k.decide(ctx, admitted)
	if err != nil {
		return nil, err
	}
	executed, err := k.execute(ctx, decided)
	if err != nil {
		return nil, err
	}
	recorded, err := k.record(ctx, executed)
	if err != nil {
		return nil, err
	}
	return k.reply(recorded), nil
}

// call is a request that nothing is known about yet.
type call struct {
	verb    *Verb
	session *Session
	req     api.Request
	start   time.Time

	// Filled as the call goes on, for its record.
	target api.Target
	permit capability.Permit
	hash   [32]byte // of the request, once computed
	intent uint64   // audit index of the intent, +1; 0 if there is none
	ticket *admit.Ticket
}

type (
	cleared  struct{ *call }
	admitted struct{ *call }
	decided  struct {
		*call
		rules map[api.KID]policy.Answer // by tenant, purpose and algorithm
	}
	executed struct {
		*call
		outcome
	}
	recorded struct {
		*call
		response any
	}
)

// outcome is what a verb did.
type outcome struct {
	response any
	entries  []entry // one record each
	// receipts puts the receipts of the entries into the response. If nil, the
	// records are handed over without waiting.
	receipts func([]*api.Receipt)
}

// entry is one operation on one key, for the audit log.
type entry struct {
	kid       api.KID  // key and version; zero if none is concerned
	result    string   // "ok" if empty
	class     string   // attestation class, if a private key was used
	inputHash [32]byte // of the request if zero
	detail    string
}

// resultUsed is the result of the record about a further key version that an
// operation used, so that counting "ok" counts operations.
const resultUsed = "used"

// rule is the policy for one key; keys and requests may tighten it.
func (d *decided) rule(kid api.KID) policy.Decision {
	return d.rules[api.KID{Tenant: kid.Tenant, Purpose: kid.Purpose, Alg: kid.Alg}].Decision
}

// authorize clears the capability for what the request names, before anything
// is looked up: a caller without the right learns nothing from the answer.
func (k *KMS) authorize(c *call) (cleared, error) {
	if c.session == nil || c.session.grant == nil || c.session.kms != k {
		return cleared{}, api.NewError(api.ReasonTokenMissing, "no session")
	}
	if c.session.closed.Load() {
		return cleared{}, api.NewError(api.ReasonHandle, "the session is closed")
	}
	target, err := c.req.Target()
	if err != nil {
		return cleared{}, err
	}
	c.target = target
	r := capability.Request{Scopes: k.scopes(c.verb), Tenant: target.Tenant, Purpose: target.Purpose, Verb: c.verb.Name, Now: c.start}
	if err := describe(&r, c.session.grant, c.req); err != nil {
		return cleared{}, err
	}
	switch {
	case len(target.Keys) > 0:
		return k.authorizeSet(c, r)
	case !target.Key.IsZero():
		r.KID = target.Key.String()
	case c.verb.Name == "create":
		r.KID = newKeyPrefix(target, c.req.(*api.CreateRequest).Alg)
	}
	permit, err := c.session.grant.Clear(r)
	if err != nil {
		return cleared{}, refusal(err, c.verb)
	}
	if err := reserved(c.verb, target.Tenant); err != nil {
		return cleared{}, err
	}
	c.permit = permit
	if derive, ok := c.req.(*api.DeriveRequest); ok {
		// The child is a new key: who may not make it may not derive it.
		r.KID = newKeyPrefix(target, derive.Alg)
		if _, err := c.session.grant.Clear(r); err != nil {
			return cleared{}, refusal(err, c.verb)
		}
	}
	return cleared{c}, nil
}

// describe adds to r what the caveats of a grant ask about the request itself.
func describe(r *capability.Request, g *capability.Grant, req api.Request) error {
	if g.NeedsBody() {
		b, err := api.Encode(req)
		if err != nil {
			return err
		}
		r.BodyBytes = int64(len(b))
	}
	if g.NeedsPayload() {
		switch q := req.(type) {
		case *api.SignRequest:
			r.Payload = itemHash(q.PayloadB3, q.PayloadB64)
		case *api.VerifyRequest:
			r.Payload = itemHash(q.PayloadB3, q.PayloadB64)
		}
	}
	return nil
}

// newKeyPrefix is what is known of the kid of a key to be made.
func newKeyPrefix(target api.Target, algName string) string {
	prefix := target.Tenant + "/" + target.Purpose
	if a, ok := alg.Lookup(algName); ok {
		prefix += "/" + a.Name()
	}
	return prefix
}

// scopes are the scopes of which any one suffices for a verb. The first is the
// verb's own; the settings may leave no other.
func (k *KMS) scopes(v *Verb) []string {
	if v.Name != "export" && k.cfg.ScopeStrict || verifies(v) && k.cfg.VerifyScopeEnforce {
		return v.Scopes[:1]
	}
	return v.Scopes
}

// authorizeSet clears a request about several keys once for each.
func (k *KMS) authorizeSet(c *call, r capability.Request) (cleared, error) {
	for _, kid := range c.target.Keys {
		r.KID, r.Purpose = kid.String(), kid.Purpose
		permit, err := c.session.grant.Clear(r)
		if err != nil {
			c.permit = capability.Permit{}
			return cleared{}, refusal(err, c.verb)
		}
		c.permit = permit
	}
	return cleared{c}, nil
}

// refusal turns an error of package capability into one of the table. Only the
// scope is named: what else a token may do is not the caller's to learn.
func refusal(err error, verb *Verb) error {
	var r *capability.Refusal
	if !errors.As(err, &r) {
		return api.WrapError(api.ReasonInternal, "the capability could not be checked", err)
	}
	e := api.NewError(api.Reason(r.Reason()), "the capability does not allow this")
	switch e.Reason {
	case api.ReasonScope:
		e.Message = "scope '" + verb.Scopes[0] + "' required"
		e.Hint = "attach macaroon with " + verb.Scopes[0]
	case api.ReasonTokenMissing, api.ReasonTokenMalformed, api.ReasonTokenSignature:
		e.Message = "the capability token is not valid"
	case api.ReasonTokenExpired:
		e.Message = "the capability token has expired"
	case api.ReasonTokenNotYet:
		e.Message = "the capability token is not valid yet"
	}
	return e
}

// admit refuses what cannot be done in time, before any cryptography.
func (k *KMS) admit(ctx context.Context, c cleared) (admitted, error) {
	if err := ctx.Err(); err != nil {
		return admitted{}, timeout(err)
	}
	if k.closed.Load() {
		return admitted{}, api.NewError(api.ReasonClosed, "the KMS is shutting down")
	}
	// Verify and reads go on without a log or a healthy store; whatever uses
	// or changes a private key does not.
	if c.verb.Mutates || c.verb.Private {
		if err := k.writable(); err != nil {
			return admitted{}, err
		}
		if err := k.ensureTenantKey(ctx, c.session.Tenant()); err != nil {
			return admitted{}, err
		}
	}
	ticket, err := k.limits.Admit(ctx, admit.Request{
		Tenant: c.target.Tenant, Cost: k.costs.Of(c.verb.kind(), c.familyName()), Items: items(c.req), Lane: c.verb.lane(),
		Rates: rates(c.permit),
	})
	if err != nil {
		return admitted{}, limited(err)
	}
	c.ticket = ticket
	return admitted(c), nil
}

// limited turns an error of package admit into one of the table.
func limited(err error) error {
	var r *admit.Rejected
	if !errors.As(err, &r) {
		return err
	}
	e := api.WrapError(api.ReasonBackpressure, "too many requests at once", err)
	e.RetryAfter = r.RetryAfter
	return e
}

// rates are the rates that a token's caveats set.
func rates(p capability.Permit) []admit.Rate {
	var out []admit.Rate
	for _, r := range p.Rates() {
		out = append(out, admit.Rate(r))
	}
	return out
}

// items is how many operations a request stands for, at least one.
func items(req api.Request) int {
	switch r := req.(type) {
	case *api.SignRequest:
		return max(1, len(r.KIDSet))
	case *api.VerifyRequest:
		return max(1, len(r.Sigs))
	case *api.SignBatchRequest:
		return max(1, len(r.Items))
	case *api.VerifyBatchRequest:
		n := 0
		for _, item := range r.Items {
			n += max(1, len(item.Sigs))
		}
		return max(1, n)
	}
	return 1
}

// decide asks the policy about every tenant, purpose and algorithm concerned.
// All must be allowed.
func (k *KMS) decide(ctx context.Context, c admitted) (decided, error) {
	d := decided{call: c.call, rules: make(map[api.KID]policy.Answer)}
	kind := policy.Read
	switch {
	case c.verb.Private || c.verb.Mutates:
		kind = policy.Private
	case verifies(c.verb):
		kind = policy.Verify
	}
	body := int64(0)
	if b, err := api.Encode(c.req); err == nil {
		body = int64(len(b))
	}
	for _, kid := range c.concerned() {
		about := api.KID{Tenant: kid.Tenant, Purpose: kid.Purpose, Alg: kid.Alg}
		if _, asked := d.rules[about]; asked {
			continue
		}
		a, err := k.policy.Decide(ctx, policy.Input{
			Tenant: kid.Tenant, Purpose: kid.Purpose, Alg: kid.Alg, Verb: c.verb.Name,
			Method: strings.ToUpper(c.verb.Scopes[0]), ActorID: c.session.grant.ID(), BodyBytes: body, Now: c.start,
		}, kind)
		if err == nil {
			err = k.honour(ctx, kind, about, a.Decision)
		}
		if err != nil {
			return decided{}, err
		}
		d.rules[about] = a
	}
	return d, nil
}

// honour applies what a decision demands besides its mode. What cannot be
// honoured is refused.
func (k *KMS) honour(ctx context.Context, kind policy.Kind, about api.KID, d policy.Decision) error {
	if kind == policy.Private && d.AttestRequire && !d.FailOpen {
		return api.NewError(api.ReasonAttestation, "policy demands a custodian that can attest, and this one cannot")
	}
	if d.Limits.RPS <= 0 {
		return nil
	}
	ticket, err := k.limits.Admit(ctx, admit.Request{Tenant: about.Tenant, Cost: 1, Items: 1, Lane: admit.LaneNone, Rates: []admit.Rate{{
		Key: sha256.Sum256([]byte("policy\x00" + about.Tenant + "\x00" + about.Purpose + "\x00" + about.Alg)), PerSecond: d.Limits.RPS, Burst: max(d.Limits.Burst, d.Limits.RPS),
	}}})
	ticket.Release()
	if err != nil {
		return limited(err)
	}
	return nil
}

// concerned are the keys that a call is about, those that it would make
// included, as far as their names are known.
func (c *call) concerned() []api.KID {
	made := func(name string) api.KID {
		if a, ok := alg.Lookup(name); ok {
			name = a.Name()
		}
		return api.KID{Tenant: c.target.Tenant, Purpose: c.target.Purpose, Alg: name}
	}
	switch req := c.req.(type) {
	case *api.ExportRequest:
		return nil // its answer is fixed
	case *api.CreateRequest:
		return []api.KID{made(req.Alg)}
	case *api.ListRequest:
		return []api.KID{made("")}
	case *api.DeriveRequest:
		return []api.KID{c.target.Key, made(req.Alg)}
	}
	if len(c.target.Keys) > 0 {
		return c.target.Keys
	}
	return []api.KID{c.target.Key}
}

// execute runs the verb: the one place from which a backend is called. It waits for
// its turn among the tenants, and gives the worker back before the record is
// waited for.
func (k *KMS) execute(ctx context.Context, d decided) (executed, error) {
	if _, err := d.ticket.Begin(ctx); err != nil {
		return executed{}, limited(err)
	}
	out, err := d.verb.run(k, ctx, &d)
	d.ticket.End()
	if err != nil {
		return executed{}, err
	}
	return executed{d.call, out}, nil
}

// record writes the operation's audit records, all in one commit. Where the
// response carries receipts, they are durable before the result goes on; else
// they are handed over without waiting, so that verify never depends on the log.
func (k *KMS) record(ctx context.Context, e executed) (recorded, error) {
	if e.receipts == nil {
		for _, entry := range e.entries {
			k.offerEntry(e.call, entry)
		}
		return recorded{e.call, e.response}, nil
	}
	records := make([]*audit.Record, len(e.entries))
	for i, entry := range e.entries {
		records[i] = k.newRecord(e.call, audit.KindOperation, entry)
	}
	// The effect exists already: a caller that gave up must not leave it
	// without a record.
	receipts, err := k.append(context.WithoutCancel(ctx), records...)
	if err != nil {
		return recorded{}, err
	}
	e.receipts(receipts)
	return recorded{e.call, e.response}, nil
}

func (k *KMS) reply(r recorded) any {
	k.metrics.Observe(r.verb.Name, r.call.familyName(), "ok", k.clock().Sub(r.start))
	return r.response
}

// refuse records and counts a call that did not succeed, and returns its
// error in the table's terms.
func (k *KMS) refuse(c *call, err error) error {
	e := api.AsError(err)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		e = timeout(err)
	}
	k.metrics.Reject.WithLabelValues(string(e.Reason)).Inc()
	k.metrics.Ops.WithLabelValues(c.verb.Name, c.familyName(), string(e.Code)).Inc()
	if c.session == nil || c.session.grant == nil || c.target.Tenant == "" {
		return e // syntax: nothing is known about what it was about
	}
	if e.Reason == api.ReasonBackpressure {
		k.throttle(c.target.Tenant)
		return e
	}
	kind := audit.KindOperation
	if e.Status == api.StatusDenied || e.Status == api.StatusUnauthenticated {
		kind = audit.KindDenied
	}
	about := entry{kid: c.target.Key, result: string(e.Code)}
	if !about.kid.IsZero() && (!c.permit.Valid() || k.keys.get(about.kid) == nil) {
		// Neither a stranger to the tenant nor a made-up kid may move or make
		// a key's counter: the name stays, outside the sequence.
		about.kid, about.detail = api.KID{}, about.kid.String()
	}
	if len(c.target.Keys) > 0 {
		about.detail = strings.Join(names(c.target.Keys), " ")
	}
	if c.intent == 0 {
		k.offer(k.newRecord(c, kind, about))
	}
	// An intent whose commit failed has no known end: the next open settles it.
	return e
}

// newRecord fills in what every record of a call has.
func (k *KMS) newRecord(c *call, kind audit.Kind, e entry) *audit.Record {
	r := &audit.Record{
		Kind: kind, Time: k.clock(), Op: c.verb.Name, OpID: c.target.OpID,
		Tenant: c.target.Tenant, Purpose: c.target.Purpose,
		InputHash: e.inputHash, Result: e.result, Actor: c.session.grant.ID(),
		Attestation: e.class, Ref: c.intent,
	}
	if e.detail != "" {
		r.Detail = []byte(e.detail)
	}
	if e.result == resultUsed {
		r.Ref = 0 // the intent has one answer, and this is not it
	}
	if r.Result == "" && kind == audit.KindOperation {
		r.Result = "ok"
	}
	if r.InputHash == [32]byte{} {
		if c.hash == [32]byte{} {
			c.hash = inputHash(c.req)
		}
		r.InputHash = c.hash
	}
	if !e.kid.IsZero() {
		r.Key, r.KeyVersion, r.Alg, r.Purpose = e.kid.Base().String(), e.kid.Version, e.kid.Alg, e.kid.Purpose
	}
	k.protect(r, c.session.grant.Tenant())
	return r
}

// inputHash says what was asked without repeating it: the payload's own digest
// where there is one, else the hash of the canonical request. Requests that
// hold a data key are hashed without it: a hash of something guessable tells
// it.
func inputHash(req api.Request) [32]byte {
	switch r := req.(type) {
	case *api.SignRequest:
		return itemHash(r.PayloadB3, r.PayloadB64)
	case *api.VerifyRequest:
		return itemHash(r.PayloadB3, r.PayloadB64)
	case *api.WrapRequest:
		public := *r
		public.PlaintextKeyB64 = ""
		return requestHash(&public)
	}
	return requestHash(req)
}

// itemHash is the digest of a payload, whichever form it came in.
func itemHash(b3, raw string) [32]byte {
	if b3 != "" {
		d, _ := api.ParseDigest(b3) // zero if it is none
		return d
	}
	b, err := api.ParseBase64(raw)
	if err != nil || raw == "" {
		return [32]byte{}
	}
	return blake3.Sum256(b)
}

// requestHash is SHA-256 over the request's deterministic JSON.
func requestHash(req api.Request) [32]byte {
	b, err := api.Encode(req)
	if err != nil {
		return [32]byte{}
	}
	return sha256.Sum256(b)
}

// familyName is the alg label of the metrics.
func (c *call) familyName() string {
	name := c.target.Key.Alg
	if create, ok := c.req.(*api.CreateRequest); ok {
		name = create.Alg
	}
	if a, ok := alg.Lookup(name); ok {
		return a.Family()
	}
	return "none"
}

func timeout(err error) *api.Error {
	return api.WrapError(api.ReasonTimeout, "the operation did not finish in time", err)
}
